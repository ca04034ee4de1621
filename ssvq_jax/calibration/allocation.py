"""`allocate`: which codec every parameter gets, under a budget of bits."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, overload

import jax
from rich.table import Table

from ssvq_jax.calibration.candidates import Option, encoded, fitting, matching, priced
from ssvq_jax.calibration.moments import Moment, require_paths
from ssvq_jax.calibration.spending import spend
from ssvq_jax.codecs import is_compressed
from ssvq_jax.core.kmeans import Key
from ssvq_jax.tree.paths import axis_names, flatten
from ssvq_jax.tree.report import TITLES, Report, Row, as_text, cells, report, table
from ssvq_jax.tree.rules import Rule, require_matches


@dataclasses.dataclass(frozen=True)
class Choice(Row):
    """What one parameter gets; see `Row`. `dataclasses.asdict` gives JSON values.

    Attributes:
      cost: What it costs, in the unit that `allocate` was given; 0 as it is.
      share: That, as a share of the costs of all parameters.
    """

    cost: float = dataclasses.field(kw_only=True)
    share: float = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class Allocation(Sequence[Rule]):
    """Result of `allocate`: the rules, as a sequence; prints as a table.

    Attributes:
      rules: One for every parameter that a codec was chosen for.
      rows: One for every parameter of the tree. `error` is that of encoding without
        moments.
    """

    rules: tuple[Rule, ...]
    rows: tuple[Choice, ...]
    _measured: tuple[tuple[Row, tuple[Option, ...]], ...] = dataclasses.field(
        repr=False
    )

    @property
    def bits(self) -> float:
        """Stored bits a weight of the whole tree, as in `report`."""
        return Report.of(self.rows).model.bits_per_weight

    def at(self, bits: int | float) -> "Allocation":
        """The same candidates and costs, with another budget; takes no time.

        Args:
          bits: As for `allocate`. A `divergence` was measured near the first budget.

        Raises:
          ValueError: A budget below what the cheapest choice takes.
        """
        return _spent(self._measured, bits)

    @overload
    def __getitem__(self, index: int) -> Rule: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Rule]: ...
    def __getitem__(self, index: Any) -> Any:
        return self.rules[index]

    def __len__(self) -> int:
        return len(self.rules)

    def __rich__(self) -> Table:
        totals = Report.of(self.rows)
        return table(
            (*TITLES[:6], "cost", "share"),
            [
                (*cells(row)[:6], f"{row.cost:.3g}", f"{row.share:.1%}")
                for row in self.rows
            ],
            [(*cells(row)[:6], "", "") for row in (totals.compressed, totals.model)],
        )

    def __str__(self) -> str:
        return as_text(self)


def allocate(
    params: Any,
    candidates: Sequence[Rule],
    *,
    bits: int | float,
    key: Key,
    moments: Mapping[str, Moment] | None = None,
    divergence: Callable[[Any], Any] | None = None,
) -> Allocation:
    """Rules that spend a budget of bits where they lower the expected cost most.

    All candidates whose pattern matches a parameter are tried on it, which takes the
    time of `compress` for each: 40 s for the 38 larger kernels of EfficientNet-Lite0
    and eight candidates, on 2 CPU cores. What the cost is depends on what is given:

    - Nothing: the squared error, summed over the weights of all parameters.
    - `moments`: the share of the variance of a parameter's output that will be error
      after `refine`, see `ssvq_jax.calibration.prediction.output_cost`, summed over
      parameters and slices of stacks. For one that has no moments: its squared error
      over its squares, the same for inputs without correlation. Of moments with
      `outputs`: what the errors do to the loss, see `fisher_factors`.
    - `divergence`: what it says when a parameter alone is compressed, by the candidate
      whose bits a weight are nearest to `bits`. The other candidates of the parameter
      cost that times the ratio of their costs as above.

    Bits are chosen by a Lagrangian: see `ssvq_jax.calibration.spending.spend`.

    Args:
      params: Pytree of parameters, as for `ssvq_jax.compress`.
      candidates: Unlike rules, all that match a parameter count. `Rule(pattern, None)`
        makes leaving it as it is one of them. A codec that does not fit a parameter,
        as with more codewords than blocks, is left out for it. Parameters that no
        pattern matches stay as they are.
      bits: Stored bits a weight of all of `params`: codebooks and scales are counted,
        and what stays as it is. To leave parameters out of the account, hand in a tree
        without them.
      key: JAX random key; with the same one `compress` gives what was measured here.
      moments: From `calibrate`.
      divergence: A function of a tree like `params` with a `Compressed` node in one
        place, such as the Kullback-Leibler divergence of the network's outputs from
        those of the float one: a finite number, at least 0. It is called once for every
        parameter; decode outside of `jit`, so that the network is compiled once.

    Returns:
      An `Allocation`: rules for `compress`, with exact paths; a sequence, to which
      others are added as `[*allocation, rule]`. `print` shows it as a table.

    Raises:
      TypeError, ValueError: What `compress` raises; a parameter none of whose
        candidates fits; a budget below what the cheapest choice takes; moments of
        other shapes, or of no parameter at all, or with `outputs` for some alone where
        there is no divergence; a divergence that is negative or not finite.

    Examples:
      >>> import jax, ssvq_jax as ssvq
      >>> keys = jax.random.split(jax.random.key(0))
      >>> params = {
      ...     "small": 0.1 * jax.random.normal(keys[0], (64, 64)),
      ...     "large": jax.random.normal(keys[1], (64, 64)),
      ... }
      >>> candidates = [ssvq.Rule(".*", ssvq.Uniform(bits)) for bits in (2, 3, 4)]
      >>> key = jax.random.key(1)
      >>> allocation = ssvq.allocate(params, candidates, bits=3.3, key=key)
      >>> {rule.pattern: rule.codec.bits for rule in allocation}
      {'large': 4, 'small': 2}
      >>> compressed = ssvq.compress(params, allocation, key=key)
      >>> ssvq.report(compressed).model.bits_per_weight, allocation.bits
      (3.25, 3.25)
    """
    named, treedef = flatten(params, is_compressed)
    require_matches(candidates, named)
    if moments is not None:
        require_paths(moments, named)
    rows = report(params).rows
    matched = matching(candidates, named, axis_names(params))
    options = [fitting(row, named[row.path], matched[row.path]) for row in rows]
    _budget(bits, rows, options)  # an error before the work, not after it
    if moments is not None and divergence is None:
        tried = [
            x.path for x, own in zip(rows, options, strict=True) if not _stays(own)
        ]
        _require_one_unit(tried, moments)

    for i, row in enumerate(rows):
        if _stays(options[i]):
            continue
        leaf = named[row.path]
        own = priced(row.path, leaf, options[i], key, moments)
        inexact = [option for option in own if option.cost > 0]
        if divergence is not None and inexact:
            nearest = min(inexact, key=lambda x: abs(x.bits / row.weights - bits))
            node = encoded(row.path, leaf, nearest.rule, key, moments)
            alone = jax.tree.unflatten(treedef, {**named, row.path: node}.values())
            unit = _checked(row, nearest, divergence(alone)) / nearest.cost
            own = [dataclasses.replace(x, cost=unit * x.cost) for x in own]
        options[i] = own

    return _spent(tuple(zip(rows, map(tuple, options), strict=True)), bits)


def _spent(
    measured: tuple[tuple[Row, tuple[Option, ...]], ...], bits: int | float
) -> Allocation:
    rows, options = zip(*measured, strict=True)
    budget = _budget(bits, rows, options)
    places = spend([[(x.bits, x.cost) for x in own] for own in options], budget)
    chosen = [own[i] for own, i in zip(options, places, strict=True)]
    total = sum(option.cost for option in chosen)
    choices = []
    for row, option in zip(rows, chosen, strict=True):
        codec = option.rule.codec
        choices.append(
            Choice(
                row.path,
                row.shape,
                row.rule if codec is None else codec.describe(),
                row.weights,
                option.bits,
                option.error,
                stack=option.rule.depth(()) if codec is not None else row.stack,
                cost=option.cost,
                share=option.cost / total if total else 0.0,
            )
        )
    rules = tuple(option.rule for option in chosen if option.rule.codec is not None)
    return Allocation(rules, tuple(choices), measured)


def _budget(
    bits: int | float, rows: Sequence[Row], options: Sequence[Sequence[Option]]
) -> int:
    """The most bits that are not above `bits` a weight."""
    if not 0 < bits < math.inf:
        raise ValueError(f"bits: expected a positive number, got {bits}")
    weights = sum(row.weights for row in rows)
    if weights == 0:
        raise ValueError("params: expected at least one weight, got none")
    budget = math.floor(Fraction(float(bits)) * weights)
    budget += (budget + 1) / weights <= bits
    least = sum(min(option.bits for option in own) for own in options)
    if least > budget:
        kept = sum(own[0].bits for own in options if _stays(own))
        reachable = math.ceil(1e4 * least / weights) / 1e4
        raise ValueError(
            f"bits: expected at least {reachable:.4f}, of which {kept / weights:.4f} "
            f"are for parameters that stay as they are, got {bits}"
        )
    return budget


def _require_one_unit(paths: Sequence[str], moments: Mapping[str, Moment]) -> None:
    """Costs are losses with `outputs`, and shares without."""
    factored = [x for x in paths if x in moments and moments[x].outputs is not None]
    others = [path for path in paths if path not in factored]
    if factored and others:
        raise ValueError(
            f"moments: {factored[0]} has outputs and {others[0]} has none: their costs "
            "are in different units; give a divergence, or moments of one kind"
        )


def _stays(options: Sequence[Option]) -> bool:
    return all(option.rule.codec is None for option in options)


def _checked(row: Row, option: Option, divergence: Any) -> float:
    """What the divergence has said, checked."""
    value = float(divergence)
    if not 0 <= value < math.inf:
        codec = option.rule.codec
        raise ValueError(
            f"divergence: expected a finite number >= 0 for {row.path} compressed by "
            f"{codec.describe() if codec else codec}, got {value}"
        )
    return value
