"""What the experiments with calibrated codes share: data, networks, candidates."""

from typing import Any

import ssvq_jax as ssvq
from experiments.configs._methods import convolutional
from experiments.configs.few_images._few_images import DATA, NETS
from experiments.models.zoo import NETWORKS
from experiments.tasks import Classification
from experiments.training.config import (
    Calibration,
    Compression,
    Data,
    Experiment,
    Optimization,
)

CHOOSING = Data(
    name="imagenet_sample", train="validation[:500]", test="validation[500:700]"
)
"""To choose a recipe with: without the images that test."""
# All have 6 and 8 bits, for the first layers: small and sensitive.
_FINE = (ssvq.Uniform(6), ssvq.Uniform(8))
_SCALED: dict[str, Any] = {"channel_scale": "float16", "codebook_dtype": "int8"}
CANDIDATES = {
    "uniform": tuple(ssvq.Uniform(bits) for bits in (2, 3, 4, 5, 6, 8)),
    "vq": (
        *(
            ssvq.VQ(codewords, block, **_SCALED)
            for codewords, block in (
                (16, 4), (32, 4), (64, 4), (256, 4), (32, 2), (64, 2), (256, 2),
            )
        ),
        *_FINE,
    ),
    "mvq": (
        *(
            ssvq.MVQ(codewords, block, keep, **_SCALED)
            for codewords, block, keep in (
                (16, 8, (2, 4)), (32, 6, (4, 6)), (64, 4, (3, 4)), (320, 4, (3, 4)),
                (128, 3, (2, 3)), (256, 2, (1, 2)),
            )
        ),
        *_FINE,
    ),
    "ssvq": (
        *(
            ssvq.SSVQ(codewords, block, **_SCALED)
            for codewords, block in (
                (4, 8), (16, 8), (64, 12), (256, 16), (64, 8), (16, 4), (64, 4),
                (16, 2), (64, 2),
            )
        ),
        *_FINE,
    ),
    "coded": (
        *(
            ssvq.SSVQ(codewords, 8, sign_code="hamming", **_SCALED)
            for codewords in (16, 64, 256)
        ),
        *(
            ssvq.SSVQ(codewords, block, sign_code="parity", **_SCALED)
            for codewords, block in ((32, 8), (128, 8), (32, 4), (128, 4))
        ),
        *(ssvq.SSVQ(codewords, 2, **_SCALED) for codewords in (16, 64)),
        *_FINE,
    ),
}  # fmt: skip
"""Codecs by method; `allocate` chooses one for every kernel."""


def calibrated(
    network: str,
    method: str,
    calibration: Calibration,
    *,
    data: Data = DATA,
) -> Experiment:
    """Kernels compressed by what they see, without training.

    Args:
      network: One of `NETS`.
      method: One of `CANDIDATES`.
      calibration: How.
      data: Its images.
    """
    return Experiment(
        task=Classification(),
        network=NETWORKS[network],
        data=data,
        optimization=Optimization(epochs=0, batch=50),
        weights=NETS[network],
        compression=Compression(
            rules=convolutional(*CANDIDATES[method]),
            calibration=calibration,
        ),
        distill=True,
    )
