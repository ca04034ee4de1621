"""The end of a run: the model in a file, checked, and the run's record."""

import importlib.metadata
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ssvq_jax as ssvq
from experiments.models import checkpoint
from experiments.tasks import Task
from experiments.training.records import Record, pack
from ssvq_jax.checkpoint import Checkpoint

PACKED = "model.ssvq.safetensors"
"""Name of the file of a compressed run."""
_CHANGED = ("flipped", "frozen", "moved")


class DivergedError(ArithmeticError):
    """A loss or parameters that are not finite, and the step."""


def finalize(params: Any, step: int) -> Any:
    """Parameters, NumPy arrays, in the form that is exported, in memory.

    Raises:
      DivergedError: Values that are not finite, or too large to be stored.
    """
    try:
        final = ssvq.finalize(params)
    except ValueError as error:
        raise DivergedError(step) from error
    leaves = [x for x in jax.tree.leaves(final) if jnp.issubdtype(x.dtype, jnp.inexact)]
    if not all(np.all(np.isfinite(x)) for x in leaves):
        raise DivergedError(step)
    return final


def export(folder: pathlib.Path, final: Any, statistics: Any) -> int:
    """Write a model, packed where it is compressed, and read it back.

    Args:
      folder: Of the run.
      final: From `finalize`.
      statistics: Of batch norms.

    Returns:
      Bytes of the file.

    Raises:
      RuntimeError: A file that does not give back the parameters bit for bit.
    """
    compressed = ssvq.report(final).compressed.weights > 0
    file = folder / (PACKED if compressed else "model.safetensors")
    checkpoint.save(file, final, statistics)
    stored = Checkpoint(file)
    for keys, value in nnx.traversals.flatten_mapping(ssvq.decode(final)).items():
        name = checkpoint.flax_name(keys)
        if not np.array_equal(stored[name], value):
            raise RuntimeError(f"{file}: {name} differs after reading it back")
    return file.stat().st_size


def record(
    task: Task,
    final: Any,
    statistics: Any,
    lines: list[dict[str, Any]],
    test: Any,
    scores: dict[str, float],
) -> Record:
    """What pages tell of a run, all but its experiment, steps and minutes.

    Args:
      task: Its task.
      final: From `finalize`.
      statistics: Of batch norms.
      lines: Its log.
      test: The task's rows for the test split; `None` where there is none.
      scores: From them, named "test/METRIC".
    """
    first, last = (lines[0], lines[-1]) if lines else ({}, {})
    found: Record = {
        "before": _named(first, "test"),
        "validation": _named(last, "validation"),
        "test": _named(scores, "test"),
    }
    if test is not None:  # for comparisons example by example
        found["each"] = pack(task.each(test))
    report = ssvq.report((final, statistics))
    if report.compressed.weights:
        found["bits_per_weight"] = report.compressed.bits_per_weight
        found["ratio"] = report.compressed.ratio
        found["model_ratio"] = report.model.ratio
        found |= {k: last[k] for k in _CHANGED if k in last}
    packages = ("jax", "flax", "optax")
    return found | {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "command": "python -m " + " ".join(sys.orig_argv[2:]),
    }


def curve(task: Task, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a log that end an epoch, and of them what pages read."""
    kept = ("step", "loss", f"validation/{task.metric}", *_CHANGED, "flips")
    return [
        {name: line[name] for name in kept if name in line}
        for line in lines
        if f"validation/{task.metric}" in line or "flipped" in line
    ]


def _named(values: dict[str, Any], which: str) -> dict[str, Any]:
    """Values whose names start with "WHICH/", without it."""
    start = f"{which}/"
    return {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}
