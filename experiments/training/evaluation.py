"""What a network makes of a whole split."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.data.batches import Split, evaluation_batches
from experiments.tasks import Task
from experiments.training.devices import Devices


def evaluate(
    predict: Callable[[Any], Any],
    split: Split,
    task: Task,
    *,
    size: int,
    batch: int,
    devices: Devices,
    advance: Callable[[int], object] = lambda examples: None,
) -> Any:
    """Predict a whole split, on all devices of all processes.

    Args:
      predict: Jitted, from batches to the task's rows, which lie on every device.
      split: Examples.
      task: How they are prepared.
      size: The network's.
      batch: Examples at a time, raised to a multiple of the devices.
      devices: The devices.
      advance: Called with the number of examples after each batch.

    Returns:
      The task's rows, NumPy arrays, one for every example in order.
    """
    batch = -(-batch // devices.mesh.size) * devices.mesh.size
    _, processes = devices.process
    batches = evaluation_batches(
        split,
        batch=batch,
        prepare=functools.partial(task.prepare, size=size),
        process=devices.process,
    )
    parts = []
    for arrays in batches:
        parts.append(jax.tree.map(np.asarray, predict(devices.batch(arrays))))
        advance(batch)
    # Rows of a batch come process by process; each process has every n-th example.
    order = np.arange(batch).reshape(-1, processes).T.reshape(-1)
    order = (np.arange(len(parts))[:, None] * batch + order).reshape(-1)

    def in_order(*pieces):
        whole = np.concatenate(pieces)
        result = np.empty_like(whole)
        result[order] = whole
        return result[: len(split)]

    return jax.tree.map(in_order, *parts)
