"""The compared methods, at (nearly) equal stored bits per weight."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ssvq_jax as ssvq
from experiments.training.config import (
    Compression,
    Experiment,
    Freezing,
    Optimization,
)

# Codebooks are as precise as makes the stored bits equal; all are fine-tuned in
# float32. MVQ's masks are those with the least clustering error, at 1.5 bits the best
# of configs/cifar10/masks.py. Per weight of `deit_96_cifar10`, codebooks included:
_CODECS = {
    1: {
        "vq": ssvq.VQ(16, 4, codebook_dtype="int8"),  # 1.020
        "mvq": ssvq.MVQ(16, 8, (1, 4)),  # 1.038
        "coded": ssvq.SSVQ(16, 8, sign_code="hamming", codebook_dtype="int8"),  # 1.038
    },
    1.25: {
        "vq": ssvq.VQ(32, 4, codebook_dtype="int8"),  # 1.288
        "mvq": ssvq.MVQ(16, 8, (2, 4)),  # 1.288
        "ssvq": ssvq.SSVQ(4, 8),  # 1.269
        "coded": ssvq.SSVQ(8, 8, sign_code="parity"),  # 1.287
    },
    1.5: {
        "vq": ssvq.VQ(64, 4, codebook_dtype="int8"),  # 1.575
        "mvq": ssvq.MVQ(32, 6, (4, 6)),  # 1.557
        "ssvq": ssvq.SSVQ(16, 8),  # 1.574
        "coded": ssvq.SSVQ(32, 8, sign_code="parity", codebook_dtype="int8"),  # 1.575
    },
    2: {
        "uniform": ssvq.Uniform(2),  # 2.125
        "vq": ssvq.VQ(64, 3, codebook_dtype="int8"),  # 2.057
        "mvq": ssvq.MVQ(64, 4, (3, 4)),  # 2.075
        "ssvq": ssvq.SSVQ(16, 4),  # 2.037
        "coded": ssvq.SSVQ(32, 4, sign_code="parity", codebook_dtype="int8"),  # 2.038
    },
    3: {
        "uniform": ssvq.Uniform(3),  # 3.125
        "vq": ssvq.VQ(64, 2, codebook_dtype="int8"),  # 3.038
        "mvq": ssvq.MVQ(320, 4, (3, 4)),  # 3.122
        "ssvq": ssvq.SSVQ(16, 2),  # 3.019
    },
    4: {"uniform": ssvq.Uniform(4)},  # 4.125
}
BITS = (1.25, 1.5, 2, 3, 4)
"""What the paper's methods are compared at, bits per weight."""

TITLES = {
    "float": "float32",
    "uniform": "UQ (LSQ)",
    "vq": "VQ",
    "mvq": "MVQ",
    "fixed": "SSVQ, fixed signs",
    "learned": "SSVQ, learned signs",
    "frozen": "SSVQ, learned + frozen",
    "coded": "SSVQ, coded signs",
    "free": "SSVQ, free signs",
}
"""Methods, and what tables call them."""
SIGNED = ("fixed", "learned", "frozen")
"""Those of SSVQ."""

RECIPE = ("uniform", "vq", "mvq", "fixed", "learned", "frozen")
"""The paper's comparison."""


def paper_recipe(
    rules: Callable[[ssvq.Codec], tuple[ssvq.Rule, ...]], batch: int, **options: Any
) -> dict[str, Experiment]:
    """Ten epochs with each method of `RECIPE` at 1.5 bits, UQ at 2, by its name.

    Args:
      rules: Of the network, for a codec.
      batch: Examples per step.
      **options: The others of `Experiment`.
    """
    return {
        method: Experiment(
            optimization=Optimization(
                epochs=10,
                batch=batch,
                rate=1e-4,
                codebook_rate=1e-3,
                sign_rate=1e-3,
                dtype="bfloat16",
            ),
            compression=Compression(
                rules=rules(_codec(method, 2 if method == "uniform" else 1.5)),
                freezing=Freezing(checks=25) if method == "frozen" else None,
            ),
            **options,
        )
        for method in RECIPE
    }


def compression(
    method: str,
    bits: float,
    freezing: Freezing | None = None,
    kernels: str = "blocks/.*/kernel",
    **changes: Any,
) -> Compression | None:
    """How a method compresses the kernels of all blocks.

    Args:
      method: One of `TITLES`.
      bits: One of `BITS`, or 1.
      freezing: For "frozen".
      kernels: Pattern of these kernels' paths.
      **changes: Options of the codec that differ.

    Raises:
      KeyError: A method that is not compared at so many bits.
    """
    if method == "float":
        return None
    rule = ssvq.Rule(kernels, _codec(method, bits, **changes))
    return Compression(rules=(rule,), freezing=freezing if method == "frozen" else None)


def recompressed(experiment: Experiment, **changes: Any) -> Experiment:
    """The same experiment with other options of its compression."""
    if experiment.compression is None:
        raise ValueError("expected an experiment with a compression")
    compression = dataclasses.replace(experiment.compression, **changes)
    return dataclasses.replace(experiment, compression=compression)


def _codec(method: str, bits: float, **changes: Any) -> ssvq.Codec:
    codec = _CODECS[bits]["ssvq" if method in SIGNED else method]
    if method == "fixed":
        changes["learn_signs"] = False
    return dataclasses.replace(codec, **changes)


def convolutional(*codecs: ssvq.Codec) -> tuple[ssvq.Rule, ...]:
    """Rules for networks of inverted residual blocks; of several codecs, candidates.

    Depthwise kernels and the stem, 2 to 4 % of the weights, get 8 bits each.
    """
    pointwise = r"(blocks/.*/conv_(pw|pwl)|conv_head|classifier)/kernel"
    return (
        *(ssvq.Rule(pointwise, codec) for codec in codecs),
        ssvq.Rule(r"(blocks/.*/conv_dw|conv_stem)/kernel", ssvq.Uniform(8)),
    )


def at(bits: float) -> list[str]:
    """The paper's methods that are compared at so many bits."""
    return [m for m in RECIPE if ("ssvq" if m in SIGNED else m) in _CODECS[bits]]
