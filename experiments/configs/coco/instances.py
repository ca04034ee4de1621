"""Masks for YOLOX-Nano's detections, learned from 180 images; all else is held.

python -m experiments.models.yolact ../shared/models/yolox_nano.safetensors \
    runs/yolox_nano_masks.safetensors
python -m experiments.compress experiments/configs/coco/instances.py \
    --data-dir ../shared/tfds --results experiments/results

40 epochs, mirrored, at 0.5 to 1.2 of the network's size; the 177 validation images
test. Detections stay those of YOLOX-Nano. Twelve minutes on 2 CPU cores; expect 15
AP.
"""

from experiments.configs.coco._coco import DATA
from experiments.models.zoo import NETWORKS
from experiments.tasks import InstanceSegmentation
from experiments.training.config import Experiment, Optimization

TASK = InstanceSegmentation(canvas=512, flip=True, zoom=(0.5, 1.2))


def runs() -> dict[str, Experiment]:
    """The float network."""
    return {
        "float": Experiment(
            task=TASK,
            network=NETWORKS["yolox_nano_masks"],
            data=DATA,
            optimization=Optimization(
                epochs=40, batch=20, rate=2e-3, held="(backbone|head)/.*"
            ),
            weights="runs/yolox_nano_masks.safetensors",
        )
    }
