"""`fisher_factors`: second moments by what the network's outputs feel."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssvq_jax.calibration.moments import Moment, Moments
from ssvq_jax.calibration.products import second_moments
from ssvq_jax.core.sharding import compiler_sharded, place, replicated, sharding_of
from ssvq_jax.tree.paths import flatten


def fisher_factors(moments: Moments, gradients: Iterable[Any]) -> Moments:
    """Moments with the inputs' factors of the Fisher information for `second`.

    Second moments of inputs tell what an error does to the outputs of its own layer;
    the Fisher information tells what it does to those of the network. Of a weight `W`,
    `(in, out)`, it is near a Kronecker product, whose factor for the inputs is the sum
    of `G G^T` over gradients `G` of `W`: inputs count by how much the loss depends on
    what they lead to. `refine` and `compress` take it as they take second moments.

    Labels have to be drawn from what the network says, not taken from the data: with
    these a network that is always right would have no gradient.

    Args:
      moments: From `calibrate`: which parameters, in which form. Their means and counts
        are kept, for `correct_biases` and for the damping; `centered` means nothing for
        what is returned.
      gradients: Trees like `params`, one after the other; each the gradient of the loss
        of an example, or of a few, with labels drawn. Their number times `out` bounds
        the rank of a factor.

    Returns:
      Moments of the same parameters, in the same form.

    Raises:
      ValueError: No gradients; one that lacks a parameter, has another shape, or is not
        finite.

    Examples:
      >>> import jax, jax.numpy as jnp, ssvq_jax as ssvq
      >>> params = {"kernel": jnp.array([[0.5, -0.5], [0.0, 1.0]])}
      >>> def logits(params, x):
      ...     return x @ params["kernel"]
      >>> @jax.grad
      ... def gradient(params, x, key):
      ...     outputs = logits(params, x)
      ...     drawn = jax.random.categorical(key, jax.lax.stop_gradient(outputs))
      ...     return -jnp.sum(jnp.take_along_axis(
      ...         jax.nn.log_softmax(outputs), drawn[:, None], axis=1))
      >>> x = jnp.array([[1.0, 0.0]])
      >>> moments = ssvq.calibrate(logits, params, [x])
      >>> keys = jax.random.split(jax.random.key(0), 8)
      >>> factors = ssvq.fisher_factors(
      ...     moments, (gradient(params, x, key) for key in keys))
      >>> factors["kernel"].second.shape, factors["kernel"].second[1].tolist()
      ((2, 2), [0.0, 0.0])

    References:
      Martens and Grosse, "K-FAC", ICML 2015, arXiv 1503.05671; Tseng et al., "YAQA",
      2025, arXiv 2505.22988: the factors of gradients with drawn labels.
    """
    paths = list(moments)

    def add(sums: list[Array], rows: list[Array]) -> list[Array]:
        new = map(_product, map(moments.__getitem__, paths), rows)
        return [a + b for a, b in zip(sums, new, strict=True)]

    sums, step = None, None
    for tree in gradients:
        named, _ = flatten(tree)
        rows = [_checked(path, moments[path], named) for path in paths]
        if step is None:
            whole = replicated(next(filter(None, map(sharding_of, rows)), None))
            step = jax.jit(compiler_sharded(add, whole), donate_argnums=0)
            shapes = [jnp.shape(moments[path].second) for path in paths]
            sums = [place(jnp.zeros(x, jnp.float32), whole) for x in shapes]
        sums = step(sums, rows)
        del tree, named, rows  # before the next one is made: memory
    if sums is None:
        raise ValueError("gradients: expected at least one, got none")
    for path, second in zip(paths, sums, strict=True):
        if not jnp.isfinite(second).all():
            raise ValueError(
                f"{path}: expected finite gradients whose squares float32 can add up"
            )
    factors = {
        path: dataclasses.replace(moments[path], second=second)
        for path, second in zip(paths, sums, strict=True)
    }
    return Moments(factors, moments.missing)


def _checked(path: str, moment: Moment, named: dict[str, Any]) -> Array:
    if path not in named:
        raise ValueError(f"{path}: in moments, but not in gradients")
    gradient = jnp.asarray(named[path])
    try:
        moment.check(gradient.shape)
    except ValueError as error:
        raise ValueError(f"{path}: gradient: {error}") from error
    return gradient


def _product(moment: Moment, gradient: Array) -> Float[Array, "..."]:
    """`G G^T` of one gradient, in the form of the moment's `second`."""
    rows = jnp.asarray(moment.arrange(gradient.astype(jnp.float32)))
    rows = rows.reshape(-1, *rows.shape[-2:])
    extra = moment.second.ndim - moment.mean.ndim
    form = ("diagonal", "full", moment.second.shape[-1])[extra]
    return second_moments(rows, form).reshape(moment.second.shape)
