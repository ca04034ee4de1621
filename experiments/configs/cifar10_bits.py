"""Accuracy against stored bits: all methods at 1.25 to 3, UQ at 4; three epochs each.

python -m experiments.compress experiments/configs/cifar10_bits.py \
    --data-dir DIR --results experiments/results

Needs the results of cifar10_rates.py and cifar10_thresholds.py. 24 runs of three
minutes on 2 CPU cores. Test accuracy there: float 74.7 %; VQ 70.2, 71.9, 72.6 and 73.7;
SSVQ with learned signs 72.4, 72.9, 74.1 and 74.0.
"""

from experiments.config import Experiment
from experiments.methods import BITS, at, fine_tuning, tuned_freezing


def runs() -> dict[str, Experiment]:
    """Every method at every number of bits; the float network beside them."""
    freezing = tuned_freezing()
    found = {"float": fine_tuning("float", 1.5, epochs=3)}
    for bits in BITS:
        for method in at(bits):
            run = fine_tuning(method, bits, epochs=3, freezing=freezing)
            found[f"{method}-{bits:g}"] = run
    return found
