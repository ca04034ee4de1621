"""When freezing signs pays: their learning rate, and the interval, at 1.25 bits.

python -m experiments.compress experiments/configs/cifar100/freezing.py \
    --data-dir DIR --results experiments/results

Three epochs each, with the signs' tuned learning rate, three times and ten times as
much. Needs the float network of floats.py. Two minutes each on 2 CPU cores.
"""

import dataclasses

from experiments.configs.cifar100._cifar100 import FREEZING, fine_tuning, tuned
from experiments.training.config import Experiment

FACTORS = (1, 3, 10)
"""Of the signs' learning rate."""
CHECKS = (125, 25, 5)
"""How often signs are frozen in a run; 25 are the paper's every 500 steps."""


def runs() -> dict[str, Experiment]:
    """METHOD-FACTOR, of frozen ones METHOD-FACTOR-CHECKS."""
    found = {}
    for factor in FACTORS:
        rates = tuned("learned")
        rates["sign_rate"] *= factor
        found[f"learned-{factor}"] = fine_tuning("learned", 1.25, epochs=3, rates=rates)
        for checks in CHECKS:
            found[f"frozen-{factor}-{checks}"] = fine_tuning(
                "frozen",
                1.25,
                epochs=3,
                rates=rates,
                freezing=dataclasses.replace(FREEZING, checks=checks),
            )
    return found
