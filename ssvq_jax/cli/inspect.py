"""`ssvq info`, `ssvq verify`, `ssvq diff`: what is in files, whether it is right."""

import json as json_text
import math
import pathlib
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from ssvq_jax.checkpoint import Checkpoint, stored_row
from ssvq_jax.cli.terminal import Flag, progress
from ssvq_jax.export import FormatError, PackedFile, load
from ssvq_jax.export.container import bytes_of
from ssvq_jax.tree.paths import printable
from ssvq_jax.tree.report import Report, Row

_SHOWN = 400  # characters of metadata


def info(file: Positional[pathlib.Path], *, json: Flag = False) -> int:
    """Show what is in a packed file. Reads its header only.

    Args:
      file: Packed file.
      json: Print JSON.
    """
    packed = load(file, lazy=True)
    report = Report.of(stored_row(packed, name) for name in packed)
    if json:
        contents = {**file_json(packed), **report_json(report)}
        contents["metadata"] = packed.metadata
        print(json_text.dumps(contents, indent=1))
        return 0
    console = Console()
    console.print(report)
    describe_file(console, packed)
    if packed.metadata:
        text = json_text.dumps(packed.metadata)
        more = "" if len(text) <= _SHOWN else " ... (--json has all)"
        console.print(Text(f"Metadata: {text[:_SHOWN]}{more}"))
    return 0


def verify(
    file: Positional[pathlib.Path],
    *,
    against: pathlib.Path | None = None,
    json: Flag = False,
) -> int:
    """Check every hash and value of a packed file. Exit status 1 if one is wrong.

    Args:
      file: Packed file.
      against: The checkpoint that it came from: shows the relative squared error of
        every compressed tensor, and checks that all else is the same.
      json: Print JSON.
    """
    packed = Checkpoint(file)
    if packed.packed is None:
        raise FormatError(f"{file}: not written by ssvq_jax")
    original = None if against is None else Checkpoint(against)
    rows: list[dict[str, Any]] = []
    names = dict.fromkeys((*packed, *(original or ())))
    with progress(json) as bar:
        for name in bar.track(names, description="Verifying"):
            problem, error = _verify(packed, original, name)
            rows.append({"name": name, "error": error, "problem": problem})
    failed = [row for row in rows if row["problem"] is not None]
    if json:
        print(json_text.dumps({"ok": not failed, "parameters": rows}, indent=1))
        return 1 if failed else 0
    console, table = Console(), Table()
    table.add_column("parameter", overflow="fold")
    table.add_column("relative squared error", justify="right")
    table.add_column("")
    for row in rows:
        if row["error"] is None and row["problem"] is None:
            continue
        shown = "" if row["error"] is None else f"{row['error']:.4f}"
        problem = Text(
            printable(row["problem"] or "ok"), "red" if row["problem"] else "green"
        )
        table.add_row(Text(printable(row["name"])), shown, problem)
    if table.row_count:
        console.print(table)
    console.print(
        f"{len(rows) - len(failed)} of {len(rows)} parameters are right.",
        highlight=False,
    )
    return 1 if failed else 0


def diff(
    a: Positional[pathlib.Path],
    b: Positional[pathlib.Path],
    *,
    json: Flag = False,
) -> int:
    """Compare the weights of two checkpoints, packed or not.

    Exit status 1 if they differ.

    Args:
      a: Packed file, or whatever checkpoint `ssvq compress` takes.
      b: Another.
      json: Print JSON.
    """
    first, second = Checkpoint(a), Checkpoint(b)
    rows: list[dict[str, Any]] = []
    names = dict.fromkeys((*first, *second))
    with progress(json) as bar:
        for name in bar.track(names, description="Comparing"):
            rows.append({"name": name, **_difference(first, second, name)})
    differing = [row for row in rows if row["difference"] != "none"]
    if json:
        print(json_text.dumps({"same": not differing, "parameters": rows}, indent=1))
        return 1 if differing else 0
    console, table = Console(), Table()
    for header in ("parameter", "a", "b", "difference"):
        table.add_column(header, overflow="fold")
    for row in differing:
        cells = (row[key] for key in ("name", "a", "b", "difference"))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    if differing:
        console.print(table)
    console.print(
        f"{len(rows) - len(differing)} of {len(rows)} parameters are the same.",
        highlight=False,
    )
    return 1 if differing else 0


