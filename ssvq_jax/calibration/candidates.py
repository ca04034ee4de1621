"""Candidates for one parameter: which fit, what they store, what they cost."""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ssvq_jax.calibration.compression import compress
from ssvq_jax.calibration.moments import Moment
from ssvq_jax.calibration.prediction import output_cost
from ssvq_jax.codecs import Compressed, is_compressed
from ssvq_jax.codecs.codec import WEIGHT_DTYPES
from ssvq_jax.core.checks import as_array, require_finite
from ssvq_jax.core.kmeans import Key
from ssvq_jax.core.sharding import replicate
from ssvq_jax.tree.report import Row
from ssvq_jax.tree.rules import Rule, input_axis, stacked_axes
from ssvq_jax.tree.transforms import finalize


@dataclasses.dataclass(frozen=True)
class Option:
    """A candidate for one parameter.

    Attributes:
      rule: For this path alone.
      bits: Stored bits.
      error: Relative squared error; `None` where nothing is encoded.
      cost: Of that error, in the unit of `allocate`.
    """

    rule: Rule
    bits: int
    error: float | None = None
    cost: float = 0.0


def matching(
    candidates: Sequence[Rule],
    paths: Collection[str],
    names: Mapping[str, Sequence[Any]],
) -> dict[str, list[Rule]]:
    """By path the candidates that match it, for it alone, their stacks as numbers.

    Args:
      candidates: Rules, of which all that match count.
      paths: Of parameters.
      names: Of their axes, as far as there are some.

    Raises:
      ValueError: A stack's name that no parameter has which its rule matches.
    """
    found: dict[str, list[Rule]] = {path: [] for path in paths}
    for rule in candidates:
        own = {path: rule for path in paths if rule.matches(path)}
        for path, depth in stacked_axes(own, names).items():
            alone = dataclasses.replace(rule, pattern=re.escape(path), stack=depth)
            found[path].append(alone)
    return found


def fitting(row: Row, leaf: Any, candidates: Sequence[Rule]) -> list[Option]:
    """The candidates that fit a parameter; leaving it as it is where there are none.

    Args:
      row: The parameter in the report of the float tree.
      leaf: Its value.
      candidates: From `matching`.

    Raises:
      ValueError: There are some, and none fits.
    """
    options = []
    for rule in candidates or [Rule(re.escape(row.path), None)]:
        bits = row.bits if rule.codec is None else _stored_bits(rule, row.path, leaf)
        if bits is not None:
            options.append(Option(rule, bits))
    if not options:
        kind = f"what {row.rule} gave" if is_compressed(leaf) else jnp.result_type(leaf)
        tried = ", ".join(
            rule.codec.describe() + (f" of stack={rule.stack}" if rule.stack else "")
            for rule in candidates
            if rule.codec
        )
        raise ValueError(
            f"{row.path}: expected a candidate that fits {kind} of shape {row.shape}, "
            f"got {tried}"
        )
    return options


def priced(
    path: str,
    leaf: Any,
    options: Sequence[Option],
    key: Key,
    moments: Mapping[str, Moment] | None,
) -> list[Option]:
    """The options, encoded: with errors, and the costs expected of them.

    Args:
      path: Name of the parameter.
      leaf: Its value.
      options: From `fitting`.
      key: As for `compress`.
      moments: As for `allocate`.

    Raises:
      ValueError: A weight or moments that are not finite, moments of another shape;
        a codebook out of the range of its dtype.
    """
    weight = _float64(leaf)
    relative, cost = _relative(weight), _squares
    try:
        require_finite("weight", as_array(leaf))
        if moments is not None:
            depth = max(option.rule.depth(()) for option in options)
            cost = _cost(moments.get(path), weight, depth)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from problem
    result = []
    for option in options:
        if option.rule.codec is not None:
            node = encoded(path, leaf, option.rule, key)
            difference = weight - _float64(node.decode())
            option = dataclasses.replace(
                option, error=relative(difference), cost=cost(difference)
            )
        result.append(option)
    return result


def _cost(
    moment: Moment | None, weight: np.ndarray, depth: int
) -> Callable[[np.ndarray], float]:
    """What an error of a weight costs; summed over slices of so many stacked axes."""
    if not depth:
        return _relative(weight) if moment is None else output_cost(moment, weight)
    count = len(weight)
    parts = [
        _cost(None if moment is None else moment.slice(i, count), part, depth - 1)
        for i, part in enumerate(weight)
    ]
    return lambda error: sum(cost(x) for cost, x in zip(parts, error, strict=True))


def _relative(weight: np.ndarray) -> Callable[[np.ndarray], float]:
    """Squares of an error over those of a weight, unless these are 0."""
    unit = _squares(weight) or 1.0
    return lambda error: _squares(error) / unit


def _squares(x: np.ndarray) -> float:
    return float(np.sum(np.square(x)))


def encoded(
    path: str,
    leaf: Any,
    rule: Rule,
    key: Key,
    moments: Mapping[str, Moment] | None = None,
) -> Compressed:
    """What a file stores of a parameter, as if it were in its tree."""
    if moments is not None and path not in moments:
        moments = None
    return finalize(compress({path: leaf}, [rule], key=key, moments=moments))[path]


def _stored_bits(rule: Rule, path: str, leaf: Any) -> int | None:
    """Bits of a parameter by a rule's codec; `None` if that does not fit."""
    codec: Any = rule.codec
    if is_compressed(leaf) or jnp.result_type(leaf).name not in WEIGHT_DTYPES:
        return None
    shape = jnp.shape(leaf)
    depth = rule.depth(())
    slices, shape = math.prod(shape[:depth]), shape[depth:]
    if not shape or 0 in (slices, *shape):
        return None
    axis = input_axis(path, shape) if rule.axis is None else rule.axis
    if not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    if not codec.fits(shape, axis):
        return None
    return 8 * slices * sum(field.nbytes for field in codec.fields(shape, axis))


def _float64(x: Any) -> np.ndarray:
    return np.asarray(replicate(as_array(x)), np.float64)
