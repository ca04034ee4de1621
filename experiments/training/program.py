"""The functions of an experiment: initial state, training step, prediction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ssvq_jax as ssvq
from experiments.config import Experiment
from experiments.training import optimizer
from experiments.training.evaluation import Prediction, judge


class State(NamedTuple):
    """Everything that a run needs to go on.

    Attributes:
      step: Updates so far.
      trainable: What is trained, `None` elsewhere, see `ssvq_jax.partition`.
      static: The rest of the parameters' tree, such as codes.
      statistics: Running means and variances of batch norms.
      optimizer: The optimizer's state.
      average: Moving average of `trainable`, or `None`.
    """

    step: jax.Array
    trainable: Any
    static: Any
    statistics: Any
    optimizer: Any
    average: Any

    @property
    def params(self) -> Any:
        """The parameters to evaluate and export.

        Signs are those of the last step: an average would undo their freezing.
        """
        if self.average is None:
            return ssvq.combine(self.trainable, self.static)
        found = jax.tree.map(
            lambda label, last, mean: last if label == "sign" else mean,
            ssvq.label_tree(self.trainable),
            self.trainable,
            self.average,
        )
        return ssvq.combine(found, self.static)


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
        self._optimizer = optimizer.make(experiment.optimization, steps, freezing)

    def compressed(self) -> Any:
        """The parameters to start from, compressed where that is asked for."""
        compression = self.experiment.compression
        if compression is None:
            return self.params
        key = jax.random.key(self.experiment.seed)
        return ssvq.compress(self.params, compression.rules, key=key)

    def initial(self, params: Any) -> State:
        """The state before the first step."""
        trainable, static = ssvq.partition(params)
        average = self.experiment.optimization.average
        return State(
            step=jnp.zeros((), jnp.int32),
            trainable=trainable,
            static=static,
            statistics=self.statistics,
            optimizer=self._optimizer.init(trainable),
            average=None if average is None else jax.tree.map(jnp.copy, trainable),
        )

    def step(self, state: State, batch: Any, teacher: Any) -> tuple[State, jax.Array]:
        """One update.

        Args:
          state: The state.
          batch: `image` `(batch, height, width, channels)`, 0 to 255, and `label`,
            integers `(batch,)` or shares `(batch, classes)`.
          teacher: Parameters and statistics whose outputs are matched; `None` for the
            labels.

        Returns:
          The next state and the mean loss.
        """
        options = self.experiment.optimization
        parts = options.accumulate

        def of(trainable, statistics, part):
            params = ssvq.combine(trainable, state.static)
            return self.loss(params, statistics, part, teacher)

        def add(carry, part):
            total, gradients, statistics = carry
            (loss, statistics), gradient = jax.value_and_grad(of, has_aux=True)(
                state.trainable, statistics, part
            )
            gradients = jax.tree.map(jnp.add, gradients, gradient)
            return (total + loss, gradients, statistics), None

        zeros = jax.tree.map(jnp.zeros_like, state.trainable)
        carry = (jnp.zeros(()), zeros, state.statistics)
        if parts == 1:
            carry, _ = add(carry, batch)
        else:
            # A part has rows of every device.
            cut = jax.tree.map(
                lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch
            )
            carry, _ = jax.lax.scan(add, carry, cut)
        loss, gradients, statistics = carry
        gradients = jax.tree.map(lambda x: x / parts, gradients)
        updates, optimizer_state = self._optimizer.update(
            gradients, state.optimizer, state.trainable
        )
        trainable = optax.apply_updates(state.trainable, updates)
        average = state.average
        if options.average is not None:
            average = optax.incremental_update(
                trainable, state.average, 1 - options.average
            )
        state = State(
            state.step + 1,
            trainable,
            state.static,
            statistics,
            optimizer_state,
            average,
        )
        return state, loss / parts

    def predict(self, params: Any, statistics: Any, batch: Any) -> Prediction:
        """Judge the outputs for a batch with integer labels."""
        logits, _ = self._logits(self._inference, params, statistics, batch["image"])
        return judge(logits, batch["label"])

    def loss(
        self, params: Any, statistics: Any, batch: Any, teacher: Any = None
    ) -> tuple[jax.Array, Any]:
        """Mean loss of a batch, and the statistics after it; arguments as of `step`."""
        logits, statistics = self._logits(
            self._training, params, statistics, batch["image"]
        )
        if teacher is not None:
            target, _ = self._logits(
                self._inference, teacher[0], teacher[1], batch["image"]
            )
            labels = jax.nn.softmax(target)
        else:
            labels = batch["label"]
            if labels.ndim == 1:
                labels = jax.nn.one_hot(labels, self.experiment.network.classes)
            smoothing = self.experiment.optimization.label_smoothing
            labels = optax.smooth_labels(labels, smoothing)
        return optax.softmax_cross_entropy(logits, labels).mean(), statistics

    def _logits(
        self, graphdef: Any, params: Any, statistics: Any, images: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Logits, float32, and the statistics after them."""
        dtype = np.dtype(self.experiment.optimization.dtype)
        weights = jax.tree.map(lambda x: x.astype(dtype), ssvq.decode(params))
        model: Any = nnx.merge(graphdef, weights, statistics)
        logits = model(self.experiment.network.normalize(images).astype(dtype))
        after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return logits.astype(jnp.float32), after
