"""The paper's recipe on ImageNet: 10 epochs at 1.5 bits (UQ: 2), for a TPU or a GPU.

python -m experiments.compress experiments/configs/imagenet.py \
    --only 'deit_tiny-.*' --weights deit_tiny_patch16_224.safetensors \
    --data-dir DIR --workers 8 --parallel fully_sharded

Checkpoints are timm's: deit_tiny_patch16_224, mobilenetv2_100, tf_efficientnet_lite0.
`--dry-run` tells what a run needs, without weights and without the images: per step of
1,024 images 7.8e12 FLOPs for DeiT-Tiny, 2.0e12 for MobileNet-V2 and 2.5e12 for
EfficientNet-Lite0, of which 12,386 make 10 epochs; SSVQ makes the models 8.7, 14.1
and 13.6 times smaller (what is compressed 21.1, 19.1 and 17.7 times).

The paper has DeiT-Tiny at 21x: VQ about 47 %, SSVQ with fixed signs 47, learned 54,
frozen 59 to 62; MobileNet-V2 at 16x 65.9 %; EfficientNet-Lite at 16 to 18x 69.5 %. Not
run here.
"""

import ssvq_jax as ssvq
from experiments.configs._methods import convolutional, paper_recipe
from experiments.data.augmentation import Augmentation
from experiments.models.zoo import NETWORKS
from experiments.tasks import Classification
from experiments.training.config import Data, Experiment

_IMAGENET = Data(
    name="imagenet2012",
    train="train[:99%]",
    validation="train[99%:]",
    test="validation",
    in_memory=False,
)
_TASK = Classification(augmentation=Augmentation(scale=(0.08, 1.0), flip=True))


def _dense(codec: ssvq.Codec) -> tuple[ssvq.Rule, ...]:
    return (ssvq.Rule("blocks/.*/kernel", codec),)


_NETWORKS = {
    "deit_tiny": _dense,
    "mobilenetv2_100": convolutional,
    "efficientnet_lite0": convolutional,
}
"""Networks, and the rules of their kind."""


def runs() -> dict[str, Experiment]:
    """Every network with every method."""
    return {
        f"{network}-{method}": experiment
        for network, rules in _NETWORKS.items()
        for method, experiment in paper_recipe(
            rules,
            1024,
            task=_TASK,
            network=NETWORKS[network],
            data=_IMAGENET,
            weights=f"checkpoints/{network}.safetensors",
        ).items()
    }
