"""What the experiments with SmolLM2-135M share: text, network, codecs."""

import dataclasses
from typing import Any, Literal

import ssvq_jax as ssvq
from experiments.models.zoo import NETWORKS
from experiments.tasks import Language
from experiments.training.config import (
    Calibration,
    Compression,
    Data,
    Experiment,
    Optimization,
)

TASK = Language(tokenizer="runs/smollm2/tokenizer.json")
DATA = Data(
    name="wikitext-2",
    train="validation[:64]",
    validation="validation[64:80]",
    test="test[:16]",
)
"""Windows of 512 tokens: to calibrate on, to choose by, to test with."""
CODECS = {
    "uniform": {bits: ssvq.Uniform(bits) for bits in (2, 3, 4)},
    "vq": {
        1.5: ssvq.VQ(64, 4, codebook_dtype="int8"),
        2: ssvq.VQ(256, 4, codebook_dtype="int8"),
        3: ssvq.VQ(64, 2, codebook_dtype="int8"),
        4: ssvq.VQ(256, 2, codebook_dtype="int8"),
    },
    "free": {
        1.5: ssvq.SSVQ(16, 8, codebook_dtype="int8"),
        2: ssvq.SSVQ(16, 4, codebook_dtype="int8"),
        3: ssvq.SSVQ(16, 2, codebook_dtype="int8"),
        4: ssvq.SSVQ(64, 2, codebook_dtype="int8"),
    },
    "coded": {
        1.5: ssvq.SSVQ(32, 8, sign_code="parity", codebook_dtype="int8"),
        2: ssvq.SSVQ(32, 4, sign_code="parity", codebook_dtype="int8"),
    },
}
"""One codec for all kernels, by method and bits."""
METRIC: Literal["inputs", "fisher", "kronecker"] = "inputs"
"""To be the best one of smollm2_metrics.py, once that has run."""
FLOAT = Experiment(
    task=TASK,
    network=NETWORKS["smollm2_135m"],
    data=DATA,
    optimization=Optimization(epochs=0, batch=1),
    weights="runs/smollm2/model.safetensors",
    distill=True,
)
"""A window at a time: a gradient each for Fisher factors, and the least memory."""


def compressed(
    *codecs: ssvq.Codec, calibration: Calibration | None = None, **changes: Any
) -> Experiment:
    """All linear kernels by a codec, the embedding at 8 bits.

    Args:
      *codecs: Of the kernels; of several, candidates.
      calibration: `None` for codes found by the weights alone. With it codebooks have
        a scale for every output channel.
      **changes: Of `Experiment`.
    """
    if calibration is not None:
        codecs = tuple(map(_scaled, codecs))
    rules = (
        *(ssvq.Rule("model/layers/.*/kernel", codec) for codec in codecs),
        ssvq.Rule("model/embed_tokens/embedding", ssvq.Uniform(8)),
    )
    compression = Compression(rules=rules, calibration=calibration)
    return dataclasses.replace(FLOAT, compression=compression, **changes)


def _scaled(codec: ssvq.Codec) -> ssvq.Codec:
    if isinstance(codec, ssvq.Uniform):
        return codec
    return dataclasses.replace(codec, channel_scale="float16")
