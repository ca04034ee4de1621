"""Tables in Markdown that are more than a row for every run."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.configs._methods import TITLES
from experiments.report.numbers import best, percent, seconds_text, verdict
from experiments.report.results import Run

BENCHMARK = ("case", "ours", "peer", "ratio", "aim", "", "note")
"""Columns of `measured`."""


def header(*names: Any, left: Sequence[int] = (0,)) -> str:
    """The first two lines of a table: columns of words are aligned to the left."""
    names = _flat(names)
    lines = ["---" if i in left else "---:" for i in range(len(names))]
    return f"{row(*names)}\n{row(*lines)}"


def row(*cells: Any) -> str:
    """A line of a table; lists among the cells are cells, too."""
    return f"| {' | '.join(map(str, _flat(cells)))} |"


def rates(runs: Sequence[Run], metric: str) -> str:
    """Validation in %, a row per method and first rate, a column per second rate.

    Args:
      runs: Named METHOD-RATE-RATE.
      metric: Of the validation split. The best of each method is bold.
    """
    columns = sorted({run.parts[2] for run in runs}, key=float)
    lines = [header("method", "first rate", *columns)]
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        cells = {(*run.parts[1:],): validated(run, metric, own) for run in own}
        for first in sorted({run.parts[1] for run in own}, key=float):
            found = (cells.get((first, second), "") for second in columns)
            lines.append(row(TITLES[method], first, *found))
    return "\n".join(lines)


def validated(run: Run, metric: str, among: Sequence[Run]) -> str:
    """A run's validation in %, or that it has diverged; bold if it is the best."""
    if run.diverged is not None:
        return f"diverged by step {run.diverged}"
    text = percent(run["validation"][metric])
    return f"**{text}**" if run is best(among, metric) else text


def measured(found: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of the columns in `BENCHMARK`.

    Args:
      found: A `Row` of `experiments.benchmarks.rows` as a record.
    """

    def quantity(value: float) -> str:
        unit = found["unit"]
        return seconds_text(value) if unit == "s" else f"{value:.4g} {unit}"

    peer, ratio, aim = found["peer"], found["ratio"], found["aim"]
    met = None if aim is None or ratio is None else ratio >= aim
    return (
        found["case"],
        quantity(found["ours"]),
        "" if peer is None else f"{quantity(peer)} ({found['peer_name']})",
        "" if ratio is None else f"{ratio:.2f}",
        "" if aim is None else f"{aim:.2f}",
        "" if met is None else verdict(met),
        "; ".join(
            filter(None, (found["note"], found["reason"] if met is False else ""))
        ),
    )


def _flat(cells: Sequence[Any]) -> tuple[Any, ...]:
    nested = (cell if isinstance(cell, list) else [cell] for cell in cells)
    return tuple(itertools.chain.from_iterable(nested))
