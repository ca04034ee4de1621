"""Functions over whole trees that hold `Compressed` nodes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ssvq_jax.codecs import Compressed, is_compressed, stacked
from ssvq_jax.tree.paths import flatten


def decode(tree: Any, *, dtype: Any = None) -> Any:
    """Decode every `Compressed` node to its array; anything else stays as it is.

    Works under `jax.jit`, `jax.vmap` and `jax.grad`. The gradients are the
    straight-through ones: for SSVQ, a codebook entry gets the sum over its blocks of
    the weight's gradient times the sign, a latent the weight's gradient times the
    codeword's magnitude.

    Args:
      tree: Pytree, or a single node.
      dtype: `None` for the dtype of the original; "float32", "bfloat16", ... for that
        one; "int8" for the integers of finalized nodes whose codebook is int8, or that
        are quantised uniformly: the weight divided by the node's `scale` and, where it
        has them, the scales of its channels.

    Returns:
      The tree with arrays of the original shapes.

    Raises:
      ValueError: A node whose leaves have the wrong shape, or that has no integers,
        with its path; another dtype than those of 16, 32 and 64 bits and int8.

    Examples:
      >>> import jax, ssvq_jax as ssvq
      >>> weight = jax.random.normal(jax.random.key(0), (64, 32))
      >>> node = ssvq.encode(ssvq.SSVQ(), weight, key=jax.random.key(1))
      >>> ssvq.decode({"kernel": node})["kernel"].shape
      (64, 32)
    """
    # A node under several names is one array under them, too.
    found: dict[int, Any] = {}

    def decoded(node):
        if id(node) not in found:
            found[id(node)] = node.decode(dtype)
        return found[id(node)]

    return _map_compressed(decoded, tree)


def finalize(tree: Any) -> Any:
    """The inference form of every `Compressed` node; anything else stays as it is.

    Latents become sign bits, codebooks and scales are cast to the dtypes of the codec's
    options, codes are in their smallest integer type; nothing is left to train.
    Idempotent.

    Args:
      tree: Pytree, or a single node.

    Returns:
      The tree with finalized nodes: what `save` writes.

    Raises:
      ValueError: A codebook, scale or latent that is not finite, or out of its dtype's
        range, with its path.
    """

    def final(node):
        if node.stack:
            return stacked([final(part) for part in node.slices()], node.grid_leaf)
        return jax.tree.map(jnp.asarray, node).finalize()

    return _map_compressed(final, tree)


def partition(tree: Any) -> tuple[Any, Any]:
    """Split the floating leaves from all others, for `jax.grad` and optimizers.

    Args:
      tree: Any pytree.

    Returns:
      `(trainable, static)`, both of the tree's structure, with `None` in place of the
      leaves that the other one holds.

    Examples:
      >>> import jax.numpy as jnp
      >>> trainable, static = partition({"w": jnp.ones(2), "codes": jnp.arange(2)})
      >>> trainable["codes"], static["w"]
      (None, None)
    """
    trainable = jax.tree.map(lambda x: x if _is_trainable(x) else None, tree)
    static = jax.tree.map(lambda x: None if _is_trainable(x) else x, tree)
    return trainable, static


def combine(trainable: Any, static: Any) -> Any:
    """Put together what `partition` took apart.

    Raises:
      ValueError: Trees of different structure.
    """
    return jax.tree.map(
        lambda a, b: b if a is None else a,
        trainable,
        static,
        is_leaf=lambda x: x is None,
    )


def label_tree(tree: Any) -> Any:
    """Label every leaf "sign", "codebook" or "other", for `optax.partition`.

    "sign" are the latents of learned signs, "codebook" the codebooks and the scales of
    channels that go with them. Where a tree has mappings in place of nodes, as under
    `nnx.Optimizer`, the key above the leaves, the name of the node's class, tells them.

    Args:
      tree: Parameters, gradients, or the trainable half that `partition` gives.

    Returns:
      A tree of the same structure with a string for every leaf.

    Examples:
      >>> import optax, ssvq_jax as ssvq
      >>> tx = optax.partition(
      ...     {
      ...         "sign": optax.chain(
      ...             optax.adamw(1e-4),
      ...             ssvq.freeze_signs(interval=500, threshold=0.1),
      ...         ),
      ...         "codebook": optax.adamw(1e-3),
      ...         "other": optax.adamw(1e-4),
      ...     },
      ...     ssvq.label_tree,
      ... )
    """

    def label(path, leaf):
        if is_compressed(leaf):
            return jax.tree_util.tree_map_with_path(
                lambda inner, _: leaf.labels.get(inner[0].name, "other"), leaf
            )
        *_, parent, name = ("", "", *path.split("/"))
        node = Compressed.classes.get(parent)
        return "other" if node is None else node.labels.get(name, "other")

    named, treedef = flatten(tree, is_compressed)
    return jax.tree.unflatten(treedef, [label(*item) for item in named.items()])


def _map_compressed(function: Callable[[Compressed], Any], tree: Any) -> Any:
    def visit(path, leaf):
        if not is_compressed(leaf):
            return leaf
        try:
            leaf.check()
            return function(leaf)
        except ValueError as error:
            raise ValueError(f"{path}: {error}" if path else str(error)) from error

    named, treedef = flatten(tree, is_compressed)
    return jax.tree.unflatten(treedef, [visit(*item) for item in named.items()])


def _is_trainable(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
