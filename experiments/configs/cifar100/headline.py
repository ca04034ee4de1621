"""The headline on CIFAR-100: 1.25 bits, ten epochs, calibrated starts.

python -m experiments.compress experiments/configs/cifar100/headline.py \
    --data-dir DIR --results experiments/results

Needs the float network of floats.py. Six minutes each on 2 CPU cores.
"""

from experiments.configs.cifar100._cifar100 import fine_tuning, tuned
from experiments.training.config import Experiment

METHODS = ("vq", "learned", "coded", "frozen")


def runs() -> dict[str, Experiment]:
    """METHOD-BITS-SEED."""
    return {
        f"{method}-1.25-0": fine_tuning(method, 1.25, epochs=10, rates=tuned(method))
        for method in METHODS
    }
