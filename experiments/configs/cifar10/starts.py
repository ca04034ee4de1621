"""What calibrated starts and coded signs add to fine-tuning: 1 to 1.5 bits.

python -m experiments.compress experiments/configs/cifar10/starts.py \
    --data-dir DIR --results experiments/results

All runs start from the same float network, of deit_96.py. A calibrated start finds the
codes of the same codec by the second moments of 4,096 training images. Three epochs and
one seed; starts_seeds.py has ten and three. Rates are those of rates.py and
starts_rates.py.
"""

from experiments.configs._methods import recompressed
from experiments.configs.cifar10._cifar10 import RATES, fine_tuning, tuned
from experiments.training.config import Calibration, Experiment

STARTS = ("plain", "calibrated")
"""Codes by the weights alone, or by what layers see."""
METHODS = {
    1: ("vq", "coded"),
    1.25: ("vq", "learned", "coded"),
    1.5: ("vq", "learned", "coded"),
}
"""What is compared, by bits."""
_RATES = {
    "plain": RATES | {"coded": (3e-4, 1e-3)},
    "calibrated": {
        "vq": (3e-4, 1e-3),
        "learned": (3e-4, 1e-3),
        "coded": (1e-3, 1e-3),
    },
}
"""The best of rates.py and starts_rates.py."""


def runs() -> dict[str, Experiment]:
    """METHOD-START-BITS."""
    return {
        f"{method}-{start}-{bits:g}": started(method, start, bits, epochs=3)
        for bits in (1.5, 1.25, 1)
        for method in METHODS[bits]
        for start in STARTS
    }


def started(
    method: str, start: str, bits: float, *, epochs: int, seed: int = 0
) -> Experiment:
    """A run of `fine_tuning` from one of `STARTS`, with its best rates."""
    rates = tuned(method, _RATES[start])
    run = fine_tuning(method, bits, epochs=epochs, seed=seed, rates=rates)
    return from_calibrated(run) if start == "calibrated" else run


def from_calibrated(experiment: Experiment) -> Experiment:
    """The same, with codes found by what layers see; codecs stay."""
    return recompressed(experiment, calibration=Calibration(examples=4096))
