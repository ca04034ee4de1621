"""What the commands share: options that are off, and bars."""

import sys
from typing import Annotated, TypeVar

import jax
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""An option that is off unless it is named."""
_Options = TypeVar("_Options")


def parse(kind: type[_Options], description: str | None) -> _Options:
    """Options of the command line `python -m MODULE ...`, by their dataclass."""
    prog = f"python -m {sys.orig_argv[2]}"
    return tyro.cli(kind, prog=prog, description=description)


def bars(console: Console) -> Progress:
    """A bar for every run, with a `note`; of several processes the first shows them."""
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=jax.process_index() > 0,
    )
