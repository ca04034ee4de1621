"""Codes that move while tuning, at 1.25 bits: what it gives VQ and SSVQ.

python -m experiments.compress experiments/configs/cifar100/moving.py \
    --data-dir DIR --results experiments/results

Three epochs each, as in bits.py, whose codes stay. Here weights are trained beside the
codes, which are chosen anew for them ten or thirty times. Needs the float network of
floats.py. Six runs of two minutes on 2 CPU cores.
"""

from experiments.configs._methods import recompressed
from experiments.configs.cifar100._cifar100 import fine_tuning, tuned
from experiments.training.config import Experiment, Reassignment

METHODS = ("vq", "learned")
MOVING = ((10, 1e-4), (10, 1e-3), (30, 1e-3))
"""How often codes are chosen anew, and the learning rate of the weights behind them."""


def runs() -> dict[str, Experiment]:
    """METHOD-TIMES-RATE."""
    return {
        f"{method}-{checks}-{rate:g}": recompressed(
            fine_tuning(method, 1.25, epochs=3, rates=tuned(method)),
            reassignment=Reassignment(checks=checks, rate=rate),
        )
        for method in METHODS
        for checks, rate in MOVING
    }
