"""What the experiments on COCO's images share: data, networks, rules."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from flax import nnx

import ssvq_jax as ssvq
from experiments.configs._methods import recompressed
from experiments.configs.calibrated._calibrated import CANDIDATES
from experiments.configs.few_images._few_images import CODECS
from experiments.models.zoo import NETWORKS
from experiments.tasks import Detection, InstanceSegmentation, Segmentation, Task
from experiments.training.config import (
    Calibration,
    Compression,
    Data,
    Experiment,
    Optimization,
)

DATA = Data(
    name="coco/2017_panoptic+coco/2017_instances", train="train", test="validation"
)
TASKS: dict[str, Task] = {
    "yolox_nano": Detection(),
    "deeplabv3_mnv2_050": Segmentation(),
    "yolox_nano_masks": InstanceSegmentation(canvas=512),
}
"""By the networks that learned them."""
_TRAINED = {"yolox_nano_masks": "runs/coco/instances/float/model.safetensors"}
"""Weights that are made here, by instances.py."""
# Convolutions of blocks and necks; then depthwise ones, stem and prediction layers,
# which few weights and much error speak for.
_PATTERNS = {
    "yolox": (
        r".*(?<!dconv)(?<!stem/conv)/conv/kernel",
        r".*((dconv|stem/conv)/conv|_preds/\d)/kernel",
    ),
    "deeplabv3": (
        r"(blocks/.*/conv_(pw|pwl)|aspp0|concat_projection|image_pooling)/kernel",
        r"(blocks/.*/conv_dw|conv_stem|logits_semantic)/kernel",
    ),
}


def rules(network: str, codecs: Sequence[ssvq.Codec]) -> tuple[ssvq.Rule, ...]:
    """For convolutions, of several codecs candidates; all other kernels get 8 bits.

    One codec alone is for kernels of 4,096 weights and more: smaller ones have too few
    blocks for its codebook, and get 8 bits, too.
    """
    pattern, fine = _PATTERNS[network.split("_")[0]]
    if network == "yolox_nano_masks":
        fine = rf"{fine}|mask_head/proto_preds/kernel"
    if len(codecs) == 1:
        pattern, fine = _large(network, pattern), f"{pattern}|{fine}"
    return (
        *(ssvq.Rule(pattern, codec) for codec in codecs),
        ssvq.Rule(fine, ssvq.Uniform(8)),
    )


@functools.cache
def _large(network: str, pattern: str) -> str:
    """The paths among a pattern's that have 4,096 weights and more."""
    model = nnx.eval_shape(lambda: NETWORKS[network].build(nnx.Rngs(0)))
    paths = (
        ("/".join(map(str, keys)), math.prod(variable.shape))
        for keys, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    )
    large = [path for path, size in paths if size >= 4096]
    return "|".join(path for path in large if re.fullmatch(pattern, path))


def plain(
    network: str, methods: Sequence[str], bits: Sequence[float]
) -> dict[str, Experiment]:
    """METHOD-BITS by k-means of the weights alone, as far as there are such codecs."""
    return {
        name: tested(network, Compression(rules=rules(network, [CODECS[name]])))
        for name in (f"{method}-{x:g}" for method in methods for x in bits)
        if name in CODECS
    }


def reached(methods: Sequence[str], bits: Sequence[float]) -> list[tuple[str, float]]:
    """Methods and bits that `calibrated` can be asked for: UQ's least is 2."""
    pairs = itertools.product(methods, bits)
    return [(method, x) for method, x in pairs if x >= 2 or method != "uniform"]


def predicted(run: Experiment) -> Experiment:
    """The same run, bits spread by predicted errors: quicker than to measure them."""
    if run.compression is None or run.compression.calibration is None:
        return run
    calibration = dataclasses.replace(run.compression.calibration, probe=0)
    return recompressed(run, calibration=calibration)


def calibrated(network: str, method: str, bits: float) -> Experiment:
    """A trained network with calibrated codes, spread over its kernels.

    Args:
      network: One of `TASKS`.
      method: One of `CANDIDATES`.
      bits: Stored bits a weight of all that these compete for. UQ's least is 2 and a
        step for every channel: at 2 bits there is nothing to spread.
    """
    codecs, spread = CANDIDATES[method], bits
    if method == "uniform" and bits == 2:
        codecs, spread = (ssvq.Uniform(2),), None
    return tested(
        network,
        Compression(
            rules=rules(network, codecs),
            calibration=Calibration(bits=spread, probe=40),
        ),
    )


def tuned(
    network: str, method: str, bits: float, rate: float, data: Data = DATA
) -> Experiment:
    """A detector, five epochs from calibrated codes, to match the float outputs.

    Args:
      network: With masks or without.
      method: As of `calibrated`.
      bits: As of `calibrated`.
      rate: Of everything: weights that are not compressed, codebooks, steps, signs; 0
        for no tuning at all.
      data: These.
    """
    task: Any = TASKS[network]
    return dataclasses.replace(
        calibrated(network, method, bits),
        task=dataclasses.replace(task, flip=True),
        data=data,
        optimization=Optimization(
            epochs=5 if rate else 0,
            batch=20,
            rate=rate,
            codebook_rate=rate,
            sign_rate=rate,
            held_statistics=True,
        ),
    )


def tested(network: str, compression: Compression | None) -> Experiment:
    """A trained network, compressed or not, without training.

    Args:
      network: One of `TASKS`.
      compression: How; calibrated is the network that has its batch norms back.
    """
    name = network
    weights = _TRAINED.get(network, f"../shared/models/{network}.safetensors")
    if compression is not None and compression.calibration is not None:
        name = f"{network}_unfolded"
        weights = f"runs/{name}.safetensors"
    return Experiment(
        task=TASKS[network],
        network=NETWORKS[name],
        data=DATA,
        optimization=Optimization(epochs=0, batch=20),
        weights=weights,
        compression=compression,
        distill=compression is not None,
    )
