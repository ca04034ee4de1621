"""What sharded weights need: gathers and reshapes that work under any mesh.

Under a mesh with Explicit axes a plain gather or reshape of a sharded array raises;
under Auto axes the compiler finds the shardings. These helpers hand the first case
over to the compiler, too, and are the identity for arrays on one device.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array


def sharding_of(x: Array) -> NamedSharding | None:
    """The named sharding that splits `x` over devices, as far as it is known.

    For a tracer it is known under Explicit axes only.
    """
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
        axes = names if isinstance(names, tuple) else (names,)
        parts = 1
        for name in axes:
            parts *= 1 if name is None else sharding.mesh.shape[name]
        spec.append(names if size % parts == 0 else None)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def place(x: Array, sharding: NamedSharding | None) -> Array:
    """Move `x` to `sharding`, where one is given."""
    if sharding is None:
        return x
    if _is_explicit(sharding):
        return jax.sharding.reshard(x, sharding)
    return jax.device_put(x, sharding)


def replicate(x: Array) -> Array:
    """`x` whole on every device, so that a computation is that of one device."""
    return place(x, replicated(sharding_of(x)))


def replicated(sharding: NamedSharding | None) -> NamedSharding | None:
    """The sharding of what is whole on every device of the same mesh."""
    return None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())


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


def _is_explicit(sharding: NamedSharding) -> bool:
    return AxisType.Explicit in sharding.mesh.axis_types
