"""Numbers of pages: intervals, differences image by image, and how they are shown."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report.results import Missing, Run
from experiments.tasks.task import half_width


class Gap(NamedTuple):
    """A mean difference in accuracy, and half of its 95 % interval over the images."""

    mean: float
    half: float

    def __str__(self) -> str:
        """In points."""
        return f"{100 * self.mean:+.2f} ± {100 * self.half:.2f}"

    @property
    def more(self) -> bool:
        """Whether all of the interval is above 0."""
        return self.mean > self.half

    @property
    def less(self) -> bool:
        """Whether all of the interval is below 0."""
        return self.mean < -self.half

    @property
    def open(self) -> bool:
        """Whether 0 is in the interval: nothing can be told apart."""
        return not self.more and not self.less


def gap(
    ours: Run | Sequence[Run],
    theirs: Run | Sequence[Run],
    beyond: tuple[Run | Sequence[Run], Run | Sequence[Run]] | None = None,
) -> Gap:
    """Difference in accuracy between means over seeds, its interval image by image.

    Args:
      ours: A run, or those of one method with different seeds.
      theirs: Those of another method, on the same test images.
      beyond: Another two, whose difference is taken off.
    """

    def between(
        one: Run | Sequence[Run], other: Run | Sequence[Run]
    ) -> tuple[float, np.ndarray]:
        first, second = (
            (np.mean([x.accuracy for x in runs]), np.mean([x.each for x in runs], 0))
            for runs in (_runs(one), _runs(other))
        )
        return float(first[0] - second[0]), first[1] - second[1]

    # Of AP and the like the mean over images is another one: that of a jackknife.
    mean, each = between(ours, theirs)
    if beyond is not None:
        less, other = between(*beyond)
        mean, each = mean - less, each - other
    return Gap(mean, half_width(each))


def half(run: Run) -> float:
    """Half of the 95 % interval of a run's accuracy."""
    return half_width(run.each)


def mean(runs: Sequence[Run], *names: str) -> float:
    """Of a number that all runs have, or of one inside, by its names."""

    def found(values: Any) -> float:
        for name in names:
            values = values[name]
        return values

    return float(np.mean([found(run) for run in runs]))


def best(runs: Sequence[Run], metric: str) -> Run:
    """The run of the largest validation metric; the first of equal ones.

    Raises:
      Missing: All have diverged.
    """
    kept = [run for run in runs if run.diverged is None]
    if not kept:
        raise Missing(f"all have diverged: {', '.join(run.place for run in runs)}")
    return max(kept, key=lambda run: run["validation"][metric])


def fixed(value: float, digits: int = 2) -> str:
    """With so many digits behind the point."""
    return f"{value:.{digits}f}"


def percent(share: float, digits: int = 2) -> str:
    """A share in percent, or a difference in points, without a unit."""
    return f"{100 * share:.{digits}f}"


def thousands(value: float) -> str:
    """A whole number, `1,234,567`."""
    return f"{value:,.0f}"


def seconds_text(value: float) -> str:
    """Seconds with three digits, as s, ms or us."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{value * factor:#.3g} {unit}".replace(". ", " ")
    return f"{value * 1e6:#.3g} us".replace(". ", " ")


def verdict(met: bool) -> str:
    """The word for an aim that was met or missed."""
    return "met" if met else "missed"


def at_most(value: float, most: float, text: str = "") -> str:
    """The verdict on an upper limit, and the limit, or the text for it."""
    return f"{verdict(value <= most)}: at most {text or f'{most:g}'}"


def _runs(runs: Run | Sequence[Run]) -> Sequence[Run]:
    return [runs] if isinstance(runs, Run) else runs
