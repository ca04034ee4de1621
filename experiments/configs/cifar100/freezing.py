"""When freezing signs pays: their learning rate, and the interval, at 1.25 bits.

python -m experiments.compress experiments/configs/cifar100/freezing.py \
    --data-dir DIR --results experiments/results

Three epochs each, with the signs' tuned learning rate, three times and ten times as
much; of the tuned one the runs without freezing and with 25 times are those of bits.py.
Needs the float network of floats.py. Ten runs of a minute and a half on 2 CPU cores.
"""

import dataclasses

from experiments.configs.cifar100._cifar100 import FREEZING, fine_tuning, tuned
from experiments.training.config import Experiment

CHOSEN = {1: (125, 5), 3: (None, 125, 25, 5), 10: (None, 125, 25, 5)}
"""How often signs are frozen in a run, by what their learning rate is multiplied with;
25 times are the paper's every 500 steps."""


def runs() -> dict[str, Experiment]:
    """learned-FACTOR, frozen-FACTOR-TIMES."""
    found = {}
    for factor, chosen in CHOSEN.items():
        rates = tuned("learned")
        rates["sign_rate"] *= factor
        for times in chosen:
            method, name, freezing = "learned", f"learned-{factor}", FREEZING
            if times is not None:
                method, name = "frozen", f"frozen-{factor}-{times}"
                freezing = dataclasses.replace(FREEZING, checks=times)
            found[name] = fine_tuning(
                method, 1.25, epochs=3, rates=rates, freezing=freezing
            )
    return found
