"""CamVid's DeepLab-V3 compressed without training: the network of float.py.

python -m experiments.compress experiments/configs/camvid/bits.py \
    --data-dir ../shared/tfds --results experiments/results

Rules and candidates are those of coco/bits.py. Calibrated on 360 training images,
without their labels; the 233 of the test split test.
"""

import dataclasses

from experiments.configs.calibrated.bits import LEAST
from experiments.configs.camvid.float import DATA, NETWORK
from experiments.configs.coco._coco import calibrated, tested
from experiments.training.config import Experiment

METHODS = ("uniform", "mvq", "vq", "coded")
BITS = (1.5, 2, 3)
_TRAINED = "deeplabv3_mnv2_050"
"""Whose rules and task these are."""


def runs() -> dict[str, Experiment]:
    """The float network and METHOD-BITS."""
    found = {"float": tested(_TRAINED, None)}
    found |= {
        f"{method}-{bits:g}": calibrated(_TRAINED, method, bits)
        for method in METHODS
        for bits in BITS
        if bits >= LEAST.get(method, 0)
    }
    weights = "runs/camvid/float/float/model.safetensors"
    return {
        name: dataclasses.replace(run, network=NETWORK, data=DATA, weights=weights)
        for name, run in found.items()
    }
