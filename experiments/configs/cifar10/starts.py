"""What calibrated starts and coded signs add to fine-tuning: 1 to 1.5 bits, 10 epochs.

python -m experiments.compress experiments/configs/cifar10/starts.py \
    --data-dir DIR --results experiments/results

All methods start from the same float network, of deit_96.py, with the same codecs and
epochs; a calibrated start finds codes by the second moments of 4,096 training images.
Three seeds at 1.5 bits, one elsewhere. Rates are those of rates.py and starts_rates.py.
"""

import dataclasses

from experiments.configs.cifar10._cifar10 import RATES, fine_tuning, rates
from experiments.training.config import Calibration, Experiment

STARTS = ("plain", "calibrated")
"""Codes by the weights alone, or by what layers see."""
_STARTED = {
    "plain": RATES | {"coded": (1e-3, 1e-3)},
    "calibrated": {
        "vq": (3e-3, 1e-3),
        "learned": (1e-3, 1e-3),
        "coded": (1e-3, 1e-3),
    },
}
"""The best of rates.py and `starts_rates.py`."""


def runs() -> dict[str, Experiment]:
    """METHOD-START-BITS-SEED."""
    chosen = [
        *((method, 1.5, 0) for method in ("vq", "learned", "coded")),
        *((method, 1.25, 0) for method in ("vq", "learned", "coded")),
        *((method, 1, 0) for method in ("vq", "coded")),
        *((m, 1.5, seed) for seed in (1, 2) for m in ("vq", "learned", "coded")),
    ]
    found = {}
    for method, bits, seed in chosen:
        for start in STARTS:
            run = fine_tuning(
                method,
                bits,
                epochs=10,
                seed=seed,
                rates=rates(method, *_STARTED[start][method]),
            )
            name = f"{method}-{start}-{bits:g}-{seed}"
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
