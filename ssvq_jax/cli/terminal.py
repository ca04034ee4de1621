"""What the commands share: options that are off, bars, checks of their outputs."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Annotated

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

from ssvq_jax.export.container import check_replaceable

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""An option that is off unless it is named."""


def check_target(sources: Iterable[str], out: pathlib.Path) -> None:
    """Raise before any work is done for an output that cannot be written.

    Raises:
      OSError: A directory that is missing or cannot be written; no regular file.
      ValueError: One of the sources.
    """
    check_replaceable(out)
    if out.exists() and any(map(out.samefile, filter(os.path.exists, sources))):
        raise ValueError(f"{out}: is the source; give the output another name")


def byte_count(text: str) -> int:
    """A number of bytes as people write it: 2GB, 500 MB, 4096."""
    found = re.fullmatch(
        r"(\d{1,15}(?:\.\d{1,15})?) ?([KMGT]?)B?", text.strip(), re.IGNORECASE
    )
    if not found:
        raise ValueError(f"expected bytes such as 2GB or 500MB, got {text!r}")
    number, unit = found.groups()
    return int(float(number) * 1000 ** ("KMGT".index(unit.upper()) + 1 if unit else 0))


def progress(quiet: bool) -> Progress:
    """A bar on the standard error output, so that results can be piped."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )


def status(text: str, quiet: bool) -> contextlib.AbstractContextManager[object]:
    """A sign of life, with a text, on the standard error output."""
    if quiet:
        return contextlib.nullcontext()
    return Console(stderr=True).status(text)
