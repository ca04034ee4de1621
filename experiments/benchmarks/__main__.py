"""Run the benchmarks: speed and memory against the best known peers.

    python -m experiments.benchmarks
    python -m experiments.benchmarks kmeans decode
    python -m experiments.benchmarks --quick

Every subject runs in a process of its own. Writes benchmarks.jsonl, its page and its
plots; results of subjects that do not run are kept.
Exit status 1 when a subject fails.
"""

import dataclasses
import subprocess
import sys

import tyro
from rich.console import Console

from experiments.benchmarks import results
from experiments.benchmarks.subject import Options


@dataclasses.dataclass(frozen=True)
class Choice(Options):
    """Which benchmarks to run, and how."""

    subjects: tyro.conf.Positional[tuple[results.Subject, ...]] = ()
    """What to run; everything where nothing is named."""


def main(choice: Choice) -> int:
    """Run the subjects in turn; returns the exit status."""
    console, failed = Console(), []
    subjects = choice.subjects or results.SUBJECTS
    for subject in subjects:
        console.rule(subject)
        module = f"experiments.benchmarks.{subject}"
        command = [sys.executable, "-m", module, *choice.arguments()]
        if subprocess.run(command, check=False).returncode:
            failed.append(subject)
    for subject in subjects:
        console.print(results.table(choice.folder, subject))
    console.print(f"Results: {choice.folder / 'benchmarks.md'}")
    for subject in failed:
        console.print(f"[red]FAILED[/red] {subject}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(
        main(
            tyro.cli(
                Choice, prog="python -m experiments.benchmarks", description=__doc__
            )
        )
    )
