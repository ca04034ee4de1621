"""Names of parameters: the keys on the way to a leaf, joined by `/`."""

from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import GetAttrKey, KeyPath


def path_name(path: KeyPath) -> str:
    """The `/`-joined name of a key path.

    The box that Flax puts around an array (`nnx.Param`, `linen.Partitioned`) is no
    part of the name.

    Example:
      >>> import jax
      >>> [(path, _)] = jax.tree.leaves_with_path({"blocks": [{"kernel": 1.0}]})
      >>> path_name(path)
      'blocks/0/kernel'
    """
    if path and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> tuple[dict[str, Any], Any]:
    """Leaves by name, in the tree's order, and its structure.

    Raises:
      ValueError: Two leaves of one name.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    named: dict[str, Any] = {}
    for path, leaf in leaves:
        name = path_name(path)
        if name in named:
            raise ValueError(f"{name}: two parameters of this name")
        named[name] = leaf
    return named, treedef
