"""Learning rates of every method at 1.5 bits, one epoch each, by the validation split.

python -m experiments.compress experiments/configs/cifar10_rates.py \
    --data-dir DIR --results experiments/results

Needs the float network of deit_96_cifar10.py. 27 runs of about a minute on 2 CPU cores.
The best ones are what all other comparisons on CIFAR-10 take.
"""

import dataclasses

from experiments.config import Experiment
from experiments.methods import fine_tuning

_TRIED = {
    "float": (1e-4, 3e-4, 1e-3),
    "uniform": (3e-4, 1e-3, 3e-3),  # at 2 bits, its least
    "vq": (3e-4, 1e-3, 3e-3, 1e-2),
    "mvq": (3e-4, 1e-3, 3e-3, 1e-2),
    "fixed": (3e-4, 1e-3, 3e-3, 1e-2),
    "learned": (3e-4, 1e-3, 3e-3),
}
_SIGN_RATES = (3e-4, 1e-3, 3e-3)


def runs() -> dict[str, Experiment]:
    """Every method with every rate; learned signs with every pair of rates."""
    found = {}
    for method, tried in _TRIED.items():
        bits = 2 if method == "uniform" else 1.5
        for rate in tried:
            for sign_rate in _SIGN_RATES if method == "learned" else (0.0,):
                rates = {"rate": rate, "codebook_rate": rate, "sign_rate": sign_rate}
                name = f"{method}-{rate:g}" + (f"-{sign_rate:g}" if sign_rate else "")
                run = fine_tuning(method, bits, epochs=1, rates=rates)
                data = dataclasses.replace(run.data, test=None)
                found[name] = dataclasses.replace(run, data=data)
    return found
