"""A DeiT that needs its capacity: 96 wide, 6 blocks, patch 8, on CIFAR-10, in float32.

python -m experiments.train experiments/configs/cifar10/deit_96.py \
    --data-dir DIR --results experiments/results

Half an hour to an hour on 2 CPU cores: 74.6 to 74.8 % of the test images.
"""

from experiments.configs.cifar10._cifar10 import CIFAR10, TASK
from experiments.models.zoo import NETWORKS
from experiments.training.config import Experiment, Optimization


def runs() -> dict[str, Experiment]:
    """One run."""
    return {
        "float": Experiment(
            task=TASK,
            network=NETWORKS["deit_96_cifar10"],
            data=CIFAR10,
            optimization=Optimization(epochs=60, beta2=0.98),
        )
    }
