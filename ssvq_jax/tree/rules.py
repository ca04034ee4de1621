"""Rules: which codec a parameter gets."""

import dataclasses
import difflib
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ssvq_jax.codecs import Codec, Compressed, encode, is_compressed, stacked
from ssvq_jax.core.blocks import contracted_axis
from ssvq_jax.core.checks import require_integer
from ssvq_jax.core.kmeans import Key
from ssvq_jax.core.sharding import slice_of
from ssvq_jax.tree.paths import flatten

_ATTENTION_INPUT = re.compile(r"(.*/)?(query|key|value)/kernel")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Gives the parameters whose path matches a codec.

    Attributes:
      pattern: Regular expression for the whole `/`-joined path (`re.fullmatch`).
      codec: For example `SSVQ()`; `None` leaves the parameter as it is.
      axis: The axis that is contracted in the product; `None` tells it from the
        shape and the names of Flax layers: see `compress`.
      stack: How many leading axes are stacked, as those of layers under `nn.scan` or of
        experts: each slice gets a codebook of its own. `axis` counts without them.

    Raises:
      TypeError: A codec that is none.
      ValueError: A pattern that is no regular expression.
    """

    pattern: str
    codec: Codec | None
    axis: int | None = dataclasses.field(default=None, kw_only=True)
    stack: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern: {self.pattern!r}: {error}") from error
        if not (self.codec is None or isinstance(self.codec, Codec)):
            raise TypeError(
                f"codec: expected a codec such as SSVQ() or None, got {self.codec!r}"
            )
        require_integer("stack", self.stack, 0)

    def matches(self, path: str) -> bool:
        """Whether the rule applies to the parameter at `path`."""
        return re.fullmatch(self.pattern, path) is not None


def compress(
    params: Any,
    rules: Sequence[Rule],
    *,
    key: Key,
    importance: Any = None,
) -> Any:
    """Compress the parameters that the rules select: `ssvq_jax.compress` without data.

    Args:
      params: Any pytree of arrays.
      rules: Tried in order for every parameter; what none matches stays as it is.
      key: JAX random key.
      importance: `None`, or a pytree with the paths of `params`.

    Returns:
      The same tree with `Compressed` nodes where a codec was chosen.

    Raises:
      TypeError, ValueError: As `ssvq_jax.compress`.
    """
    named, treedef = flatten(params, is_compressed)
    require_matches(rules, named)
    weights = {} if importance is None else flatten(importance)[0]
    for path in weights:
        if path not in named:
            raise ValueError(f"importance: {_no_match(path, list(named))}")

    leaves = []
    for path, leaf in named.items():
        rule = next((rule for rule in rules if rule.matches(path)), None)
        if rule is None or rule.codec is None:
            leaves.append(leaf)
            continue
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        try:
            if is_compressed(leaf):
                raise ValueError(f"compressed already, by {leaf.codec.describe()}")
            leaves.append(_encoded(rule, path, leaf, weights.get(path), own))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from error
    return jax.tree.unflatten(treedef, leaves)


def _encoded(rule: Rule, path: str, leaf: Any, importance: Any, key: Key) -> Compressed:
    """By the rule's codec; slice by slice where axes are stacked."""
    codec: Any = rule.codec
    shape = jnp.shape(leaf)
    if not rule.stack:
        axis = input_axis(path, shape) if rule.axis is None else rule.axis
        return encode(codec, leaf, key=key, importance=importance, axis=axis)
    if len(shape) <= rule.stack or 0 in shape:
        raise ValueError(
            f"stack: expected more than {rule.stack} axes, none empty, got {shape}"
        )
    if importance is not None and jnp.shape(importance) != shape:
        raise ValueError(
            f"importance: expected the weight's shape {shape}, "
            f"got {jnp.shape(importance)}"
        )
    inner = dataclasses.replace(rule, stack=rule.stack - 1)
    nodes = []
    for i in range(shape[0]):
        own = None if importance is None else slice_of(importance, i)
        part = slice_of(leaf, i)
        nodes.append(_encoded(inner, path, part, own, jax.random.fold_in(key, i)))
    # Where float16 cannot hold one of them, all have what can.
    held = {
        name: value
        for node in nodes
        for name, value in dataclasses.asdict(node.codec).items()
        if value != getattr(codec, name)
    }
    codec = dataclasses.replace(codec, **held)
    return stacked([dataclasses.replace(node, codec=codec) for node in nodes], leaf)


def require_matches(rules: Sequence[Rule], paths: Iterable[str]) -> None:
    """Raise `TypeError` for what is no rule, `ValueError` for one without a match."""
    paths = list(paths)
    if isinstance(rules, Rule) or not all(isinstance(rule, Rule) for rule in rules):
        raise TypeError(f"rules: expected a sequence of Rule, got {rules!r}")
    for rule in rules:
        if not any(rule.matches(path) for path in paths):
            raise ValueError(_no_match(rule.pattern, paths))


def input_axis(path: str, shape: tuple[int, ...]) -> int:
    """The axis that a Flax layer contracts, by the name and shape of its parameter.

    Examples:
      >>> input_axis("token/embedding", (1000, 64)), input_axis("mlp/kernel", (64, 256))
      (1, 0)
    """
    if path.rpartition("/")[2] == "embedding":
        return len(shape) - 1
    if len(shape) >= 3 and _ATTENTION_INPUT.fullmatch(path):
        return len(shape) - 3
    return contracted_axis(shape)


def _no_match(pattern: str, paths: list[str]) -> str:
    near = difflib.get_close_matches(pattern, paths, n=5, cutoff=0.0)
    return f"{pattern!r} matches no parameter; near it: {', '.join(near) or 'none'}"
