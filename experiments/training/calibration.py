"""Where a calibrated run starts: codes by what layers see, bits where they count."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import ssvq_jax as ssvq
from experiments.data.batches import Split, evaluation_batches
from experiments.training.config import Calibration, Experiment
from experiments.training.devices import Devices
from experiments.training.program import Program
from ssvq_jax.nnx import calibrate, update_batch_norm
from ssvq_jax.tree.paths import flatten


class Calibrated:
    """The compressed network that a calibrated run starts from.

    Args:
      experiment: With a compression that has a calibration.
      program: Its functions.
      split: The examples to calibrate on.
      devices: Where they run.
    """

    def __init__(
        self, experiment: Experiment, program: Program, split: Split, devices: Devices
    ):
        self._experiment, self._program = experiment, program
        self._split, self._devices = split, devices
        if experiment.compression is None or experiment.compression.calibration is None:
            raise ValueError("expected a compression with a calibration")
        self._rules = experiment.compression.rules
        self._options: Calibration = experiment.compression.calibration

    def start(self) -> tuple[Any, Any]:
        """Parameters, compressed, and statistics of batch norms."""
        program, options = self._program, self._options
        key = jax.random.key(self._experiment.seed)
        moments = self._moments()
        if options.centered:
            moments = moments.centered()
        rules: Any = self._rules
        if options.bits is not None:
            rules = ssvq.allocate(
                self._matched(),
                self._rules,
                bits=options.bits,
                key=key,
                moments=moments,
                divergence=self._divergence() if options.probe else None,
            )
        params = ssvq.compress(
            program.params, rules, key=key, moments=moments if options.refine else None
        )
        if not options.batch_norm or not program.statistics:
            return params, program.statistics
        model = program.module(ssvq.decode(params))
        update_batch_norm(model, self._inputs())
        return params, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def _moments(self) -> ssvq.Moments:
        rules = [ssvq.Rule(rule.pattern, ssvq.Uniform(8)) for rule in self._rules]
        module = self._program.module(self._program.params)
        return calibrate(module, self._inputs(), rules=rules, form=self._options.form)

    def _matched(self) -> dict[str, Any]:
        """The parameters that a candidate matches: bits are counted of these."""
        named, _ = flatten(self._program.params)
        return {
            path: leaf
            for path, leaf in named.items()
            if any(rule.matches(path) for rule in self._rules)
        }

    def _divergence(self) -> Any:
        """How far outputs are from those of the float network, on a few examples."""
        program, task = self._program, self._experiment.task
        batch = next(self._batches(self._options.probe))
        named, treedef = flatten(program.params)

        @jax.jit
        def outputs(leaves, statistics, batch):
            params = jax.tree.unflatten(treedef, leaves)
            return program.outputs(params, statistics, batch)

        others = program.statistics, batch
        target = outputs(list(named.values()), *others)
        least = task.match(target, target)

        def divergence(tree):
            leaves = {**named, **ssvq.decode(tree)}
            # Rounding may take it below 0.
            found = task.match(outputs(list(leaves.values()), *others), target) - least
            return float(jnp.maximum(found, 0.0))

        return divergence

    def _inputs(self) -> Iterator[Any]:
        inputs = jax.jit(self._experiment.network.inputs)
        size = self._experiment.optimization.batch
        examples = min(len(self._split), self._options.examples)
        for batch in self._batches(size, max(examples // size, 1)):
            yield inputs(batch)

    def _batches(self, size: int, count: int | None = None) -> Iterator[Any]:
        """Whole batches of examples, not augmented."""
        prepare = functools.partial(
            self._experiment.task.prepare, size=self._experiment.network.size
        )
        source = evaluation_batches(
            self._split, batch=size, prepare=prepare, process=self._devices.process
        )
        for i, arrays in enumerate(source):
            if i == count:
                return
            yield self._devices.batch(arrays)
