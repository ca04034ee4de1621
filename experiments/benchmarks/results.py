"""The results' lines, benchmarks.jsonl, and the table to print."""

import pathlib
from collections.abc import Sequence
from typing import Literal, get_args

from rich.table import Table

from experiments.benchmarks.measure import machine
from experiments.benchmarks.rows import Row
from experiments.report.tables import BENCHMARK, measured
from experiments.training import records

Subject = Literal[
    "kmeans",
    "compress",
    "refine",
    "decode",
    "matmul",
    "generate",
    "training",
    "growth",
    "sharding",
    "chain",
]
SUBJECTS: tuple[Subject, ...] = get_args(Subject)
FILE = "benchmarks.jsonl"


def store(folder: pathlib.Path, subject: Subject, rows: Sequence[Row]) -> None:
    """Put a subject's rows, and this machine, in place of those of an earlier run."""
    here = machine()
    lines = {name: x for name, x in _read(folder).items() if x["subject"] != subject}
    for row in rows:
        name = ", ".join(filter(None, (subject, row.case, row.peer_name)))
        lines[name] = {**row.to_record(), "machine": here}
    order = sorted(lines, key=lambda name: SUBJECTS.index(lines[name]["subject"]))
    records.write(folder / FILE, {name: lines[name] for name in order})


def table(folder: pathlib.Path, subject: Subject) -> Table:
    """A subject's table to print: all but the notes."""
    shown = Table(title=subject, title_justify="left")
    for name in BENCHMARK[:-1]:
        shown.add_column(name, justify="right" if name in ("ratio", "aim") else "left")
    for line in _read(folder).values():
        if line["subject"] == subject:
            cells = measured(line)[:-1]
            shown.add_row(*cells, style="red" if "missed" in cells else None)
    return shown


def _read(folder: pathlib.Path) -> dict[str, records.Record]:
    return records.read(folder / FILE)
