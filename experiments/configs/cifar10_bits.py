"""Accuracy against stored bits: all methods at 1.25, 1.5 and 2; three epochs each.

python -m experiments.compress experiments/configs/cifar10_bits.py \
    --data-dir DIR --results experiments/results

Needs the results of cifar10_rates.py and cifar10_thresholds.py. 17 runs of three
minutes on 2 CPU cores. Test accuracy there: float 74.7 %; VQ 70.2, 71.9 and 72.6; SSVQ
with learned signs 72.4, 72.9 and 74.1. More bits are in cifar10_3_bits.py.
"""

from experiments.config import Experiment
from experiments.methods import at, fine_tuning, tuned_freezing


def runs() -> dict[str, Experiment]:
    """Every method at every number of bits; the float network beside them."""
    freezing = tuned_freezing()
    found = {"float": fine_tuning("float", 1.5, epochs=3)}
    for bits in (1.25, 1.5, 2):
        for method in at(bits):
            run = fine_tuning(method, bits, epochs=3, freezing=freezing)
            found[f"{method}-{bits:g}"] = run
    return found
