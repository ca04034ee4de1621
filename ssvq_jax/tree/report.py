"""What was compressed, to how many bits, at what error: per parameter and in all."""

import dataclasses
import functools
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console, RichCast
from rich.table import Table
from rich.text import Text

from ssvq_jax.codecs import Compressed, is_compressed
from ssvq_jax.core.checks import as_array, largest_of
from ssvq_jax.core.sharding import sharding_of
from ssvq_jax.tree.paths import flatten, printable

NOT_COMPRESSED = "not compressed"
TITLES = (
    "parameter",
    "shape",
    "rule",
    "bits/\nweight",
    "x\nfloat32",
    "error",
    "used",  # codewords; left out, as errors are, where there are none
    "worst\nslice",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter, or a total of several.

    Attributes:
      path: `/`-joined path, or the name of the total.
      shape: Shape of the weight; `None` for a total.
      rule: The codec that its rule gave it, `NOT_COMPRESSED` without one.
      weights: Number of weights.
      bits: Stored bits, codebook and padding included.
      error: `||W - decode||^2 / ||W||^2`; `None` without a reference.
      codewords_used: Share of the codewords that at least one block uses; `None`
        where there is no codebook.
      worst: The largest `error` of a slice along the first axis, of stacks and of other
        weights of three or five axes that are not contracted along it: layers or
        experts that share a codebook. `None` for others, or without a reference.
      stack: How many leading axes of `shape` are those of a stack.
    """

    path: str
    shape: tuple[int, ...] | None
    rule: str
    weights: int
    bits: int
    error: float | None = None
    codewords_used: float | None = None
    worst: float | None = None
    stack: int = 0

    @property
    def shape_text(self) -> str:
        """`64x32`; of a stack of five `5x(64x32)`; empty for a total."""
        shape = [str(size) for size in self.shape or ()]
        inner = "x".join(shape[self.stack :])
        return "x".join([*shape[: self.stack], f"({inner})" if self.stack else inner])

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight."""
        return self.bits / self.weights if self.weights else math.nan

    @property
    def ratio(self) -> float:
        """Size in float32 over the stored size."""
        return 32 * self.weights / self.bits if self.bits else math.nan


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of `report`; prints as a table.

    Attributes:
      rows: One per parameter.
      compressed: Total of the compressed weights.
      model: Total of all weights.
    """

    rows: tuple[Row, ...]
    compressed: Row
    model: Row

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Report":
        """The report of these parameters, with its totals."""
        rows = tuple(rows)
        compressed = [row for row in rows if row.rule != NOT_COMPRESSED]
        return cls(
            rows, _total("all compressed", compressed), _total("whole model", rows)
        )

    def __rich__(self) -> Table:
        totals = [cells(row) for row in (self.compressed, self.model)]
        return table(TITLES, [cells(row) for row in self.rows], totals)

    def __str__(self) -> str:
        return as_text(self)


def report(tree: Any, reference: Any = None) -> Report:
    """Report sizes, errors and codebook use of a compressed tree.

    Args:
      tree: Pytree with `Compressed` nodes, from `compress`, `finalize` or `load`.
      reference: The float tree that it came from, same paths; without it no errors
        are given.

    Returns:
      A `Report` with a row per parameter and totals; `print` shows it as a table.

    Raises:
      ValueError: A reference without one of the compressed parameters, or with
        another shape.

    Examples:
      >>> import jax, ssvq_jax as ssvq
      >>> params = {"kernel": jax.random.normal(jax.random.key(0), (64, 64))}
      >>> rules = [ssvq.Rule("kernel", ssvq.SSVQ())]
      >>> compressed = ssvq.compress(params, rules, key=jax.random.key(1))
      >>> ssvq.report(compressed, params).compressed.bits_per_weight
      2.0
    """
    named, _ = flatten(tree, is_compressed)
    originals = None if reference is None else flatten(reference)[0]
    rows = []
    for path, leaf in named.items():
        if not is_compressed(leaf):
            shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
            size = math.prod(shape)
            # Of float4 two are in a byte of a file, one in a byte of memory.
            bits = (4 if dtype.name == "float4_e2m1fn" else 8 * dtype.itemsize) * size
            rows.append(Row(path, shape, NOT_COMPRESSED, size, bits))
            continue
        try:
            leaf.check()
        except ValueError as problem:
            raise ValueError(f"{path}: {problem}") from problem
        error = worst = None
        if originals is not None:
            errors = _relative_errors(path, leaf, originals)
            error, worst = (None if x is None else float(x) for x in errors)
        rows.append(
            Row(
                path,
                leaf.array_shape,
                leaf.codec.describe(),
                leaf.size,
                leaf.bits,
                error,
                _codewords_used(leaf),
                worst,
                len(leaf.stack),
            )
        )
    return Report.of(rows)


def _relative_errors(
    path: str, node: Compressed, originals: dict[str, Any]
) -> tuple[jax.Array, jax.Array | None]:
    """That of all, and of the worst slice of a stack."""
    original = originals.get(path)
    if original is None or jnp.shape(original) != node.array_shape:
        found = "nothing" if original is None else f"shape {jnp.shape(original)}"
        raise ValueError(
            f"{path}: expected shape {node.array_shape} in the reference, got {found}"
        )
    original = as_array(original)
    sliced = bool(node.stack) or (original.ndim in (3, 5) and node.axis != 0)
    largest = largest_of(original)
    unit = jnp.where(largest > 0, largest, 1.0)  # squares of large weights overflow
    # One by one: together XLA would keep what they are the sums of.
    norms = _squares(original, None, unit, sliced)
    if sliced or sharding_of(original) is not None:
        squares = _squares(original, node, unit, sliced)
    else:
        parts = (_squares(original[at], x, unit, False) for at, x in node.slabs())
        squares = functools.reduce(jnp.add, parts)
    total = _ratio(jnp.sum(squares), jnp.sum(norms))
    return total, jnp.max(_ratio(squares, norms)) if sliced else None


@functools.partial(jax.jit, static_argnums=3)
def _squares(
    original: jax.Array, node: Compressed | None, unit: jax.Array, sliced: bool
) -> jax.Array:
    """Squares of weights or, with a node, of its errors; summed, or slice by slice."""
    values = original.astype(jnp.float32) / unit
    if node is not None:
        values -= node.decode().astype(jnp.float32) / unit
    return jnp.sum(jnp.square(values), axis=tuple(range(int(sliced), values.ndim)))


def _ratio(squares: jax.Array, norms: jax.Array) -> jax.Array:
    return jnp.where(norms > 0, squares / jnp.where(norms > 0, norms, 1.0), squares)


def _codewords_used(node: Any) -> float | None:
    if not hasattr(node, "codebook"):
        return None
    slices = np.asarray(node.codes).reshape(math.prod(node.stack), -1)
    used = [len(np.unique(codes)) for codes in slices]
    return sum(used) / len(used) / node.codec.codewords


def _total(name: str, rows: Sequence[Row]) -> Row:
    weights, bits = sum(row.weights for row in rows), sum(row.bits for row in rows)
    return Row(name, None, "", weights, bits)


def cells(row: Row) -> tuple[str | Text, ...]:
    """A row as text, under `TITLES`."""
    name = row.path
    if row.shape is None:
        name = f"{name}, {row.weights:,} weights"
    return (
        Text(printable(name)),  # no markup
        row.shape_text,
        Text(printable(row.rule)),
        f"{row.bits_per_weight:.3f}" if row.weights else "",
        f"{row.ratio:.1f}" if row.bits else "",
        "" if row.error is None else f"{row.error:.4f}",
        "" if row.codewords_used is None else f"{row.codewords_used:.0%}",
        "" if row.worst is None else f"{row.worst:.4f}",
    )


def table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    totals: Sequence[Sequence[str | Text]],
) -> Table:
    """Rows, and totals below a line; numbers from the fourth column on.

    From the sixth column on those are left out that are empty in all rows.
    """
    shown = Table(box=box.SIMPLE, pad_edge=False)
    columns = []
    for column, title in enumerate(titles):
        if column < 5 or any(row[column] for row in rows):
            columns.append(column)
            shown.add_column(
                title,
                justify="right" if column > 2 else "left",
                overflow="fold",
                no_wrap=column not in (0, 2),
            )
    for row in rows:
        shown.add_row(*(row[column] for column in columns))
    shown.add_section()
    for row in totals:
        shown.add_row(*(row[column] for column in columns))
    return shown


def as_text(shown: RichCast) -> str:
    """What shows as a table, as plain text."""
    console = Console(file=io.StringIO(), width=120)
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined]
