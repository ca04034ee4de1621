"""The headline on CIFAR-100: 1.25 bits, ten epochs, three seeds; and 1 bit with one.

python -m experiments.compress experiments/configs/cifar100/headline.py \
    --data-dir DIR --results experiments/results

Needs the float network of floats.py, which is tuned alike beside them. 16 runs of three
to six minutes on 2 CPU cores, those of the first seed first.
"""

from experiments.configs.cifar100._cifar100 import fine_tuning, tuned
from experiments.training.config import Experiment

METHODS = ("vq", "learned", "coded", "frozen")
ONE_BIT = ("vq", "mvq", "coded")


def runs() -> dict[str, Experiment]:
    """METHOD-BITS-SEED."""
    chosen = [("float", 32, 0), *((method, 1.25, 0) for method in METHODS)]
    chosen += [(method, 1, 0) for method in ONE_BIT]
    chosen += [(method, 1.25, seed) for seed in (1, 2) for method in METHODS]
    return {
        f"{method}-{bits:g}-{seed}": fine_tuning(
            method, bits, epochs=10, rates=tuned(method), seed=seed
        )
        for method, bits, seed in chosen
    }
