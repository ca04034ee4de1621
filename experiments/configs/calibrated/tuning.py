"""What fine-tuning adds to calibrated codes: EfficientNet-Lite0 at 1.5 bits.

python -m experiments.compress experiments/configs/calibrated/tuning.py \
    --data-dir ../shared/tfds --results experiments/results

Calibrated on 500 images and tuned on them for five epochs, without labels; judged on
the next 200: the images that test in bits.py are not looked at.
"""

import dataclasses

import numpy as np

from experiments.configs.calibrated._calibrated import CHOOSING, calibrated
from experiments.configs.few_images._few_images import TASK
from experiments.training.config import (
    Calibration,
    Experiment,
    Optimization,
    Reassignment,
)

METHODS = ("vq", "coded")
VARIANTS = ("logits", "held", "features", "moving")
"""Outputs matched; the classifier held, too; features matched, too; codes that move."""
_RATES = (3e-5, 1e-4)


def runs() -> dict[str, Experiment]:
    """METHOD-VARIANT-RATE, and METHOD-none without tuning."""
    found = {}
    for method in METHODS:
        start = calibrated(
            "efficientnet_lite0", method, Calibration(bits=1.5), data=CHOOSING
        )
        start = dataclasses.replace(start, task=TASK)
        found[f"{method}-none"] = start
        for variant in VARIANTS:
            for rate in _RATES:
                shown = np.format_float_positional(rate, trim="-")
                found[f"{method}-{variant}-{shown}"] = _tuned(start, variant, rate)
    return found


def _tuned(start: Experiment, variant: str, rate: float) -> Experiment:
    matched = variant in ("features", "moving")
    compression = start.compression
    if compression is not None and variant == "moving":
        compression = dataclasses.replace(
            compression, reassignment=Reassignment(checks=5, rate=rate)
        )
    return dataclasses.replace(
        start,
        compression=compression,
        optimization=Optimization(
            epochs=5,
            batch=50,
            rate=rate,
            codebook_rate=rate,
            sign_rate=rate,
            held=None if variant == "logits" else "classifier/.*",
            features=1.0 if matched else 0.0,
        ),
    )
