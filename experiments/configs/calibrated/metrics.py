"""What errors of weights are measured by: layers' inputs, or the Fisher information.

python -m experiments.compress experiments/configs/calibrated/metrics.py \
    --data-dir ../shared/tfds --results experiments/results

DeiT-Tiny on CIFAR-10, the kernels of its blocks, without training: 2,000 training
images calibrate. One codec for all kernels. A minute a run on 2 CPU cores.
"""

import ssvq_jax as ssvq
from experiments.configs.cifar10._cifar10 import TASK
from experiments.models.zoo import NETWORKS
from experiments.training.config import (
    Calibration,
    Compression,
    Data,
    Experiment,
    Optimization,
)

METRICS = ("inputs", "fisher", "kronecker")
CODECS = {
    "vq-1.5": ssvq.VQ(64, 4, codebook_dtype="int8", channel_scale="float16"),
    "coded-1.5": ssvq.SSVQ(
        32, 8, sign_code="parity", codebook_dtype="int8", channel_scale="float16"
    ),
    "vq-2": ssvq.VQ(256, 4, codebook_dtype="int8", channel_scale="float16"),
    "coded-2": ssvq.SSVQ(
        32, 4, sign_code="parity", codebook_dtype="int8", channel_scale="float16"
    ),
}


def runs() -> dict[str, Experiment]:
    """METHOD-BITS-METRIC, and float."""
    found = {"float": _run(None)}
    for name, codec in CODECS.items():
        for metric in METRICS:
            rules = (ssvq.Rule("blocks/.*/kernel", codec),)
            calibration = Calibration(probe=0, metric=metric)
            found[f"{name}-{metric}"] = _run(
                Compression(rules=rules, calibration=calibration)
            )
    return found


def _run(compression: Compression | None) -> Experiment:
    return Experiment(
        task=TASK,
        network=NETWORKS["deit_tiny_cifar10"],
        data=Data(name="cifar10", train="train[:2000]"),
        optimization=Optimization(epochs=0, batch=50),
        weights="../shared/models/deit_tiny_cifar10.safetensors",
        compression=compression,
        distill=compression is not None,
    )
