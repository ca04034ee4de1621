"""Trees as names: a parameter's name holds the keys on the way to it.

Names are JSON pointers (RFC 6901) without the leading slash: keys joined by `/`, in
which `~` is written `~0` and `/` is written `~1`. A name alone means nested dicts with
text for keys; what is something else, or empty, is listed by its own name as one of
`KINDS`. Other containers (`nnx.State`, `FrozenDict`, named tuples, modules) become the
dicts that their keys make of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.tree_util import DictKey, GetAttrKey

from ssvq_jax.codecs import is_compressed, stacked
from ssvq_jax.export.error import FormatError
from ssvq_jax.tree.paths import is_box, is_printable, printable

KINDS = ("dict", "int", "list", "tuple", "null", "stack")
"""A dict (listed if it is empty), a dict with integer keys, a list, a tuple, None, a
stack of compressed weights of one codec and shape."""

_DEEPEST = 64


def name_leaves(tree: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The leaves of a tree by name, and the kinds of what names do not tell.

    Raises:
      TypeError: A key that is neither text nor an integer.
      ValueError: A key that is empty or has control characters, a tree too deep.
    """
    leaves: dict[str, Any] = {}
    containers: dict[str, str] = {}

    def visit(value: Any, keys: tuple[str, ...]) -> None:
        name = "/".join(keys)
        if len(keys) > _DEEPEST:
            raise ValueError(f"{name}: expected at most {_DEEPEST} levels")
        if value is None:
            containers[name] = "null"
            return
        if is_compressed(value) and value.stack:
            containers[name] = "stack"
            for i, part in enumerate(value.slices()):
                visit(part, (*keys, str(i)))
            return
        if is_compressed(value) or jax.tree_util.all_leaves([value]):
            leaves[name] = value
            return
        kind, children = _children(name, value)
        if kind != "dict" or not children:
            containers[name] = kind
        for key, child in children:
            visit(child, (*keys, _escape(name, str(key))))

    visit(_unboxed(tree), ())
    return leaves, containers


def build_tree(
    leaves: Mapping[str, Any],
    containers: Mapping[str, str],
    join: Callable[[list[Any]], Any] = stacked,
) -> Any:
    """Inverse of `name_leaves`.

    Args:
      leaves: By name.
      containers: Kinds, by name.
      join: Makes a stack of its parts; `ValueError` for what is none.

    Raises:
      FormatError: Names and kinds that `name_leaves` would not have given.
    """
    if set(leaves) == {""} and not containers:
        return leaves[""]
    root = _Node("dict")
    for name, kind in containers.items():
        keys = _keys(name)
        if kind not in KINDS:
            raise FormatError(f"{name or 'tree'}: unknown container {str(kind)[:80]!r}")
        node = root
        for key in keys:
            node = node.children.setdefault(key, _Node("dict"))
        node.kind = kind
    for name, value in leaves.items():
        if not name:
            raise FormatError("tree: a parameter without a name beside others")
        *parents, last = _keys(name)
        node = root
        for key in parents:
            node = node.children.setdefault(key, _Node("dict"))
            if not isinstance(node, _Node):
                raise FormatError(f"{name}: lies in another parameter")
        if last in node.children:
            raise FormatError(f"{name}: both a parameter and a container")
        node.children[last] = value
    return root.tree("", join)


class _Node:
    """A container while it is put together: children by their keys as text."""

    def __init__(self, kind: str):
        self.kind = kind
        self.children: dict[str, Any] = {}

    def tree(self, name: str, join: Callable[[list[Any]], Any]) -> Any:
        keys = list(self.children)
        values = [
            child.tree(f"{name}/{key}".lstrip("/"), join)
            if isinstance(child, _Node)
            else child
            for key, child in self.children.items()
        ]
        if self.kind == "dict":
            return dict(zip(keys, values, strict=True))
        if self.kind == "null":
            if keys:
                raise FormatError(f"{name or 'tree'}: None with parameters in it")
            return None
        try:
            numbers = [int(key) for key in keys]
            if [str(number) for number in numbers] != keys:
                raise ValueError("not as they would be written")
        except ValueError as error:
            raise FormatError(f"{name or 'tree'}: keys are no integers") from error
        numbered = dict(zip(numbers, values, strict=True))
        if self.kind == "int":
            return numbered
        if set(numbers) != set(range(len(numbers))):
            raise FormatError(f"{name or 'tree'}: positions are missing")
        ordered = [numbered[i] for i in range(len(numbers))]
        if self.kind == "stack":
            try:
                return join(ordered)
            except (TypeError, ValueError) as error:
                raise FormatError(f"{name or 'tree'}: no stack: {error}") from error
        return ordered if self.kind == "list" else tuple(ordered)


def _keys(name: str) -> list[str]:
    """The keys of a name, checked."""
    if not name:
        return []
    check_name(name)
    return [original_name(key) for key in name.split("/")]


def check_name(name: str) -> None:
    """Raise `FormatError` for a name that `name_leaves` would not have given."""
    keys = name.split("/") if name else ["-"]
    if not is_printable(name) or "" in keys or len(keys) > _DEEPEST:
        raise FormatError(
            f"{printable(name[:80])!r}: expected keys without control characters, at "
            f"most {_DEEPEST}, none empty"
        )


def original_name(name: str) -> str:
    """A name with its keys as they were before they were escaped."""
    # In this order: `~01` is the key `~1`.
    return name.replace("~1", "/").replace("~0", "~")


def _children(name: str, value: Any) -> tuple[str, Sequence[tuple[str | int, Any]]]:
    if type(value) in (list, tuple):
        pairs = [(i, _unboxed(child)) for i, child in enumerate(value)]
        return type(value).__name__, pairs
    children = [(_key(name, key), child) for key, child in _flat(value)]
    integers = sum(isinstance(key, int) for key, _ in children)
    if 0 < integers < len(children):
        found = [key for key, _ in children]
        raise TypeError(f"{name or 'tree'}: expected keys of one type, got {found}")
    return "int" if integers else "dict", children


def _flat(value: Any) -> Iterator[tuple[Any, Any]]:
    """The keys and children of a container, one level deep."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(value, lambda x: x is not value)
    for (key,), child in pairs:
        yield key, _unboxed(child)


def _unboxed(value: Any) -> Any:
    while is_box(value):
        [(_, value)], _ = jax.tree_util.tree_flatten_with_path(
            value, lambda x, box=value: x is not box
        )
    return value


def _key(name: str, key: Any) -> str | int:
    if isinstance(key, DictKey) and type(key.key) in (str, int):
        return key.key
    if isinstance(key, GetAttrKey):
        return key.name
    raise TypeError(f"{name or 'tree'}: expected keys that are text, got {key}")


def _escape(name: str, key: str) -> str:
    if not key or not is_printable(key):
        raise ValueError(
            f"{name or 'tree'}: expected keys that are not empty and have no control "
            f"characters, got {printable(key)!r}"
        )
    return key.replace("~", "~0").replace("/", "~1")
