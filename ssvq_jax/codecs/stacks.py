"""Stacks of weights: layers under a scan, experts; every slice is encoded by itself."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ssvq_jax.codecs.codec import Codec, Compressed
from ssvq_jax.codecs.encoding import checked_weight, encode
from ssvq_jax.core.blocks import AnyArray
from ssvq_jax.core.checks import checked_importance, largest_of
from ssvq_jax.core.kmeans import Key
from ssvq_jax.core.sharding import (
    fit_sharding,
    mesh_axes,
    place,
    replicate_key,
    sharding_of,
    slice_of,
    split_sharding,
    stack,
)


def encode_stack(
    codec: Codec,
    weight: AnyArray,
    *,
    key: Key,
    importance: AnyArray | None,
    axis: int,
    depth: int,
) -> Compressed:
    """Encode the slices along leading axes, each with a codebook of its own.

    Where every device can have slices of its own, it encodes those, and nothing passes
    between them after the weight. Otherwise one slice follows the other, and all
    devices that have a part work on each; under `jit` in one program for all slices.

    Args:
      codec: Where float16 cannot hold a slice, all have what can.
      weight: The slices.
      key: Each slice has one of its own, folded in by its index.
      importance: Of the same shape, or `None`.
      axis: Of a slice, the axis to cut into blocks.
      depth: How many leading axes there are.
    """
    if not depth:
        return encode(codec, weight, key=key, importance=importance, axis=axis)
    codec = codec.holding(weight, depth)
    split = _split(weight)
    if split is None and not isinstance(weight, Tracer):
        nodes = []
        for i in range(weight.shape[0]):
            node = encode_stack(
                codec,
                slice_of(weight, i),
                key=jax.random.fold_in(key, i),
                importance=None if importance is None else slice_of(importance, i),
                axis=axis,
                depth=depth - 1,
            )
            nodes.append(node.replace(codec=nodes[0].codec) if nodes else node)
        node = stacked(nodes, weight)
    else:
        weight = checked_weight(weight)
        importance = checked_importance(importance, weight.shape)
        _require_representable_slices(weight, depth)
        sharding = sharding_of(weight)
        if importance is not None:
            importance = place(importance, sharding)
        key = replicate_key(key, sharding)
        node = _encode_mapped(codec, weight, key, importance, axis, depth, split)
        node = _placed(node, sharding)
    return node.replace(codec=node.holding_codec())


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _encode_mapped(codec, weight, key, importance, axis, depth, split):
    indices = jnp.arange(weight.shape[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
    slices = weight, importance, keys

    def encode_slice(slices):
        weight, importance, key = slices
        return encode_stack(
            codec, weight, key=key, importance=importance, axis=axis, depth=depth - 1
        )

    def encode_part(slices):
        return jax.lax.map(encode_slice, slices)

    if split is None:
        return encode_part(slices)
    spec = PartitionSpec(split.spec[0])
    slices = jax.tree.map(lambda x: place(x, NamedSharding(split.mesh, spec)), slices)
    return jax.shard_map(encode_part, mesh=split.mesh, in_specs=spec, out_specs=spec)(
        slices
    )


def _placed(node: Compressed, sharding: NamedSharding | None) -> Compressed:
    """Split as the weight is; what has none of a slice's axes, along the stack."""
    if sharding is None:  # the compiler's
        return node
    by_slice = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    leaves = {}
    for name, leaf in node.leaves().items():
        own = by_slice if name in node.linear_leaves else sharding
        leaves[name] = place(leaf, fit_sharding(own, leaf.shape))
    return node.replace(**leaves)


def _split(weight: AnyArray) -> NamedSharding | None:
    """How slices lie whole on devices, where they do so or can for all devices."""
    if not isinstance(weight, jax.Array):
        return None
    sharding = sharding_of(weight)
    split = split_sharding(weight, (1, *weight.shape[1:]))
    if split is None or not split.spec[0]:
        return None
    parts = math.prod(split.mesh.shape[name] for name in mesh_axes(split.spec[0]))
    lies_so = sharding is not None and not any(sharding.spec[1:])
    return split if lies_so or parts == split.mesh.size else None


def _require_representable_slices(weight: Float[Array, "..."], depth: int) -> None:
    """As `encode` refuses a weight that float32 takes for 0, if it is concrete."""
    if isinstance(weight, Tracer):
        return
    largest = largest_of(weight, depth)
    tiny = float(jnp.finfo(jnp.float32).tiny)
    if jnp.any((largest > 0) & (largest < tiny)):
        raise ValueError(
            f"weight: the largest magnitude of a slice is below {tiny:g}, float32's "
            "smallest normal number; scale it up"
        )


def stacked(nodes: Sequence[Compressed], like: Any = None) -> Compressed:
    """The stack of nodes of one codec and shape; inverse of `Compressed.slices`.

    Args:
      nodes: The slices.
      like: A stack whose slices they are of, and over whose devices they go.
    """
    return jax.tree.map(lambda *leaves: stack(leaves, like), *nodes)
