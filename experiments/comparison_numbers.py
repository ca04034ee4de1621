"""What the comparison's page and plots take from results."""

import base64
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.methods import TITLES

Run = dict[str, Any]

FEW_NETWORKS = {
    "efficientnet_lite0": "EfficientNet-Lite0",
    "mobilenet_v2_100_unfolded": "MobileNet-V2",
}
"""Networks of the few images, and what tables call them."""
FEW_METHODS = {
    **{method: TITLES[method] for method in ("uniform", "vq", "mvq")},
    "ssvq": TITLES["frozen"],
}
"""Methods there."""


def accuracy(counts: dict[str, Any]) -> float:
    """Share of the images whose class comes first."""
    return counts["top1"] / counts["images"]


def interval(counts: dict[str, Any]) -> float:
    """Half of the 95 % interval of `accuracy`, by the normal approximation."""
    share = accuracy(counts)
    return 1.96 * math.sqrt(share * (1 - share) / counts["images"])


def difference(ours: Iterable[Run], theirs: Iterable[Run]) -> tuple[float, float]:
    """Mean difference in accuracy, image by image, and half of its 95 % interval.

    Args:
      ours: Runs of one method with different seeds.
      theirs: Those of another method, on the same test images.
    """
    means = []
    for runs in (ours, theirs):
        bits = [_right(run) for run in runs]
        means.append(np.mean(bits, axis=0))
    gaps = means[0] - means[1]
    spread = float(np.std(gaps, ddof=1)) / math.sqrt(len(gaps))
    return float(np.mean(gaps)), 1.96 * spread


def percent(counts: dict[str, Any]) -> str:
    """`accuracy` in a table."""
    return f"{100 * accuracy(counts):.2f}"


def gap(ours: Sequence[Run], theirs: Sequence[Run]) -> str:
    """`difference` in points; nothing where there is nothing to compare."""
    if not ours or not theirs:
        return ""
    mean, spread = difference(ours, theirs)
    return f"{100 * mean:+.2f} ± {100 * spread:.2f}"


def share(runs: Sequence[Run], name: str) -> str:
    """The mean of a share that runs have; nothing where none does."""
    found = [run[name] for run in runs if name in run]
    return f"{100 * np.mean(found):.1f} %" if found else ""


def half(run: Run) -> str:
    """`interval` of a run's test images in points."""
    return f"{100 * interval(run['test']):.1f}"


def named(runs: dict[str, Run], name: str) -> list[Run]:
    """The run of a name alone; none where it is missing."""
    return [runs[name]] if name in runs else []


def seeds(runs: dict[str, Run]) -> dict[tuple[str, str], list[Run]]:
    """The headline's runs METHOD-BITS-SEED, by method and bits."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for name, run in runs.items():
        method, bits, _ = name.split("-")
        groups.setdefault((method, bits), []).append(run)
    return groups


def _right(run: Run) -> np.ndarray:
    """Whether each test image was right, 0 or 1."""
    packed = np.frombuffer(base64.b64decode(run["right"]), np.uint8)
    return np.unpackbits(packed, count=run["test"]["images"]).astype(np.float64)
