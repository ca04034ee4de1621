"""The results' files: benchmarks.json, and what is made from it."""

import json
import pathlib
from typing import Any, Literal, get_args

from rich.table import Table

from experiments.benchmarks import plots
from experiments.benchmarks.measure import machine
from experiments.benchmarks.rows import HEADERS, Row

Subject = Literal["kmeans", "compress", "decode", "matmul", "training", "growth"]
SUBJECTS: tuple[Subject, ...] = get_args(Subject)


def store(folder: pathlib.Path, subject: str, rows: list[Row]) -> None:
    """Put a subject's rows, and this machine, in place of those of an earlier run."""
    contents = _read(folder)
    contents[subject] = {
        "machine": machine(),
        "rows": [row.to_json() for row in rows],
    }
    ordered = {name: contents[name] for name in SUBJECTS if name in contents}
    path = folder / "benchmarks.json"
    path.write_text(json.dumps(ordered, indent=1) + "\n")


def load(folder: pathlib.Path) -> dict[str, list[Row]]:
    """The rows of every subject that has run."""
    return {
        subject: [Row.from_json(row) for row in content["rows"]]
        for subject, content in _read(folder).items()
    }


def render(folder: pathlib.Path) -> None:
    """Write benchmarks.md and the plots from benchmarks.json."""
    rows = load(folder)
    (folder / "benchmarks.md").write_text(_markdown(folder, rows))
    plots.draw_ratios(folder / "benchmarks.png", rows)
    if "growth" in rows:
        plots.draw_growth(folder / "growth.png", rows["growth"])


def table(subject: str, rows: list[Row]) -> Table:
    """The table to print: all but the notes."""
    shown = Table(title=subject, title_justify="left")
    for header in HEADERS[:-1]:
        shown.add_column(
            header, justify="right" if header in ("ratio", "aim") else "left"
        )
    for row in rows:
        shown.add_row(*row.cells[:-1], style="red" if row.missed else None)
    return shown


def _markdown(folder: pathlib.Path, rows: dict[str, list[Row]]) -> str:
    """A section per subject: command, machine, table."""
    machines = {name: content["machine"] for name, content in _read(folder).items()}
    parts = [
        "# Benchmarks\n\nRatio: how many times better ours is than the peer; aim: the "
        "ratio wanted. Medians; ours and the peer are timed in turn.\n"
    ]
    for subject, measured in rows.items():
        described = ", ".join(f"{k} {v}" for k, v in machines[subject].items())
        header = f"| {' | '.join(HEADERS)} |\n|{' --- |' * len(HEADERS)}\n"
        lines = "".join(f"| {' | '.join(row.cells)} |\n" for row in measured)
        command = measured[0].command
        parts.append(
            f"## {subject}\n\n`{command}`\n\nOn: {described}.\n\n{header}{lines}"
        )
    return "\n".join(parts)


def _read(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    path = folder / "benchmarks.json"
    return json.loads(path.read_text()) if path.exists() else {}
