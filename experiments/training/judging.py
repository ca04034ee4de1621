"""How a run is judged: on its splits, beside the float network."""

import functools
from collections.abc import Callable
from typing import Any

import jax

import ssvq_jax as ssvq
from experiments.data.batches import Split
from experiments.training.config import Experiment
from experiments.training.devices import Devices
from experiments.training.evaluation import evaluate
from experiments.training.program import Program


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
        `None`.
        """
        if rows is None:
            return {}
        reference = None
        if self._experiment.weights is not None:
            if which not in self._float_rows:
                dense = self._program.params, self._program.statistics
                self._float_rows[which] = self.rows(*dense, which)
            reference = self._float_rows[which]
        found = self._experiment.task.score(rows, reference)
        return {f"{which}/{name}": value for name, value in found.items()}
