"""Codes that move while tuning, at 1.25 bits: what it gives VQ and SSVQ.

python -m experiments.compress experiments/configs/cifar100/moving.py \
    --data-dir DIR --results experiments/results

Three epochs each. Weights are trained beside the codes, which are chosen anew for them
ten or thirty times. Needs the float network of floats.py. Three
minutes each on 2 CPU cores.
"""

from experiments.configs._methods import recompressed
from experiments.configs.cifar100._cifar100 import fine_tuning, tuned
from experiments.training.config import Experiment, Reassignment

METHODS = ("vq", "learned")
CHECKS = (10, 30)
"""How often codes are chosen anew in a run."""
RATES = (1e-4, 1e-3)
"""Learning rates of the weights that codes are chosen for."""


def runs() -> dict[str, Experiment]:
    """METHOD-stay, METHOD-CHECKS-RATE."""
    found = {}
    for method in METHODS:
        stay = fine_tuning(method, 1.25, epochs=3, rates=tuned(method))
        found[f"{method}-stay"] = stay
        for checks in CHECKS:
            for rate in RATES:
                moving = Reassignment(checks=checks, rate=rate)
                found[f"{method}-{checks}-{rate:g}"] = recompressed(
                    stay, reassignment=moving
                )
    return found
