"""DeiTs that CIFAR-100 fills: 96 and 64 wide, 6 blocks, patch 8, in float32.

python -m experiments.train experiments/configs/cifar100/floats.py \
    --data-dir DIR --results experiments/results

Half an hour to an hour each on 2 CPU cores.
"""

from experiments.configs.cifar10._cifar10 import TASK
from experiments.models.zoo import NETWORKS
from experiments.training.config import Data, Experiment, Optimization

CIFAR100 = Data(name="cifar100", train="train[:45000]", validation="train[45000:]")


def runs() -> dict[str, Experiment]:
    """WIDTH."""
    return {
        width: Experiment(
            task=TASK,
            network=NETWORKS[f"deit_{width}_cifar10"].with_classes(100),
            data=CIFAR100,
            optimization=Optimization(epochs=60, beta2=0.98),
        )
        for width in ("96", "64")
    }
