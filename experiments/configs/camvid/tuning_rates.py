"""Learning rates of tuning.py, at 2 bits, by CamVid's validation split.

python -m experiments.compress experiments/configs/camvid/tuning_rates.py \
    --data-dir ../shared/tfds --results experiments/results

Two epochs each, with labels, from calibrated codes and from those of k-means ("plain").
Bits are spread by predicted errors here: quicker than to measure them.

19 runs of two minutes on 2 CPU cores.
"""

import dataclasses

from experiments.configs.camvid._camvid import (
    CALIBRATED,
    DATA,
    PLAIN,
    plain_starts,
    starts,
    tuned,
)
from experiments.configs.coco._coco import predicted
from experiments.training.config import Experiment

RATES = {"float": (1e-4, 3e-4, 1e-3), "plain": (3e-4, 1e-3)}
"""Of the float network, and of plain codes, which lose more."""
OTHERS = (1e-4, 3e-4)


def runs() -> dict[str, Experiment]:
    """METHOD-RATE and plain-METHOD-RATE."""
    own = starts(("float", *CALIBRATED), (2,))
    own |= {f"plain-{name}": run for name, run in plain_starts(PLAIN, (2,)).items()}
    data = dataclasses.replace(DATA, test=None)
    return {
        f"{name.removesuffix('-2')}-{rate:g}": predicted(
            tuned(start, rate, epochs=2, data=data)
        )
        for name, start in own.items()
        for rate in RATES.get(name.split("-")[0], OTHERS)
    }
