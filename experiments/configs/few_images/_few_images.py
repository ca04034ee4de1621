"""What the experiments with few images share: data, networks, codecs."""

import ssvq_jax as ssvq
from experiments.configs._methods import convolutional
from experiments.data.augmentation import Augmentation
from experiments.models.zoo import NETWORKS
from experiments.tasks import Classification
from experiments.training.config import (
    Compression,
    Data,
    Experiment,
    Freezing,
    Optimization,
)

DATA = Data(
    name="imagenet_sample",
    train="validation[:700]",
    test="validation[700:]",
)
TASK = Classification(augmentation=Augmentation(scale=(0.35, 1.0), flip=True))
NETS = {
    "efficientnet_lite0": "../shared/models/efficientnet_lite0.safetensors",
    "mobilenet_v2_100_unfolded": "runs/mobilenet_v2_100_unfolded.safetensors",
}
CODECS = {
    "vq-1.5": ssvq.VQ(64, 4, codebook_dtype="int8"),
    "mvq-1.5": ssvq.MVQ(32, 6, (4, 6)),
    "ssvq-1.5": ssvq.SSVQ(16, 8),
    "uniform-2": ssvq.Uniform(2),
    "vq-2": ssvq.VQ(64, 3, codebook_dtype="int8"),
    "mvq-2": ssvq.MVQ(64, 4, (3, 4)),
    "ssvq-2": ssvq.SSVQ(16, 4),
    "uniform-3": ssvq.Uniform(3),
    "vq-3": ssvq.VQ(64, 2, codebook_dtype="int8"),
    "mvq-3": ssvq.MVQ(128, 3, (2, 3)),
    "ssvq-3": ssvq.SSVQ(16, 2),
    "uniform-4": ssvq.Uniform(4),
    "vq-4": ssvq.VQ(256, 2, codebook_dtype="int8"),
    "ssvq-4": ssvq.SSVQ(64, 2),
}


def matching(
    network: str, name: str, rates: tuple[float, float], data: Data = DATA
) -> Experiment:
    """Five epochs of matching a float network's outputs.

    Args:
      network: One of `NETS`.
      name: One of `CODECS`.
      rates: Of all that is not compressed, with SSVQ of codebooks, too; and of signs,
        elsewhere of codebooks or steps.
      data: Its images.
    """
    signed = name.startswith("ssvq")
    rate, second = rates
    return Experiment(
        task=TASK,
        network=NETWORKS[network],
        data=data,
        optimization=Optimization(
            epochs=5,
            batch=50,
            rate=rate,
            codebook_rate=rate if signed else second,
            sign_rate=second,
        ),
        weights=NETS[network],
        compression=Compression(
            rules=convolutional(CODECS[name]),
            freezing=Freezing(checks=10) if signed else None,
        ),
        distill=True,
    )
