"""What calibrated starts and coded signs add to fine-tuning: 1 to 1.5 bits.

python -m experiments.compress experiments/configs/cifar10/starts.py \
    --data-dir DIR --results experiments/results

All runs start from the same float network, of deit_96.py. A calibrated start finds the
codes of the same codec by the second moments of 4,096 training images. Three epochs,
and at 1.5 bits ten beside those of headline.py. Rates are those of rates.py and
starts_rates.py.
"""

import dataclasses

from experiments.configs.cifar10._cifar10 import RATES, fine_tuning, tuned
from experiments.training.config import Calibration, Experiment

STARTS = ("plain", "calibrated")
"""Codes by the weights alone, or by what layers see."""
METHODS = {
    1: ("vq", "coded"),
    1.25: ("vq", "learned", "coded"),
    1.5: ("vq", "learned", "coded"),
}
"""What is compared, by bits."""
_STARTED = {
    "plain": RATES | {"coded": (3e-4, 1e-3)},
    "calibrated": {
        "vq": (3e-4, 1e-3),
        "learned": (3e-4, 1e-3),
        "coded": (1e-3, 1e-3),
    },
}
"""The best of rates.py and starts_rates.py."""


def runs() -> dict[str, Experiment]:
    """METHOD-START-BITS-EPOCHS-SEED."""
    chosen = [
        *((method, "calibrated", 1.5, 10, 0) for method in ("vq", "learned")),
        *(
            (method, start, bits, 3, 0)
            for bits in (1.5, 1.25, 1)
            for method in METHODS[bits]
            for start in STARTS
        ),
    ]
    found = {}
    for method, start, bits, epochs, seed in chosen:
        run = fine_tuning(
            method,
            bits,
            epochs=epochs,
            seed=seed,
            rates=tuned(method, _STARTED[start]),
        )
        name = f"{method}-{start}-{bits:g}-{epochs}-{seed}"
        found[name] = from_calibrated(run) if start == "calibrated" else run
    return found


def from_calibrated(experiment: Experiment) -> Experiment:
    """The same, with codes found by what layers see; codecs stay."""
    if experiment.compression is None:
        raise ValueError("expected an experiment with a compression")
    compression = dataclasses.replace(
        experiment.compression, calibration=Calibration(examples=4096)
    )
    return dataclasses.replace(experiment, compression=compression)
