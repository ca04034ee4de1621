"""Accuracy against stored bits: all methods at 1.25, 1.5 and 2; three epochs each.

python -m experiments.compress experiments/configs/cifar10/bits.py \
    --data-dir DIR --results experiments/results

Needs the float network of deit_96.py. 17 runs of three minutes on 2 CPU cores. Test
accuracy there: float 74.7 %; VQ 70.2, 71.9 and 72.6; SSVQ with learned signs 72.4, 72.9
and 74.1. More bits are in three_bits.py.
"""

from collections.abc import Iterable

from experiments.configs._methods import at
from experiments.configs.cifar10._cifar10 import RATES, fine_tuning, tuned
from experiments.training.config import Experiment


def runs() -> dict[str, Experiment]:
    """METHOD-BITS, and float."""
    return every_method((1.25, 1.5, 2), RATES)


def every_method(
    chosen: Iterable[float], rates: dict[str, tuple[float, float]]
) -> dict[str, Experiment]:
    """Every method at every number of bits; the float network beside them.

    Args:
      chosen: Of `experiments.configs._methods.BITS`.
      rates: The learning rates of every method, as `RATES`.
    """
    names = {"float": ("float", 32.0)}
    names |= {f"{m}-{bits:g}": (m, bits) for bits in chosen for m in at(bits)}
    return {
        name: fine_tuning(method, bits, epochs=3, rates=tuned(method, rates))
        for name, (method, bits) in names.items()
    }
