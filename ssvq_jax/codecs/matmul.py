"""Products with a compressed weight, from its compressed form."""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ssvq_jax.codecs.codec import Compressed, require_node
from ssvq_jax.core.sharding import sharding_of

_TABLE_ENTRIES = 4096  # 16 KiB
_LOOKUP_COST = 5 / 3  # of decoding and multiplying one weight; measured
_TABLE_COST = 1500  # lookups; measured
_SLAB = 1 << 21  # weights, 8 MiB

Form = Literal["tables", "slabs", "whole"]


def matmul(x: ArrayLike, compressed: Compressed) -> Float[Array, "*batch out"]:
    """`x @ decode(compressed)`, computed from the compressed form.

    How depends on the shapes and is chosen in one place. On CPUs, for a finalized
    `(in, out)` weight of blocks along its inputs:

    - few rows of `x`: for each group of inputs a table of its products with every
      codeword and every pattern of signs, which stays in cache, is gathered by code
      and sign bits. The weight is never decoded. For 16 codewords of 8 that is up to
      4 rows where outputs are many, 1 where they are 1,024; for 256 codewords of 8,
      up to 2;
    - more rows: the weight is decoded slab after slab of about 8 MiB, and each is
      multiplied while it is in cache. Weights below that size are decoded whole.

    Both leave the scales of output channels to their sums. Any other weight, or
    backend, is decoded whole and multiplied; so are latents in training. Give rows as
    leading axes of `x`: of those under `jax.vmap` the choice knows nothing.

    Args:
      x: `(..., in)`, floating.
      compressed: A node of a weight `(in, out)`.

    Returns:
      `(..., out)` in the dtype that JAX promotes those of `x` and the weight to;
      tables and slabs are added up in float32.

    Raises:
      TypeError: A `compressed` that is no node, or an `x` that is not floating.
      ValueError: A weight that is not `(in, out)`; an `x` whose last axis is not `in`.

    Examples:
      >>> import jax, jax.numpy as jnp, ssvq_jax as ssvq
      >>> weight = jax.random.normal(jax.random.key(0), (64, 32))
      >>> node = ssvq.finalize(ssvq.encode(ssvq.SSVQ(), weight, key=jax.random.key(1)))
      >>> x = jnp.ones((2, 64))
      >>> bool(jnp.allclose(ssvq.matmul(x, node), x @ ssvq.decode(node), atol=1e-4))
      True
    """
    require_node(compressed)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    if len(compressed.shape) != 2:
        raise ValueError(
            f"compressed: expected a weight (in, out), got shape {compressed.shape}"
        )
    inputs, _ = compressed.shape
    if x.ndim == 0 or x.shape[-1] != inputs:
        raise ValueError(f"x: expected shape (..., {inputs}), got {x.shape}")
    compressed.check()
    form = _form(math.prod(x.shape[:-1]), compressed, x.dtype)
    return _matmul(x, compressed, form)


def _form(rows: int, node: Any, dtype: Any = jnp.float32) -> Form:
    """The one place that chooses how a product with rows of `dtype` is computed."""
    if jnp.float64 in (dtype, node.dtype):
        return "whole"  # the others add up in float32
    if jax.default_backend() != "cpu" or node.axis != 0 or node.bit_factors is None:
        return "whole"
    leaves = node.leaves()
    if not {"codes", node.bit_leaf or "codes"} <= leaves.keys():
        return "whole"  # in training: signs are latents
    if any(map(sharding_of, leaves.values())):
        return "whole"
    width = _table_width(node)
    if rows == 0:
        return "whole"
    if width is not None:
        outputs, block = node.shape[1], node.codec.block
        lookups = rows * math.ceil(block / width) * (outputs + _TABLE_COST)
        if lookups * _LOOKUP_COST <= block * outputs:
            return "tables"
    return "slabs" if node.size > _SLAB else "whole"


