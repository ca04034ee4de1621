"""`encode`: one weight array, checked, by any codec."""

from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ssvq_jax.codecs.codec import WEIGHT_DTYPES, Codec, Compressed
from ssvq_jax.core.blocks import contracted_axis
from ssvq_jax.core.checks import (
    as_array,
    checked_importance,
    require_finite,
    require_floating,
    require_representable,
)
from ssvq_jax.core.kmeans import Key


def encode(
    codec: Codec,
    weight: ArrayLike,
    *,
    key: Key,
    importance: ArrayLike | None = None,
    axis: int | None = None,
) -> Compressed:
    """Compress one weight array.

    Args:
      codec: For example `SSVQ(codewords=16, block=8)`.
      weight: Floating array with at least one axis.
      key: JAX random key for the clustering; the same key gives the same bytes.
      importance: Non-negative weights of the squared error of every single weight,
        same shape as `weight`: a Fisher or Hessian diagonal, for example. If it is 0
        everywhere, all weights count the same.
      axis: The axis to cut into blocks, the one that the product contracts. `None`
        takes that of a Flax kernel of this shape: see `contracted_axis`.

    Returns:
      A `Compressed` node.

    Raises:
      TypeError: A weight that is not of 16, 32 or 64 bits of floating point.
      ValueError: An empty, scalar, NaN or infinite weight, or one of which all is below
        float32's normal numbers; importance that is
        negative or of another shape; an axis out of range; more codewords than
        blocks.

    Examples:
      >>> import jax, ssvq_jax as ssvq
      >>> weight = jax.random.normal(jax.random.key(0), (64, 32))
      >>> node = ssvq.encode(ssvq.SSVQ(), weight, key=jax.random.key(1))
      >>> node.codes.shape, node.bits / weight.size
      ((8, 32), 2.5)
    """
    weight = checked_weight(weight)
    if axis is None:
        axis = contracted_axis(weight.shape)
    elif not -weight.ndim <= axis < weight.ndim:
        raise ValueError(f"axis: out of range for shape {weight.shape}, got {axis}")
    importance = checked_importance(importance, weight.shape)
    axis = axis % weight.ndim
    node = codec.encode(weight, key=key, importance=importance, axis=axis)
    return node.replace(codec=node.holding_codec())


def checked_weight(weight: ArrayLike) -> Float[Array, "*shape"]:
    """A weight as `encode` takes it, or its errors; values are checked if concrete."""
    weight = as_array(weight)
    require_floating("weight", weight)
    if weight.dtype.name not in WEIGHT_DTYPES:
        raise TypeError(
            f"weight: expected one of {', '.join(WEIGHT_DTYPES)}, got {weight.dtype}"
        )
    if weight.ndim == 0 or weight.size == 0:
        raise ValueError(
            f"weight: expected a non-empty array, not a scalar, got shape "
            f"{weight.shape}"
        )
    require_finite("weight", weight)
    require_representable("weight", weight)
    return weight
