"""Codes, signs and masks for another weight, blocks where the devices have them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from ssvq_jax.core.blocks import (
    block_units,
    from_blocks,
    grid_shape,
    to_blocks,
    valid_blocks,
)
from ssvq_jax.core.sharding import (
    compiler_sharded,
    fit_sharding,
    place,
    replicated,
    sharding_of,
    split_sharding,
)


@functools.partial(jax.jit, static_argnums=3)
def assigned(node: Any, weight: Array, importance: Array | None, training: bool) -> Any:
    """The node of one weight with codes for another: see `Compressed.assign`."""
    weight = weight.astype(jnp.float32)
    targets = weight if node.scales is None else weight / node.scales
    if importance is None:
        importance = jnp.ones_like(weight)
    if node.scales is not None:
        importance = importance * jnp.square(node.scales)

    block, axis = node.codec.block, node.axis

    def assign(node, targets, importance):
        shape = targets.shape
        grid = grid_shape(shape, block, axis)
        targets, importance = (
            jnp.asarray(to_blocks(x, block, axis)).reshape(-1, block)
            for x in (targets, importance)
        )
        valid = valid_blocks(shape, block, axis)
        codes, factors = node.choose(targets, importance=importance, valid=valid)
        if factors is not None:
            factors = from_blocks(factors.reshape(*grid, block), shape, axis)
        return codes.reshape(grid), factors

    sharding = sharding_of(weight)
    split = split_sharding(weight, block_units(node.shape, block, axis))
    if split is not None:
        spec, whole = split.spec, PartitionSpec()
        leaves = {
            name: whole if name in node.linear_leaves or leaf.ndim == 0 else spec
            for name, leaf in node.leaves().items()
        }
        assign = jax.shard_map(
            assign,
            mesh=split.mesh,
            in_specs=(node.replace(**leaves), spec, spec),
            out_specs=(spec, spec),
        )
    else:
        assign = compiler_sharded(assign, replicated(sharding))
    target = replicated(sharding) if split is None else split
    codes, factors = assign(node, place(targets, target), place(importance, target))
    codes = place(codes, fit_sharding(sharding, codes.shape))
    if factors is not None:
        factors = place(factors, sharding)
    found = node.put(codes, factors)
    return found.like(node, weight) if training else found
