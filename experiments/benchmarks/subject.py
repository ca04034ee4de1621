"""How a subject runs: its options, its rows one by one, and where they go."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable

import rich
from rich.markup import escape

from experiments.benchmarks import results
from experiments.benchmarks.rows import Row
from experiments.report import pages
from experiments.report.tables import measured
from experiments.training.records import RESULTS
from experiments.training.terminal import Flag, parse

RUNS = 7
LARGEST = 1e9


@dataclasses.dataclass(frozen=True)
class Options:
    """What the benchmarks run on, how often, and where the results go."""

    quick: Flag = False
    """Tiny sizes and 2 runs: checks that everything works, measures nothing."""
    runs: int = RUNS
    """Timed runs of every candidate, at least 5."""
    out: pathlib.Path | None = None
    """Folder of the results: experiments/results, with --quick runs/benchmarks."""
    models: pathlib.Path = pathlib.Path("../shared/models")
    """Folder of trained models as safetensors; without it their rows are skipped."""
    largest: float = LARGEST
    """The most weights in all that growth compresses."""

    @property
    def timed_runs(self) -> int:
        """Rounds of `median_seconds`."""
        return 2 if self.quick else max(5, self.runs)

    @property
    def folder(self) -> pathlib.Path:
        """Where the results go."""
        if self.out is not None:
            return self.out
        return pathlib.Path("runs/benchmarks") if self.quick else RESULTS

    def arguments(self) -> list[str]:
        """The command line of these options."""
        values = {
            "--runs": self.runs,
            "--out": self.folder,
            "--models": self.models,
            "--largest": self.largest,
        }
        pairs = [str(part) for pair in values.items() for part in pair]
        return [*pairs, "--quick"] if self.quick else pairs

    def command(self, subject: str) -> str:
        """What measures a subject again, folders aside."""
        parts = [f"python -m experiments.benchmarks {subject}"]
        if self.quick:
            parts.append("--quick")
        if self.runs != RUNS:
            parts.append(f"--runs {self.runs}")
        if self.largest != LARGEST:
            parts.append(f"--largest {self.largest:g}")
        return " ".join(parts)


def run(subject: results.Subject, measure: Callable[[Options], Iterable[Row]]) -> None:
    """Measure a subject by the options of the command line and keep its rows."""
    options = parse(Options, f"Benchmark of {subject}.")
    options.folder.mkdir(parents=True, exist_ok=True)
    command, rows = options.command(subject), []
    try:
        for row in measure(options):
            rows.append(dataclasses.replace(row, subject=subject, command=command))
            texts = filter(None, measured(rows[-1].to_record())[1:])
            rich.print(escape(f"{subject}: {row.case}: {' | '.join(texts)}"))
            results.store(options.folder, subject, rows)
    finally:  # rows measured before a failure are kept
        pages.build(options.folder, ["benchmarks"], lambda _: None)
