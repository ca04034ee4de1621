"""DeiTs that CIFAR-100 fills: 96 and 64 wide, 6 blocks, patch 8, in float32.

python -m experiments.train experiments/configs/cifar100/floats.py \
    --data-dir DIR --results experiments/results

Half an hour and ten minutes on 2 CPU cores.
"""

from experiments.configs.cifar10._cifar10 import TASK
from experiments.configs.cifar100._cifar100 import CIFAR100, network
from experiments.training.config import Experiment, Optimization


def runs() -> dict[str, Experiment]:
    """WIDTH."""
    return {
        str(width): Experiment(
            task=TASK,
            network=network(width),
            data=CIFAR100,
            optimization=Optimization(epochs=epochs, beta2=0.98),
        )
        for width, epochs in ((96, 60), (64, 30))
    }
