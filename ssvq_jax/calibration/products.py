"""What a product tells about its parameter: moments of the inputs it is multiplied by.

A dense product, a convolution (of patches) and a lookup (of one-hot rows) are one sum
`y[g, n, o] = sum_i x[g, n, i] w[g, i, o]` over the parameter's axes arranged as groups,
inputs and outputs. What is kept of `x` are sums over the rows `n`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from ssvq_jax.calibration.found import Key, NotFollowedError, Role, Sums
from ssvq_jax.calibration.views import REPEATED, Factor, View, split

Form = Literal["full", "diagonal"] | int
"""Of second moments: whole, their diagonal, or blocks of so many inputs on it."""

_PATCH_BYTES = 2**23  # of patches at a time; on CPUs 256 MiB take three times as long


def dense(
    view: View, x: Num[Array, "..."], numbers: Any, form: Form
) -> tuple[Key, Sums]:
    """Sums of a `dot_general`.

    Args:
      view: The operand that is a parameter.
      x: The other operand.
      numbers: The contracted axes of `view` and of `x`, the batch axes of both.
      form: Of the second moments.

    Raises:
      NotFollowedError: Parts of an axis that is contracted, and the like.
    """
    contracted, x_contracted, batch, x_batch = numbers
    rows = [i for i in range(x.ndim) if i not in (*x_contracted, *x_batch)]
    outputs = [i for i in range(len(view.dims)) if i not in (*contracted, *batch)]
    x = x.transpose(*x_batch, *x_contracted, *rows)
    groups, inputs, others = (
        [view.dims[i] for i in axes] for axes in (batch, contracted, outputs)
    )
    return _sums(view, groups, inputs, others, x, form)


def convolution(
    view: View, x: Num[Array, "..."], params: Mapping[str, Any], form: Form
) -> tuple[Key, Sums]:
    """Sums of a `conv_general_dilated` whose kernel is a parameter.

    The patches of as many images are held at a time as fit into 8 MiB, or of one.

    Args:
      view: The kernel.
      x: Images, in any layout.
      params: Parameters of the equation.
      form: Of the second moments.

    Raises:
      NotFollowedError: As `dense`; batches that are grouped.
    """
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    if params["batch_group_count"] != 1:
        raise NotFollowedError("a convolution whose batch is grouped")
    outputs, inputs, *window = [view.dims[i] for i in numbers.rhs_spec]
    size = math.prod(f.size for f in outputs)
    divided = split(outputs, (groups, size // groups))
    if divided is None:
        raise NotFollowedError("a convolution whose groups divide no axis evenly")
    batch, channels, *sides = numbers.lhs_spec
    x = x.transpose(batch, *sides, channels)
    x = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    taps = [math.prod(f.size for f in dim) for dim in window]

    def sums(images: Num[Array, "..."]) -> tuple[Key, Sums]:
        x = _patches(images, taps, params)
        return _sums(view, [divided[0]], [inputs, *window], [divided[1]], x, form)

    if math.prod(taps) == 1:
        return sums(x)
    patches = jax.eval_shape(lambda x: _patches(x, taps, params), x)
    return _by_chunks(sums, x, patches.size * patches.dtype.itemsize)


def lookup(
    view: View, indices: Num[Array, "..."], params: Mapping[str, Any]
) -> tuple[Key, Sums]:
    """Counts of the rows that a `gather` takes, as the moments of one-hot inputs.

    Raises:
      NotFollowedError: A gather of anything but whole rows.
    """
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    lengths = tuple(math.prod(f.size for f in dim) for dim in view.dims)
    axes = tuple(numbers.start_index_map)
    if (
        len(axes) != 1
        or tuple(numbers.collapsed_slice_dims) != axes
        or numbers.operand_batching_dims
        or any(sizes[i] != n for i, n in enumerate(lengths) if i not in axes)
    ):
        raise NotFollowedError("a gather of anything but whole rows")
    [axis] = axes
    clips = params["mode"] == jax.lax.GatherScatterMode.CLIP
    indices, count = indices.reshape(-1), lengths[axis]
    inside = (indices >= 0) & (indices < count)
    weights = jnp.where(clips | inside, jnp.float32(1), jnp.float32(0))
    indices = jnp.clip(indices, 0, count - 1)
    total = jnp.zeros(count, jnp.float32).at[indices].add(weights)
    outputs = [dim for i, dim in enumerate(view.dims) if i != axis]
    key, order = _layout(view, [], [view.dims[axis]], outputs)
    if order != sorted(order):
        raise NotFollowedError("a gather of rows in another order than the parameter's")
    key = dataclasses.replace(key, lookup=True)
    return key, Sums(total, total, jnp.sum(weights))


def _sums(
    view: View,
    groups: Sequence[tuple[Factor, ...]],
    inputs: Sequence[tuple[Factor, ...]],
    outputs: Sequence[tuple[Factor, ...]],
    x: Num[Array, "..."],
    form: Form,
) -> tuple[Key, Sums]:
    """Sums of `x`, whose axes are those of the groups, of the inputs, and rows."""
    key, order = _layout(view, groups, inputs, outputs)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise NotFollowedError("a product with complex numbers")
    if x.dtype not in (jnp.bfloat16, jnp.float16):
        x = x.astype(jnp.float32)
    leading = [factor for dim in groups for factor in dim]
    contracted = [factor.size for dim in inputs for factor in dim]
    count = math.prod(x.shape[len(groups) + len(inputs) :])
    x = x.reshape(*(factor.size for factor in leading), *contracted, count)
    # Where the parameter is repeated, groups are rows more.
    kept = [i for i, factor in enumerate(leading) if factor.axis != REPEATED]
    more = [i for i in range(len(leading)) if i not in kept]
    x = x.transpose(*kept, *(len(leading) + i for i in order), *more, x.ndim - 1)
    sizes = tuple(leading[i].size for i in kept)
    count *= math.prod(leading[i].size for i in more)
    x = x.reshape(math.prod(sizes), math.prod(contracted), count)
    second = second_moments(x, form)
    total = jnp.sum(x, 2, dtype=jnp.float32)
    return key, Sums(
        second.reshape(*sizes, *second.shape[1:]),
        total.reshape(*sizes, total.shape[1]),
        jnp.full(sizes, count, jnp.float32),
    )


def second_moments(x: Num[Array, "g i n"], form: Form) -> Float[Array, "g ..."]:
    """Sums of `x x^T` over the last axis, in a form of `Moment.second`."""
    if form == "diagonal":
        return jnp.sum(jnp.square(x.astype(jnp.float32)), 2)
    if form == "full":
        blocks = x[:, None]
    else:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % form), (0, 0)))
        blocks = x.reshape(x.shape[0], -1, form, x.shape[2])
    if blocks.dtype == jnp.float32:
        products = _products(blocks)
    else:  # XLA's CPU kernels do not add up products of these in float32
        products = jax.lax.platform_dependent(
            blocks, cpu=lambda x: _products(x.astype(jnp.float32)), default=_products
        )
    return products[:, 0] if form == "full" else products


def _products(blocks: Num[Array, "g b i n"]) -> Float[Array, "g b i i"]:
    return jnp.einsum(
        "gbin,gbjn->gbij",
        blocks,
        blocks,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _layout(
    view: View, groups: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]
) -> tuple[Key, list[int]]:
    """The key of a product, and the order of its input factors in the parameter's."""
    leading = tuple(f for dim in groups for f in dim if f.axis != REPEATED)
    contracted = [f for dim in inputs for f in dim]
    other = [f for dim in outputs for f in dim if f.axis != REPEATED]
    scanned = [f for _, dim in view.levels for f in dim if f.axis != REPEATED]
    if any(f.axis == REPEATED for f in contracted):
        raise NotFollowedError("a sum over what repeats the parameter")
    roles = []
    for axis, size in enumerate(view.shape):
        strides = [f.stride for f in (*leading, *scanned) if f.axis == axis]
        summed = any(f.axis == axis for f in contracted)
        covered = math.prod(f.size for f in (*contracted, *other) if f.axis == axis)
        if summed and (strides or any(f.axis == axis for f in other)):
            raise NotFollowedError(f"a sum over a part of axis {axis} at a time")
        if covered > 1 and not strides and covered != size:
            part = "inputs" if summed else "outputs"
            raise NotFollowedError(f"{covered} of the {size} {part} of axis {axis}")
        if covered > 1 and strides and min(strides) != covered:
            raise NotFollowedError(f"groups within the outputs of axis {axis}")
        if summed or size == 1:
            roles.append(Role.INPUT)
        elif covered == 1:
            roles.append(Role.GROUP)
        else:
            roles.append(Role.GROUPED if strides else Role.OUTPUT)
    order = sorted(
        range(len(contracted)),
        key=lambda i: (contracted[i].axis, -contracted[i].stride),
    )
    key = Key(view.path, view.shape, tuple(roles), leading, view.offsets, view.levels)
    return key, order


