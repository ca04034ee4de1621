"""What errors of SmolLM2's weights are measured by, chosen by validation text.

python -m experiments.compress experiments/configs/language/smollm2_metrics.py \
    --data-dir ../shared/text --results experiments/results

One codec of 2 bits for all kernels, calibrated as in smollm2.py: by the second moments
of layers' inputs, or by Fisher factors of inputs or of both sides, from one gradient a
window with sampled tokens. Not run here yet.
"""

import dataclasses

from experiments.configs.language._smollm2 import CODECS, DATA, compressed
from experiments.training.config import Calibration, Experiment


def runs() -> dict[str, Experiment]:
    """METHOD-METRIC."""
    return {
        f"{method}-{metric}": compressed(
            CODECS[method][2],
            calibration=Calibration(probe=0, metric=metric),
            data=dataclasses.replace(DATA, test=None),
        )
        for method in ("vq", "coded")
        for metric in ("inputs", "fisher", "kronecker")
    }
