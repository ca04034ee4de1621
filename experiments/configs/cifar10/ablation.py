"""What each part of SSVQ gives, at 1.5 bits: three epochs where nothing else is said.

python -m experiments.compress experiments/configs/cifar10/ablation.py \
    --data-dir DIR --results experiments/results

Needs the float network of deit_96.py. 17 runs of one to three
minutes on 2 CPU cores. The unchanged runs are those of bits.py, and those of
ten epochs in headline.py. Expect 73 % whatever the freezing; 72 and 70 % at a
tenth and ten times the signs' learning rate.
"""

import dataclasses

from experiments.configs._methods import SIGNED
from experiments.configs.cifar10._cifar10 import FREEZING, fine_tuning, tuned
from experiments.training.config import Experiment

CHECKS = (125, 62, 25, 12)
"""The paper's intervals of 100, 200, 500 and 1,000 of the 12,500 steps of 10 epochs."""


def runs() -> dict[str, Experiment]:
    """Runs by what is changed."""
    found = {
        f"epochs-1-{method}": fine_tuning(method, 1.5, epochs=1)
        for method in ("vq", *SIGNED)
    }
    for checks in CHECKS:
        for decide in ("majority", "average"):
            freezing = dataclasses.replace(FREEZING, checks=checks, decide=decide)
            if freezing != FREEZING:
                found[f"interval-{checks}-{decide}"] = fine_tuning(
                    "frozen", 1.5, epochs=3, freezing=freezing
                )
    # Freezing should pay where signs oscillate: at higher rates.
    for factor in (0.1, 10.0):
        for method in ("learned", "frozen"):
            rates = tuned(method)
            rates["sign_rate"] *= factor
            found[f"sign_rate-{factor:g}-{method}"] = fine_tuning(
                method, 1.5, epochs=3, rates=rates
            )
    # Of the rate over the scale, only the ratio should count.
    for scale in (0.1, 10.0):
        found[f"latent_scale-{scale:g}-learned"] = fine_tuning(
            "learned", 1.5, epochs=3, latent_scale=scale
        )
    return found
