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
from experiments.configs._methods import RECIPE, convolutional
from experiments.data.augmentation import Augmentation
from experiments.models.zoo import NETWORKS
from experiments.tasks import Classification
from experiments.training.config import (
    Compression,
    Data,
    Experiment,
    Freezing,
    Optimization,
)

_IMAGENET = Data(
    name="imagenet2012",
    train="train[:99%]",
    validation="train[99%:]",
    test="validation",
    in_memory=False,
)
_TASK = Classification(augmentation=Augmentation(scale=(0.08, 1.0), flip=True))
_DENSE = "blocks/.*/kernel"


def _rules(network: str, codec: ssvq.Codec) -> tuple[ssvq.Rule, ...]:
    if network.startswith("deit"):
        return (ssvq.Rule(_DENSE, codec),)
    return convolutional(codec)


def runs() -> dict[str, Experiment]:
    """Every network with every method."""
    found = {}
    for network in ("deit_tiny", "mobilenetv2_100", "efficientnet_lite0"):
        for method, codec in RECIPE.items():
            freezing = Freezing(checks=25) if method == "frozen" else None
            found[f"{network}-{method}"] = Experiment(
                task=_TASK,
                network=NETWORKS[network],
                data=_IMAGENET,
                optimization=Optimization(
                    epochs=10,
                    batch=1024,
                    rate=1e-4,
                    codebook_rate=1e-3,
                    sign_rate=1e-3,
                    dtype="bfloat16",
                ),
                weights=f"checkpoints/{network}.safetensors",
                compression=Compression(
                    rules=_rules(network, codec), freezing=freezing
                ),
            )
    return found
