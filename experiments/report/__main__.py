"""Pages and plots of the results.

    python -m experiments.report
    python -m experiments.report README cifar10/bits

Writes them beside the results. A page whose results have not been made is left out,
with the command that makes them; a number that is missing elsewhere is an error.
"""

import dataclasses
import pathlib
import sys

import tyro
from rich.console import Console

from experiments.report.pages import PAGES, build
from experiments.report.results import Missing
from experiments.training.records import RESULTS
from experiments.training.terminal import parse


@dataclasses.dataclass(frozen=True)
class Options:
    """Which pages, of which results."""

    pages: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of pages, such as cifar10/bits; all where none is named."""
    results: pathlib.Path = RESULTS
    """Folder of the results; pages go there, too."""


def main(options: Options) -> int:
    """Write pages and plots; returns the exit status."""
    console = Console(soft_wrap=True, highlight=False)
    unknown = set(options.pages) - set(PAGES)
    if unknown:
        console.print(
            f"error: no page {', '.join(sorted(unknown))}: {', '.join(PAGES)}"
        )
        return 2
    try:
        absent = build(options.results, options.pages or PAGES, console.print)
    except Missing as error:
        console.print(f"[red]error:[/red] {error}")
        return 1
    for line in absent:
        console.print(f"[yellow]left out:[/yellow] {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main(parse(Options, __doc__)))
