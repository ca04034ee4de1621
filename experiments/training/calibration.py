"""Where a calibrated run starts: codes by what layers see, bits where they count."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from flax import nnx

import ssvq_jax as ssvq
from experiments.data.batches import Mapped, Split, evaluation_batches
from experiments.training.config import Calibration, Experiment
from experiments.training.devices import Devices
from experiments.training.program import Program
from ssvq_jax.nnx import calibrate, update_batch_norm
from ssvq_jax.tree.paths import flatten

_PROBED_AT = 2.25
"""Bits a weight near which divergences are measured, whatever the budget: once."""
_WIDEST = 8192
"""Outputs of a layer, at most, whose factor is found, of `4 * n**2` bytes."""
_KEPT: dict[str, tuple[str, Any]] = {}
"""The last moments and allocation, and of what: many runs begin with the same."""


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
        task = experiment.task
        fisher = self._options.metric != "inputs"
        if fisher and not getattr(task, "logits", False):
            raise SystemExit(
                f"metric: the outputs of {type(task).__name__} are no logits to draw "
                "labels from; leave it out"
            )

    def start(self) -> tuple[Any, Any]:
        """Parameters, compressed, and statistics of batch norms."""
        program, options = self._program, self._options
        key = jax.random.key(self._experiment.seed)
        batches = list(self._inputs())
        # Layers are fitted to their own batches: what that does is told by others.
        probe = options.probe if options.bits is not None else 0
        apart = -(-probe // self._experiment.optimization.batch)
        count = len(batches) - apart
        if count < 1:
            raise SystemExit(
                f"calibration: expected batches beside the {apart} that are probed, "
                f"got {len(batches)} in all: take more examples, or a smaller probe"
            )
        first, second = self._moments(batches, count)
        moments = first if second is None else first + second
        if options.metric != "inputs":
            self._require_narrow(first)
            find = functools.partial(self._fisher, first, batches[:count], key)
            found = options.metric, count, *first, self._experiment.seed
            moments = self._kept("fisher", find, *found)
        rules: Any = self._rules
        if options.bits is not None:
            spread = moments if options.metric == "kronecker" else first
            rules = self._allocated(options.bits, spread, batches[count:], key)
        if not options.refine:
            moments = None
        params = ssvq.compress(program.params, rules, key=key, moments=moments)
        if not options.batch_norm or not program.statistics:
            return params, program.statistics
        model = program.module(ssvq.decode(params), program.statistics)
        update_batch_norm(model, batches)
        return params, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def _moments(
        self, batches: list[Any], count: int
    ) -> tuple[ssvq.Moments, ssvq.Moments | None]:
        """Those of the first batches, and of the rest."""

        def find():
            rules = [ssvq.Rule(pattern, ssvq.Uniform(8)) for pattern in patterns]
            module = self._program.module(
                self._program.params, self._program.statistics
            )
            parts = [part for part in (batches[:count], batches[count:]) if part]
            found = [
                calibrate(module, part, rules=rules, form=self._options.form)
                for part in parts
            ]
            return (*found, None)[:2]

        patterns = list(dict.fromkeys(rule.pattern for rule in self._rules))
        return self._kept("moments", find, patterns, count)

    def _fisher(
        self, moments: ssvq.Moments, batches: list[Any], key: Any
    ) -> ssvq.Moments:
        """By gradients of the loss of labels drawn from the outputs.

        Layers with too many outputs for a factor, such as heads of large vocabularies,
        keep the moments of their inputs.
        """
        program = self._program
        both = self._options.metric == "kronecker"
        left_out = self._wide(moments) if both else ()
        narrow = {path: x for path, x in moments.items() if path not in left_out}

        @jax.jit
        @jax.grad
        def gradient(params, inputs, key):
            logits = program.module(params, program.statistics)(inputs)
            drawn = jax.random.categorical(key, jax.lax.stop_gradient(logits))
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, drawn)
            return losses.mean()

        keys = jax.random.split(key, len(batches))
        gradients = map(functools.partial(gradient, program.params), batches, keys)
        own = ssvq.Moments(narrow, moments.missing)
        found = ssvq.fisher_factors(own, gradients, outputs=both)
        return ssvq.Moments({**moments, **found}, moments.missing)

    def _allocated(
        self, bits: float, moments: ssvq.Moments, probes: list[Any], key: Any
    ) -> list[ssvq.Rule]:
        """Rules with one candidate chosen where several match."""
        contested = self._contested()
        candidates = [x for x in self._rules if any(map(x.matches, contested))]

        def measure():
            return ssvq.allocate(
                contested,
                candidates,
                bits=_PROBED_AT,
                key=key,
                moments=moments,
                divergence=self._divergence(probes) if probes else None,
            )

        described = self._experiment.describe()["compression"]["rules"]
        seed, factors = self._experiment.seed, self._options.metric == "kronecker"
        found = self._kept("allocation", measure, described, len(probes), seed, factors)
        return [*found.at(bits), *(x for x in self._rules if x not in candidates)]

    def _kept(self, kind: str, make: Callable[[], Any], *parts: Any) -> Any:
        known = self._experiment.describe()
        start = [known[name] for name in ("network", "data", "task", "weights")]
        if self._experiment.fresh is not None:
            start += [self._experiment.fresh, self._experiment.seed]
        options = self._options
        batches = self._experiment.optimization.batch, options.examples, options.spread
        key = json.dumps([*start, *batches, options.form, *parts])
        if _KEPT.get(kind, ("",))[0] != key:
            _KEPT.pop(kind, None)  # before the next one is made: memory
            _KEPT[kind] = key, make()
        return _KEPT[kind][1]

    def _wide(self, moments: ssvq.Moments) -> set[str]:
        """The parameters of layers with too many outputs for a factor."""
        named, _ = flatten(self._program.params)
        return {
            path
            for path, moment in moments.items()
            if named[path].size > _WIDEST * moment.mean.size
        }

    def _require_narrow(self, moments: ssvq.Moments) -> None:
        """Raise `SystemExit` where bits are spread over what has no factor."""
        if self._options.metric == "kronecker" and self._options.bits is not None:
            for path in self._wide(moments) & self._contested().keys():
                raise SystemExit(
                    f"{path}: expected at most {_WIDEST:,} outputs where bits are "
                    'spread by "kronecker": give it one codec, or take another metric'
                )

    def _contested(self) -> dict[str, Any]:
        """The parameters that several rules match: bits are spread over these."""
        named, _ = flatten(self._program.params)
        return {
            path: leaf
            for path, leaf in named.items()
            if sum(rule.matches(path) for rule in self._rules) > 1
        }

    def _divergence(self, batches: list[Any]) -> Callable[[Any], float]:
        """How far outputs are from those of the float network."""
        program, task = self._program, self._experiment.task
        named, treedef = flatten(program.params)

        @jax.jit
        def matched(leaves, statistics, target, inputs):
            params = jax.tree.unflatten(treedef, leaves)
            found = program.module(params, statistics)(inputs)
            return task.match(found, found if target is None else target), found

        def match(leaves, target, inputs):
            return matched(list(leaves.values()), program.statistics, target, inputs)

        least, targets = zip(*(match(named, None, x) for x in batches), strict=True)

        def divergence(tree):
            leaves = {**named, **ssvq.decode(tree)}
            found = [
                match(leaves, target, x)[0] - own
                for own, target, x in zip(least, targets, batches, strict=True)
            ]
            return max(float(sum(found)), 0.0)  # rounding may take it below

        return divergence

    def _inputs(self) -> Iterator[Any]:
        """Batches of what the network takes, not augmented."""
        task, network = self._experiment.task, self._experiment.network
        size = self._experiment.optimization.batch
        split, step = self._split, 1
        if self._options.spread:
            step = max(len(split) // self._options.examples, 1)
        source = evaluation_batches(
            dataclasses.replace(
                split, examples=Mapped(range(0, len(split), step), split.__getitem__)
            ),
            batch=size,
            prepare=functools.partial(task.prepare, size=network.size),
            process=self._devices.process,
        )
        count = min(len(split), self._options.examples) // size
        inputs = jax.jit(network.inputs)
        for arrays in itertools.islice(source, max(count, 1)):
            yield inputs(self._devices.batch(arrays))
