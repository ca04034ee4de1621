"""Names of parameters: the keys on the way to a leaf, joined by `/`."""

import re
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from flax.core.meta import AxisMetadata
from jax.sharding import PartitionSpec
from jax.tree_util import KeyPath

# C0, DEL and C1, the separators of lines and paragraphs, surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def is_printable(name: str) -> bool:
    """Whether a name is free of control characters."""
    return _CONTROL.search(name) is None


def printable(text: str) -> str:
    """Text with control characters as escapes, safe to show on a terminal."""
    return _CONTROL.sub(lambda match: ascii(match.group())[1:-1], text)


def is_box(x: Any) -> bool:
    """Whether `x` is what Flax puts around an array, such as `nnx.Param`.

    Boxes are no part of a parameter's name.
    """
    return isinstance(x, nnx.Variable | AxisMetadata)


def axis_names(tree: Any) -> dict[str, tuple[Any, ...]]:
    """By path, the names of axes that Flax's metadata give parameters."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_box)
    found = {}
    for path, box in leaves:
        names = getattr(box, "names", None)
        if isinstance(box, nnx.Variable):
            names = box.get_metadata().get("out_sharding")
        names = getattr(names, "spec", names)  # of a sharding
        if isinstance(names, tuple | list | PartitionSpec):
            found[path_name(path)] = tuple(names)
    return found


def path_name(path: KeyPath) -> str:
    """The `/`-joined name of a key path.

    Examples:
      >>> import jax
      >>> [(path, _)] = jax.tree.leaves_with_path({"blocks": [{"kernel": 1.0}]})
      >>> path_name(path)
      'blocks/0/kernel'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> tuple[dict[str, Any], Any]:
    """Leaves by name, in the tree's order, and its structure.

    Raises:
      ValueError: Two leaves of one name.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    outer, _ = jax.tree_util.tree_flatten_with_path(
        tree, lambda x: is_box(x) or (is_leaf is not None and is_leaf(x))
    )
    boxes = {path for path, leaf in outer if is_box(leaf)}
    named: dict[str, Any] = {}
    for path, leaf in leaves:
        name = path_name(path[:-1] if path[:-1] in boxes else path)
        if name in named:
            raise ValueError(f"{name}: two parameters of this name")
        named[name] = leaf
    return named, treedef
