"""Learning rates of every method at 3 bits, one epoch each, by the validation split.

python -m experiments.compress experiments/configs/cifar10/three_bits_rates.py \
    --data-dir DIR --results experiments/results

Needs the float network of deit_96.py. 16 pairs of rates for each method: 84
runs of half a minute on 2 CPU cores. The best of each, in %: UQ 74.0, VQ 74.0, MVQ
73.6, SSVQ 73.9 with fixed signs and 74.1 with learned ones, float 74.8.
"""

import itertools

from experiments.configs.cifar10.rates import trial
from experiments.training.config import Experiment

_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
_SECOND = (3e-4, 1e-3, 3e-3, 1e-2)


def runs() -> dict[str, Experiment]:
    """Every method with every pair of rates."""
    found = {}
    for rate in (1e-5, 3e-5, 1e-4, 3e-4):
        found[f"float-{rate:g}"] = trial("float", 3, rate, rate)
    for method in ("uniform", "vq", "mvq", "fixed", "learned"):
        seconds = (1e-4, *_SECOND[:-1]) if method == "learned" else _SECOND
        for rate, second in itertools.product(_RATES, seconds):
            found[f"{method}-{rate:g}-{second:g}"] = trial(method, 3, rate, second)
    return found
