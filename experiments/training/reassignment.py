"""Codes that move while a network is tuned."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import ssvq_jax as ssvq
from experiments.training.changes import has_codes, signs
from ssvq_jax.codecs import is_compressed
from ssvq_jax.tree.paths import flatten

Targets = Mapping[str, jax.Array]
"""Weights that codes are chosen for, float32, by the paths of their parameters."""


def targets(params: Any, weights: Any) -> Targets:
    """What codes are chosen for at first, where parameters have codes.

    Args:
      params: Parameters, compressed.
      weights: The same, decoded or as they were before.
    """
    named, _ = flatten(weights)
    return {
        path: jnp.asarray(named[path], jnp.float32)
        for path, node in flatten(params, is_compressed)[0].items()
        if has_codes(node)
    }


def through(weights: Any, targets: Targets) -> Any:
    """Decoded parameters as they are; their gradients reach the targets, too."""
    named, treedef = flatten(weights)
    for path, target in targets.items():
        unchanged = target - jax.lax.stop_gradient(target)
        named[path] += unchanged.astype(named[path].dtype)
    return jax.tree.unflatten(treedef, named.values())


def reassigned(params: Any, targets: Targets) -> Any:
    """Parameters with codes chosen anew; what is trained stays."""
    named, treedef = flatten(params, is_compressed)
    for path, target in targets.items():
        node = named[path]
        for plus in signs(node):  # one array, if signs are learned; else none
            target = jnp.where(plus, jnp.maximum(target, 0), jnp.minimum(target, 0))
        trainable, _ = ssvq.partition(node)
        _, static = ssvq.partition(node.assign(target))
        named[path] = ssvq.combine(trainable, static)
    return jax.tree.unflatten(treedef, named.values())
