"""What a codec is: one weight array into a small pytree, and back.

A codec is a frozen dataclass of options. Its `encode` gives a `Compressed` node whose
array leaves are trained like any parameters; `Compressed.decode` is differentiable.
What a file stores of a node is described by the codec's `fields` alone, so that sizes
are known from shapes, before anything is written.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

from ssvq_jax.codecs.assignment import assigned
from ssvq_jax.codecs.nearest import Choice
from ssvq_jax.codecs.state_dict import from_state_dict, state_dict
from ssvq_jax.core.blocks import AnyArray
from ssvq_jax.core.checks import as_array, checked_importance, require_finite
from ssvq_jax.core.kmeans import Key
from ssvq_jax.core.sharding import (
    compiler_sharded,
    fit_sharding,
    place,
    sharding_of,
    slice_of,
)

SCALE_DTYPES = ("float32", "float16", "bfloat16")
WEIGHT_DTYPES = ("float64", *SCALE_DTYPES)
_SLAB = 1 << 24  # weights

FieldKind = Literal["weights", "codes", "signs", "masks", "codebooks"]
"""What stored values are, for whoever counts bytes; scales belong to the codebooks."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One stored array of a compressed parameter.

    Attributes:
      name: Name of the node's leaf that it is stored from.
      count: How many values are stored; padding is left out where it can be.
      bits: Bits per value. Integers of this width are packed without gaps.
      dtype: For values stored as they are, their dtype; `None` for packed integers.
      limit: Packed integers lie in `[0, limit)`.
      kind: What the values are.
    """

    name: str
    count: int
    bits: int
    dtype: str | None = None
    limit: int = 0
    kind: FieldKind = dataclasses.field(kw_only=True)

    @property
    def nbytes(self) -> int:
        """Stored bytes: every field starts at a byte of its own."""
        return -(-self.count * self.bits // 8)


@dataclasses.dataclass(frozen=True)
class Codec(abc.ABC):
    """Base of the codecs: options, and how to encode one array by them."""

    @abc.abstractmethod
    def encode(
        self,
        weight: Float[Array, "*shape"],
        *,
        key: Key,
        importance: Float[Array, "*shape"] | None,
        axis: int,
    ) -> "Compressed":
        """Encode a checked weight whose contracted axis is `axis`. See `encode`."""

    @abc.abstractmethod
    def fields(self, shape: tuple[int, ...], axis: int) -> tuple[Field, ...]:
        """What is stored of a weight of this shape, in the order of storage."""

    @abc.abstractmethod
    def restore(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        axis: int,
        stored: Mapping[str, np.ndarray],
    ) -> "Compressed":
        """The finalized node from its stored arrays; inverse of `Compressed.stored`."""

    def holding(self, weight: AnyArray, stack: int = 0) -> "Codec":
        """The codec, with what holds a weight where its own dtype of steps cannot.

        Known for concrete weights only; of a stack of so many axes, for all slices.
        """
        del weight, stack
        return self

    def fits(self, shape: tuple[int, ...], axis: int) -> bool:
        """Whether a weight of this shape has at least as many blocks as codewords."""
        fields = {field.name: field for field in self.fields(shape, axis)}
        return (
            "codebook" not in fields or fields["codes"].count >= fields["codes"].limit
        )

    def describe(self) -> str:
        """Short text for tables: the call, without options that have their default."""
        options = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("codewords", "block"):
                options.append(str(value))
            elif value != field.default:
                options.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(options)})"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Compressed(abc.ABC):
    """Base of the compressed forms of one weight: a pytree node.

    Attributes:
      codec: The codec that made it.
      shape: Shape of the weight.
      dtype: Dtype of the weight, and of what `decode` returns.
      axis: The axis along which the blocks run.
    """

    codec: Any = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})

    labels: ClassVar[Mapping[str, str]] = {}
    """Labels of leaves for `label_tree`; a leaf not named here is "other"."""

    linear_leaves: ClassVar[tuple[str, ...]] = ("codebook", "channel_scale")
    """What the weight is a linear function of, each with the others held."""

    bit_leaf: ClassVar[str | None] = None
    """Name of the leaf that holds a packed bit per weight, where there is one."""

    bit_factors: ClassVar[tuple[float, ...] | None] = None
    """What a bit of 0 or 1 multiplies the codeword by; `(1,)` where there are no bits,
    and `None` for codecs without a codebook."""

    separable: ClassVar[bool] = False
    """Whether a part of the weight is that of the same part of the leaves, along any
    axis but `axis`: see `slabs`."""

    classes: ClassVar[dict[str, type["Compressed"]]] = {}
    """The node classes by name."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        Compressed.classes[cls.__name__] = cls
        serialization.register_serialization_state(cls, state_dict, from_state_dict)

    def decode(self, dtype: Any = None) -> Num[Array, "*shape"]:
        """The weight, of the original shape and dtype or another; differentiable.

        See `ssvq_jax.decode`. A stack gives the stack of its weights.
        """
        dtype = jnp.dtype(self.dtype if dtype is None else dtype)
        if dtype.name not in (*WEIGHT_DTYPES, "int8"):
            raise ValueError(
                f"dtype: expected one of {', '.join(WEIGHT_DTYPES)}, int8, got {dtype}"
            )
        if self.stack:
            return jax.vmap(lambda node: node.decode(dtype))(self)
        return _decode(self, dtype)

    @property
    def stack(self) -> tuple[int, ...]:
        """Leading axes that all leaves have in common: those of a stack of weights.

        So `jax.vmap` over `encode` gives it, and a rule with `stack`. `()` for one
        weight, and inside of `jax.vmap` or `jax.lax.scan` over a stack.
        """
        if self.grid_leaf is None:
            return ()
        shape = jnp.shape(self.grid_leaf)
        return shape[: max(len(shape) - len(self.shape), 0)]

    @property
    def array_shape(self) -> tuple[int, ...]:
        """The shape of what `decode` gives: `shape`, behind the axes of a stack."""
        return (*self.stack, *self.shape)

    def slices(self) -> list["Compressed"]:
        """The nodes of a stack, along its first axis."""
        return [
            jax.tree.map(lambda x, i=i: slice_of(jnp.asarray(x), i), self)
            for i in range(self.stack[0])
        ]

    def slabs(self) -> Iterator[tuple[tuple[slice, ...], "Compressed"]]:
        """Parts of a large weight, to decode one after the other, in less room.

        Yields:
          Where the part lies in what `decode` gives, and its node. Together they are
          the weight. A stack, a vector, what is split over devices or has not more than
          2^24 weights comes as one.

        Raises:
          ValueError: A leaf that is missing or of another shape.
        """
        self.check()
        others = [i for i in range(len(self.shape)) if i != self.axis]
        is_split = any(sharding_of(leaf) for leaf in self.leaves().values())
        if (
            self.size <= _SLAB
            or self.stack
            or not (self.separable and others)
            or is_split
        ):
            yield (slice(None),) * len(self.array_shape), self
            return
        cut = max(others, key=self.shape.__getitem__)
        length = self.shape[cut]
        # One row alone is no table of rows any more: see `channel_axis`.
        rows = max(2, _SLAB * length // self.size)
        for start in range(0, max(length - 1, 1), rows):
            span = slice(start, length if start + rows >= length - 1 else start + rows)
            shape = list(self.shape)
            shape[cut] = span.stop - start
            part = self.replace(shape=tuple(shape))
            leaves = {}
            for name, wanted in part.shapes().items():
                leaf = getattr(self, name)
                sizes = zip(jnp.shape(leaf), wanted, strict=True)
                at = tuple(span if a != b else slice(None) for a, b in sizes)
                leaves[name] = leaf[at] if at else leaf
            where = [slice(None)] * len(shape)
            where[cut] = span
            yield tuple(where), part.replace(**leaves)

    @property
    @abc.abstractmethod
    def grid_leaf(self) -> Array:
        """A leaf with the weight's axes, whose sharding the weight takes on."""

    @abc.abstractmethod
    def values(self, dtype: np.dtype) -> Num[Array, "*shape"]:
        """The decoded weight for `dtype`, in the precision that it is computed in."""

    @abc.abstractmethod
    def finalize(self) -> "Compressed":
        """The inference form: what is stored, nothing left to train. Idempotent."""

    @abc.abstractmethod
    def stored(self) -> dict[str, np.ndarray]:
        """The flat arrays of a finalized node that the codec's `fields` describe."""

    @property
    def scales(self) -> Float[Array, "..."] | None:
        """What values in `choose` and `chosen` are units of; broadcasts to the weight.

        Never 0. `None` for 1 everywhere.
        """
        return None

    def holding_codec(self) -> Codec:
        """The codec, with bfloat16 for codebooks or scales that float16 cannot hold.

        Known outside of `jit` only; of a stack, that for all of its slices.
        """
        return self.codec

    def choose(
        self,
        targets: Float[Array, "n d"],
        *,
        metric: Float[Array, "d d"] | None = None,
        importance: Float[Array, "n d"] | None = None,
        valid: Bool[Array, "#n d"] | None = None,
    ) -> Choice:
        """The best codes for blocks of weights, in units of `scales`: see `nearest`.

        This, `chosen`, `put` and the codec's `block` are for `assign` and calibration;
        without them a codec has all else.
        """
        raise self._fixed()

    def chosen(self, choice: Choice) -> Float[Array, "*n d"]:
        """The blocks that a choice stands for, in units of `scales`."""
        raise self._fixed()

    def put(
        self, codes: Int[Array, "*grid"], factors: Float[Array, "*shape"] | None
    ) -> "Compressed":
        """The node with these codes, and factors of every weight; without latents."""
        raise self._fixed()

    def require_choosing(self) -> None:
        """Raise `NotImplementedError` for a codec without `choose`."""
        if type(self).choose is Compressed.choose:
            raise self._fixed()

    def _fixed(self) -> Exception:
        codec = type(self.codec).__name__
        return NotImplementedError(f"{codec} chooses no codes: it has no `choose`")

    def like(self, node: Any, weight: Float[Array, "*shape"]) -> "Compressed":
        """What `put` gave, with the latents that `node` has; they decode to the same.

        Args:
          node: A node of the same codec.
          weight: Latents are as far from changing as this is.
        """
        del node, weight  # codecs without latents
        return self

    def fitted(self, name: str, value: Array) -> "Compressed":
        """A copy with one of `linear_leaves` fitted; scales stay above 0."""
        if name != "codebook":
            value = jnp.where(value > 0, value, getattr(self, name))
        return self.replace(**{name: value})

    def assign(
        self,
        weight: ArrayLike,
        importance: ArrayLike | None = None,
        *,
        training: bool = True,
    ) -> "Compressed":
        """Codes, signs and masks chosen anew for a weight; codebook and scales stay.

        Args:
          weight: Floating, of the node's shape.
          importance: As in `encode`.
          training: With latents, if this node has some.

        Raises:
          NotImplementedError: A codec without `choose`.
          ValueError: A weight or importance of another shape, or that is not finite;
            negative importance; a stack, of which `jax.vmap` takes the slices.
        """
        require_node(self)
        self.require_choosing()
        weight = as_array(weight)
        if weight.shape != self.shape:
            raise ValueError(f"weight: expected shape {self.shape}, got {weight.shape}")
        require_finite("weight", weight)
        importance = checked_importance(importance, self.shape)
        node = assigned(self, weight, importance, training)
        own = self.leaves()
        return node.replace(
            **{
                name: place(leaf, sharding_of(jnp.asarray(own[name])))
                for name, leaf in node.leaves().items()
                if name in own
            }
        )

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.array_shape)

    @property
    def bits(self) -> int:
        """Bits that a file stores for it: codebook, padding and byte ends included."""
        fields = self.codec.fields(self.shape, self.axis)
        return 8 * sum(field.nbytes for field in fields) * math.prod(self.stack)

    def leaves(self) -> dict[str, Any]:
        """The leaves that are there, by name."""
        names = [field.name for field in dataclasses.fields(self)]
        static = [field.name for field in dataclasses.fields(Compressed)]
        values = {name: getattr(self, name) for name in names if name not in static}
        return {name: leaf for name, leaf in values.items() if leaf is not None}

    def replace(self, **leaves: Any) -> "Compressed":
        """A copy with other leaves."""
        return dataclasses.replace(self, **leaves)

    @abc.abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The leaves that have to be there, and their shapes."""

    def check(self) -> None:
        """Raise `ValueError` if a leaf is missing or of another shape.

        So it is in one half of what `partition` gives.
        """
        stack = self.stack
        for name, shape in self.shapes().items():
            leaf = getattr(self, name)
            if leaf is None:
                raise ValueError(
                    f"{name}: missing; combine the halves that partition gave"
                )
            actual, shape = jnp.shape(leaf), (*stack, *shape)
            if actual != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {actual}")


@functools.partial(jax.jit, static_argnums=1)  # one program, not one per operation
def _decode(node: Compressed, dtype: np.dtype) -> Array:
    node.check()
    # Latents may be split where the grid of blocks cannot be.
    leaves = [x for x in node.leaves().values() if jnp.shape(x) == node.shape]
    found = (sharding_of(jnp.asarray(x)) for x in (node.grid_leaf, *leaves))
    sharding = fit_sharding(next(filter(None, found), None), node.shape)
    values = compiler_sharded(lambda node: node.values(dtype), sharding)(node)
    return values.astype(dtype)


def is_compressed(x: Any) -> bool:
    """Whether `x` is a `Compressed` node; the `is_leaf` of the tree functions."""
    return isinstance(x, Compressed)


def require_node(compressed: Any) -> None:
    """Raise unless `compressed` is a node of one weight.

    Raises:
      TypeError: No node.
      ValueError: A stack.
    """
    if not is_compressed(compressed):
        raise TypeError(f"compressed: expected a node, got {type(compressed).__name__}")
    if compressed.stack:
        raise ValueError(
            f"expected one compressed weight, got a stack of {compressed.stack}: apply "
            "jax.vmap to it"
        )
