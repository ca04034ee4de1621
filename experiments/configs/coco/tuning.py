"""What fine-tuning adds to calibrated codes, on COCO's images and without labels.

python -m experiments.compress experiments/configs/coco/tuning.py \
    --data-dir ../shared/tfds --results experiments/results

The networks of bits.py, calibrated as there and tuned for ten epochs on the same 180
training images, to match the float network's outputs. "before" is the score of the
codes. UQ at 2 bits has one codec for all kernels.
"""

from experiments.configs.calibrated.bits import LEAST
from experiments.configs.coco._coco import tuned
from experiments.configs.coco.bits import NETWORKS
from experiments.training.config import Experiment

RATES = {"uniform": 1e-4, "vq": 1e-4, "mvq": 1e-4, "coded": 1e-4}
"""The best of tuning_rates.py."""
BITS = (1.5, 2, 3)


def runs() -> dict[str, Experiment]:
    """NETWORK-METHOD-BITS."""
    return {
        f"{network}-{method}-{bits:g}": tuned(network, method, bits, rate)
        for network in NETWORKS
        for method, rate in RATES.items()
        for bits in BITS
        if bits >= LEAST.get(method, 0) or (method, bits) == ("uniform", 2)
    }