@functools.partial(jax.jit, static_argnums=2)
def _matmul(x: Array, node: Any, form: Form) -> Array:
    dtype = jnp.promote_types(x.dtype, node.dtype)
    if form == "whole":
        return jnp.matmul(x.astype(dtype), node.decode().astype(dtype))
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    scale = node.channel_scale
    if scale is not None:  # codewords are rounded to no dtype before they have theirs
        node = node.replace(channel_scale=None, dtype=jnp.dtype("float32"))
    product = _from_tables(rows, node) if form == "tables" else _by_slabs(rows, node)
    if scale is not None:  # of outputs, as blocks run along inputs
        product = product * scale.astype(jnp.float32)[None]
    return product.reshape(*x.shape[:-1], node.shape[1]).astype(dtype)


def _by_slabs(x: Float[Array, "rows in"], node: Any) -> Float[Array, "rows out"]:
    """Decode a few groups of inputs at a time, and add up their products."""
    groups, outputs = node.codes.shape
    block = node.codec.block
    size = min(groups, max(1, _SLAB // (block * outputs)))
    x = jnp.pad(x, ((0, 0), (0, groups * block - x.shape[1])))

    def product(start, count):
        part = {
            name: jax.lax.dynamic_slice_in_dim(leaf, start, count)
            for name, leaf in node.leaves().items()
            if name in ("codes", node.bit_leaf)
        }
        slab = node.replace(shape=(count * block, outputs), **part)
        inputs = jax.lax.dynamic_slice_in_dim(x, start * block, count * block, axis=1)
        weight = slab.values(jnp.dtype(node.dtype)).astype(node.dtype)
        return inputs @ weight.astype(jnp.float32)

    whole = groups // size
    blank = jnp.zeros((x.shape[0], outputs), jnp.float32)
    total = jax.lax.fori_loop(
        0, whole, lambda i, total: total + product(i * size, size), blank
    )
    if groups % size:
        total = total + product(whole * size, groups % size)
    return total


def _from_tables(x: Float[Array, "rows in"], node: Any) -> Float[Array, "rows out"]:
    """Gather sums of products from a table for each group of inputs."""
    groups, outputs = node.codes.shape
    codewords, block = node.codec.codewords, node.codec.block
    width = _table_width(node) or block
    values = node.codewords(jnp.dtype(node.dtype))
    values = values.astype(node.dtype).astype(jnp.float32)
    # A power of two of codewords, so that the compiler sees masked codes in bounds.
    size = 1 << (codewords - 1).bit_length()
    values = jnp.pad(values, ((0, size - codewords), (0, 0)))
    x = jnp.pad(x, ((0, 0), (0, groups * block - x.shape[1])))
    bits = None if node.bit_leaf is None else getattr(node, node.bit_leaf)

    def row(x):
        def add(total, group):
            x, codes, bits = group
            codes = codes.astype(jnp.int32) & (size - 1)
            for start in range(0, block, width):
                stop = min(start + width, block)
                products = values[:, start:stop] * x[None, start:stop]
                patterns = _patterns(stop - start, node.bit_factors)
                table = jnp.matmul(products, patterns, precision="highest").ravel()
                index = codes
                if bits is not None:
                    byte = bits[:, start // 8].astype(jnp.int32) >> (start % 8)
                    index = codes * patterns.shape[1] + (byte & patterns.shape[1] - 1)
                total = total + table.at[index].get(mode="promise_in_bounds")
            return total, None

        blank = jnp.zeros((outputs,), jnp.float32)
        return jax.lax.scan(add, blank, (x.reshape(groups, block), node.codes, bits))[0]

    return jax.lax.map(row, x)


def _table_width(node: Any) -> int | None:
    """Inputs per table: as many as keep a table in the first-level cache."""
    codewords = 1 << (node.codec.codewords - 1).bit_length()
    if node.bit_leaf is None:
        return node.codec.block if codewords <= _TABLE_ENTRIES else None
    for width in (8, 4):
        if codewords << width <= _TABLE_ENTRIES:
            return width
    return None


def _patterns(count: int, factors: tuple[float, ...]) -> np.ndarray:
    """`(count, 2^count)`: the factors of the inputs for every pattern of bits."""
    if len(factors) == 1:
        return np.full((count, 1), factors[0], np.float32)
    bits = np.arange(1 << count) >> np.arange(count)[:, None] & 1
    return np.asarray(factors, np.float32)[bits]
