"""Accuracy against stored bits: all methods at 1.25, 1.5 and 2; three epochs each.

python -m experiments.compress experiments/configs/cifar10_bits.py \
    --data-dir DIR --results experiments/results

Needs the results of cifar10_rates.py and cifar10_thresholds.py. 17 runs of three
minutes on 2 CPU cores. Test accuracy there: float 74.7 %; VQ 70.2, 71.9 and 72.6; SSVQ
with learned signs 72.4, 72.9 and 74.1. More bits are in cifar10_3_bits.py.
"""

from collections.abc import Iterable

from experiments.config import Experiment
from experiments.methods import at, fine_tuning, tuned_freezing, tuned_rates


def runs() -> dict[str, Experiment]:
    """METHOD-BITS, and float."""
    return every_method((1.25, 1.5, 2), "cifar10_rates")


def every_method(chosen: Iterable[float], config: str) -> dict[str, Experiment]:
    """Every method at every number of bits; the float network beside them.

    Args:
      chosen: Of `experiments.methods.BITS`.
      config: Name of the config whose results tell the best rates.
    """
    freezing = tuned_freezing()
    found = {
        "float": fine_tuning("float", 32, epochs=3, rates=tuned_rates("float", config))
    }
    for bits in chosen:
        for method in at(bits):
            found[f"{method}-{bits:g}"] = fine_tuning(
                method,
                bits,
                epochs=3,
                freezing=freezing,
                rates=tuned_rates(method, config),
            )
    return found
