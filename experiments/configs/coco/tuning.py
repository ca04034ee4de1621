"""What fine-tuning adds to calibrated codes, on COCO's images and without labels.

python -m experiments.compress experiments/configs/coco/tuning.py \
    --data-dir ../shared/tfds --results experiments/results

The networks of bits.py, calibrated as there and tuned for ten epochs on the same 180
training images, to match the float network's outputs. "before" is the score of the
codes. UQ at 2 bits has one codec for all kernels. Not run here yet, no more than
tuning_rates.py: rates are the best of two that were tried for VQ alone.
"""

from experiments.configs.calibrated.bits import LEAST
from experiments.configs.coco._coco import tuned
from experiments.configs.coco.bits import NETWORKS
from experiments.training.config import Experiment

RATES = {"uniform": 3e-5, "vq": 3e-5, "mvq": 3e-5, "coded": 3e-5}
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
