"""A DeiT that CIFAR-100 fills: 96 wide, 6 blocks, patch 8, in float32.

python -m experiments.train experiments/configs/cifar100/floats.py \
    --data-dir DIR --results experiments/results

Half an hour on 2 CPU cores.
"""

from experiments.configs.cifar10._cifar10 import TASK
from experiments.configs.cifar100._cifar100 import CIFAR100, NETWORK
from experiments.training.config import Experiment, Optimization


def runs() -> dict[str, Experiment]:
    """WIDTH."""
    return {
        "96": Experiment(
            task=TASK,
            network=NETWORK,
            data=CIFAR100,
            optimization=Optimization(epochs=60, beta2=0.98),
        )
    }
