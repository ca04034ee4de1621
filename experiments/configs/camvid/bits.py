"""CamVid's DeepLab-V3 compressed without training: the network of float.py.

python -m experiments.compress experiments/configs/camvid/bits.py \
    --data-dir ../shared/tfds --results experiments/results

Kernels, codecs and candidates are those of coco/bits.py. "plain" has one codec for all,
by k-means of the weights alone, and the float network's batch norms; the others are
calibrated on 360 training images, without their labels. The 233 of the test split test.

23 runs of a minute on 2 CPU cores, four for the first calibrated one of a method.
Expect of VQ and SSVQ 53 of 54 points of mean IoU at 3 bits, 47 to 50 at 1.5.
"""

from experiments.configs.camvid._camvid import (
    BITS,
    CALIBRATED,
    PLAIN,
    TRAINED,
    on_camvid,
    starts,
)
from experiments.configs.coco._coco import plain
from experiments.training.config import Experiment


def runs() -> dict[str, Experiment]:
    """The float network, plain-METHOD-BITS and METHOD-BITS."""
    own = starts(("float", *CALIBRATED), BITS)
    found = {"float": own.pop("float")}
    for name, run in plain(TRAINED, PLAIN, BITS).items():
        found[f"plain-{name}"] = on_camvid(run)
    return found | own
