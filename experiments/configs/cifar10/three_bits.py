"""All methods at 3 bits, UQ at 4, too; three epochs each.

python -m experiments.compress experiments/configs/cifar10/three_bits.py \
    --data-dir DIR --results experiments/results

With rates of their own, from three_bits_rates.py. Eight runs of one and a half minutes
on 2 CPU cores. Test accuracy there: float 74.8 %, SSVQ with learned signs 74.4 and with
fixed ones 73.8, VQ 74.1, MVQ 74.0, UQ 74.1 and at 4 bits 74.4.
"""

from experiments.configs.cifar10.bits import every_method
from experiments.training.config import Experiment

RATES = {
    "float": (3e-5, 3e-5),
    "uniform": (1e-3, 3e-3),
    "vq": (3e-3, 3e-4),
    "mvq": (1e-3, 3e-4),
    "fixed": (1e-4, 1e-2),
    "learned": (1e-4, 3e-4),
}
"""The best of `three_bits_rates.py`."""


def runs() -> dict[str, Experiment]:
    """METHOD-BITS, and float."""
    return every_method((3, 4), RATES)
