"""All methods at 3 bits, UQ at 4, too; three epochs each.

python -m experiments.compress experiments/configs/cifar10_3_bits.py \
    --data-dir DIR --results experiments/results

With rates of their own: needs the results of cifar10_3_bits_rates.py, and those of
cifar10_thresholds.py. Eight runs of one and a half minutes on 2 CPU cores. Test
accuracy there: float 74.8 %, SSVQ with learned signs 74.4 and with fixed ones 73.8, VQ
74.1, MVQ 74.0, UQ 74.1 and at 4 bits 74.4.
"""

from experiments.config import Experiment
from experiments.configs.cifar10_bits import every_method


def runs() -> dict[str, Experiment]:
    """METHOD-BITS, and float."""
    return every_method((3, 4), "cifar10_3_bits_rates")
