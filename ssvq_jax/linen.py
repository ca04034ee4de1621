"""Flax Linen: variables whose parameters are compressed, decoded inside `apply`.

The trainable halves stay in the collection "params", so that `jax.grad`, optax and
`TrainState` see floating leaves only; the fixed halves (codes, fixed signs, masks)
are a collection of their own, "compressed".
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax import linen as nn

from ssvq_jax import calibration, tree
from ssvq_jax.calibration import Form, Moments
from ssvq_jax.core.kmeans import Key


def compress(
    variables: Mapping[str, Any],
    rules: Sequence[tree.Rule],
    *,
    key: Key,
    importance: Any = None,
) -> dict[str, Any]:
    """Compress the collection "params" of the variables of a Linen module.

    Args:
      variables: What `module.init` gave, or training made of it.
      rules: As in `ssvq_jax.compress`; paths are those inside "params".
      key: JAX random key.
      importance: As in `ssvq_jax.compress`.

    Returns:
      Variables with the collection "compressed" beside "params"; see `split`.

    Raises:
      TypeError, ValueError: As `ssvq_jax.compress`.

    Example:
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
    params = tree.compress(variables["params"], rules, key=key, importance=importance)
    return {**variables, **split(params)}


def split(params: Any) -> dict[str, Any]:
    """The collections "params" and "compressed" of a compressed tree of parameters.

    `params` may come from `ssvq_jax.compress` or `ssvq_jax.load`.
    """
    trainable, fixed = tree.partition(params)
    return {"params": trainable, "compressed": fixed}


def params(variables: Mapping[str, Any]) -> Any:
    """The compressed tree of parameters, for `save` and `report`: undoes `split`."""
    if "compressed" not in variables:
        raise ValueError(
            "variables: expected the collection 'compressed' that `compress` makes, "
            f"got {', '.join(variables) or 'none'}"
        )
    return tree.combine(variables["params"], variables["compressed"])


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

    Example:
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
