"""Accuracy against stored bits: all methods at 1, 1.25, 1.5 and 2; three epochs each.

python -m experiments.compress experiments/configs/cifar100/bits.py \
    --data-dir DIR --results experiments/results

Needs the float network of floats.py. 23 runs of a minute and a half on 2 CPU cores.
"""

from experiments.configs._methods import at
from experiments.configs.cifar100._cifar100 import three_epochs
from experiments.training.config import Experiment


def runs() -> dict[str, Experiment]:
    """METHOD-BITS, and float."""
    return three_epochs({bits: (*at(bits), "coded") for bits in (1, 1.25, 1.5, 2)})
