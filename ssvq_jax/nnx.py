"""Flax NNX: a module whose parameters are compressed, decoded on every call."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ssvq_jax import calibration, tree
from ssvq_jax.calibration import Form, Moment, Moments
from ssvq_jax.calibration.batch_norm import Running, update_statistics
from ssvq_jax.codecs import Compressed, is_compressed
from ssvq_jax.core.kmeans import Key
from ssvq_jax.tree.paths import flatten


class Fixed(nnx.Variable):
    """What a compressed module does not train: codes, fixed signs and masks."""


class Decoded(nnx.Variable):
    """Stands where a compressed parameter was; holds its value inside a call only."""


class CompressedModule(nnx.Module):
    """A module with compressed parameters in place of its own.

    Calls like the module it was made from. All that is trained are `nnx.Param`s: the
    parameters that were not compressed in their places in `module`, the codebooks and
    latents in `compressed`. So `nnx.grad` and `nnx.Optimizer(..., wrt=nnx.Param)` work
    as for any module, as do `nnx.split`, `nnx.merge` and plain `jax.jit` and
    `jax.grad`. Batch statistics and random states are updated as in the module itself,
    and what it sows is in `module`.

    For other methods than `__call__`, decode first: `model.decode().encode(x)`.

    Args:
      module: Any NNX module; it is copied, not changed.
      params: Its parameters, compressed in part or all: a tree with their paths, from
        `ssvq.compress`, `ssvq.load` or the `params` of another compressed module.

    Raises:
      ValueError: Paths or shapes that are not those of the module's parameters.

    Examples:
      >>> import jax, optax, ssvq_jax as ssvq, ssvq_jax.nnx
      >>> from flax import nnx
      >>> float_model = nnx.Linear(64, 32, rngs=nnx.Rngs(0))
      >>> rules = [ssvq.Rule("kernel", ssvq.SSVQ())]
      >>> model = ssvq.nnx.compress(float_model, rules, key=jax.random.key(0))
      >>> tx = optax.chain(
      ...     optax.adamw(1e-4), ssvq.freeze_signs(interval=500, threshold=0.1)
      ... )
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> grads = nnx.grad(lambda model: model(jax.numpy.ones((1, 64))).sum())(model)
      >>> updates = optimizer.update(model, grads)
      >>> ssvq.report(model.params).compressed.bits_per_weight
      2.5
    """

    def __init__(self, module: nnx.Module, params: Any):
        graphdef, own, rest = nnx.split(module, nnx.Param, ...)
        boxes, treedef = flatten(own, _is_variable)
        given, _ = flatten(params, is_compressed)
        _require_same_parameters(boxes, given)
        trainable, fixed = tree.partition(
            {path: leaf for path, leaf in given.items() if is_compressed(leaf)}
        )
        kinds = {path: jax.tree.structure(box) for path, box in boxes.items()}

        def variable(path, name, leaf):
            """With the metadata of its weight, as names of axes, if it has its axes."""
            node = given[path]
            if name in node.linear_leaves or leaf.shape != node.array_shape:
                return nnx.Param(leaf)
            return jax.tree.unflatten(kinds[path], [leaf])

        for path, kind in kinds.items():
            if path in fixed:
                boxes[path] = Decoded(None, parameter=kind)
            else:
                boxes[path] = jax.tree.unflatten(kind, [jnp.asarray(given[path])])
        own = jax.tree.unflatten(treedef, boxes.values())
        # Buffers of its own: a step that donates them leaves the module alone.
        self.module = nnx.clone(nnx.merge(graphdef, own, rest), arrays=True)
        # Optimizers of NNX see mappings in place of nodes: `label_tree` reads the name.
        self.compressed = nnx.data(
            {
                path: {
                    type(node).__name__: {
                        name: variable(path, name, leaf)
                        for name, leaf in node.leaves().items()
                    }
                }
                for path, node in trainable.items()
            }
        )
        self.fixed = Fixed(fixed)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Decode the parameters and call the module."""
        module = self._decoded()
        output = module(*args, **kwargs)
        known = dict(nnx.to_flat_state(nnx.state(self.module)))
        found = nnx.to_flat_state(nnx.state(module))
        sown = [(path, value) for path, value in found if path not in known]
        if sown:  # variables that the call made; others are shared
            nnx.update(self.module, nnx.from_flat_state(sown))
        return output

    def decode(self) -> Any:
        """A module like the original one, with the decoded parameters."""
        return nnx.clone(self._decoded())

    def _decoded(self) -> Any:
        """As `decode`; everything but the decoded parameters is shared with `self`."""
        weights = tree.decode(self._nodes())
        graphdef, state, rest = nnx.split(self.module, Decoded, ...)
        boxes, treedef = flatten(state, _is_variable)
        for path, box in boxes.items():
            kind = box.get_metadata()["parameter"]
            boxes[path] = jax.tree.unflatten(kind, [weights[path]])
        return nnx.merge(graphdef, jax.tree.unflatten(treedef, boxes.values()), rest)

    @property
    def params(self) -> Any:
        """The compressed parameters as a tree of dicts: for `save` and `report`."""
        nodes = self._nodes()
        state = nnx.state(self.module, (nnx.Param, Decoded))
        boxes, treedef = flatten(state, _is_variable)
        values = [nodes.get(path, box.get_value()) for path, box in boxes.items()]
        return nnx.to_pure_dict(jax.tree.unflatten(treedef, values))

    def _nodes(self) -> dict[str, Compressed]:
        nodes = {}
        for path, fixed in self.fixed.get_value().items():
            leaves = self.compressed[path][type(fixed).__name__]
            nodes[path] = fixed.replace(
                **{name: leaf.get_value() for name, leaf in leaves.items()}
            )
        return nodes


