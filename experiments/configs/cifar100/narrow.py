"""A narrower network on CIFAR-100, 64 wide: 1 and 1.25 bits, three epochs.

python -m experiments.compress experiments/configs/cifar100/narrow.py \
    --data-dir DIR --results experiments/results

With the rates that were chosen for the wider one. Needs the float network of floats.py.
A minute each on 2 CPU cores.
"""

from experiments.configs.cifar100._cifar100 import three_epochs
from experiments.training.config import Experiment

CHOSEN = {1: ("vq", "coded"), 1.25: ("vq", "learned", "coded")}


def runs() -> dict[str, Experiment]:
    """METHOD-BITS, and float."""
    return three_epochs(CHOSEN, width=64)
