"""Learning rates of every method at 1.5 bits, one epoch each, by the validation split.

python -m experiments.compress experiments/configs/cifar10/rates.py \
    --data-dir DIR --results experiments/results

Needs the float network of deit_96.py. 53 runs of about a minute on 2 CPU cores.
The best ones are what all other comparisons on CIFAR-10 take. Each method has nine, VQ
and MVQ more: of codebooks, or steps, and of all that is not compressed; with learned
signs, of signs and of the rest. The best of each, in %: UQ 72.8, VQ 72.0, MVQ 70.8,
SSVQ 71.1 with fixed signs and 73.1 with learned ones, float 74.4.
"""

import dataclasses
import itertools

from experiments.configs.cifar10._cifar10 import CIFAR10, fine_tuning, rates
from experiments.training.config import Experiment

TRIED = (3e-4, 1e-3, 3e-3)
"""Rates of all that is not compressed."""
SECOND = {
    "uniform": (1e-3, 3e-3, 1e-2),  # at 2 bits, its least
    "vq": (1e-3, 3e-3, 1e-2),
    "mvq": (1e-3, 3e-3, 1e-2),
    "fixed": (1e-3, 3e-3, 1e-2),
    "learned": (3e-4, 1e-3, 3e-3),
}
"""Those of codebooks and steps, or of learned signs, by method."""
# Beyond those, as the best of these baselines were at the edge; nothing better.
_WIDER = {
    "vq": ((3e-3, 3e-4), (1e-2, 1e-3), (1e-2, 3e-3)),
    "mvq": ((1e-2, 1e-3), (1e-2, 3e-3)),
}


def runs() -> dict[str, Experiment]:
    """Every method with every pair of rates."""
    found = {}
    for rate in (1e-4, 3e-4, 1e-3):
        found[f"float-{rate:g}"] = trial("float", 1.5, rate, rate)
    for method, seconds in SECOND.items():
        bits = 2 if method == "uniform" else 1.5
        wider = _WIDER.get(method, ())
        for rate, second in (*itertools.product(TRIED, seconds), *wider):
            found[f"{method}-{rate:g}-{second:g}"] = trial(method, bits, rate, second)
    return found


def trial(method: str, bits: float, rate: float, second: float) -> Experiment:
    """An epoch of fine-tuning that is not tested.

    Args:
      method: One of `experiments.configs._methods.TITLES`.
      bits: One of `experiments.configs._methods.BITS`.
      rate: As of `rates`.
      second: As of `rates`.
    """
    return fine_tuning(
        method,
        bits,
        epochs=1,
        rates=rates(method, rate, second),
        data=dataclasses.replace(CIFAR10, test=None),
    )
