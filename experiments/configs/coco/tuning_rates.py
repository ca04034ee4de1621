"""Learning rates of tuning.py: YOLOX-Nano at 2 bits, without the images that test.

python -m experiments.compress experiments/configs/coco/tuning_rates.py \
    --data-dir ../shared/tfds --results experiments/results

Calibrated and tuned on 144 of the training images for five epochs, judged on the other
36. One rate for all that is tuned; 0 is not to tune. Bits are spread by predicted
errors here: quicker than to measure them. 18 runs of three minutes on 2 CPU cores.
"""

import dataclasses

import numpy as np

from experiments.configs.coco._coco import DATA, predicted, tuned
from experiments.training.config import Experiment

METHODS = ("vq", "coded", "mvq", "uniform")
RATES = (0.0, 1e-5, 3e-5, 1e-4)
BEYOND = {"coded": (3e-4,), "mvq": (3e-4,)}
"""For those whose best is at the edge."""
_DATA = dataclasses.replace(
    DATA, train="train[:80%]", validation="train[80%:]", test=None
)


def runs() -> dict[str, Experiment]:
    """METHOD-RATE."""
    found = {}
    for method in METHODS:
        for rate in (*RATES, *BEYOND.get(method, ())):
            shown = np.format_float_positional(rate, trim="-")
            run = tuned("yolox_nano", method, 2, rate, _DATA)
            found[f"{method}-{shown}"] = predicted(run)
    return found
