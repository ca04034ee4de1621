"""The paper's recipe for dense tasks: 10 epochs at 1.5 bits (UQ: 2), for a TPU or GPU.

python -m experiments.compress experiments/configs/coco/recipe.py \
    --only 'yolox_s-.*' --weights yolox_s.safetensors \
    --data-dir DIR --workers 8 --parallel fully_sharded

YOLOX-S on COCO, checkpoint with YOLOX's own names; DeepLab-V3 on MobileNet-V2 on
Cityscapes, from a network that has learned its 19 classes, as camvid/float.py teaches
11. `--dry-run` tells what a run needs, without weights and without the images.
Depthwise kernels, the stem, prediction layers and kernels of less than 4,096 weights
have 8 bits. SSVQ makes YOLOX-S 18.8 times smaller and DeepLab-V3 15.3 times, for 5.1e12
FLOPs per step of 64 images and 2.8e11 of 16.

The paper has SSVQ over VQ by 5 AP at 20 times on COCO, and over MVQ by 1.2 points of
mean IoU at 19 times on Pascal VOC, of which tensorflow-datasets has boxes alone, no
classes of pixels: hence Cityscapes. Images come one by one, without mosaic. Not run
here.
"""

from experiments.configs._methods import paper_recipe
from experiments.configs.coco._coco import rules
from experiments.data.augmentation import SceneAugmentation
from experiments.models.zoo import NETWORKS
from experiments.tasks import Detection, Segmentation, Task
from experiments.training.config import Data, Experiment

_TASKS: dict[str, tuple[str, int, int, Task]] = {
    "yolox_s": ("coco/2017", 80, 64, Detection(flip=True, zoom=(0.5, 1.5))),
    "deeplabv3_mnv2_100": (
        "cityscapes/semantic_segmentation",
        19,
        16,
        Segmentation(augmentation=SceneAugmentation(scale=(0.5, 2.0), flip=True)),
    ),
}
"""Data set, its classes, batch and task by network."""


def runs() -> dict[str, Experiment]:
    """Every network with every method."""
    return {
        f"{network}-{method}": experiment
        for network, (name, classes, batch, task) in _TASKS.items()
        for method, experiment in paper_recipe(
            lambda codec, network=network: rules(network, [codec]),
            batch,
            task=task,
            network=NETWORKS[network].with_classes(classes),
            data=Data(
                name=name,
                train="train[:99%]",
                validation="train[99%:]",
                test="validation",
                in_memory=False,
            ),
            weights=f"checkpoints/{network}.safetensors",
        ).items()
    }
