"""What sharded weights need: computations on parts, gathers and reshapes on any mesh.

Under a mesh with Explicit axes a plain gather or reshape of a sharded array raises;
under Auto axes the compiler finds the shardings. These helpers hand the first case
over to the compiler, too, and are the identity for arrays on one device. Clustering is
not left to the compiler, which would gather: see `Shards`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from ssvq_jax.core.blocks import AnyArray


def sharding_of(x: AnyArray | None) -> NamedSharding | None:
    """The named sharding that splits `x` over devices, as far as it is known.

    For a tracer it is known under Explicit axes only; NumPy arrays have none.
    """
    if not isinstance(x, jax.Array):
        return None
    sharding = jax.typeof(x).sharding if isinstance(x, Tracer) else x.sharding
    if not isinstance(sharding, NamedSharding) or not any(sharding.spec):
        return None
    return sharding


def fit_sharding(
    sharding: NamedSharding | None, shape: tuple[int, ...]
) -> NamedSharding | None:
    """`sharding` without the axes that do not divide `shape` evenly."""
    if sharding is None:
        return None
    spec = []
    for size, names in zip(shape, sharding.spec, strict=False):
        parts = math.prod(sharding.mesh.shape[name] for name in mesh_axes(names))
        spec.append(names if size % parts == 0 else None)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def place(x: Array, sharding: NamedSharding | None) -> Array:
    """Move `x` to `sharding`, where one is given.

    Where devices are not known, as under `jax.vmap`, the compiler moves it.
    """
    if sharding is None:
        return x
    kinds = _kinds(sharding)
    if isinstance(x, Tracer) and AxisType.Explicit in kinds.values():
        spec = (  # Auto axes are the compiler's
            tuple(n for n in mesh_axes(entry) if kinds[n] == AxisType.Explicit) or None
            for entry in sharding.spec
        )
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
        return jax.sharding.reshard(x, sharding)
    if isinstance(sharding.mesh, AbstractMesh):
        return x
    if not sharding.is_fully_addressable and _is_local(x):
        return _everywhere(x, sharding)
    return jax.device_put(x, sharding)


def _is_local(x: AnyArray) -> bool:
    """Whether this process has all of it."""
    if isinstance(x, Tracer):
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable


def _everywhere(x: Array, sharding: NamedSharding) -> Array:
    """`x`, the same in every process, on devices of several processes.

    `jax.device_put` checks that, but takes no typed key there, and no array that is
    committed to local devices.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _everywhere(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jax.device_put(np.asarray(x), sharding)


def replicate(x: Array) -> Array:
    """`x` whole on every device, so that a computation is that of one device."""
    return place(x, replicated(sharding_of(x)))


def replicate_key(key: Any, sharding: NamedSharding | None) -> Any:
    """A JAX random key beside what `sharding` splits: it may be on a single device.

    What is traced lies where the compiler puts it.
    """
    if isinstance(key, Tracer):
        return key
    return place(jnp.asarray(key), replicated(sharding))


def replicated(sharding: NamedSharding | None) -> NamedSharding | None:
    """The sharding of what is whole on every device of the same mesh."""
    return None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())


def slice_of(x: AnyArray, i: int) -> AnyArray:
    """`x[i]`; where devices hold slices of their own, all of them get it."""
    sharding = sharding_of(x)
    if sharding is None or not _is_explicit(sharding):
        return x[i]
    rest = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return compiler_sharded(lambda x: x[i], rest)(jnp.asarray(x))


def stack(parts: Sequence[Array], like: AnyArray | None) -> Array:
    """`jnp.stack`; devices that hold slices of `like` of their own hold those alone."""
    whole = jnp.stack(parts)
    sharding = sharding_of(like)
    if sharding is None or not sharding.spec[0]:
        return whole
    rest = sharding_of(parts[0])
    spec = PartitionSpec(sharding.spec[0], *(() if rest is None else rest.spec))
    return place(whole, NamedSharding(sharding.mesh, spec))


def compiler_sharded(
    function: Callable[..., Any], sharding: NamedSharding | None
) -> Callable[..., Any]:
    """`function` with its inner shardings left to the compiler.

    Args:
      function: Returns an array, or several that are sharded alike.
      sharding: The sharding of its result, `None` where nothing is sharded.
    """
    if sharding is None or not _is_explicit(sharding):
        return function
    wrapped: Any = jax.sharding.auto_axes(function, out_sharding=sharding)
    return wrapped


