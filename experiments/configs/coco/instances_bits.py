"""Instance masks compressed without training: YOLOX-Nano with the head of instances.py.

python -m experiments.unfold runs/coco/instances/float/model.safetensors \
    runs/yolox_nano_masks_unfolded.safetensors --network yolox_nano_masks \
    --task instances --dataset coco/2017_panoptic+coco/2017_instances --split train \
    --batch 20 --data-dir ../shared/tfds
python -m experiments.compress experiments/configs/coco/instances_bits.py \
    --data-dir ../shared/tfds --results experiments/results

Backbone, neck, heads and prototypes are compressed as in bits.py, by the weights alone
("plain") and calibrated on 180 training images; the 177 validation images test.

19 runs of a minute or two on 2 CPU cores, ten for the first of a method. Expect 11 of
15 AP at 3 bits calibrated, of VQ and SSVQ 6 to 7 at 2.
"""

from experiments.configs.coco._coco import calibrated, plain, reached, tested
from experiments.configs.coco.bits import PLAIN
from experiments.training.config import Experiment

NETWORK = "yolox_nano_masks"
METHODS = ("uniform", "mvq", "vq", "coded")


def runs() -> dict[str, Experiment]:
    """The float network, plain-METHOD-4 and METHOD-BITS."""
    found = {"float": tested(NETWORK, None)}
    # With fewer bits the weights alone give codes that find no boxes.
    for name, run in plain(NETWORK, PLAIN, (4,)).items():
        found[f"plain-{name}"] = run
    for method, bits in reached(METHODS, (1.5, 2, 3, 4)):
        found[f"{method}-{bits:g}"] = calibrated(NETWORK, method, bits)
    return found
