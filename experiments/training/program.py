"""The functions of an experiment: initial state, training step, prediction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ssvq_jax as ssvq
from experiments.training import optimizer
from experiments.training.config import Experiment


class State(NamedTuple):
    """Everything that a run needs to go on.

    Attributes:
      step: Updates so far.
      trainable: What is trained, `None` elsewhere, see `ssvq_jax.partition`.
      static: The rest of the parameters' tree, such as codes.
      statistics: Running means and variances of batch norms.
      optimizer: The optimizer's state.
    """

    step: jax.Array
    trainable: Any
    static: Any
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
        model.train()
        self._training, *_ = nnx.split(model, *kinds)
        model.eval()
        self._inference, params, statistics = nnx.split(model, *kinds)
        self.params: Any = nnx.to_pure_dict(params)
        self.statistics: Any = nnx.to_pure_dict(statistics)
        compression = experiment.compression
        freezing = compression.freezing if compression else None
        self._optimizer = optimizer.make(
            experiment.optimization, max(steps, 1), freezing
        )

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
        trainable, static = ssvq.partition(params)
        return State(
            step=jnp.zeros((), jnp.int32),
            trainable=trainable,
            static=static,
            statistics=self.statistics,
            optimizer=self._optimizer.init(trainable),
        )

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

        def loss(trainable):
            params = ssvq.combine(trainable, state.static)
            return self.loss(params, state.statistics, batch, teacher)

        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.trainable
        )
        updates, optimizer_state = self._optimizer.update(
            gradients, state.optimizer, state.trainable
        )
        trainable = optax.apply_updates(state.trainable, updates)
        state = State(
            state.step + 1, trainable, state.static, statistics, optimizer_state
        )
        return state, value

    def predict(self, params: Any, statistics: Any, batch: Any) -> Any:
        """The task's rows for a batch."""
        outputs, _ = self._outputs(self._inference, params, statistics, batch)
        return self.experiment.task.judge(outputs, batch)

    def loss(
        self, params: Any, statistics: Any, batch: Any, teacher: Any = None
    ) -> tuple[jax.Array, Any]:
        """Mean loss of a batch, and the statistics after it; arguments as of `step`."""
        task = self.experiment.task
        outputs, statistics = self._outputs(self._training, params, statistics, batch)
        if teacher is None:
            return task.loss(outputs, batch), statistics
        target, _ = self._outputs(self._inference, teacher[0], teacher[1], batch)
        return task.match(outputs, target), statistics

    def _outputs(
        self, graphdef: Any, params: Any, statistics: Any, batch: Any
    ) -> tuple[Any, Any]:
        """The network's outputs, float32, and the statistics after them."""
        dtype = np.dtype(self.experiment.optimization.dtype)
        weights = _floats_as(dtype, ssvq.decode(params))
        model: Any = nnx.merge(graphdef, weights, statistics)
        outputs = model(_floats_as(dtype, self.experiment.network.inputs(batch)))
        after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return _floats_as(np.dtype(np.float32), outputs), after


def _floats_as(dtype: np.dtype, tree: Any) -> Any:
    """A tree with its floats in a dtype; integers, such as tokens, as they are."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
