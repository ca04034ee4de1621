"""What a simulation found: cycles, bytes and energy, per product and in all."""

import collections
import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ssvq_jax.accelerator.config import Config
from ssvq_jax.accelerator.energy import energy_pj
from ssvq_jax.accelerator.systolic import roofline_cycles
from ssvq_jax.accelerator.workloads import MatMul

CAUSES: tuple[str, ...] = ("dram", "decoder", "weight_load", "fill_drain", "vector")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One product.

    Attributes:
      product: The product.
      folds: Folds of the array.
      compute_cycles: Cycles that the array works for: streaming, and with serial
        loading also loading, filling and draining, as SCALE-Sim counts.
      ideal_cycles: Cycles of streaming alone.
      stall_cycles: Cycles beside that, by cause: "dram", waiting for bytes; "decoder",
        for codewords; "weight_load", for a tile to be shifted in; "fill_drain", for
        the last outputs; "vector", for the vector unit.
      start: Cycle at which the product before has ended.
      cycles: Cycles until this one has: `compute_cycles` and all stalls.
      traffic: Bytes to and from memory by kind, as fetched for this product.
      events: Counts of what costs energy on the chip, see `energy.events`.
    """

    product: MatMul
    folds: int
    compute_cycles: int
    ideal_cycles: int
    stall_cycles: dict[str, int]
    start: int
    cycles: int
    traffic: dict[str, int]
    events: dict[str, int]

    @property
    def name(self) -> str:
        """Name of the product."""
        return self.product.name

    @property
    def dram_bytes(self) -> int:
        """Bytes to and from memory, rounding to bursts included."""
        return sum(self.traffic.values())


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of `simulate`.

    Attributes:
      config: The machine.
      layers: One record per product, in order.
    """

    config: Config
    layers: tuple[Layer, ...]

    @property
    def cycles(self) -> int:
        """Cycles from the first request to the last output."""
        return sum(layer.cycles for layer in self.layers)

    @property
    def compute_cycles(self) -> int:
        """Cycles that the array works for."""
        return sum(layer.compute_cycles for layer in self.layers)

    @property
    def stall_cycles(self) -> dict[str, int]:
        """Cycles lost, by cause."""
        return {
            cause: sum(layer.stall_cycles[cause] for layer in self.layers)
            for cause in CAUSES
        }

    @property
    def traffic(self) -> dict[str, int]:
        """Bytes to and from memory by kind."""
        total: collections.Counter[str] = collections.Counter()
        for layer in self.layers:
            total.update(layer.traffic)
        return dict(total)

    @property
    def dram_bytes(self) -> int:
        """Bytes to and from memory."""
        return sum(self.traffic.values())

    @property
    def utilization(self) -> float:
        """Multiply-adds, as a share of what the array could do in these cycles."""
        macs = sum(layer.product.macs for layer in self.layers)
        return macs / (self.config.rows * self.config.cols * self.cycles)

    @property
    def energy_by_component(self) -> dict[str, float]:
        """Energy in pJ: multiplications, registers, neighbours, buffers, memory."""
        counts: collections.Counter[str] = collections.Counter()
        for layer in self.layers:
            counts.update(layer.events)
        return energy_pj(counts, self.dram_bytes, self.config.energy)

    @property
    def energy_pj(self) -> float:
        """Energy in pJ."""
        return sum(self.energy_by_component.values())

    @property
    def roofline_cycles(self) -> float:
        """Per product, the longer of its array time and of its bytes' transfer.

        Loading is hidden; see `systolic.roofline_cycles`. No prefetch across products
        and no latency is in it.
        """
        rate = self.config.dram_bytes_per_cycle
        return sum(
            max(float(roofline_cycles(x.product, self.config)), x.dram_bytes / rate)
            for x in self.layers
        )

    @property
    def excluded_elements(self) -> int:
        """Elements of softmax, norms and activation functions that took no time."""
        if self.config.vector_elements_per_cycle:
            return 0
        return sum(layer.product.elementwise for layer in self.layers)

    def rows(self) -> list[dict[str, Any]]:
        """A flat record per product, for CSV and JSON."""
        array = self.config.rows * self.config.cols
        return [
            {
                "name": layer.name,
                **{
                    key: getattr(layer.product, key) for key in ("m", "k", "n", "count")
                },
                "folds": layer.folds,
                "start": layer.start,
                "cycles": layer.cycles,
                "compute_cycles": layer.compute_cycles,
                **{f"stall_{k}": v for k, v in layer.stall_cycles.items()},
                "utilization": layer.product.macs / (array * layer.cycles),
                "dram_bytes": layer.dram_bytes,
                **{f"dram_{k}": v for k, v in sorted(layer.traffic.items())},
                **{f"events_{k}": v for k, v in layer.events.items()},
                "energy_pj": sum(
                    energy_pj(
                        layer.events, layer.dram_bytes, self.config.energy
                    ).values()
                ),
            }
            for layer in self.layers
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values; an infinite rate is text."""
        values = {name: value for name, value, _ in self.config.described()}
        return {
            "config": {
                name: "inf" if value == math.inf else value
                for name, value in values.items()
            },
            "sources": {name: source for name, _, source in self.config.described()},
            "cycles": self.cycles,
            "compute_cycles": self.compute_cycles,
            "stall_cycles": self.stall_cycles,
            "utilization": self.utilization,
            "roofline_cycles": self.roofline_cycles,
            "dram_bytes": self.dram_bytes,
            "traffic": self.traffic,
            "energy_pj": self.energy_pj,
            "energy_by_component": self.energy_by_component,
            "excluded_elements": self.excluded_elements,
            "layers": self.rows(),
        }

    def to_csv(self) -> str:
        """A line per product."""
        rows = self.rows()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval=0, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def __rich__(self) -> Table:
        table = Table(box=box.SIMPLE, pad_edge=False)
        table.add_column("product", overflow="fold")
        causes = [cause for cause, cycles in self.stall_cycles.items() if cycles]
        titles = ("m x k x n", "cycles", "busy", *causes, "bytes", "used")
        for title in titles:
            table.add_column(title.replace("_", "\n"), justify="right", no_wrap=True)
        for row, layer in zip(self.rows(), self.layers, strict=True):
            product = layer.product
            size = f"{product.m}x{product.k}x{product.n}"
            size = size if product.count == 1 else f"{product.count}*{size}"
            table.add_row(
                Text(layer.name),
                size,
                *_numbers(layer, causes),
                f"{layer.dram_bytes:,}",
                f"{row['utilization']:.0%}",
            )
        table.add_section()
        table.add_row(
            "all",
            "",
            *_numbers(self, causes),
            f"{self.dram_bytes:,}",
            f"{self.utilization:.0%}",
        )
        return table


def _numbers(x: Layer | Report, causes: Sequence[str]) -> list[str]:
    stalls = (x.stall_cycles[cause] for cause in causes)
    return [f"{cycles:,}" for cycles in (x.cycles, x.compute_cycles, *stalls)]
