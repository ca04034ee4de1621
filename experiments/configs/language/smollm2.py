"""SmolLM2-135M compressed without training, perplexity on WikiText-2.

python -m experiments.models.smollm2 runs/smollm2
python -m experiments.compress experiments/configs/language/smollm2.py \
    --data-dir ../shared/text --results experiments/results

All 210 linear kernels; the embedding, which is the head, too, has 8 bits. From the
weights alone, and calibrated on 64 windows of the validation text: error feedback with
one codec for all kernels, or with bits spread by predicted errors. The first 16 windows
of 512 tokens test. The weights come from 4 bits: that is what "float" is here. 34 runs;
not run here yet.
"""

from experiments.configs.calibrated._calibrated import CANDIDATES
from experiments.configs.language._smollm2 import CODECS, FLOAT, METRIC, compressed
from experiments.training.config import Calibration, Experiment


def runs() -> dict[str, Experiment]:
    """METHOD-HOW-BITS, and float.

    UQ has 2 bits and more, coded signs 1.5 and 2; spread are 1.5 to 3, of UQ 3.
    """
    found = {"float": FLOAT}
    one = Calibration(probe=0, metric=METRIC)
    for method, codecs in CODECS.items():
        for bits, codec in codecs.items():
            found[f"{method}-plain-{bits:g}"] = compressed(codec)
            found[f"{method}-calibrated-{bits:g}"] = compressed(codec, calibration=one)
    for method in ("uniform", "vq", "coded"):
        for bits in (3,) if method == "uniform" else (1.5, 2, 3):
            found[f"{method}-allocated-{bits:g}"] = compressed(
                *CANDIDATES[method],
                calibration=Calibration(bits=bits, probe=0, metric=METRIC),
            )
    return found
