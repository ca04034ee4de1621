"""ImageNet networks from 700 images without labels and without training.

python -m experiments.unfold ../shared/models/mobilenet_v2_100.safetensors \
    runs/mobilenet_v2_100_unfolded.safetensors --data-dir ../shared/tfds
python -m experiments.compress experiments/configs/calibrated/bits.py \
    --data-dir ../shared/tfds --results experiments/results

Pointwise kernels and the classifier get codecs by `ssvq_jax.allocate`, by the measured
divergence of the outputs, and bits are theirs, codebooks and scales counted; depthwise
kernels and the stem have 8 bits each, as in few_images/bits.py. Codes are found by
`ssvq_jax.refine`, batch norms taken anew. The last 300 images test.
"""

from experiments.configs.calibrated._calibrated import NETS, calibrated
from experiments.training.config import Calibration, Experiment

BITS = (1.25, 1.5, 2, 3, 4)
# Their least: two bits and a step for every channel; half of the weights' masks; a
# sign for every weight.
LEAST = {"uniform": 3, "mvq": 1.5, "ssvq": 1.5}


def runs() -> dict[str, Experiment]:
    """NETWORK-METHOD-BITS; those of one method share what was measured."""
    return {
        f"{network}-{method}-{bits:g}": calibrated(
            network, method, Calibration(bits=bits)
        )
        for network in NETS
        for method in ("vq", "ssvq", "coded", "mvq", "uniform")
        for bits in BITS
        if bits >= LEAST.get(method, 0)
    }
