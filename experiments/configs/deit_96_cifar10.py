"""A DeiT that needs its capacity: 96 wide, 6 blocks, patch 8, on CIFAR-10, in float32.

python -m experiments.train experiments/configs/deit_96_cifar10.py \
    --data-dir DIR --results experiments/results

Half an hour to an hour on 2 CPU cores: 74.6 to 74.8 % of the test images.
"""

from experiments.augmentation import Augmentation
from experiments.config import Data, Experiment, Optimization
from experiments.models.zoo import NETWORKS

CIFAR10 = Data(
    name="cifar10",
    train="train[:45000]",
    validation="train[45000:]",
    augmentation=Augmentation(pad=4, flip=True),
)
WEIGHTS = "runs/deit_96_cifar10/float/model.safetensors"


def runs() -> dict[str, Experiment]:
    """One run."""
    return {
        "float": Experiment(
            network=NETWORKS["deit_96_cifar10"],
            data=CIFAR10,
            optimization=Optimization(epochs=60, label_smoothing=0.1, beta2=0.98),
        )
    }
