"""Means and variances of batch norms taken anew, for a network that has changed."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Running(NamedTuple):
    """Running statistics of one batch norm.

    Attributes:
      mean: Of every channel.
      var: Of every channel, alike in shape.
    """

    mean: Any
    var: Any


_LARGE = 2.0**100  # beside it a batch's own statistics vanish in float32


def update_statistics(
    update: Callable[[Any, dict[str, Running], Any], dict[str, Running]],
    state: Any,
    statistics: Mapping[str, Running],
    batches: Iterable[Any],
) -> dict[str, Running]:
    """Means and variances over all batches of what every layer sees in training mode.

    The variance follows the law of total variance: the mean of `var + mean^2` over the
    batches, less the squared mean. Every batch counts the same.

    Args:
      update: A function that JAX can trace: `update(state, statistics, batch)` gives
        every running statistic as `momentum * old + (1 - momentum) * the batch's`, as
        layers of Flax do in training mode. Their momenta need not be known.
      state: What else `update` takes, a pytree.
      statistics: The present ones, by layer; their shapes and dtypes are kept, and the
        devices that they were put on.
      batches: One after the other; those of other shapes are compiled for anew.

    Returns:
      The new statistics, by layer.

    Raises:
      ValueError: No batches; NaN or infinity in the statistics of one; a layer whose
        statistics `update` leaves as they are. The layer is named.
    """
    step = jax.jit(update)
    statistics = dict(statistics)
    # In float32 at least: batches' own statistics would be rounded to those of half
    # precision, and the large ones below overflow.
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
        statistics,
    )
    momenta, sums, count = None, None, 0
    for batch in batches:
        new = _on_host(step(state, zeros, batch))
        for layer, values in new.items():
            if not all(np.isfinite(value).all() for value in values):
                raise ValueError(
                    f"{layer or 'batch norm'}: expected finite statistics, got NaN or "
                    f"infinity in batch {count}"
                )
        if momenta is None:
            large = jax.tree.map(lambda old: jnp.full_like(old, _LARGE), zeros)
            momenta = _momenta(_on_host(step(state, large, batch)))
        own = jax.tree.map(lambda value, m: value / (1 - m), new, momenta)
        moments = {layer: (x.mean, x.var + x.mean**2) for layer, x in own.items()}
        sums = moments if sums is None else jax.tree.map(np.add, sums, moments)
        count += 1
    if sums is None:
        raise ValueError("batches: expected at least one, got none")
    totals = {}
    for layer, (mean, square) in jax.tree.map(lambda x: x / count, sums).items():
        totals[layer] = Running(mean, np.maximum(square - mean**2, 0.0))
    return jax.tree.map(_like, statistics, totals)


def _on_host(statistics: dict[str, Running]) -> dict[str, Running]:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(statistics))


def _momenta(updated: dict[str, Running]) -> dict[str, Running]:
    """The momentum of every layer, from what became of large statistics."""
    momenta = jax.tree.map(lambda x: x / _LARGE, updated)
    for layer, values in momenta.items():
        if not all((momentum < 1).all() for momentum in values):
            raise ValueError(
                f"{layer or 'batch norm'}: expected statistics that a call updates, "
                "without use_running_average=True and with momentum < 1; they stay as "
                "they are"
            )
    return momenta


def _like(old: Any, value: np.ndarray) -> jax.Array:
    """The new value with the dtype of the old one, and on its devices."""
    new = jnp.asarray(value.astype(old.dtype))
    return jax.device_put(new, old.sharding) if getattr(old, "committed", 0) else new
