"""Flax Linen: variables whose parameters are compressed, decoded inside `apply`.

The trainable halves stay in the collection "params", so that `jax.grad`, optax and
`TrainState` see floating leaves only; the fixed halves (codes, fixed signs, masks)
are a collection of their own, "compressed".
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from flax.core.meta import AxisMetadata

from ssvq_jax import calibration, tree
from ssvq_jax.calibration import Form, Moment, Moments
from ssvq_jax.calibration.batch_norm import Running, update_statistics
from ssvq_jax.codecs import is_compressed
from ssvq_jax.core.kmeans import Key
from ssvq_jax.tree.paths import flatten


def compress(
    variables: Mapping[str, Any],
    rules: Sequence[tree.Rule],
    *,
    key: Key,
    importance: Any = None,
    moments: Mapping[str, Moment] | None = None,
) -> dict[str, Any]:
    """Compress the collection "params" of the variables of a Linen module.

    Args:
      variables: What `module.init` gave, or training made of it.
      rules: As in `ssvq_jax.compress`; paths are those inside "params".
      key: JAX random key.
      importance: As in `ssvq_jax.compress`.
      moments: As in `ssvq_jax.compress`, from `calibrate`.

    Returns:
      Variables with the collection "compressed" beside "params"; see `split`.

    Raises:
      TypeError, ValueError: As `ssvq_jax.compress`.

    Examples:
      >>> import jax, jax.numpy as jnp, ssvq_jax as ssvq, ssvq_jax.linen
      >>> from flax import linen as nn
      >>> model = nn.Dense(32)
      >>> x = jnp.ones((1, 64))
      >>> variables = model.init(jax.random.key(0), x)
      >>> rules = [ssvq.Rule("kernel", ssvq.SSVQ())]
      >>> variables = ssvq.linen.compress(variables, rules, key=jax.random.key(1))
      >>> ssvq.linen.apply(model, variables, x).shape
      (1, 32)
    """
    params = calibration.compress(
        variables["params"], rules, key=key, importance=importance, moments=moments
    )
    return {**variables, **split(params)}


def split(params: Any) -> dict[str, Any]:
    """The collections "params" and "compressed" of a compressed tree of parameters.

    `params` may come from `ssvq_jax.compress` or `ssvq_jax.load`. Metadata of a weight,
    as names of its axes, become those of its latent and codes, which have these axes:
    `flax.linen.get_partition_spec` finds them there. Of codes the contracted axis
    counts blocks, and what splits it has to divide those. `params` puts the two halves
    together and the metadata around the weight again, which `ssvq_jax.combine` does
    not.
    """
    boxed = jax.tree.map(_box_leaves, params, is_leaf=_is_box)
    trainable, fixed = tree.partition(boxed)
    return {"params": trainable, "compressed": fixed}


def params(variables: Mapping[str, Any]) -> Any:
    """The compressed tree of parameters, for `save` and `report`: undoes `split`.

    Raises:
      ValueError: Variables without the collection "compressed"; so of `decode` and
        `apply`.
    """
    if "compressed" not in variables:
        raise ValueError(
            "variables: expected the collection 'compressed' that `compress` makes, "
            f"got {', '.join(variables) or 'none'}"
        )
    combined = tree.combine(variables["params"], variables["compressed"])
    return jax.tree.map(_box_node, combined, is_leaf=is_compressed)


def _is_box(x: Any) -> bool:
    return isinstance(x, AxisMetadata)


def _box_leaves(x: Any) -> Any:
    """The box of a node around its leaves that have the weight's axes."""
    inner = jax.tree.leaves(x, is_leaf=is_compressed)
    if not (_is_box(x) and inner and is_compressed(inner[0])):
        return x
    (node,) = inner
    boxed = {
        name: x.replace_boxed(leaf)
        for name, leaf in node.leaves().items()
        if name not in node.linear_leaves and leaf.ndim == len(node.array_shape)
    }
    return node.replace(**boxed)


def _box_node(x: Any) -> Any:
    """Undoes `_box_leaves`."""
    if not is_compressed(x):
        return x
    boxes = {name: leaf for name, leaf in x.leaves().items() if _is_box(leaf)}
    if not boxes:
        return x
    arrays = {
        name: next(iter(jax.tree.leaves(box)), None) for name, box in boxes.items()
    }
    return next(iter(boxes.values())).replace_boxed(x.replace(**arrays))


