"""The shape of a tree as JSON: which containers hold which parameters.

A dict is `{"dict": {...}}`, one with integer keys `{"int": {...}}`, a list
`{"list": [...]}`, a tuple `{"tuple": [...]}`, `None` is `null`; anything else is a
leaf, described by the caller. Other containers (`nnx.State`, `FrozenDict`, named
tuples, modules) are described as the dicts that their keys make of them.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import DictKey, GetAttrKey

from ssvq_jax.codecs import is_compressed
from ssvq_jax.export.error import FormatError
from ssvq_jax.tree.paths import is_box

Json = Any


def join(path: str, key: Any) -> str:
    """Path of a child."""
    return f"{path}/{key}" if path else str(key)


def describe(tree: Any, leaf: Callable[[str, Any], Json], path: str = "") -> Json:
    """JSON of a tree; `leaf(path, value)` gives that of a leaf.

    Raises:
      TypeError: A key that is neither text nor an integer.
    """
    if tree is None:
        return None
    if is_compressed(tree) or jax.tree_util.all_leaves([tree]):
        return {"leaf": leaf(path, tree)}
    if type(tree) in (list, tuple):
        children = [describe(x, leaf, join(path, i)) for i, x in enumerate(tree)]
        return {type(tree).__name__: children}
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, lambda x: x is not tree)
    if is_box(tree):
        return describe(pairs[0][1], leaf, path)
    children = {_key(path, key): child for (key,), child in pairs}
    kind = "int" if children and all(isinstance(k, int) for k in children) else "dict"
    if kind == "dict" and any(isinstance(key, int) for key in children):
        raise TypeError(f"{path or 'tree'}: expected keys of one type, got {children}")
    described = {
        str(key): describe(child, leaf, join(path, key))
        for key, child in children.items()
    }
    return {kind: described}


def rebuild(json: Json, leaf: Callable[[str, Json], Any], path: str = "") -> Any:
    """Inverse of `describe`; `leaf(path, json)` gives a leaf.

    Raises:
      FormatError: JSON that `describe` would not have written.
    """
    if json is None:
        return None
    if not isinstance(json, dict) or len(json) != 1:
        raise FormatError(f"{path or 'tree'}: not the description of a tree")
    [(kind, content)] = json.items()
    if kind == "leaf":
        return leaf(path, content)
    if kind in ("list", "tuple") and isinstance(content, list):
        children = [rebuild(x, leaf, join(path, i)) for i, x in enumerate(content)]
        return children if kind == "list" else tuple(children)
    if kind in ("dict", "int") and isinstance(content, dict):
        number = int if kind == "int" else str
        try:
            keys = [number(key) for key in content]
            if [str(key) for key in keys] != list(content):
                raise ValueError("not as they would be written")
        except ValueError as error:
            raise FormatError(f"{path or 'tree'}: keys are no integers") from error
        children = [rebuild(x, leaf, join(path, key)) for key, x in content.items()]
        return dict(zip(keys, children, strict=True))
    raise FormatError(f"{path or 'tree'}: unknown container {kind!r}")


def _key(path: str, key: Any) -> str | int:
    if isinstance(key, DictKey) and isinstance(key.key, str | int):
        return key.key
    if isinstance(key, GetAttrKey):
        return key.name
    raise TypeError(f"{path or 'tree'}: expected keys that are text, got {key}")
