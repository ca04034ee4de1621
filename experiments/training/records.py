"""Results as lines of JSON, one a run, each found by its name."""

import base64
import io
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

RESULTS = pathlib.Path(__file__).parents[1] / "results"
"""Where results are committed: `CONFIG.jsonl` and the pages made from them."""

Record = dict[str, Any]
"""What a run gave: numbers and texts by name."""


def read(path: pathlib.Path) -> dict[str, Record]:
    """The records of a file, by the names of their runs; none if it is missing."""
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record.pop("run"): record for record in records}


def write(path: pathlib.Path, records: Mapping[str, Record]) -> None:
    """Write records, a line each, by the names of their runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"run": run, **x}) + "\n" for run, x in records.items())
    write_text(path, "".join(lines))


def renew(
    path: pathlib.Path, records: Mapping[str, Record], order: Iterable[str]
) -> None:
    """Put records in the place of those of the same names; others stay as they are.

    Args:
      path: File, there or not.
      records: By the names of their runs.
      order: Names of all runs there are; records of others are dropped.
    """
    known = {**read(path), **records}
    write(path, {run: known[run] for run in order if run in known})


def pack(values: np.ndarray) -> str:
    """An array of numbers or booleans as text, for a record."""
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return base64.b64encode(zlib.compress(file.getvalue(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    """Inverse of `pack`."""
    return np.load(io.BytesIO(zlib.decompress(base64.b64decode(text))))


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(text)
    os.replace(partial, path)
