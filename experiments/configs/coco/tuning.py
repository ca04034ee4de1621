"""What fine-tuning adds to calibrated codes: YOLOX-Nano, without labels.

python -m experiments.compress experiments/configs/coco/tuning.py \
    --data-dir ../shared/tfds --results experiments/results

Calibrated as VQ and SSVQ are in bits.py, and tuned for five epochs on the same 180
training images, to match the float network's outputs. "before" is the score of the
codes. UQ at 2 bits has one codec for all kernels. Rates are the best of
tuning_rates.py.

11 runs of three minutes on 2 CPU cores, five more for the first of a method. Expect
a point or less, or none; two for SSVQ at 1.5 bits.
"""

from experiments.configs.coco._coco import reached, tuned
from experiments.training.config import Experiment

RATES = {"vq": 3e-5, "coded": 3e-4, "mvq": 3e-4, "uniform": 1e-5}
BITS = (1.5, 2, 3)


def runs() -> dict[str, Experiment]:
    """METHOD-BITS."""
    return {
        f"{method}-{bits:g}": tuned("yolox_nano", method, bits, RATES[method])
        for method, bits in reached(tuple(RATES), BITS)
    }
