"""Learning rates of every method on CIFAR-100, by the validation split.

python -m experiments.compress experiments/configs/cifar100/rates.py \
    --data-dir DIR --results experiments/results

An epoch each from calibrated codes, at 1.25 bits (UQ at 2, its least), and six pairs
of rates or more for every method. Needs the float network of floats.py. 60 runs of 40
seconds on 2 CPU cores.
"""

import dataclasses
import itertools

from experiments.configs.cifar10._cifar10 import rates
from experiments.configs.cifar100._cifar100 import CIFAR100, fine_tuning
from experiments.training.config import Experiment

METHODS = ("uniform", "vq", "mvq", "fixed", "learned", "coded")
"""What rates are sought for; frozen signs take those of learned ones."""
_TRIED = (3e-4, 1e-3, 3e-3)
_SECOND = (1e-3, 3e-3)
# Beyond those, as the best of these were at the edge.
_WIDER = {
    **{
        method: ((3e-3, 1e-2), (1e-2, 3e-3), (1e-2, 1e-2))
        for method in ("vq", "mvq", "fixed")
    },
    "uniform": ((3e-3, 1e-2), (1e-2, 3e-3), (1e-2, 1e-2), (3e-3, 3e-2)),
    "learned": ((3e-4, 3e-4), (1e-3, 3e-4), (3e-3, 3e-4)),
    "coded": ((1e-3, 3e-4), (3e-3, 3e-4), (1e-2, 1e-3)),
}


def runs() -> dict[str, Experiment]:
    """METHOD-RATE-RATE: the second is that of codebooks and steps, or of signs."""
    pairs = {
        method: [*itertools.product(_TRIED, _SECOND), *_WIDER.get(method, ())]
        for method in METHODS
    }
    pairs["float"] = [(rate, rate) for rate in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)]
    return {
        f"{method}-{rate:g}-{second:g}": fine_tuning(
            method,
            2 if method == "uniform" else 1.25,
            epochs=1,
            rates=rates(method, rate, second),
            data=dataclasses.replace(CIFAR100, test=None),
        )
        for method, tried in pairs.items()
        for rate, second in tried
    }
