"""Detection and segmentation on COCO's images, compressed without training.

python -m experiments.unfold ../shared/models/yolox_nano.safetensors \
    runs/yolox_nano_unfolded.safetensors --network yolox_nano --task detection \
    --dataset coco/2017_panoptic+coco/2017_instances --split train --batch 20 \
    --data-dir ../shared/tfds
python -m experiments.unfold ../shared/models/deeplabv3_mnv2_050.safetensors \
    runs/deeplabv3_mnv2_050_unfolded.safetensors --network deeplabv3_mnv2_050 \
    --task segmentation --dataset coco/2017_panoptic+coco/2017_instances \
    --split train --batch 20 --data-dir ../shared/tfds
python -m experiments.compress experiments/configs/coco/bits.py \
    --data-dir ../shared/tfds --results experiments/results

YOLOX-Nano and DeepLab-V3 on MobileNet-V2 0.5: each method with one codec for all
kernels of 4,096 weights and more, found by the weights alone, and calibrated, with
codecs by `ssvq_jax.allocate` and batch norms back and taken anew. Calibrated on 180
training images without their labels; the 177 validation images test. Bits are those of
the convolutions in blocks and necks, codebooks and scales counted; depthwise kernels,
the stem and prediction layers have 8 bits each.

60 runs of less than half a minute on 2 CPU cores, but five for the first calibrated one
of a method. Expect of VQ and SSVQ calibrated 27 AP of 31 and 29 of 30 points of mean
IoU at 3 bits, 4 to 6 and 17 at 1.5; of plain codes no boxes below 4 bits.
"""

from experiments.configs.coco._coco import calibrated, plain, reached, tested
from experiments.training.config import Experiment

NETWORKS = ("yolox_nano", "deeplabv3_mnv2_050")
BITS = (1.5, 2, 3, 4)
PLAIN = ("uniform", "mvq", "vq", "ssvq")
CALIBRATED = ("uniform", "mvq", "vq", "coded")


def runs() -> dict[str, Experiment]:
    """NETWORK-float, NETWORK-plain-METHOD-BITS and NETWORK-calibrated-METHOD-BITS."""
    found = {f"{network}-float": tested(network, None) for network in NETWORKS}
    for network in NETWORKS:
        for name, run in plain(network, PLAIN, BITS).items():
            found[f"{network}-plain-{name}"] = run
        for method, bits in reached(CALIBRATED, BITS):
            name = f"{network}-calibrated-{method}-{bits:g}"
            found[name] = calibrated(network, method, bits)
    return found
