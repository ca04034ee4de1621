"""Rules: which codec a parameter gets."""

import dataclasses
import difflib
import itertools
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ssvq_jax.codecs import Codec, Compressed, encode_stack, is_compressed
from ssvq_jax.core.blocks import contracted_axis
from ssvq_jax.core.checks import require_integer
from ssvq_jax.core.kmeans import Key
from ssvq_jax.tree.paths import axis_names, flatten

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
        experts: each slice gets a codebook of its own. `axis` counts without them. Or
        the name that the metadata of NNX and Linen give such axes, or several: how many
        leading axes are so called may differ then from one parameter to the next, and
        one without metadata has none. Flax names axes of variables made by
        `with_partitioning` only.

    Raises:
      TypeError: A codec that is none; a `stack` of another kind.
      ValueError: A pattern that is no regular expression; a `stack` below 0.
    """

    pattern: str
    codec: Codec | None
    axis: int | None = dataclasses.field(default=None, kw_only=True)
    stack: int | str | tuple[str, ...] = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern: {self.pattern!r}: {error}") from error
        if not (self.codec is None or isinstance(self.codec, Codec)):
            raise TypeError(
                f"codec: expected a codec such as SSVQ() or None, got {self.codec!r}"
            )
        if isinstance(self.stack, str):
            object.__setattr__(self, "stack", (self.stack,))
        if isinstance(self.stack, int):
            require_integer("stack", self.stack, 0)
        elif not (
            isinstance(self.stack, tuple)
            and self.stack
            and all(isinstance(name, str) and name for name in self.stack)
        ):
            raise TypeError(
                f"stack: expected an integer, a name or a tuple of some, got "
                f"{self.stack!r}"
            )

    def matches(self, path: str) -> bool:
        """Whether the rule applies to the parameter at `path`."""
        return re.fullmatch(self.pattern, path) is not None

    def depth(self, names: Sequence[Any]) -> int:
        """How many leading axes are stacked of a parameter whose axes have `names`."""
        if isinstance(self.stack, int):
            return self.stack
        stacked = itertools.takewhile(lambda name: name in self.stack, names)
        return len(list(stacked))


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
    chosen = {
        path: next((rule for rule in rules if rule.matches(path)), None)
        for path in named
    }
    depths = stacked_axes(chosen, axis_names(params))
    weights = {} if importance is None else flatten(importance)[0]
    for path in weights:
        if path not in named:
            raise ValueError(f"importance: {_no_match(path, list(named))}")

    leaves = []
    for path, leaf in named.items():
        rule = chosen[path]
        if rule is None or rule.codec is None:
            leaves.append(leaf)
            continue
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        try:
            if is_compressed(leaf):
                raise ValueError(f"compressed already, by {leaf.codec.describe()}")
            found = _encoded(rule, path, leaf, weights.get(path), own, depths[path])
            leaves.append(found)
        except (TypeError, ValueError) as error:
            # Not `type(error)`: some of JAX's take other arguments.
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{path}: {error}") from error
    return jax.tree.unflatten(treedef, leaves)


def stacked_axes(
    chosen: Mapping[str, Rule | None], names: Mapping[str, Sequence[Any]]
) -> dict[str, int]:
    """By path, how many leading axes are stacked.

    Args:
      chosen: Rules by path.
      names: Of axes, by path: `axis_names`.

    Raises:
      ValueError: A rule with names of axes that none of its parameters has.
    """
    own = {path: rule for path, rule in chosen.items() if rule is not None}
    depths = {path: rule.depth(names.get(path, ())) for path, rule in own.items()}
    for rule in own.values():
        if not isinstance(rule.stack, tuple):
            continue
        paths = [path for path in own if own[path] is rule]
        if not any(depths[path] for path in paths):
            known = {path: names[path] for path in paths if path in names}
            raise ValueError(
                f"stack: no parameter of {rule.pattern!r} has a leading axis named "
                f"{' or '.join(rule.stack)}; Flax's metadata tell "
                f"{known or 'no names there'}"
            )
    return depths


def _encoded(
    rule: Rule, path: str, leaf: Any, importance: Any, key: Key, depth: int
) -> Compressed:
    """By the rule's codec; slice by slice where so many axes are stacked."""
    codec: Any = rule.codec
    shape = jnp.shape(leaf)
    if depth and (len(shape) <= depth or 0 in shape):
        raise ValueError(
            f"stack: expected more than {depth} axes, none empty, got {shape}"
        )
    if importance is not None and jnp.shape(importance) != shape:
        raise ValueError(
            f"importance: expected the weight's shape {shape}, "
            f"got {jnp.shape(importance)}"
        )
    axis = input_axis(path, shape[depth:]) if rule.axis is None else rule.axis
    return encode_stack(
        codec, leaf, key=key, importance=importance, axis=axis, depth=depth
    )


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
