"""The simulation: an event per tile of weights, from memory to the last output.

A tile goes through three stages, each busy with one tile at a time and in order: the
channel fetches it into the weight buffer; the decoder and the array's load port shift
it in; the array streams activations past it. What is assumed beside the values of
`Config`:

- The bytes of a tile lie next to each other in memory, tile after tile: a device puts
  the rows of the packed file in this order once. A burst that holds the end of one tile
  and the start of the next is fetched once.
- A matrix's codebook is fetched before its first tile, into one of two sets of
  registers. A tile is decoded when all of it has arrived; weights that pass the decoder
  by are shifted in as they arrive. Blocks are spread evenly over the weights.
- The decoder feeds the load port: shifting a tile in takes as many cycles as the
  slower of both. Under output-stationary flow the weights stream, and the decoder
  works again for every fold.
- Activations that fit stay on the chip, the first input and the last output included.
  Of those that do not, a tile's share is read before the tile streams; outputs are
  written when the product has ended.
- The products of a model follow each other, heads of attention and channels of a
  depthwise convolution too: one is loaded (without prefetch) and streams when the one
  before has left the array. Operands of attention are there when a product starts.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ssvq_jax.accelerator.activations import Activations
from ssvq_jax.accelerator.config import Config
from ssvq_jax.accelerator.energy import events
from ssvq_jax.accelerator.memory import Channel, WeightBuffer
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

    Examples:
      >>> from ssvq_jax import SSVQ, accelerator as acc
      >>> deit, config = acc.workloads.deit_tiny(), acc.presets["edge"]
      >>> int8, ssvq = (acc.simulate(deit, config, w) for w in ("int8", SSVQ(16, 8)))
      >>> round(int8.cycles / ssvq.cycles, 1)
      2.7
    """
    workload = list(workload)
    if not workload:
        raise ValueError("workload: expected at least one product")
    if not isinstance(config, Config):
        raise TypeError(f"config: expected a Config, got {config!r}")
    machine = _Machine(config)
    stored = resolve(workload, weights)
    layers = [machine.run(*pair) for pair in zip(workload, stored, strict=True)]
    layers[-1] = machine.finish(layers[-1])
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
        self.codebook_ends = [0, 0]  # when the sets of registers are free, in turn
        self.hidden = config.weight_load == "hidden"

    def run(self, product: MatMul, stored: Stored | None) -> Layer:
        config, self.start = self.config, self.now
        self.stalls = dict.fromkeys(CAUSES, 0)
        self.earliest = 0 if config.prefetch and stored is not None else self.now
        read, written = self.activations.traffic(product)
        shares = _Shares(product, stored, read, config.burst_bytes)
        codebook = self._fetch_codebook(product, stored, shares)
        self.loading = max(self.loading, self.earliest)
        for _ in range(product.count):
            if not config.prefetch:
                self.loading = self.now
            for tile in tiles(product, config):
                self._run_tile(product, tile, shares.next(tile), codebook)
            if self.hidden:
                self._wait("fill_drain", drain_cycles(config))
        compute = ideal_cycles(product, config)
        if not self.hidden:
            compute = serial_cycles(product, config)
        if config.vector_elements_per_cycle:
            elements = product.elementwise
            self._wait("vector", -(-elements // config.vector_elements_per_cycle))
        if codebook:
            self.codebook_ends = [self.codebook_ends[1], self.now]
        self.channel.transfer(shares.once("activations", written), self.now)
        folds = fold_count(product, config)
        return Layer(
            product=product,
            folds=folds,
            compute_cycles=compute,
            ideal_cycles=ideal_cycles(product, config),
            stall_cycles=self.stalls,
            start=self.start,
            cycles=self.now - self.start,
            traffic=dict(shares.fetched),
            events=events(product, stored, config, folds),
        )

    def finish(self, layer: Layer) -> Layer:
        """The last product, with what is still to be written after it."""
        self._wait_until("dram", self.channel.idle)
        return dataclasses.replace(layer, cycles=self.now - layer.start)

    def _fetch_codebook(
        self, product: MatMul, stored: Stored | None, shares: "_Shares"
    ) -> int:
        """When the codebook is there; 0 where there is none."""
        if stored is None or not stored.codebook:
            return 0
        if stored.blocks and stored.codebook > self.config.codebook_bytes:
            raise ValueError(
                f"codebook_bytes: {self.config.codebook_bytes} is smaller than the "
                f"codebook of {product.name}, {stored.codebook} bytes"
            )
        size = shares.once("codebooks", stored.codebook)
        earliest = max(self.earliest, self.codebook_ends[0])
        return self.channel.transfer(size, earliest)[1]

    def _run_tile(
        self, product: MatMul, tile: Tile, share: "_Share", codebook: int
    ) -> None:
        """Fetch, shift in and stream one tile; advances the clocks."""
        room = self.buffer.room(product.name, share.weights)
        begins, arrived = self.channel.transfer(share.weights, max(room, self.earliest))
        arrived = max(arrived, codebook)
        decoding = math.ceil(share.blocks / self.config.decode_codewords_per_cycle)
        if share.blocks:
            begins = arrived
        _, inputs = self.channel.transfer(share.activations, self.start)
        if self.config.dataflow == "ws":
            taken = self._stationary_weights(product, begins, arrived, inputs, decoding)
        else:
            arrived = max(arrived, inputs)
            taken = self._stationary_outputs(product, tile, arrived, decoding)
        self.buffer.hold(share.weights, taken)

    def _stationary_weights(
        self, product: MatMul, begins: int, arrived: int, inputs: int, decoding: int
    ) -> int:
        """Returns when the tile has left the buffer."""
        load, stream = load_cycles(self.config), product.m
        duration = max(load, decoding)
        if not self.hidden:
            # Shifted in while it arrives, but never before it has; so are its inputs.
            self._wait_until("dram", max(begins, arrived - load, inputs - duration))
            self._wait("decoder", duration - load)
            taken = self.now + load
            self.now = taken + stream + drain_cycles(self.config)
            return taken
        taken = max(max(self.loading, begins) + duration, arrived)
        exposed = max(0, taken - self.now, inputs - self.now)
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


class _Share(NamedTuple):
    """What a tile takes of its product."""

    weights: int  # bytes, in whole bursts
    activations: int  # bytes, in whole bursts
    blocks: int


class _Shares:
    """Bytes and blocks of every tile: they add up to those of the product.

    Attributes:
      fetched: Bytes by kind; what whole bursts add is "rounding".
    """

    def __init__(
        self, product: MatMul, stored: Stored | None, activations: int, burst: int
    ):
        self.fetched: collections.Counter[str] = collections.Counter()
        self._burst = burst
        self._weights = product.count * product.k * product.n
        self._done = 0
        self._totals = {} if stored is None else dict(stored.streamed)
        self._totals["activations"] = activations
        self._totals["blocks"] = 0 if stored is None else stored.blocks
        self._given: collections.Counter[str] = collections.Counter()
        for kind, total in self._totals.items():
            if kind != "blocks":
                self.once(kind, total)

    def once(self, kind: str, size: int) -> int:
        """Count bytes of a kind; gives them in whole bursts."""
        padding = -size % self._burst
        if size:
            self.fetched[kind] += size
        if padding:
            self.fetched["rounding"] += padding
        return size + padding

    def next(self, tile: Tile) -> _Share:
        """The share of the next tile."""
        self._done += tile.weights
        sizes: collections.Counter[str] = collections.Counter()
        for kind, total in self._totals.items():
            until = total * self._done // self._weights
            if kind != "blocks":
                until += -until % self._burst
            sizes[kind] = until - self._given[kind]
            self._given[kind] = until
        activations, blocks = sizes.pop("activations"), sizes.pop("blocks")
        return _Share(sizes.total(), activations, blocks)
