"""Events that cost energy, counted per product, and their cost."""

import math
from collections.abc import Mapping

from ssvq_jax.accelerator.config import Config, Energy
from ssvq_jax.accelerator.stored import Stored
from ssvq_jax.accelerator.workloads import MatMul


def events(
    product: MatMul, stored: Stored | None, config: Config, folds: int
) -> dict[str, int]:
    """What happens on the chip during a product.

    Returns:
      Counts of: "mac"; "register", operands from or to registers: the stationary one of
      every multiplication, a codebook's entry per decoded weight, and its bytes when it
      is loaded; "neighbour", operands handed on in the array: two per multiplication,
      and every weight on its way into a stationary place, half of the rows on average;
      "buffer", operands from or to SRAM: activations once per column of tiles, sums
      written and read back between the tiles of a column, outputs, bytes of stored
      weights written and read; "negate", weights whose sign is applied; "check", signs
      computed from others.
    """
    columns = math.ceil(product.n / config.cols)
    passes = folds // (product.count * columns)
    outputs, operands = product.output_bytes, product.count * product.k * product.n
    activations = product.count * product.m * product.k * columns
    uses = 1 if config.dataflow == "ws" else passes  # of a weight that is fetched
    neighbour, buffer = 2 * product.macs, activations + outputs
    if config.dataflow == "ws":
        neighbour += operands * config.rows // 2
        buffer += 2 * (passes - 1) * outputs
    decoded = negated = codebook = checks = 0
    if stored is None:
        buffer += operands * uses
    else:
        buffer += (1 + uses) * sum(stored.streamed.values())
        if stored.blocks:
            decoded, codebook = uses * operands, stored.codebook
            negated = decoded if stored.signed else 0
            checks = uses * stored.checks
    return {
        "mac": product.macs,
        "register": product.macs + decoded + codebook,
        "neighbour": neighbour,
        "buffer": buffer,
        "negate": negated,
        "check": checks,
    }


def energy_pj(
    counts: Mapping[str, int], dram_bytes: int, energy: Energy
) -> dict[str, float]:
    """Energy of counted events by component, in pJ."""
    by_component = {
        name: count * getattr(energy, name) for name, count in counts.items()
    }
    return {**by_component, "dram": dram_bytes * energy.dram}
