"""CamVid's DeepLab-V3 compressed without training: the network of float.py.

python -m experiments.compress experiments/configs/camvid/bits.py \
    --data-dir ../shared/tfds --results experiments/results

Rules and candidates are those of coco/bits.py. Calibrated on 360 training images,
without their labels; the 233 of the test split test.
"""

from experiments.configs.calibrated._calibrated import CANDIDATES
from experiments.configs.calibrated.bits import LEAST
from experiments.configs.camvid.float import DATA, NETWORK
from experiments.configs.coco._coco import rules
from experiments.tasks import Segmentation
from experiments.training.config import (
    Calibration,
    Compression,
    Experiment,
    Optimization,
)

METHODS = ("uniform", "mvq", "vq", "coded")
BITS = (1.5, 2, 3)


def runs() -> dict[str, Experiment]:
    """The float network and METHOD-BITS."""

    def run(compression: Compression | None) -> Experiment:
        return Experiment(
            task=Segmentation(),
            network=NETWORK,
            data=DATA,
            optimization=Optimization(epochs=0, batch=20),
            weights="runs/camvid/float/float/model.safetensors",
            compression=compression,
            distill=compression is not None,
        )

    found = {"float": run(None)}
    for method in METHODS:
        for bits in BITS:
            if bits >= LEAST.get(method, 0):
                compression = Compression(
                    rules=rules("deeplabv3_mnv2_050", CANDIDATES[method]),
                    calibration=Calibration(bits=bits, probe=40),
                )
                found[f"{method}-{bits:g}"] = run(compression)
    return found
