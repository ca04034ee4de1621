"""CamVid's DeepLab-V3 compressed without training: the network of float.py.

python -m experiments.compress experiments/configs/camvid/bits.py \
    --data-dir ../shared/tfds --results experiments/results

Kernels, codecs and candidates are those of coco/bits.py. "plain" has one codec for all,
by k-means of the weights alone, and the float network's batch norms; the others are
calibrated on 360 training images, without their labels. The 233 of the test split test.
"""

from experiments.configs.camvid._camvid import TRAINED, on_camvid
from experiments.configs.coco._coco import calibrated, plain, reached, tested
from experiments.training.config import Experiment

PLAIN = ("uniform", "mvq", "vq", "ssvq")
METHODS = ("uniform", "mvq", "vq", "coded")
BITS = (1.5, 2, 3)


def runs() -> dict[str, Experiment]:
    """The float network, plain-METHOD-BITS and METHOD-BITS."""
    found = {"float": tested(TRAINED, None)}
    for name, run in plain(TRAINED, PLAIN, BITS).items():
        found[f"plain-{name}"] = run
    for method, bits in reached(METHODS, BITS):
        found[f"{method}-{bits:g}"] = calibrated(TRAINED, method, bits)
    return {name: on_camvid(run) for name, run in found.items()}
