"""Which values are a parameter seen otherwise: reshaped, transposed, cast, sliced.

Every axis of a view is a product of *factors* of the parameter's axes, the slowest
first. A reshape splits and joins factors, a transpose permutes them; so whatever axis
a product contracts, it is known which positions of the parameter are meant.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

REPEATED = -1
"""In place of an axis: the parameter is the same all along this factor."""


class Factor(NamedTuple):
    """`size` positions of a parameter's axis, `stride` apart."""

    axis: int
    stride: int
    size: int


Dims = tuple[tuple[Factor, ...], ...]


@dataclasses.dataclass(frozen=True)
class View:
    """A value whose entries are those of a parameter, cast at most.

    Attributes:
      path: Name of the parameter.
      shape: Shape of the parameter.
      dims: For every axis of the value, its factors; none where the length is 1.
      offsets: Where the value begins on every axis of the parameter.
      levels: For every scan that goes over the parameter, outer ones first: its
        depth, and the factors that it goes over.
    """

    path: str
    shape: tuple[int, ...]
    dims: Dims
    offsets: tuple[int, ...]
    levels: tuple[tuple[int, tuple[Factor, ...]], ...] = ()

    @classmethod
    def whole(cls, path: str, shape: tuple[int, ...]) -> "View":
        """The parameter itself."""
        dims = tuple(
            (Factor(axis, 1, size),) if size != 1 else ()
            for axis, size in enumerate(shape)
        )
        return cls(path, shape, dims, (0,) * len(shape))

    def with_dims(self, dims: Sequence[tuple[Factor, ...]]) -> "View":
        """The same with other axes."""
        return dataclasses.replace(self, dims=tuple(dims))

    def enter(self, depth: int) -> "View":
        """What a scan over the first axis sees in every iteration."""
        first, *rest = self.dims
        levels = (*self.levels, (depth, first))
        return dataclasses.replace(self, dims=tuple(rest), levels=levels)

    def leave(self, depth: int, length: int) -> "View":
        """What a scan puts together from what it saw in every iteration."""
        first: tuple[Factor, ...] = (Factor(REPEATED, 0, length),)
        levels = self.levels
        if levels and levels[-1][0] == depth:
            first, levels = levels[-1][1], levels[:-1]
        return dataclasses.replace(self, dims=(first, *self.dims), levels=levels)


def split(factors: Sequence[Factor], sizes: Sequence[int]) -> Dims | None:
    """Divide factors, the slowest first, among axes of the given sizes.

    Returns:
      The factors of every axis; `None` if an axis would begin within a factor whose
      size it does not divide.

    Examples:
      >>> split([Factor(0, 1, 12)], (3, 4))
      ((Factor(axis=0, stride=4, size=3),), (Factor(axis=0, stride=1, size=4),))
    """
    pool = list(reversed(_joined(factors)))
    dims = []
    for size in sizes:
        dim, left = [], size
        while left > 1:
            if not pool:
                return None
            factor = pool.pop()
            if left % factor.size == 0:
                dim.append(factor)
                left //= factor.size
                continue
            inner = factor.size // left
            if inner * left != factor.size:
                return None
            pool.append(factor._replace(size=inner))
            dim.append(Factor(factor.axis, factor.stride * inner, left))
            left = 1
        dims.append(tuple(dim))
    return None if pool else tuple(dims)


def follow(primitive: str, params: Mapping[str, Any], view: View) -> View | None:
    """The view that a primitive of one operand makes of a view; `None` if it is none.

    Args:
      primitive: Name of the primitive.
      params: Parameters of the equation.
      view: The view that its operand is.
    """
    if primitive in _SAME:
        return view
    rule = _MOVES.get(primitive)
    return None if rule is None else rule(view, params)


_SAME = {
    "convert_element_type",
    "copy",
    "copy_p",
    "device_put",
    "layout_constraint",
    "mesh_cast",
    "name",
    "optimization_barrier",
    "pvary",
    "reduce_precision",
    "reshard",
    "sharding_constraint",
    "stop_gradient",
}


def _reshape(view: View, params: Mapping[str, Any]) -> View | None:
    if params["dimensions"] is not None:
        return None
    factors = [factor for dim in view.dims for factor in dim]
    dims = split(factors, params["new_sizes"])
    return None if dims is None else view.with_dims(dims)


def _transpose(view: View, params: Mapping[str, Any]) -> View:
    return view.with_dims([view.dims[i] for i in params["permutation"]])


def _squeeze(view: View, params: Mapping[str, Any]) -> View:
    gone = {i % len(view.dims) for i in params["dimensions"]}
    return view.with_dims([d for i, d in enumerate(view.dims) if i not in gone])


def _broadcast(view: View, params: Mapping[str, Any]) -> View:
    places = dict(zip(params["broadcast_dimensions"], view.dims, strict=True))
    dims = [
        places.get(i) or ((Factor(REPEATED, 0, size),) if size != 1 else ())
        for i, size in enumerate(params["shape"])
    ]
    return view.with_dims(dims)


def _slice(view: View, params: Mapping[str, Any]) -> View | None:
    dims, offsets = [], list(view.offsets)
    strides = params["strides"] or (1,) * len(view.dims)
    for dim, start, limit, step in zip(
        view.dims,
        params["start_indices"],
        params["limit_indices"],
        strides,
        strict=True,
    ):
        size = -(-(limit - start) // step)
        if size == math.prod(factor.size for factor in dim):
            dims.append(dim)
            continue
        joined = _joined(dim)
        if len(joined) != 1 or size == 0:
            return None
        [factor] = joined
        if factor.axis != REPEATED:
            offsets[factor.axis] += start * factor.stride
        part = Factor(factor.axis, factor.stride * step, size)
        dims.append((part,) if size != 1 else ())
    return dataclasses.replace(view, dims=tuple(dims), offsets=tuple(offsets))


_MOVES: dict[str, Callable[[View, Mapping[str, Any]], View | None]] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
}


def _joined(factors: Sequence[Factor]) -> list[Factor]:
    """Neighbours that run on through one axis as one factor."""
    joined: list[Factor] = []
    for factor in factors:
        before = joined[-1] if joined else None
        if (
            before is not None
            and before.axis == factor.axis
            and before.stride == factor.stride * factor.size
        ):
            joined[-1] = Factor(factor.axis, factor.stride, before.size * factor.size)
        else:
            joined.append(factor)
    return joined