def file_json(packed: PackedFile) -> dict[str, Any]:
    """A file's name and where its bytes go, as JSON."""
    return {"file": packed.path, **_sizes(packed)}


def report_json(report: Report) -> dict[str, Any]:
    """A report as JSON."""

    def row_json(row: Row) -> dict[str, Any]:
        return {
            "name": row.path,
            "shape": row.shape,
            "method": row.rule,
            "weights": row.weights,
            "bytes": row.bits // 8,
            "bits_per_weight": row.bits_per_weight if row.weights else None,
            "ratio": row.ratio if row.bits else None,
            "error": row.error,
            "worst_slice": row.worst,
        }

    return {
        "compressed": row_json(report.compressed),
        "model": row_json(report.model),
        "parameters": [row_json(row) for row in report.rows],
    }


def describe_file(console: Console, packed: PackedFile) -> None:
    """Print where the bytes of a packed file go."""
    sizes = _sizes(packed)
    total = sizes.pop("bytes")
    parts = ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in sizes.items() if v)
    shards = len(packed.files) - 1
    files = f" in {shards} shards" if shards else ""
    console.print(Text(f"{packed.path}: {total:,} bytes{files}: {parts}."))


def _sizes(packed: PackedFile) -> dict[str, int]:
    parameters = sum(stored_row(packed, name).bits // 8 for name in packed)
    size, header, hashes = packed.nbytes, packed.header_bytes, packed.hash_bytes
    return {
        "bytes": size,
        "parameters": parameters,
        "header": header,
        "hashes": hashes,
        "alignment": size - parameters - header - hashes,
    }


def _verify(
    packed: Checkpoint, original: Checkpoint | None, name: str
) -> tuple[str | None, float | None]:
    """What is wrong with a parameter, and its error against the original."""
    if name not in packed:
        return "missing from the packed file", None
    try:
        values = packed[name]
    except FormatError as error:
        return str(error), None
    if original is None:
        return None, None
    if name not in original:
        return "not in the original", None
    expected = original[name]
    if (values.shape, values.dtype) != (expected.shape, expected.dtype):
        found = f"{values.dtype}{list(values.shape)}"
        return f"{found}, originally {expected.dtype}{list(expected.shape)}", None
    assert packed.packed is not None
    if packed.stored[name] in packed.packed.entries:
        error = relative_error(values, expected)
        if not math.isfinite(error):
            return "not finite, it or the original", None
        return None, error
    same = _same_bytes(values, expected)
    return None if same else "other values than the original", None


def _difference(a: Checkpoint, b: Checkpoint, name: str) -> dict[str, str]:
    described = {key: _describe(x, name) for key, x in (("a", a), ("b", b))}
    if name not in a or name not in b:
        return {**described, "difference": "only in " + ("a" if name in a else "b")}
    x, y = a[name], b[name]
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        return {**described, "difference": "shape or dtype"}
    if _same_bytes(x, y):
        return {**described, "difference": "none"}
    error = relative_error(y, x)
    return {**described, "difference": f"relative squared error {error:.3g}"}


def _describe(checkpoint: Checkpoint, name: str) -> str:
    if name not in checkpoint:
        return ""
    shape = "x".join(map(str, checkpoint.shape(name)))
    text = f"{checkpoint.dtype(name).name} {shape}".strip()
    packed = checkpoint.packed
    if packed is None or checkpoint.stored[name] not in packed.entries:
        return text
    return f"{text} {packed.entries[checkpoint.stored[name]].codec.describe()}"


def _same_bytes(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays of one shape and dtype are the same, NaN and -0 included."""
    return np.array_equal(bytes_of(x), bytes_of(y))


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    """`||expected - values||^2 / ||expected||^2`; the numerator where that is 0."""
    kind = np.complex128 if np.iscomplexobj(expected) else np.float64
    expected = expected.astype(kind).ravel()
    difference = values.astype(kind).ravel()
    difference -= expected
    norm, total = (float(np.vdot(x, x).real) for x in (expected, difference))
    return total / (norm if norm > 0 else 1.0)
