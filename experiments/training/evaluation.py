"""What a network makes of whole splits, and how that scores."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.progress import Progress

import ssvq_jax as ssvq
from experiments.data.batches import Split, evaluation_batches
from experiments.models.network import Network
from experiments.tasks import Task
from experiments.training.config import Data, Experiment, Optimization
from experiments.training.devices import Devices
from experiments.training.program import Program


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


def judged(
    model: Any,
    network: Network,
    task: Task,
    split: Split,
    *,
    batch: int,
    quiet: bool = False,
) -> Any:
    """The task's rows for every example of a split.

    Args:
      model: The network, for inference.
      network: Which it is, with as many classes as the split.
      task: What is judged.
      split: The examples.
      batch: How many at a time.
      quiet: Whether no progress is shown.
    """
    experiment = Experiment(
        task=task,
        network=network,
        data=Data(name=split.name),
        optimization=Optimization(epochs=1),
    )
    devices = Devices.all("data")
    program = Program(experiment, model, steps=1)
    placed = devices.place((program.params, program.statistics))
    predict = jax.jit(program.predict, out_shardings=devices.replicated)
    with Progress(disable=quiet) as progress:
        bar = progress.add_task("Evaluating", total=len(split))
        return evaluate(
            functools.partial(predict, *placed),
            split,
            task,
            size=network.size,
            batch=batch,
            devices=devices,
            advance=lambda count: progress.advance(bar, count),
        )


class Judge:
    """Scores parameters on the validation and test splits of an experiment.

    Args:
      experiment: The experiment.
      program: Its functions.
      devices: Where they run.
      open_split: Opens one of its splits by name.
    """

    def __init__(
        self,
        experiment: Experiment,
        program: Program,
        devices: Devices,
        open_split: Callable[[str], Split],
    ):
        self._experiment, self._program = experiment, program
        self._devices, self._open = devices, open_split
        self._predict = jax.jit(program.predict, out_shardings=devices.replicated)
        self._float_rows: dict[str, Any] = {}

    def rows(self, params: Any, statistics: Any, which: str) -> Any:
        """The task's rows for a split.

        Args:
          params: Parameters, compressed or not.
          statistics: Of batch norms.
          which: "validation" or "test".

        Returns:
          A row for every example; `None` where there is no such split.
        """
        split = getattr(self._experiment.data, which)
        if split is None:
            return None
        placed = self._devices.place((ssvq.decode(params), statistics))
        return evaluate(
            functools.partial(self._predict, *placed),
            self._open(split),
            self._experiment.task,
            size=self._experiment.network.size,
            batch=self._experiment.optimization.batch,
            devices=self._devices,
        )

    def score(self, rows: Any, which: str) -> dict[str, float]:
        """The task's metrics of rows, beside those of the network with float weights.

        They are called "validation/METRIC" or "test/METRIC"; none where `rows` is
        `None`. One with a fresh layer is nothing to be beside.
        """
        if rows is None:
            return {}
        reference = None
        if self._experiment.weights is not None and self._experiment.fresh is None:
            if which not in self._float_rows:
                dense = self._program.params, self._program.statistics
                self._float_rows[which] = self.rows(*dense, which)
            reference = self._float_rows[which]
        found = self._experiment.task.score(rows, reference)
        return {f"{which}/{name}": value for name, value in found.items()}