def decode(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of the float module, with decoded parameters; differentiable."""
    others = {name: value for name, value in variables.items() if name != "compressed"}
    return {**others, "params": tree.decode(params(variables))}


def apply(module: nn.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any):
    """`module.apply` with the parameters decoded; takes what `module.apply` takes."""
    return module.apply(decode(variables), *args, **kwargs)


def calibrate(
    module: nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    rules: Sequence[tree.Rule] | None = None,
    form: Form = "full",
    **kwargs: Any,
) -> Moments:
    """Moments of the inputs of the collection "params" of a Linen module.

    Args:
      module: Any Linen module.
      variables: What `module.init` gave, or training made of it.
      batches: What `module` is called with, one argument; see `ssvq_jax.calibrate`.
      rules: As in `ssvq_jax.calibrate`; paths are those inside "params".
      form: As in `ssvq_jax.calibrate`.
      **kwargs: More for `module.apply`, such as `train=False`.

    Returns:
      `Moments`, by paths inside "params".

    Raises:
      TypeError, ValueError: As `ssvq_jax.calibrate`.

    Examples:
      >>> import jax, jax.numpy as jnp, ssvq_jax as ssvq, ssvq_jax.linen
      >>> from flax import linen as nn
      >>> model, x = nn.Dense(32), jnp.ones((8, 64))
      >>> variables = model.init(jax.random.key(0), x)
      >>> ssvq.linen.calibrate(model, variables, [x])["kernel"].second.shape
      (64, 64)
    """

    def apply(params: Any, batch: Any) -> Any:
        return module.apply({**variables, "params": params}, batch, **kwargs)

    own = variables["params"]
    return calibration.calibrate(apply, own, batches, rules=rules, form=form)


def update_batch_stats(
    apply: Callable[[Any, Any], Any],
    variables: Mapping[str, Any],
    batches: Iterable[Any],
) -> Any:
    """Means and variances of batch norms, taken anew over all batches.

    After compression the inputs of batch norms are others than in training: give the
    images that the network was calibrated with. Every layer sees inputs that those
    before it have normalised by their batch, as in training; its variance is that of
    all batches together (law of total variance). Every batch counts the same: take
    equal ones, as large as in training. Momenta do not matter. A layer that is called
    several times keeps the statistics of its last call.

    Args:
      apply: `apply(variables, batch)` gives what `module.apply` does in training mode
        with `mutable=["batch_stats"]`: outputs, and the updated collection by name.
        Dropout is best left off.
      variables: Those of the module, compressed by `compress` or not.
      batches: What `apply` takes, one after the other; those of other shapes are
        compiled for anew.

    Returns:
      The new collection "batch_stats"; what is no `mean` with a `var` beside it is as
      it was.

    Raises:
      ValueError: No batch norms; no batches; NaN or infinity in the statistics of a
        batch; a layer whose statistics `apply` does not update. The layer is named.

    Examples:
      >>> import jax, jax.numpy as jnp, ssvq_jax as ssvq, ssvq_jax.linen
      >>> from flax import linen as nn
      >>> model = nn.BatchNorm(use_running_average=False, momentum=0.5)
      >>> x = jnp.array([[1.0], [3.0]])
      >>> def apply(variables, x):
      ...     return model.apply(variables, x, mutable=["batch_stats"])
      >>> variables = model.init(jax.random.key(0), x)
      >>> stats = ssvq.linen.update_batch_stats(apply, variables, [x, x + 4])
      >>> stats["mean"].tolist(), stats["var"].tolist()
      ([4.0], [5.0])
    """
    named, _ = flatten(variables.get("batch_stats", {}))
    paths = _paths_of_batch_norms(named)
    if not paths:
        raise ValueError(
            "variables: expected batch norms, a `mean` and a `var` in the collection "
            f"'batch_stats', got {', '.join(named) or 'none'}"
        )

    def taken(stats: Any) -> dict[str, Running]:
        named, _ = flatten(stats)
        return {layer: Running(named[m], named[v]) for layer, (m, v) in paths.items()}

    def put(stats: Any, statistics: Mapping[str, Running]) -> Any:
        named, treedef = flatten(stats)
        for layer, pair in paths.items():
            named.update(zip(pair, statistics[layer], strict=True))
        return jax.tree.unflatten(treedef, named.values())

    def update(variables: Any, statistics: Any, batch: Any) -> Any:
        if "compressed" in variables:
            variables = decode(variables)
        stats = put(variables["batch_stats"], statistics)
        _, changed = apply({**variables, "batch_stats": stats}, batch)
        return taken(changed["batch_stats"])

    old = variables["batch_stats"]
    return put(old, update_statistics(update, dict(variables), taken(old), batches))


def _paths_of_batch_norms(named: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """By layer, the paths of a mean and of the variance beside it."""
    paths = {}
    for mean in named:
        layer, slash, name = mean.rpartition("/")
        variance = f"{layer}{slash}var"
        if name == "mean" and variance in named:
            paths[layer] = (mean, variance)
    return paths
