"""`fisher_factors`: second moments by what the network's outputs feel."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssvq_jax.calibration.moments import Moment, Moments
from ssvq_jax.calibration.products import second_moments
from ssvq_jax.core.sharding import compiler_sharded, place, replicated, sharding_of
from ssvq_jax.tree.paths import flatten


def fisher_factors(
    moments: Moments, gradients: Iterable[Any], *, outputs: bool = False
) -> Moments:
    """Moments with factors of the Fisher information in place of second moments.

    Second moments of inputs tell what an error does to the outputs of its own layer;
    the Fisher information tells what it does to those of the network. Of a weight `W`,
    `(in, out)`, it is near a Kronecker product, whose factor for the inputs is the sum
    of `G G^T` over gradients `G` of `W`: inputs count by how much the loss depends on
    what they lead to. The outputs' is that of `G^T G`. `refine` and `compress` take
    them as they take second moments.

    Labels have to be drawn from what the network says, not taken from the data: with
    these a network that is always right would have no gradient.

    Args:
      moments: From `calibrate`: which parameters, in which form. Their means and counts
        are kept, for `correct_biases` and for the damping; `centered` means nothing for
        what is returned.
      gradients: Trees like `params`, one after the other; each the gradient of the loss
        of an example, or of a few, with labels drawn. Their number times `out` bounds
        the rank of the inputs' factor, times `in` that of the outputs'.
      outputs: Whether the outputs' factors are found, too, `4 * out**2` bytes for every
        parameter, or group of one: leave heads of large vocabularies out of `moments`.
        Codes then make up for errors at other outputs as they do for those
        at other inputs, where their blocks run along inputs; and `allocate` counts what
        errors do to the loss.

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

    def products(rows: list[Array]) -> list[tuple[Array, Array | None]]:
        found = map(moments.__getitem__, paths)
        return [_products(*x, outputs) for x in zip(found, rows, strict=True)]

    def add(sums: Any, rows: list[Array]) -> Any:
        return jax.tree.map(jnp.add, sums, products(rows))

    sums, step = None, None
    for tree in gradients:
        named, _ = flatten(tree)
        rows = [_checked(path, moments[path], named) for path in paths]
        if step is None:
            whole = replicated(next(filter(None, map(sharding_of, rows)), None))
            step = jax.jit(compiler_sharded(add, whole), donate_argnums=0)
            shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in rows]
            zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(products, shapes))
            sums = jax.tree.map(functools.partial(place, sharding=whole), zeros)
        # Before the next one is made: memory.
        sums = jax.block_until_ready(step(sums, rows))
        del tree, named, rows
    if sums is None:
        raise ValueError("gradients: expected at least one, got none")
    factors = {}
    for path, (second, own) in zip(paths, sums, strict=True):
        if not all(jnp.isfinite(x).all() for x in (second, own) if x is not None):
            raise ValueError(
                f"{path}: expected finite gradients whose squares float32 can add up"
            )
        factors[path] = dataclasses.replace(moments[path], second=second, outputs=own)
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


def _products(
    moment: Moment, gradient: Array, outputs: bool
) -> tuple[Float[Array, "..."], Float[Array, "..."] | None]:
    """`G G^T`, in the form of the moment's `second`, and `G^T G`, of one gradient."""
    rows = jnp.asarray(moment.arrange(gradient.astype(jnp.float32)))
    groups = rows.shape[:-2]
    rows = rows.reshape(-1, *rows.shape[-2:])
    extra = moment.second.ndim - moment.mean.ndim
    form = ("diagonal", "full", moment.second.shape[-1])[extra]
    second = second_moments(rows, form).reshape(moment.second.shape)
    if not outputs:
        return second, None
    own = second_moments(rows.mT, "full")
    return second, own.reshape(*groups, *own.shape[1:])
