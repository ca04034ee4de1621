"""Stacks of weights: layers under a scan, experts; every slice is encoded by itself."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ssvq_jax.codecs.codec import Codec, Compressed
from ssvq_jax.codecs.encoding import checked_weight
from ssvq_jax.core.blocks import AnyArray
from ssvq_jax.core.checks import checked_importance
from ssvq_jax.core.kmeans import Key
from ssvq_jax.core.sharding import (
    fit_sharding,
    place,
    sharding_of,
    slice_of,
    split_sharding,
    stack,
)

EncodeSlice = Callable[[Any, Array, Array | None, Key], Compressed]
"""A node from codec, slice, its importance and key."""


def encode_stack(
    encode_slice: EncodeSlice,
    codec: Codec,
    weight: ArrayLike,
    importance: ArrayLike | None,
    key: Key,
) -> Compressed:
    """Encode the slices along the first axis, each with a codebook of its own.

    Where every device can have slices of its own, it encodes those, and nothing passes
    between them after the weight. Otherwise one slice follows the other, and all
    devices that have a part work on each; under `jit` in one program for all slices.

    Args:
      encode_slice: What encodes a slice.
      codec: Where float16 cannot hold a slice, all have what can.
      weight: The slices.
      importance: Of the same shape, or `None`.
      key: Each slice has one of its own, folded in by its index.
    """
    weight = checked_weight(weight)
    importance = checked_importance(importance, weight.shape)
    split = _split(weight)
    one_program = split is not None or isinstance(weight, Tracer)
    encode = _encode_mapped if one_program else _encode_in_turn

    def encode_with(codec):
        def encode_own(*slice_and_key):  # alone a slice might have another codec
            return encode_slice(codec, *slice_and_key).replace(codec=codec)

        return encode(encode_own, weight, importance, key, split)

    node = encode_with(codec)
    holding = node.holding_codec()
    return node if holding == codec else encode_with(holding)


def _encode_in_turn(encode, weight, importance, key, split):
    del split
    nodes = []
    for i in range(weight.shape[0]):
        own = None if importance is None else slice_of(importance, i)
        nodes.append(encode(slice_of(weight, i), own, jax.random.fold_in(key, i)))
    return stacked(nodes, weight)


def _encode_mapped(encode, weight, importance, key, split):
    indices = jnp.arange(weight.shape[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
    slices = weight, importance, keys

    def encode_part(slices):
        return jax.lax.map(lambda slice: encode(*slice), slices)

    if split is None:
        return jax.jit(encode_part)(slices)
    spec = PartitionSpec(split.spec[0])
    slices = jax.tree.map(lambda x: place(x, NamedSharding(split.mesh, spec)), slices)
    encode_parts = jax.shard_map(
        encode_part, mesh=split.mesh, in_specs=spec, out_specs=spec
    )
    node = jax.jit(encode_parts)(slices)
    sharding = sharding_of(weight)
    if sharding is None:  # the compiler's
        return node
    by_slice = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    leaves = {
        name: place(
            leaf,
            fit_sharding(
                by_slice if name in node.linear_leaves else sharding, leaf.shape
            ),
        )
        for name, leaf in node.leaves().items()
    }
    return node.replace(**leaves)


def _split(weight: Float[Array, "..."]) -> NamedSharding | None:
    """How slices lie whole on devices, where they do so or can for all devices."""
    sharding = sharding_of(weight)
    split = split_sharding(weight, (1, *weight.shape[1:]))
    if split is None:
        return None
    parts = math.prod(split.mesh.shape[name] for name in split.spec[0])
    lies_so = sharding is not None and sharding.spec[0]
    return split if lies_so or parts == split.mesh.size else None


def stacked(nodes: Sequence[Compressed], like: AnyArray | None = None) -> Compressed:
    """The stack of nodes of one codec and shape; inverse of `Compressed.slices`.

    Args:
      nodes: The slices.
      like: A stack whose slices they are of, and over whose devices they go.
    """
    return jax.tree.map(lambda *leaves: stack(leaves, like), *nodes)