def _by_chunks(
    sums: Callable[[Array], tuple[Key, Sums]], x: Num[Array, "n ..."], nbytes: int
) -> tuple[Key, Sums]:
    """Sums of some images at a time, so that their patches stay small."""
    images = x.shape[0]
    chunk = next(
        (
            n
            for n in range(images, 0, -1)
            if images % n == 0 and nbytes * n <= _PATCH_BYTES * images
        ),
        1,
    )
    if chunk >= images:
        return sums(x)
    keys: list[Key] = []

    def one(images: Array) -> Sums:
        key, result = sums(images)
        keys.append(key)
        return result

    x = x.reshape(images // chunk, chunk, *x.shape[1:])
    zeros = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(one, x[0])
    )
    result, _ = jax.lax.scan(
        lambda sums, images: (jax.tree.map(jnp.add, sums, one(images)), None), zeros, x
    )
    return keys[0], result


def _patches(
    x: Num[Array, "..."], taps: Sequence[int], params: Mapping[str, Any]
) -> Num[Array, "..."]:
    """`(n, *sides, groups, inputs)` to `(groups, inputs, *taps, n, *outputs)`."""
    x = x.transpose(-2 % x.ndim, -1 % x.ndim, *range(x.ndim - 2))
    dilations = params["lhs_dilation"]
    pads = [
        (low, high, n - 1)
        for (low, high), n in zip(params["padding"], dilations, strict=True)
    ]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * 3 + pads)
    strides, spread = params["window_strides"], params["rhs_dilation"]
    for side, (size, stride, step) in enumerate(
        zip(taps, strides, spread, strict=True)
    ):
        axis = x.ndim - len(taps) + side
        count = (x.shape[axis] - step * (size - 1) - 1) // stride + 1
        last = stride * (count - 1) + 1
        parts = [
            jax.lax.slice_in_dim(x, step * i, step * i + last, stride, axis)
            for i in range(size)
        ]
        x = jnp.stack(parts, 2 + side)
    return x
