"""Learning rates of every method at 3 bits, one epoch each, by the validation split.

python -m experiments.compress experiments/configs/cifar10_3_bits_rates.py \
    --data-dir DIR --results experiments/results

Needs the float network of deit_96_cifar10.py. Nine pairs of rates for each method, as
in cifar10_rates.py but smaller, as there is less to make up for: 48 runs of about a
minute on 2 CPU cores.
"""

import itertools

from experiments.config import Experiment
from experiments.configs.cifar10_rates import trial

_RATES = (1e-4, 3e-4, 1e-3)
_SECOND = (3e-4, 1e-3, 3e-3)


def runs() -> dict[str, Experiment]:
    """Every method with every pair of rates."""
    found = {
        f"float-{rate:g}": trial("float", 3, rate, rate) for rate in (3e-5, 1e-4, 3e-4)
    }
    for method in ("uniform", "vq", "mvq", "fixed", "learned"):
        for rate, second in itertools.product(_RATES, _SECOND):
            found[f"{method}-{rate:g}-{second:g}"] = trial(method, 3, rate, second)
    return found
