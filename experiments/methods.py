"""The compared methods, at (nearly) equal stored bits per weight."""

import dataclasses
import json
import pathlib
from typing import Any

import ssvq_jax as ssvq
from experiments.config import Compression, Experiment, Freezing, Optimization
from experiments.configs.deit_96_cifar10 import CIFAR10, WEIGHTS
from experiments.models.zoo import NETWORKS

RESULTS = pathlib.Path("experiments/results")
"""Where results are committed."""

# Codebooks are as precise as makes the stored bits equal; all are fine-tuned in
# float32. MVQ's masks are those with the least clustering error, at 1.5 bits the best
# of configs/cifar10_mvq.py. Per weight of `deit_96_cifar10`, codebooks included:
_CODECS = {
    1.25: {
        "vq": ssvq.VQ(32, 4, codebook_dtype="int8"),  # 1.288
        "mvq": ssvq.MVQ(16, 8, (2, 4)),  # 1.288
        "ssvq": ssvq.SSVQ(4, 8),  # 1.269
    },
    1.5: {
        "vq": ssvq.VQ(64, 4, codebook_dtype="int8"),  # 1.575
        "mvq": ssvq.MVQ(32, 6, (4, 6)),  # 1.557
        "ssvq": ssvq.SSVQ(16, 8),  # 1.574
    },
    2: {
        "uniform": ssvq.Uniform(2),  # 2.125
        "vq": ssvq.VQ(64, 3, codebook_dtype="int8"),  # 2.057
        "mvq": ssvq.MVQ(64, 4, (3, 4)),  # 2.075
        "ssvq": ssvq.SSVQ(16, 4),  # 2.037
    },
    3: {
        "uniform": ssvq.Uniform(3),  # 3.125
        "vq": ssvq.VQ(64, 2, codebook_dtype="int8"),  # 3.038
        "mvq": ssvq.MVQ(320, 4, (3, 4)),  # 3.122
        "ssvq": ssvq.SSVQ(16, 2),  # 3.019
    },
    4: {"uniform": ssvq.Uniform(4)},  # 4.125
}
BITS = tuple(_CODECS)
"""What the methods are compared at, bits per weight."""

TITLES = {
    "float": "float32",
    "uniform": "UQ (LSQ)",
    "vq": "VQ",
    "mvq": "MVQ",
    "fixed": "SSVQ, fixed signs",
    "learned": "SSVQ, learned signs",
    "frozen": "SSVQ, learned + frozen",
}
"""Methods, and what tables call them."""
SIGNED = ("fixed", "learned", "frozen")
"""Those of SSVQ."""


def compression(
    method: str, bits: float, freezing: Freezing | None = None, **changes: Any
) -> Compression | None:
    """How a method compresses the kernels of all blocks.

    Args:
      method: One of `TITLES`.
      bits: One of `BITS`.
      freezing: For "frozen".
      **changes: Options of the codec that differ.

    Raises:
      KeyError: A method that is not compared at so many bits.
    """
    if method == "float":
        return None
    codec = _CODECS[bits]["ssvq" if method in SIGNED else method]
    if method == "fixed":
        changes["learn_signs"] = False
    rule = ssvq.Rule("blocks/.*/kernel", dataclasses.replace(codec, **changes))
    return Compression(rules=(rule,), freezing=freezing if method == "frozen" else None)


def convolutional(codec: ssvq.Codec) -> tuple[ssvq.Rule, ...]:
    """Rules for networks of inverted residual blocks.

    Depthwise kernels and the stem, 2 to 4 % of the weights, get 8 bits each.
    """
    return (
        ssvq.Rule(r"(blocks/.*/conv_(pw|pwl)|conv_head|classifier)/kernel", codec),
        ssvq.Rule(r"(blocks/.*/conv_dw|conv_stem)/kernel", ssvq.Uniform(8)),
    )


def at(bits: float) -> list[str]:
    """The methods that are compared at so many bits."""
    return [m for m in TITLES if ("ssvq" if m in SIGNED else m) in _CODECS[bits]]


def best(config: str, start: str) -> dict[str, Any]:
    """The run of a method that is best on the validation split.

    By the images that are right, or without labels by agreement with the float network;
    not one that has diverged.

    Args:
      config: Name of a config whose results have been written.
      start: What the names of its runs start with: `START-...`.

    Returns:
      The description of its experiment.

    Raises:
      SystemExit: Results that are missing, with how to get them.
    """
    path = RESULTS / f"{config}.json"
    if not path.exists():
        raise SystemExit(
            f"{path} is missing; it tells the best options. Make it first:\n"
            f"  python -m experiments.compress experiments/configs/{config}.py "
            f"--data-dir DIR --results {RESULTS}"
        )
    runs = json.loads(path.read_text())
    own = [
        run
        for name, run in runs.items()
        if name.startswith(f"{start}-") and "diverged" not in run
    ]
    if not own:
        raise SystemExit(
            f"{path}: every run {start}-... has diverged, or there is none among "
            f"{', '.join(runs)}"
        )

    def success(run):
        by = "agreement" if run["experiment"]["distill"] else "top1"
        return run["validation"][by]

    return max(own, key=success)["experiment"]


def tuned_rates(start: str, config: str = "cifar10_rates") -> dict[str, Any]:
    """The learning rates that are best for a method; arguments as of `best`."""
    tuned = best(config, "learned" if start == "frozen" else start)
    names = ("rate", "codebook_rate", "sign_rate")
    return {name: tuned["optimization"][name] for name in names}


def tuned_freezing(**changes: Any) -> Freezing:
    """The freezing of `configs/cifar10_thresholds.py` that is best, but for changes."""
    tuned = best("cifar10_thresholds", "frozen")["compression"]["freezing"]
    return Freezing(**{**tuned, "threshold": tuple(tuned["threshold"]), **changes})


def fine_tuning(
    method: str,
    bits: float,
    *,
    epochs: float,
    seed: int = 0,
    freezing: Freezing | None = None,
    rates: dict[str, Any] | None = None,
    **codec: Any,
) -> Experiment:
    """Compression and fine-tuning of the float `deit_96_cifar10`.

    Args:
      method: One of `TITLES`.
      bits: One of `BITS`.
      epochs: Passes over the images.
      seed: Of clustering and batches.
      freezing: For "frozen".
      rates: Learning rates; `None` for the best of `configs/cifar10_rates.py`.
      **codec: Options of the codec that differ.
    """
    return Experiment(
        network=NETWORKS["deit_96_cifar10"],
        data=CIFAR10,
        optimization=Optimization(
            epochs=epochs,
            label_smoothing=0.1,
            **(tuned_rates(method) if rates is None else rates),
        ),
        weights=WEIGHTS,
        compression=compression(method, bits, freezing, **codec),
        seed=seed,
    )