def split_sharding(x: Array, units: tuple[int, ...]) -> NamedSharding | None:
    """A sharding of a weight by which no block lies on two devices.

    That of `x` as far as it does so; the mesh axes that are left over split another
    axis, where they can. Under `jit` with Auto axes, where the compiler alone knows the
    sharding, all mesh axes are left over.

    Args:
      x: The weight.
      units: Of every axis, how many weights in a row have to stay together.

    Returns:
      `None` on one device, where nothing can be split, and inside of `jax.shard_map`.
    """
    sharding = jax.typeof(x).sharding if isinstance(x, Tracer) else x.sharding
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return None
    mesh, kinds = sharding.mesh, _kinds(sharding)
    if AxisType.Manual in kinds.values():
        return None
    split: list[tuple[str, ...]] = [()] * x.ndim

    def extend(axis, name):
        parts = math.prod(mesh.shape[other] for other in (*split[axis], name))
        fits = x.shape[axis] % (units[axis] * parts) == 0
        split[axis] = (*split[axis], name) if fits else split[axis]
        return fits

    known = [
        (i, name) for i, entry in enumerate(sharding.spec) for name in mesh_axes(entry)
    ]
    unknown = [
        name for name in kinds if isinstance(x, Tracer) and kinds[name] == AxisType.Auto
    ]
    rest = [name for axis, name in known if not extend(axis, name)] + unknown
    longest = sorted(range(x.ndim), key=lambda i: x.shape[i] // units[i], reverse=True)
    for name in rest:
        if mesh.shape[name] > 1:
            any(extend(axis, name) for axis in longest)
    if not any(split):
        return None
    return NamedSharding(mesh, PartitionSpec(*(names or None for names in split)))


def mesh_axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes of an entry of a `PartitionSpec`: a name, some, or `None`."""
    return entry if isinstance(entry, tuple) else () if entry is None else (entry,)


def vary_alike(names: Sequence[str], *arrays: Array | None) -> list[Any]:
    """Mark arrays as varying over all mesh axes that one of them varies over.

    Types tell that in `jax.shard_map`, and those of what a loop carries have to stay:
    not so where experts have points in common, say, and a key each.

    Args:
      names: Axes left alone: those that split points.
      *arrays: Or `None`.
    """
    over = [
        frozenset() if x is None else jax.typeof(x).manual_axis_type.varying
        for x in arrays
    ]
    every = frozenset().union(*over) - set(names)
    return [
        x if x is None else jax.lax.pcast(x, tuple(sorted(every - own)), to="varying")
        for x, own in zip(arrays, over, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Shards:
    """How a grid lies on devices, for a function of a part of it in `jax.shard_map`.

    Without mesh axes the part is the whole, and all this is the identity.

    Attributes:
      shape: Shape of the whole grid.
      axes: Of every axis of the grid the mesh axes that split it, all evenly.
    """

    shape: tuple[int, ...] = ()
    axes: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, sharding: NamedSharding, shape: tuple[int, ...]) -> "Shards":
        """Those of a sharding that `split_sharding` gave."""
        return cls(shape, tuple(map(mesh_axes, sharding.spec)))

    def names(self, axes: Sequence[int] | None = None) -> tuple[str, ...]:
        """The mesh axes that split some axes of the grid, or any."""
        return tuple(
            name
            for axis, names in enumerate(self.axes)
            if axes is None or axis in axes
            for name in names
        )

    def sum(self, x: Any, axes: Sequence[int] | None = None) -> Any:
        """The sum over all parts, or over those that differ in these axes."""
        names = self.names(axes)
        return jax.lax.psum(x, names) if names else x

    def max(self, x: Any, axes: Sequence[int] | None = None) -> Any:
        """The largest, as `sum`."""
        names = self.names(axes)
        return jax.lax.pmax(x, names) if names else x

    def count(self, axes: Sequence[int] | None = None) -> int:
        """How many parts `sum` adds."""
        names = self.names(axes)
        return jax.lax.axis_size(names) if names else 1

    def gather(self, x: Array) -> Array:
        """Rows of all parts, one part after the other; the same on every device."""
        names = self.names()
        if not names:
            return x
        # A sum, not `all_gather`: types tell that it is the same everywhere.
        parts = jnp.zeros((self.count(), *x.shape), x.dtype)
        parts = parts.at[jax.lax.axis_index(names)].set(x)
        return self.sum(parts).reshape(-1, *x.shape[1:])

    def locate(self, index: Array) -> tuple[Array, Array]:
        """Where points of the whole, counted in C order, lie in this part, if they do.

        Args:
          index: uint32, of the whole grid.

        Returns:
          `(local, here)`: the indices in this part, and whether they are in it.
        """
        here = jnp.ones_like(index, bool)
        if not self.names():
            return index, here
        local, stride = jnp.zeros_like(index), 1
        for size, names in zip(reversed(self.shape), reversed(self.axes), strict=True):
            part = size // (jax.lax.axis_size(names) if names else 1)
            start = jax.lax.axis_index(names) * part if names else 0
            # What lies before the part wraps around, beyond it.
            at = index % size - jnp.asarray(start, jnp.uint32)
            here &= at < part
            local, stride = local + stride * at, stride * part
            index = index // size
        here &= index == 0
        return jnp.where(here, local, 0), here


WHOLE = Shards()
"""Where there is one part."""


def _kinds(sharding: NamedSharding) -> dict[str, AxisType]:
    mesh = sharding.mesh
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True))


def _is_explicit(sharding: NamedSharding) -> bool:
    return AxisType.Explicit in sharding.mesh.axis_types
