"""Instance masks compressed without training: YOLOX-Nano with the head of instances.py.

python -m experiments.unfold runs/coco/instances/float/model.safetensors \
    runs/yolox_nano_masks_unfolded.safetensors --network yolox_nano_masks \
    --task instances --dataset coco/2017_panoptic+coco/2017_instances --split train \
    --batch 20 --data-dir ../shared/tfds
python -m experiments.compress experiments/configs/coco/instances_bits.py \
    --data-dir ../shared/tfds --results experiments/results

Backbone, neck, heads and prototypes are compressed as in bits.py, calibrated on 180
training images; the 177 validation images test. 7 runs, 16 minutes on 2 CPU cores. Mask
AP there at 2, 3 and 4 bits: VQ 6.6, 10.7 and 12.8, SSVQ with coded signs 7.0, 10.6 and
13.5; float32 has 15.4.
"""

from experiments.configs.coco._coco import calibrated, tested
from experiments.configs.coco.bits import CALIBRATED
from experiments.training.config import Experiment

NETWORK = "yolox_nano_masks"


def runs() -> dict[str, Experiment]:
    """The float network and METHOD-BITS."""
    found = {"float": tested(NETWORK, None)}
    for method in CALIBRATED:
        for bits in (2, 3, 4):
            found[f"{method}-{bits}"] = calibrated(NETWORK, method, bits)
    return found
