"""`ssvq report`: a packed file as a page to look at."""

import collections
import importlib.util
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text
from tyro.conf import Positional

from ssvq_jax import tree
from ssvq_jax.checkpoint import Checkpoint
from ssvq_jax.cli import drawings
from ssvq_jax.cli.inspect import file_row
from ssvq_jax.cli.terminal import Flag, check_target, progress
from ssvq_jax.export import FormatError, PackedFile
from ssvq_jax.export.container import replacing
from ssvq_jax.tree.paths import printable
from ssvq_jax.tree.report import NOT_COMPRESSED, Report, Row

_SHARES = {"flipped": "signs that differ from the start", "frozen": "frozen signs"}


def report(
    file: Positional[pathlib.Path],
    *,
    html: pathlib.Path,
    against: pathlib.Path | None = None,
    log: pathlib.Path | None = None,
    quiet: Flag = False,
) -> int:
    """Write a page about a packed file: where its bytes are, and what its weights are.

    One HTML file that needs no network: totals, bytes by kind, a table of all tensors
    to sort and filter, and for each that is compressed its weights and its codewords,
    by how often they are used. Needs `pip install 'ssvq_jax[report]'`.

    Args:
      file: Packed file.
      html: Page to write, *.html.
      against: The checkpoint that it came from: for errors, and the weights before.
      log: metrics.jsonl of a training run: for the signs over its steps.
      quiet: Print nothing but errors.
    """
    missing = [x for x in ("jinja2", "matplotlib") if not importlib.util.find_spec(x)]
    if missing:
        raise ValueError(
            f"report: needs {' and '.join(missing)}: pip install 'ssvq_jax[report]'"
        )
    packed = Checkpoint(file)
    if packed.packed is None:
        raise FormatError(f"{file}: not written by ssvq_jax")
    original = None if against is None else Checkpoint(against)
    logs = [] if log is None else [str(log)]
    check_target([*packed.files, *(original.files if original else ()), *logs], html)
    steps = [] if log is None else _steps(log)
    tensors = []
    with progress(quiet) as bar:
        for name in bar.track(packed, description="Drawing"):
            tensors.append(_tensor(packed, packed.packed, name, original))
    tensors.sort(key=lambda found: -found[0].bits)  # the largest first
    rows = [row for row, _ in tensors]
    page = _page(
        title=file.name,
        totals=Report.of(rows),
        size=packed.packed.nbytes,
        kinds=_bytes_by_kind(packed.packed, rows),
        tensors=tensors,
        training=drawings.lines(steps, _SHARES) if steps else None,
    )
    with replacing(html) as target:
        target.write(page.encode())
    if not quiet:
        text = f"{html}: {html.stat().st_size:,} bytes, {len(rows)} tensors."
        Console().print(Text(text))
    return 0


def _tensor(
    packed: Checkpoint, file: PackedFile, name: str, original: Checkpoint | None
) -> tuple[Row, str | None]:
    """A tensor's row, and where it is compressed its drawing."""
    stored = packed.stored[name]
    if stored in file.ties or stored not in file.entries:
        return file_row(file, stored), None
    node = file[stored]
    before = None
    if original is not None and name in original:
        before = original[name]
    reference = None if before is None else {name: before}
    try:
        (row,) = tree.report({name: node}, reference).rows
    except ValueError as error:
        raise ValueError(f"{original and original.path}: {error}") from error
    weights = np.asarray(node.decode("float32"))
    codes = np.asarray(node.codes)
    if hasattr(node, "codebook"):
        codebook = np.asarray(node.codebook, np.float32)
        counts = np.bincount(codes.ravel(), minlength=len(codebook))
    else:
        codebook = None
        counts = np.unique(codes, return_counts=True)[1]
    return row, drawings.tensor(weights, before, codebook, counts)


def _bytes_by_kind(file: PackedFile, rows: Sequence[Row]) -> dict[str, int]:
    """Bytes of the file by what they are, in the order of the page."""
    found = collections.Counter(
        {"not compressed": sum(x.bits // 8 for x in rows if x.rule == NOT_COMPRESSED)}
    )
    for name in file.entries.keys() - file.ties.keys():
        for field in file.entries[name].fields:
            found[field.kind] += field.nbytes
    found["header, hashes and fill"] = file.nbytes - sum(found.values())
    return {kind: count for kind, count in found.most_common() if count}


def _steps(path: pathlib.Path) -> list[Mapping[str, Any]]:
    """The lines of a log that say something of signs."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found = [x for x in lines if x.keys() & _SHARES.keys()]
        numbers = [x[name] for x in found for name in {"step", *_SHARES} & x.keys()]
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
            raise ValueError("expected numbers")
        if not all("step" in x for x in found):
            raise ValueError("a line without a step")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no log of a training run: {error}") from error
    if not found:
        raise ValueError(f"{path}: no line has {' or '.join(_SHARES)}")
    return found


def _page(**content: Any) -> str:
    import jinja2  # an extra; looked for above

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ssvq_jax.cli"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    return environment.get_template("report.html.j2").render(content)
