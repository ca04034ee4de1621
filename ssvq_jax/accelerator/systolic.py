"""The systolic array: how a product is cut into folds, and what a fold takes.

A *fold* is what the array computes without being loaded anew. Weight-stationary: a
tile of `R x C` weights, past which `M` rows of activations stream; the outputs of the
last row leave after `R + C - 2` more cycles. Output-stationary: `R x C` outputs, for
which `K` pairs of operands stream.
"""

import dataclasses
import math
from collections.abc import Iterator

from ssvq_jax.accelerator.config import Config
from ssvq_jax.accelerator.workloads import MatMul


@dataclasses.dataclass(frozen=True)
class Tile:
    """Weights that are fetched together.

    Attributes:
      rows: Weights along the sums.
      cols: Outputs.
      folds: Folds that use them, one after the other.
    """

    rows: int
    cols: int
    folds: int = 1

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * self.cols


def tiles(product: MatMul, config: Config) -> Iterator[Tile]:
    """The tiles of one of a product's `count`: all sums of a few outputs, then on."""
    columns = [*_cut(product.n, config.cols)]
    rows = [product.k]
    folds = math.ceil(product.m / config.rows)
    if config.dataflow == "ws":
        rows, folds = [*_cut(product.k, config.rows)], 1
    for cols in columns:
        for part in rows:
            yield Tile(part, cols, folds)


def fold_count(product: MatMul, config: Config) -> int:
    """Number of folds of a product."""
    along = product.k if config.dataflow == "ws" else product.m
    rows = math.ceil(along / config.rows)
    return product.count * rows * math.ceil(product.n / config.cols)


def stream_cycles(product: MatMul, config: Config) -> int:
    """Cycles that a fold streams for: one per row of activations, or pair."""
    return product.m if config.dataflow == "ws" else product.k


def drain_cycles(config: Config) -> int:
    """Cycles from the last operand's entry to the last output's exit, less one."""
    return config.rows + config.cols - 2


def load_cycles(config: Config) -> int:
    """Cycles to shift a tile of weights in, row by row."""
    return config.rows if config.dataflow == "ws" else 0


def ideal_cycles(product: MatMul, config: Config) -> int:
    """Cycles of a product if nothing but streaming took time."""
    return fold_count(product, config) * stream_cycles(product, config)


def serial_cycles(product: MatMul, config: Config) -> int:
    """Cycles if every fold is loaded, filled, streamed and drained in turn.

    Weight-stationary `ceil(K/R) ceil(N/C) (M + 2R + C - 2)`, output-stationary
    `ceil(M/R) ceil(N/C) (K + R + C - 2)`: SCALE-Sim v3's, which prints one less.
    """
    fixed = load_cycles(config) + drain_cycles(config)
    return fold_count(product, config) * (stream_cycles(product, config) + fixed)


def roofline_cycles(product: MatMul, config: Config) -> int:
    """Cycles of a product alone, its weights at hand, loading hidden within it.

    Every fold streams, or waits for the next tile to be shifted in; the first tile is
    shifted in and the last outputs drain once for each of `count`.
    """
    load, stream = load_cycles(config), stream_cycles(product, config)
    folds = fold_count(product, config) // product.count
    between = (folds - 1) * max(stream, load)
    return product.count * (load + between + stream + drain_cycles(config))


def _cut(length: int, size: int) -> Iterator[int]:
    for start in range(0, length, size):
        yield min(size, length - start)
