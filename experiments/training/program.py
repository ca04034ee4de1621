"""The functions of an experiment: initial state, training step, prediction."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ssvq_jax as ssvq
from experiments.training import optimizer, reassignment
from experiments.training.config import Experiment
from ssvq_jax.codecs import is_compressed
from ssvq_jax.tree.paths import flatten


class State(NamedTuple):
    """Everything that a run needs to go on.

    Attributes:
      step: Updates so far.
      trainable: What is trained, `None` elsewhere, see `ssvq_jax.partition`.
      static: The rest of the parameters' tree, such as codes.
      targets: Weights that codes are chosen anew for; empty where codes stay.
      statistics: Running means and variances of batch norms.
      optimizer: The state of the optimizer, and of that of the targets.
    """

    step: jax.Array
    trainable: Any
    static: Any
    targets: reassignment.Targets
    statistics: Any
    optimizer: Any

    @property
    def params(self) -> Any:
        """The whole tree of parameters, to evaluate and export."""
        return ssvq.combine(self.trainable, self.static)


class Program:
    """The functions of one experiment; none of them changes anything.

    Args:
      experiment: The experiment.
      model: Its network, with the weights to start from.
      steps: Updates of the whole run.
    """

    def __init__(self, experiment: Experiment, model: Any, steps: int):
        self.experiment = experiment
        kinds = (nnx.Param, nnx.BatchStat)
        held = experiment.optimization.held_statistics
        (model.eval if held else model.train)()
        self._training, *_ = nnx.split(model, *kinds)
        model.eval()
        self._inference, params, statistics = nnx.split(model, *kinds)
        self.params: Any = nnx.to_pure_dict(params)
        self.statistics: Any = nnx.to_pure_dict(statistics)
        if held and not self.statistics:
            name = experiment.network.name
            raise SystemExit(f"held_statistics: {name} has no batch norms")
        compression, options = experiment.compression, experiment.optimization
        freezing = compression.freezing if compression else None
        self._optimizer = optimizer.make(options, max(steps, 1), freezing)
        self._reassignment = compression.reassignment if compression else None
        rate = self._reassignment.rate if self._reassignment else 0.0
        self._mover = optimizer.moving(options, max(steps, 1), rate)

    def compressed(self) -> Any:
        """The parameters to start from, compressed where that is asked for.

        Raises:
          SystemExit: Rules that match nothing, or codecs that do not fit.
        """
        compression = self.experiment.compression
        if compression is None:
            return self.params
        key = jax.random.key(self.experiment.seed)
        try:
            return ssvq.compress(self.params, compression.rules, key=key)
        except ValueError as error:
            raise SystemExit(f"rules of {self.experiment.network.name}: {error}") from (
                error
            )

    def module(self, params: Any, statistics: Any) -> Any:
        """The network for inference, with decoded parameters."""
        return nnx.merge(self._inference, params, statistics)

    def initial(self, params: Any) -> State:
        """The state before the first step."""
        trainable, static = self._partition(params)
        targets: reassignment.Targets = {}
        if self._reassignment is not None:
            compression = self.experiment.compression
            calibrated = compression is not None and compression.calibration is not None
            # Codes that are not the nearest to the weights would move back to these.
            weights = ssvq.decode(params) if calibrated else self.params
            targets = {
                path: target
                for path, target in reassignment.targets(params, weights).items()
                if not self._is_held(path)
            }
        return State(
            step=jnp.zeros((), jnp.int32),
            trainable=trainable,
            static=static,
            targets=targets,
            statistics=self.statistics,
            optimizer=(self._optimizer.init(trainable), self._mover.init(targets)),
        )

    def _partition(self, params: Any) -> tuple[Any, Any]:
        """What is trained, and what is not; see `ssvq_jax.partition`."""
        held = self.experiment.optimization.held
        named, treedef = flatten(params, is_compressed)
        if held is not None and not any(map(self._is_held, named)):
            raise SystemExit(f"held: {held} matches no parameter, such as {min(named)}")
        halves = [
            (jax.tree.map(lambda _: None, leaf), leaf)
            if self._is_held(path)
            else ssvq.partition(leaf)
            for path, leaf in named.items()
        ]
        first, second = zip(*halves, strict=True)
        return treedef.unflatten(first), treedef.unflatten(second)

    def _is_held(self, path: str) -> bool:
        held = self.experiment.optimization.held
        return held is not None and re.fullmatch(held, path) is not None

    def reassigned(self, state: State) -> State:
        """The state with codes chosen anew."""
        params = reassignment.reassigned(state.params, state.targets)
        trainable, static = self._partition(params)
        return state._replace(trainable=trainable, static=static)

    def step(self, state: State, batch: Any, teacher: Any) -> tuple[State, jax.Array]:
        """One update.

        Args:
          state: The state.
          batch: Arrays by name, as the task prepares them.
          teacher: Parameters and statistics whose outputs are matched; `None` for the
            batch's own targets.

        Returns:
          The next state and the mean loss.
        """

        def loss(trainable, targets):
            params = ssvq.combine(trainable, state.static)
            params = reassignment.through(ssvq.decode(params), targets)
            return self.loss(params, state.statistics, batch, teacher)

        own, moving = state.optimizer
        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, statistics), gradients = gradient(state.trainable, state.targets)
        updates, own = self._optimizer.update(gradients[0], own, state.trainable)
        moves, moving = self._mover.update(gradients[1], moving, state.targets)
        after = state._replace(
            step=state.step + 1,
            trainable=optax.apply_updates(state.trainable, updates),
            targets=optax.apply_updates(state.targets, moves),
            statistics=statistics,
            optimizer=(own, moving),
        )
        return after, value

    def predict(self, params: Any, statistics: Any, batch: Any) -> Any:
        """The task's rows for a batch; in float32, as the exported file is scored."""
        single = np.dtype(np.float32)
        outputs, _, _ = self._outputs(
            self._inference, params, statistics, batch, dtype=single
        )
        return self.experiment.task.judge(outputs, batch)

    def loss(
        self, params: Any, statistics: Any, batch: Any, teacher: Any = None
    ) -> tuple[jax.Array, Any]:
        """Mean loss of a batch, and the statistics after it; arguments as of `step`."""
        task, weight = self.experiment.task, self.experiment.optimization.features
        outputs, features, after = self._outputs(
            self._training, params, statistics, batch
        )
        if teacher is None:
            return task.loss(outputs, batch), after
        target, wanted, _ = self._outputs(
            self._inference, teacher[0], teacher[1], batch
        )
        loss = task.match(outputs, target)
        if weight:
            errors = jax.tree.leaves(jax.tree.map(_relative_error, features, wanted))
            loss += weight * jnp.mean(jnp.stack(errors))
        return loss, after

    def _outputs(
        self,
        graphdef: Any,
        params: Any,
        statistics: Any,
        batch: Any,
        *,
        dtype: np.dtype | None = None,
    ) -> tuple[Any, Any, Any]:
        """Outputs, features if these are matched, and the statistics after them.

        Computed in `dtype`, by default that of training.
        """
        dtype = dtype or np.dtype(self.experiment.optimization.dtype)
        weights = _floats_as(dtype, ssvq.decode(params))
        model: Any = nnx.merge(graphdef, weights, statistics)
        inputs = _floats_as(dtype, self.experiment.network.inputs(batch))
        if self.experiment.optimization.features:
            features = model.features(inputs)
            outputs = model.outputs(features[-1])
        else:
            features, outputs = [], model(inputs)
        after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        single = np.dtype(np.float32)
        return _floats_as(single, outputs), _floats_as(single, features), after


def _relative_error(found: jax.Array, wanted: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(found - wanted)) / jnp.sum(jnp.square(wanted))


def _floats_as(dtype: np.dtype, tree: Any) -> Any:
    """A tree with its floats in a dtype; integers, such as tokens, as they are."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
