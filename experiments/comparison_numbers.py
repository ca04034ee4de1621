"""What the comparison's page and plots take from results."""

import base64
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

Run = dict[str, Any]


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
