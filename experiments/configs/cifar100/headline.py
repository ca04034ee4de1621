"""The headline on CIFAR-100: 1.25 bits, ten epochs, calibrated starts.

python -m experiments.compress experiments/configs/cifar100/headline.py \
    --data-dir DIR --results experiments/results

Needs the float network of floats.py. Six minutes each on 2 CPU cores.
"""

from experiments.configs.cifar100._cifar100 import fine_tuning, tuned
from experiments.training.config import Experiment

METHODS = ("vq", "learned", "coded", "frozen", "fixed", "mvq")


def runs() -> dict[str, Experiment]:
    """METHOD-BITS-SEED."""
    chosen = [(method, 1.25) for method in METHODS] + [("float", 32)]
    return {
        f"{method}-{bits:g}-0": fine_tuning(
            method, bits, epochs=10, rates=tuned(method)
        )
        for method, bits in chosen
    }
