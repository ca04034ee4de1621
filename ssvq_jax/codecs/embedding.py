"""A compressed table of embeddings, read row by row, and as the head of a model."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ssvq_jax.codecs.codec import Compressed, require_node
from ssvq_jax.core.sharding import (
    compiler_sharded,
    fit_sharding,
    mesh_axes,
    sharding_of,
)

_SLAB = 1 << 20  # weights, 4 MiB


def take(compressed: Compressed, indices: ArrayLike) -> Float[Array, "*batch width"]:
    """`decode(compressed)[indices]`, the embeddings of tokens; no other row is decoded.

    Differentiable like `decode`, by the leaves that are trained.

    Args:
      compressed: A node of a table `(rows, width)` whose blocks run along its rows, as
        those of a parameter called `embedding` do.
      indices: Integers of any shape; those out of range are clipped, so that negative
        ones stand for row 0.

    Returns:
      `(*indices.shape, width)` in the weight's dtype.

    Raises:
      TypeError: A `compressed` that is no node, or `indices` that are no integers.
      ValueError: A weight that is no such table.

    Examples:
      >>> import jax, jax.numpy as jnp, ssvq_jax as ssvq
      >>> table = jax.random.normal(jax.random.key(0), (1000, 64))
      >>> node = ssvq.encode(ssvq.Uniform(8), table, key=jax.random.key(1), axis=1)
      >>> ssvq.take(node, jnp.array([3, 999])).shape
      (2, 64)
    """
    _require_table(compressed)
    indices = jnp.asarray(indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"indices: expected integers, got {indices.dtype}")
    return _take(compressed, indices)


def attend(x: ArrayLike, compressed: Compressed) -> Float[Array, "*batch rows"]:
    """`x @ decode(compressed).T`: the logits of a head that is the embedding, too.

    On CPUs the product with one row of `x` decodes as it goes; for more rows a large
    table is decoded some rows at a time, while they are in cache.

    Args:
      x: `(..., width)`, floating.
      compressed: As of `take`.

    Returns:
      `(..., rows)` in the dtype that JAX promotes those of `x` and the weight to.

    Raises:
      TypeError: A `compressed` that is no node, or an `x` that is not floating.
      ValueError: A weight that is no such table; an `x` whose last axis is not `width`.

    Examples:
      >>> import jax, jax.numpy as jnp, ssvq_jax as ssvq
      >>> table = jax.random.normal(jax.random.key(0), (1000, 64))
      >>> node = ssvq.encode(ssvq.Uniform(8), table, key=jax.random.key(1), axis=1)
      >>> ssvq.attend(jnp.ones((2, 64)), node).shape
      (2, 1000)
    """
    _require_table(compressed)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    rows, width = compressed.shape
    if x.ndim == 0 or x.shape[-1] != width:
        raise ValueError(f"x: expected shape (..., {width}), got {x.shape}")
    split = any(map(sharding_of, compressed.leaves().values()))
    in_slabs = jax.default_backend() == "cpu" and not split and x.size > width
    return _attend(x, compressed, max(2, _SLAB // width) if in_slabs else rows)


def _require_table(compressed: Compressed) -> None:
    require_node(compressed)
    if len(compressed.shape) != 2 or compressed.axis != 1:
        raise ValueError(
            "compressed: expected a table (rows, width) with blocks along axis 1, got "
            f"shape {compressed.shape} with blocks along axis {compressed.axis}"
        )
    compressed.check()


@jax.jit
def _take(node: Compressed, indices: Array) -> Array:
    shape = (*indices.shape, node.shape[1])
    take = compiler_sharded(_take_rows, _sharding_of(indices, node, 1, shape))
    return take(node, indices)


def _sharding_of(
    batch: Array, node: Compressed, axis: int, shape: tuple[int, ...]
) -> NamedSharding | None:
    """Split as the leading axes of `batch` are, and at last as an axis of the table."""
    table = next(filter(None, map(sharding_of, node.leaves().values())), None)
    batch_sharding = sharding_of(batch)
    given = batch_sharding or table
    if given is None:
        return None
    spec: list[Any] = [None] * len(shape)
    if batch_sharding is not None:
        leading = batch_sharding.spec[: len(shape) - 1]
        spec[: len(leading)] = leading
    if table is not None:
        taken = {name for entry in spec for name in mesh_axes(entry)}
        last = (
            name for entry in table.spec[axis : axis + 1] for name in mesh_axes(entry)
        )
        spec[-1] = tuple(name for name in last if name not in taken) or None
    return fit_sharding(NamedSharding(given.mesh, PartitionSpec(*spec)), shape)


def _take_rows(node: Compressed, indices: Array) -> Array:
    rows, width = node.shape
    if rows == 1 or not indices.size:
        return jnp.take(node.decode(), indices, axis=0, mode="clip")
    flat = indices.ravel()
    flat = jnp.pad(flat, (0, 1)) if flat.size == 1 else flat

    def select(leaf):
        return jnp.take(leaf, flat, axis=0, mode="clip")

    found = _some_rows(node, flat.size, select).decode()
    return found[: indices.size].reshape(*indices.shape, width)


@functools.partial(jax.jit, static_argnums=2)
def _attend(x: Array, node: Compressed, size: int) -> Array:
    multiply = functools.partial(_attend_in_slabs, size=size)
    shape = (*x.shape[:-1], node.shape[0])
    return compiler_sharded(multiply, _sharding_of(x, node, 0, shape))(x, node)


def _attend_in_slabs(x: Array, node: Compressed, size: int) -> Array:
    """In slabs of `size` rows, at least 2."""
    dtype = jnp.promote_types(x.dtype, node.dtype)
    x = x.astype(dtype)
    rows = node.shape[0]
    if rows < 2 * size:
        return x @ node.decode().astype(dtype).T

    def product(start):
        def select(leaf):
            return jax.lax.dynamic_slice_in_dim(leaf, start, size)

        return x @ _some_rows(node, size, select).decode().astype(dtype).T

    whole, rest = divmod(rows, size)
    slabs = jax.lax.map(lambda i: product(i * size), jnp.arange(whole))
    result = jnp.moveaxis(slabs, 0, -2).reshape(*x.shape[:-1], whole * size)
    if not rest:
        return result
    return jnp.concatenate([result, product(rows - size)[..., -rest:]], axis=-1)


def _some_rows(
    node: Compressed, count: int, select: Callable[[Array], Array]
) -> Compressed:
    """The node of some rows, by what selects them from an array of all.

    Of two rows at least, as of a table of one row the outputs have the scales.
    """
    leaves = {
        name: select(leaf)
        for name, leaf in node.leaves().items()
        if name != "codebook" and leaf.ndim > 0
    }
    return node.replace(shape=(count, *node.shape[1:]), **leaves)
