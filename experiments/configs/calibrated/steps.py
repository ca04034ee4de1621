"""What every step gives at 1.5 bits, without training.

python -m experiments.compress experiments/configs/calibrated/steps.py \
    --data-dir ../shared/tfds --results experiments/results

Calibrated on the first 500 images of few_images/bits.py, judged on the next 200: the
images that test there are not looked at.
"""

import dataclasses

import ssvq_jax as ssvq
from experiments.configs._methods import convolutional
from experiments.configs.calibrated._calibrated import CHOOSING, NETS, calibrated
from experiments.training.config import Calibration, Experiment

CODECS = {"vq": ssvq.VQ(64, 4, codebook_dtype="int8"), "ssvq": ssvq.SSVQ(16, 8)}
STEPS = (
    "plain", "norms", "scales", "importance", "feedback", "predicted", "measured",
)  # fmt: skip


def runs() -> dict[str, Experiment]:
    """NETWORK-METHOD-STEP."""
    return {
        f"{network}-{method}-{step}": _run(network, method, step)
        for network in NETS
        for method in CODECS
        for step in STEPS
    }


def _run(network: str, method: str, step: str) -> Experiment:
    calibration = {
        "plain": Calibration(refine=False, batch_norm=False),
        "norms": Calibration(refine=False),
        "scales": Calibration(refine=False),
        "importance": Calibration(form="diagonal"),
        "feedback": Calibration(),
        "predicted": Calibration(bits=1.5, probe=0),
        "measured": Calibration(bits=1.5),
    }[step]
    run = calibrated(network, method, calibration, data=CHOOSING)
    if calibration.bits is not None or run.compression is None:
        return run
    codec = CODECS[method]
    if step not in ("plain", "norms"):
        codec = dataclasses.replace(codec, channel_scale="float16")
    compression = dataclasses.replace(run.compression, rules=convolutional(codec))
    return dataclasses.replace(run, compression=compression)
