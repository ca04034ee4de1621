"""Events that cost energy, counted per product, and their cost."""

import math
from collections.abc import Mapping

from ssvq_jax.accelerator.activations import SUM_BYTES
from ssvq_jax.accelerator.config import Config, Energy
from ssvq_jax.accelerator.stored import Stored
from ssvq_jax.accelerator.workloads import MatMul


def events(
    product: MatMul, stored: Stored | None, config: Config, folds: int
) -> dict[str, int]:
    """What happens on the chip during a product.

    Returns:
      Counts of: "mac"; "register", bytes read from registers: a weight (or sum) per
      multiplication, a codebook's entry per decoded weight, and codebook bytes
      written; "neighbour", bytes handed on in the array: an activation and a sum (or a
      weight) per multiplication; "buffer", bytes of SRAM read and written; "negate",
      weights whose sign is applied.
    """
    columns = math.ceil(product.n / config.cols)
    passes = folds // (product.count * columns)
    outputs = product.output_bytes
    activations = product.count * product.m * product.k * columns
    rereads = passes if config.dataflow == "os" else 1
    buffer = activations + outputs
    if config.dataflow == "ws":
        buffer += SUM_BYTES * outputs * (2 * passes - 1)
    decoded = negated = codebook = 0
    if stored is None:
        buffer += product.count * product.k * product.n * rereads
    else:
        buffer += (1 + rereads) * sum(stored.streamed.values())
        codebook = stored.codebook
        if stored.block is not None:
            decoded = rereads * product.weight_count
            negated = decoded if stored.signed else 0
    return {
        "mac": product.macs,
        "register": product.macs + decoded + codebook,
        "neighbour": 2 * product.macs,
        "buffer": buffer,
        "negate": negated,
    }


def energy_pj(
    counts: Mapping[str, int], dram_bytes: int, energy: Energy
) -> dict[str, float]:
    """Energy of counted events by component, in pJ."""
    by_component = {
        name: count * getattr(energy, name) for name, count in counts.items()
    }
    return {**by_component, "dram": dram_bytes * energy.dram}
