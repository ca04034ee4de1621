"""A packed file as one HTML page, which loads nothing from elsewhere."""

import collections
import importlib.util
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ssvq_jax import tree
from ssvq_jax.checkpoint import Checkpoint, stored_row
from ssvq_jax.export import FormatError, PackedFile
from ssvq_jax.page import drawings
from ssvq_jax.tree.paths import printable
from ssvq_jax.tree.report import NOT_COMPRESSED, Report, Row

_SHARES = {"flipped": "signs that differ from the start", "frozen": "frozen signs"}


def page(
    packed: Checkpoint,
    original: Checkpoint | None = None,
    steps: Sequence[Mapping[str, Any]] = (),
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> str:
    """The page of a packed file.

    Args:
      packed: The file.
      original: The checkpoint that it came from: for errors, and the weights before.
      steps: Of `read_steps`: for the signs over a training.
      track: Given the names of the tensors, gives them back; shows how far it is.

    Raises:
      FormatError: A checkpoint that is not packed.
      ValueError: An original with other tensors.
    """
    if packed.packed is None:
        raise FormatError(f"{packed.path}: not written by ssvq_jax")
    tensors = [_tensor(packed, packed.packed, x, original) for x in track(packed)]
    tensors.sort(key=lambda found: -found[0].bits)  # the largest first
    rows = [row for row, _ in tensors]
    return _rendered(
        title=os.path.basename(packed.path),
        totals=Report.of(rows),
        size=packed.packed.nbytes,
        kinds=_bytes_by_kind(packed.packed, rows),
        tensors=tensors,
        training=drawings.lines(steps, _SHARES) if steps else None,
    )


def require_extras() -> None:
    """Raise `ValueError` where what `page` needs is not installed."""
    missing = [x for x in ("jinja2", "matplotlib") if not importlib.util.find_spec(x)]
    if missing:
        raise ValueError(
            f"report: needs {' and '.join(missing)}: pip install 'ssvq_jax[report]'"
        )


def _tensor(
    packed: Checkpoint, file: PackedFile, name: str, original: Checkpoint | None
) -> tuple[Row, str | None]:
    """A tensor's row, and where it is compressed its drawing."""
    stored = packed.stored[name]
    if stored in file.ties or stored not in file.entries:
        return stored_row(file, stored), None
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


def read_steps(path: pathlib.Path) -> list[Mapping[str, Any]]:
    """The lines of a training's log, metrics.jsonl, that say something of signs.

    Raises:
      ValueError: No such log, or none of such a training.
    """
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


def _rendered(**content: Any) -> str:
    import jinja2  # an extra: see `require_extras`

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ssvq_jax.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    return environment.get_template("report.html.j2").render(content)
