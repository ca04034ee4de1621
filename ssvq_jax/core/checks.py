"""Checks of arguments; of arrays, dtypes always and values where concrete."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def require_floating(name: str, x: Array) -> None:
    """Raise `TypeError` unless `x` has a floating dtype."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a floating dtype, got {x.dtype}")


def require_finite(name: str, x: Array) -> None:
    """Raise `ValueError` if a concrete `x` holds NaN or infinite values."""
    if isinstance(x, Tracer):
        return
    # On CPUs with NumPy: a program for every shape takes longer to compile.
    xp: Any = np if _is_on_host(x) else jnp
    # At once, also where a constant is met under `jit`.
    with np.errstate(all="ignore"), jax.ensure_compile_time_eval():
        values = xp.asarray(x)
        if xp.isfinite(xp.sum(values, dtype=xp.float32)):
            return  # then every summand is finite, too
        bad = int((~xp.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"{name}: expected finite values, got {bad} NaN or infinite of {x.size}"
        )


def _is_on_host(x: Any) -> bool:
    if not isinstance(x, jax.Array):
        return True
    return len(x.devices()) == 1 and all(d.platform == "cpu" for d in x.devices())


def require_representable(name: str, x: Array) -> None:
    """Raise `ValueError` if a concrete `x` is out of the range of float32.

    All of it below the normal numbers, which XLA takes for 0, or some beyond the
    largest.
    """
    if isinstance(x, Tracer):
        return
    xp: Any = np if _is_on_host(x) else jnp
    with jax.ensure_compile_time_eval():
        largest = float(xp.max(xp.abs(xp.asarray(x))))
    limits = jnp.finfo(jnp.float32)
    if largest > float(limits.max):
        raise ValueError(
            f"{name}: its largest magnitude, {largest:g}, is beyond float32, in which "
            "weights are compressed; scale it down"
        )
    tiny = float(limits.tiny)
    if 0 < largest < tiny:
        raise ValueError(
            f"{name}: its largest magnitude, {largest:g}, is below {tiny:g}, float32's "
            "smallest normal number; scale it up"
        )


def out_of_range(x: Array, dtype: str, stack: int = 0) -> str | None:
    """Whether the largest concrete value "overflows" a dtype or "underflows" it.

    That of any slice, where so many leading axes are a stack's.
    """
    if isinstance(x, Tracer):
        return None
    limits = jnp.finfo(dtype)
    with jax.ensure_compile_time_eval():
        largest = largest_of(x, stack)
        if jnp.any(largest > float(limits.max)):
            return "overflows"
        below = (largest > 0) & (largest < float(limits.tiny))
        return "underflows" if jnp.any(below) else None


@functools.partial(jax.jit, static_argnums=1)
def largest_of(x: Array, stack: int = 0) -> Float[Array, "*stack"]:
    """The largest magnitude, of every slice along so many leading axes, in float32."""
    return jnp.max(jnp.abs(x.astype(jnp.float32)), axis=tuple(range(stack, x.ndim)))


def holding_dtype(dtype: str, x: Array, stack: int = 0) -> str:
    """bfloat16 in place of float16, of as many bits, for what that cannot hold."""
    return "bfloat16" if dtype == "float16" and out_of_range(x, dtype, stack) else dtype


def as_array(x: ArrayLike) -> Array:
    """`jnp.asarray`, also for NumPy's other byte order, which JAX does not have."""
    if isinstance(x, np.ndarray):
        x = x.astype(x.dtype.newbyteorder("="), copy=False)
    return jnp.asarray(x)


def require_nonnegative(name: str, x: Array) -> None:
    """Raise `ValueError` if a concrete `x` is not finite and non-negative."""
    require_finite(name, x)
    if isinstance(x, Tracer):
        return
    with jax.ensure_compile_time_eval():
        least = float(jnp.min(x, initial=0))
    if least < 0:
        raise ValueError(f"{name}: expected values >= 0, got {least}")


def checked_importance(
    importance: ArrayLike | None, shape: tuple[int, ...]
) -> Float[Array, "*shape"] | None:
    """Importance as float32; 1 everywhere where all of it is 0.

    Raises:
      ValueError: Not the shape of its weight; concrete values that are negative or not
        finite.
    """
    if importance is None:
        return None
    importance = as_array(importance)
    if importance.shape != shape:
        raise ValueError(
            f"importance: expected the weight's shape {shape}, got {importance.shape}"
        )
    importance = importance.astype(jnp.float32)
    require_nonnegative("importance", importance)
    # What no input ever reached counts all the same: its weights are not free.
    return jnp.where(jnp.any(importance > 0), importance, 1.0)


def require_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise unless option `name` is an integer of at least `low`, at most `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name}: expected {limits}, got {value}")
