"""Learning rates of tuning.py, at 2 bits, by CamVid's validation split.

python -m experiments.compress experiments/configs/camvid/tuning_rates.py \
    --data-dir ../shared/tfds --results experiments/results

Two epochs each, with labels, from calibrated codes. Bits are spread by predicted
errors here: quicker than to measure them.
"""

import dataclasses

from experiments.configs.camvid._camvid import DATA, tuned
from experiments.configs.coco._coco import predicted
from experiments.training.config import Experiment

METHODS = ("float", "uniform", "mvq", "vq", "coded")
RATES = (1e-4, 3e-4)
BEYOND = {"float": (1e-3,)}
"""More for some."""


def runs() -> dict[str, Experiment]:
    """METHOD-RATE."""
    found = {}
    for method in METHODS:
        for rate in (*RATES, *BEYOND.get(method, ())):
            data = dataclasses.replace(DATA, test=None)
            run = tuned(method, 2, rate, epochs=2, data=data)
            found[f"{method}-{rate:g}"] = predicted(run)
    return found