def compress(
    module: nnx.Module,
    rules: Sequence[tree.Rule],
    *,
    key: Key,
    importance: Any = None,
    moments: Mapping[str, Moment] | None = None,
) -> CompressedModule:
    """Compress the parameters of any NNX module that the rules select.

    Args:
      module: Any NNX module; it is not changed.
      rules: As in `ssvq_jax.compress`; paths are those of `nnx.state(module,
        nnx.Param)`, such as `blocks/0/attention/query/kernel`.
      key: JAX random key.
      importance: As in `ssvq_jax.compress`, for example a state of squared gradients.
      moments: As in `ssvq_jax.compress`, from `calibrate`.

    Returns:
      A `CompressedModule`.

    Raises:
      TypeError, ValueError: As `ssvq_jax.compress`.
    """
    params = nnx.state(module, nnx.Param)
    compressed = calibration.compress(
        params, rules, key=key, importance=importance, moments=moments
    )
    return CompressedModule(module, compressed)


def calibrate(
    module: nnx.Module,
    batches: Iterable[Any],
    *,
    rules: Sequence[tree.Rule] | None = None,
    form: Form = "full",
) -> Moments:
    """Moments of the inputs of the parameters of any NNX module.

    Args:
      module: Any NNX module; it is not changed. Call `module.eval()` first where it
        behaves otherwise in training.
      batches: What `module` is called with, one argument; see `ssvq_jax.calibrate`.
      rules: As in `ssvq_jax.calibrate`; paths are those of `compress`.
      form: As in `ssvq_jax.calibrate`.

    Returns:
      `Moments`, by paths such as `blocks/0/attention/query/kernel`.

    Raises:
      TypeError, ValueError: As `ssvq_jax.calibrate`.

    Examples:
      >>> import jax.numpy as jnp, ssvq_jax as ssvq, ssvq_jax.nnx
      >>> from flax import nnx
      >>> module = nnx.Linear(64, 32, rngs=nnx.Rngs(0))
      >>> moments = ssvq.nnx.calibrate(module, [jnp.ones((8, 64))])
      >>> moments["kernel"].second.shape
      (64, 64)
    """
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def apply(params: Any, batch: Any) -> Any:
        # A copy: calls change batch statistics, counts of random numbers.
        return nnx.clone(nnx.merge(graphdef, params, rest))(batch)

    return calibration.calibrate(apply, params, batches, rules=rules, form=form)


def update_batch_norm(module: nnx.Module, batches: Iterable[Any]) -> None:
    """Take the means and variances of all batch norms anew, in place.

    After compression the inputs of batch norms are others than in training: give the
    images that the network was calibrated with. Every layer sees inputs that those
    before it have normalised by their batch, as in training; its variance is that of
    all batches together (law of total variance). Every batch counts the same: take
    equal ones, as large as in training. Momenta do not matter. All other layers are in
    evaluation mode, so dropout is off. A layer that is called several times keeps the
    statistics of its last call.

    Args:
      module: Any NNX module, a compressed one, too. Nothing but the means and variances
        of its `nnx.BatchNorm`s changes, nothing at all where an error is raised.
      batches: What `module` is called with, one argument, one after the other; those
        of other shapes are compiled for anew.

    Raises:
      ValueError: No batch norms; no batches; NaN or infinity in the statistics of a
        batch; a layer that a call does not update. The layer is named.

    Examples:
      >>> import jax.numpy as jnp, ssvq_jax as ssvq, ssvq_jax.nnx
      >>> from flax import nnx
      >>> model = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
      >>> x = jnp.array([[1.0], [3.0]])
      >>> ssvq.nnx.update_batch_norm(model, [x, x + 4])
      >>> model.mean[...].tolist(), model.var[...].tolist()
      ([4.0], [5.0])
    """
    own = _batch_norms(module)
    if not own:
        raise ValueError(
            f"module: expected one with nnx.BatchNorm, got none in {type(module)}"
        )
    training = nnx.clone(module)
    training.eval()
    for norm in _batch_norms(training).values():
        norm.use_running_average, norm.momentum = False, 0.0
    graphdef, state = nnx.split(training)

    def update(state: Any, statistics: dict[str, Running], batch: Any) -> Any:
        training: Any = nnx.merge(graphdef, state)
        norms = _batch_norms(training)
        _set_statistics(norms, statistics)
        training(batch)
        return _statistics(norms)

    _set_statistics(own, update_statistics(update, state, _statistics(own), batches))


def _batch_norms(module: nnx.Module) -> dict[str, nnx.BatchNorm]:
    return {
        "/".join(map(str, path)): norm
        for path, norm in nnx.iter_modules(module)
        if isinstance(norm, nnx.BatchNorm)
    }


def _statistics(norms: dict[str, nnx.BatchNorm]) -> dict[str, Running]:
    return {
        path: Running(norm.mean.get_value(), norm.var.get_value())
        for path, norm in norms.items()
    }


def _set_statistics(norms: dict[str, nnx.BatchNorm], new: dict[str, Running]) -> None:
    for path, norm in norms.items():
        norm.mean.set_value(new[path].mean)
        norm.var.set_value(new[path].var)


def _require_same_parameters(named: dict[str, Any], given: dict[str, Any]) -> None:
    for name in named:
        if name not in given:
            raise ValueError(f"{name}: parameter of the module, but not in params")
    for name, leaf in given.items():
        if name not in named:
            raise ValueError(f"{name}: in params, but no parameter of the module")
        expected = named[name].get_value().shape
        shape = leaf.array_shape if is_compressed(leaf) else jnp.shape(leaf)
        if shape != expected:
            raise ValueError(f"{name}: expected shape {expected}, got {shape}")


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)
