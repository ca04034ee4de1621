"""`compress`, with or without what data tell about the weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from ssvq_jax import tree
from ssvq_jax.calibration.moments import Moment, require_paths
from ssvq_jax.calibration.refine import refine
from ssvq_jax.core.kmeans import Key
from ssvq_jax.tree.paths import flatten


def compress(
    params: Any,
    rules: Sequence[tree.Rule],
    *,
    key: Key,
    importance: Any = None,
    moments: Mapping[str, Moment] | None = None,
) -> Any:
    """Compress the parameters that the rules select; the first match wins.

    Blocks run along the axis that a Flax layer contracts: input features of a dense
    kernel, input channels of a convolution, channels of a depthwise one, features of
    a parameter named `embedding`, and the last but two of the axes `(in, heads, size)`
    of the `query`, `key` and `value` kernels of attention. `Rule.axis` overrides that.

    Args:
      params: Any pytree of arrays: nested dicts, `nnx.State`, an `nnx.Module`, ...
      rules: Tried in order for every parameter; what none matches stays as it is.
      key: JAX random key. A parameter's own key depends on it and the path alone, so
        that another parameter more or less changes nothing for the rest.
      importance: `None`, or a pytree with the paths of `params`, of arrays that weigh
        the squared error of every weight (see `encode`). Parameters that are not in
        it are not weighted.
      moments: From `calibrate`. Codes are found by the error of the outputs: with the
        diagonal of the second moments as importance, where none is given, then by
        `refine`. Parameters that are not in it are compressed without.

    Returns:
      The same tree with `Compressed` nodes where a codec was chosen.

    Raises:
      TypeError, ValueError, NotImplementedError: What `encode` and `refine` raise, with
        the parameter's path before it; a rule that matches no path; importance for a
        path that does not exist; moments of which none is of a parameter.

    Examples:
      >>> import jax, jax.numpy as jnp, ssvq_jax as ssvq
      >>> params = {"dense": {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}}
      >>> rules = [ssvq.Rule(r".*/kernel", ssvq.SSVQ(codewords=4))]
      >>> compressed = ssvq.compress(params, rules, key=jax.random.key(0))
      >>> compressed["dense"]["kernel"].codes.shape
      (8, 32)
    """
    if moments is None:
        return tree.compress(params, rules, key=key, importance=importance)
    named, _ = flatten(params)
    weights = {} if importance is None else dict(flatten(importance)[0])
    require_paths(moments, named)
    for path in named:
        rule = next((rule for rule in rules if rule.matches(path)), None)
        if path in moments and rule is not None and rule.codec is not None:
            try:
                diagonal = moments[path].importance(jnp.shape(named[path]))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            weights.setdefault(path, diagonal)
    compressed = tree.compress(params, rules, key=key, importance=weights)
    return refine(compressed, params, moments)
