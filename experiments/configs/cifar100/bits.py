"""Accuracy against stored bits: all methods at 1, 1.25, 1.5 and 2; three epochs each.

python -m experiments.compress experiments/configs/cifar100/bits.py \
    --data-dir DIR --results experiments/results

Needs the float network of floats.py. 23 runs of a minute and a half on 2 CPU cores.
"""

from experiments.configs._methods import at
from experiments.configs.cifar100._cifar100 import fine_tuning, tuned
from experiments.training.config import Experiment


def runs() -> dict[str, Experiment]:
    """METHOD-BITS, and float."""
    names = {"float": ("float", 32.0)}
    names |= {
        f"{method}-{bits:g}": (method, bits)
        for bits in (1, 1.25, 1.5, 2)
        for method in (*at(bits), "coded")
    }
    return {
        name: fine_tuning(method, bits, epochs=3, rates=tuned(method))
        for name, (method, bits) in names.items()
    }
