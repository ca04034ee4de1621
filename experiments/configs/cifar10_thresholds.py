"""The threshold of freezing, three epochs each, by the validation split.

python -m experiments.compress experiments/configs/cifar10_thresholds.py \
    --data-dir DIR --results experiments/results

Needs the results of cifar10_rates.py. Four runs of four minutes on 2 CPU cores.
From 0.1 to 0.01 is best, by half a point (74.0 %).
"""

import dataclasses

from experiments.config import Experiment, Freezing
from experiments.methods import fine_tuning

_TRIED = ((0.3, 0.03), (0.1, 0.01), (0.03, 0.003), (0.01, 0.001))


def runs() -> dict[str, Experiment]:
    """A run for each threshold, first and last."""
    found = {}
    for first, last in _TRIED:
        freezing = Freezing(threshold=(first, last))
        run = fine_tuning("frozen", 1.5, epochs=3, freezing=freezing)
        data = dataclasses.replace(run.data, test=None)
        found[f"frozen-{first:g}"] = dataclasses.replace(run, data=data)
    return found
