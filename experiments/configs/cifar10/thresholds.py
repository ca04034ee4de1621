"""The threshold of freezing, three epochs each, by the validation split.

python -m experiments.compress experiments/configs/cifar10/thresholds.py \
    --data-dir DIR --results experiments/results

Needs the float network of deit_96.py. Four runs of four minutes on 2 CPU cores.
From 0.1 to 0.01 is best, by half a point (74.0 %).
"""

import dataclasses

from experiments.configs.cifar10._cifar10 import CIFAR10, fine_tuning
from experiments.training.config import Experiment, Freezing

_TRIED = ((0.3, 0.03), (0.1, 0.01), (0.03, 0.003), (0.01, 0.001))


def runs() -> dict[str, Experiment]:
    """A run for each threshold, first and last."""
    data = dataclasses.replace(CIFAR10, test=None)
    return {
        f"frozen-{threshold[0]:g}": fine_tuning(
            "frozen", 1.5, epochs=3, freezing=Freezing(threshold=threshold), data=data
        )
        for threshold in _TRIED
    }
