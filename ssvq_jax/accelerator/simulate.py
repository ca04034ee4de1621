"""The simulation: an event per tile of weights, from memory to the last output.

A tile goes through three stages, each busy with one tile at a time and in order: the
channel fetches it into the weight buffer; the decoder and the array's load port shift
it in; the array streams activations past it. What is assumed beside the values of
`Config`:

- A tile's codes and signs are one request each, a matrix's codebook is one more before
  its first tile. A tile is decoded when all of it has arrived; weights that pass the
  decoder by are shifted in as they arrive.
- The decoder feeds the load port: shifting a tile in takes as many cycles as the
  slower of both. Under output-stationary flow the weights stream, and the decoder
  works again for every fold.
- The codebook's registers are double where weights are prefetched.
- Activations that fit stay on the chip, the first input and the last output included.
- The products of a model follow each other, heads of attention and channels of a
  depthwise convolution too: one streams when the one before has left the array.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any

from ssvq_jax.accelerator.activations import Activations
from ssvq_jax.accelerator.channel import Channel, WeightBuffer
from ssvq_jax.accelerator.config import Config
from ssvq_jax.accelerator.energy import events
from ssvq_jax.accelerator.report import CAUSES, Layer, Report
from ssvq_jax.accelerator.stored import Stored, resolve
from ssvq_jax.accelerator.systolic import (
    Tile,
    drain_cycles,
    fold_count,
    ideal_cycles,
    load_cycles,
    serial_cycles,
    stream_cycles,
    tiles,
)
from ssvq_jax.accelerator.workloads import MatMul


def simulate(
    workload: Sequence[MatMul], config: Config, weights: Any = "int8"
) -> Report:
    """Run a model through the machine, once, at batch 1.

    Args:
      workload: Products in order, such as `workloads.deit_tiny()`.
      config: The machine.
      weights: How the weights are stored: "int8" or "float32"; a packed file, open or
        by its path, or a tree of compressed weights; or a codec, for what it would
        store of every matrix.

    Returns:
      A `Report` with a record per product.

    Raises:
      TypeError, ValueError: Weights that do not match the workload; a buffer that is
        smaller than a tile, a codebook that is larger than its registers.

    Example:
      >>> from ssvq_jax import SSVQ, accelerator as acc
      >>> deit, config = acc.workloads.deit_tiny(), acc.presets["edge"]
      >>> int8, ssvq = (acc.simulate(deit, config, w) for w in ("int8", SSVQ(16, 8)))
      >>> round(int8.cycles / ssvq.cycles, 1)
      2.7
    """
    if not workload:
        raise ValueError("workload: expected at least one product")
    machine = _Machine(config)
    stored = resolve(workload, weights)
    layers = [machine.run(*pair) for pair in zip(workload, stored, strict=True)]
    return Report(config, tuple(layers))


class _Machine:
    """The state between products: when every part is free."""

    def __init__(self, config: Config):
        self.config = config
        self.channel = Channel(config)
        self.buffer = WeightBuffer(config.weight_buffer_bytes)
        self.activations = Activations(config)
        self.now = 0  # the array has put out all results so far
        self.loading = 0  # the registers behind the array are free
        self.hidden = config.weight_load == "hidden"

    def run(self, product: MatMul, stored: Stored | None) -> Layer:
        config, start = self.config, self.now
        self.stalls = dict.fromkeys(CAUSES, 0)
        before = self.channel.bytes.copy()
        self.earliest = 0 if config.prefetch else start
        if not config.prefetch:
            self.loading = start
        spilled = self.activations.traffic(product)
        codebook = 0
        if stored is not None and stored.codebook:
            codebook = self._fetch_codebook(product, stored)
        sharing = _Shares(product, stored, spilled)
        for _ in range(product.count):
            for tile in tiles(product, config):
                self._run_tile(product, stored, tile, sharing.next(tile), codebook)
            if self.hidden:
                self._wait("fill_drain", drain_cycles(config))
        folds, compute = fold_count(product, config), ideal_cycles(product, config)
        if not self.hidden:
            compute = serial_cycles(product, config)
        if config.vector_elements_per_cycle:
            elements = product.elementwise
            self._wait("vector", -(-elements // config.vector_elements_per_cycle))
        traffic = self.channel.bytes - before
        return Layer(
            product=product,
            folds=folds,
            compute_cycles=compute,
            ideal_cycles=ideal_cycles(product, config),
            stall_cycles=self.stalls,
            start=start,
            cycles=self.now - start,
            traffic=dict(traffic),
            events=events(product, stored, config, folds),
        )

    def _fetch_codebook(self, product: MatMul, stored: Stored) -> int:
        if stored.block is not None and stored.codebook > self.config.codebook_bytes:
            raise ValueError(
                f"codebook_bytes: {self.config.codebook_bytes} is smaller than the "
                f"codebook of {product.name}, {stored.codebook} bytes"
            )
        return self.channel.transfer({"codebooks": stored.codebook}, self.earliest)[1]

    def _run_tile(
        self,
        product: MatMul,
        stored: Stored | None,
        tile: Tile,
        sizes: dict[str, int],
        codebook: int,
    ) -> None:
        """Fetch, shift in and stream one tile; advances the clocks."""
        config = self.config
        weights = sum(size for kind, size in sizes.items() if kind != "activations")
        room = self.buffer.room(product.name, weights)
        begins, arrived = self.channel.transfer(sizes, max(room, self.earliest))
        arrived = max(arrived, codebook)
        decoding = 0
        if stored is not None and stored.block is not None:
            begins = arrived
            blocks = math.ceil(tile.rows / stored.block) * tile.cols
            decoding = -(-blocks // config.decode_codewords_per_cycle)
        if config.dataflow == "ws":
            taken = self._stationary_weights(product, begins, arrived, decoding)
        else:
            taken = self._stationary_outputs(product, tile, arrived, decoding)
        self.buffer.hold(weights, taken)

    def _stationary_weights(
        self, product: MatMul, begins: int, arrived: int, decoding: int
    ) -> int:
        """Returns when the tile has left the buffer."""
        load, stream = load_cycles(self.config), product.m
        duration = max(load, decoding)
        if not self.hidden:
            # Shifted in while it arrives, but never before it has.
            self._wait_until("dram", max(begins, arrived - load))
            self._wait("decoder", duration - load)
            taken = self.now + load
            self.now = taken + stream + drain_cycles(self.config)
            return taken
        taken = max(max(self.loading, begins) + duration, arrived)
        exposed = max(0, taken - self.now)
        # What would be waited for, had all bytes been there, is not memory's fault.
        shifting = max(0, self.loading + duration - self.now)
        decoder = min(shifting, duration - load)
        self._wait("dram", exposed - shifting)
        self._wait("decoder", decoder)
        self._wait("weight_load", shifting - decoder)
        self.loading = self.now  # the tile moves on as the stream begins
        self.now += stream
        return taken

    def _stationary_outputs(
        self, product: MatMul, tile: Tile, arrived: int, decoding: int
    ) -> int:
        """Returns when the tile has left the buffer."""
        stream = stream_cycles(product, self.config)
        self._wait_until("dram", arrived)
        for _ in range(tile.folds):
            self._wait("decoder", max(0, decoding - stream))
            self.now += stream
            if not self.hidden:
                self.now += drain_cycles(self.config)
        return self.now

    def _wait_until(self, cause: str, time: int) -> None:
        self._wait(cause, max(0, time - self.now))

    def _wait(self, cause: str, cycles: int) -> None:
        self.stalls[cause] += cycles
        self.now += cycles


class _Shares:
    """Bytes of every tile: their shares of the operand add up to all of it."""

    def __init__(self, product: MatMul, stored: Stored | None, activations: int):
        self._totals = dict(stored.streamed) if stored is not None else {}
        if activations:
            self._totals["activations"] = activations
        self._weights = product.count * product.k * product.n
        self._done = 0
        self._given: collections.Counter[str] = collections.Counter()

    def next(self, tile: Tile) -> dict[str, int]:
        self._done += tile.weights
        sizes = {}
        for kind, total in self._totals.items():
            until = total * self._done // self._weights
            sizes[kind] = until - self._given[kind]
            self._given[kind] = until
        return sizes
