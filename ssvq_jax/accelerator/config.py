"""What the simulated machine is: sizes, rates and energies, each with its source."""

import dataclasses
import math
from typing import Any, Literal

from ssvq_jax.core.checks import require_integer

ASSUMED = "assumed"
HOROWITZ = "Horowitz, ISSCC 2014, 45 nm, 8-bit integers"
EYERISS = "Chen et al., ISCA 2016: register 1, neighbour 2, buffer 6 times a MAC"
LPDDR4 = "LPDDR4 at 8 pJ per bit; 4 to 14 are found in the literature"

_LEAST_RATE = 1e-6  # per cycle

Dataflow = Literal["ws", "os"]
WeightLoad = Literal["serial", "hidden"]


def _value(default: Any, source: str = ASSUMED) -> Any:
    return dataclasses.field(default=default, metadata={"source": source})


def _require_number(name: str, value: Any, least: int, finite: bool = True) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not value >= least or (finite and not math.isfinite(value)):
        raise ValueError(f"{name}: expected a number of at least {least}, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy of one event, in pJ; an operand is a weight, an activation or a sum.

    Attributes:
      mac: Multiplication of two int8 and addition.
      register: An operand from or to a register, beside the multiplier or a codebook's.
      neighbour: An operand to the next element of the array.
      buffer: An operand from or to a buffer on the chip; of stored weights, a byte.
      negate: Conditional negation of one weight.
      check: The sign of a weight from other signs of its block: an exclusive or, at
        most what an addition of 8 bits takes.
      dram: One byte from or to main memory.
    """

    mac: float | int = _value(0.2 + 0.03, HOROWITZ)
    register: float | int = _value(0.23, EYERISS)
    neighbour: float | int = _value(2 * 0.23, EYERISS)
    buffer: float | int = _value(6 * 0.23, EYERISS)
    negate: float | int = _value(0.03, HOROWITZ)
    check: float | int = _value(0.03, HOROWITZ)
    dram: float | int = _value(8 * 8.0, LPDDR4)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _require_number(field.name, getattr(self, field.name), least=0)


@dataclasses.dataclass(frozen=True)
class Config:
    """A machine: a systolic array behind a decoder, buffers and one memory channel.

    Weights and activations are int8, sums int32. Times are cycles of one clock.

    Attributes:
      rows: Rows of the array, R.
      cols: Columns of the array, C.
      dataflow: "ws" keeps a tile of R x C weights in the array and streams the
        activations; "os" keeps R x C outputs and streams both operands.
      weight_load: "serial" loads a tile, fills, streams and drains before the next;
        "hidden" loads behind shadow registers and lets tiles follow without a gap.
      dram_bytes_per_cycle: Rate of the one channel for all traffic; may be infinite.
      decode_codewords_per_cycle: Blocks that the decoder looks up per cycle; may be
        infinite.
      dram_latency: Cycles from a request to its first byte; requests overlap.
      burst_bytes: Each kind of a product's bytes is fetched in multiples of this.
      weight_buffer_bytes: Stored weights that wait for the array, as in the file.
      prefetch: Whether weights of later products are fetched, as far as the buffer
        holds them, and the next one's first tile loaded, while one is computed.
      codebook_bytes: Register file of the decoder: codebook and scales of one matrix.
      activation_buffer_bytes: Inputs and outputs of a product; what does not fit is
        read from and written to memory.
      accumulator_bytes: int32 sums of a column of tiles; what does not fit is written
        and read back between tiles.
      vector_elements_per_cycle: Rate of softmax, norms and activation functions; 0
        leaves them out and reports how many there are.
      energy: Energy of single events.

    Raises:
      TypeError, ValueError: A value of the wrong type, or out of range.
    """

    rows: int = _value(64)
    cols: int = _value(64)
    dataflow: Dataflow = _value("ws")
    weight_load: WeightLoad = _value("hidden")
    dram_bytes_per_cycle: float | int = _value(6.4)
    decode_codewords_per_cycle: float | int = _value(8)
    dram_latency: int = _value(100)
    burst_bytes: int = _value(32, "LPDDR4: 16 beats of 16 bits")
    weight_buffer_bytes: int = _value(128 * 1024)
    prefetch: bool = _value(False)
    codebook_bytes: int = _value(64 * 1024)
    activation_buffer_bytes: int = _value(512 * 1024)
    accumulator_bytes: int = _value(256 * 1024)
    vector_elements_per_cycle: int = _value(0)
    energy: Energy = Energy()

    def __post_init__(self):
        for name in ("rows", "cols", "burst_bytes"):
            require_integer(name, getattr(self, name), 1)
        for name in (
            "dram_latency",
            "weight_buffer_bytes",
            "codebook_bytes",
            "activation_buffer_bytes",
            "accumulator_bytes",
            "vector_elements_per_cycle",
        ):
            require_integer(name, getattr(self, name), 0)
        for name in ("dram_bytes_per_cycle", "decode_codewords_per_cycle"):
            rate = getattr(self, name)
            _require_number(name, rate, least=0, finite=False)
            if rate < _LEAST_RATE:
                raise ValueError(
                    f"{name}: expected at least {_LEAST_RATE:g} (inf for unlimited), "
                    f"got {rate}"
                )
        if not isinstance(self.prefetch, bool):
            raise TypeError(f"prefetch: expected True or False, got {self.prefetch!r}")
        if not isinstance(self.energy, Energy):
            raise TypeError(f"energy: expected an Energy, got {self.energy!r}")
        for name, values in (
            ("dataflow", ("ws", "os")),
            ("weight_load", ("serial", "hidden")),
        ):
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name}: expected one of {', '.join(values)}, "
                    f"got {getattr(self, name)!r}"
                )

    def replace(self, **values: Any) -> "Config":
        """A copy with other values."""
        return dataclasses.replace(self, **values)

    def described(self) -> list[tuple[str, Any, str]]:
        """Every value with its name and source; one that was changed is assumed."""
        rows = []
        for owner in (self, self.energy):
            for field in dataclasses.fields(owner):
                if field.name == "energy":
                    continue
                value = getattr(owner, field.name)
                source = field.metadata["source"]
                rows.append((field.name, value, _source(value, field.default, source)))
        return rows


def _source(value: Any, default: Any, source: str) -> str:
    return source if value == default else ASSUMED


presets: dict[str, Config] = {
    # 1 GHz beside one 16-bit LPDDR4-3200 channel, 6.4 GB/s.
    "edge": Config(),
    # 500 MHz beside the same channel.
    "edge_slow_clock": Config(dram_bytes_per_cycle=12.8),
    # A microcontroller's array beside 1.6 GB/s.
    "micro": Config(
        rows=32,
        cols=32,
        dram_bytes_per_cycle=1.6,
        decode_codewords_per_cycle=4,
        weight_buffer_bytes=16 * 1024,
        activation_buffer_bytes=256 * 1024,
        accumulator_bytes=32 * 1024,
    ),
    # Like the first, with nothing in the way but the array: SCALE-Sim's view.
    "ideal_memory": Config(
        dram_bytes_per_cycle=math.inf,
        dram_latency=0,
        burst_bytes=1,
        weight_load="serial",
        decode_codewords_per_cycle=math.inf,
    ),
}
"""Machines by name. Nobody has published the paper's; all of these are assumptions."""
