"""Activations and sums on the chip, and what spills to memory."""

import math

from ssvq_jax.accelerator.config import Config
from ssvq_jax.accelerator.workloads import MatMul

SUM_BYTES = 4


class Activations:
    """Where the output of the last product is: on the chip or in memory.

    Inputs and outputs of a product that fit the buffer together stay there. If not,
    the outputs are written to memory, and the inputs read: once if they fit alone,
    else once for every column of tiles. Sums of a column of tiles that exceed the
    accumulators are written and read back between its tiles.
    """

    def __init__(self, config: Config):
        self._config = config
        self._in_memory = False

    def traffic(self, product: MatMul) -> int:
        """Bytes that a product moves between the chip and memory."""
        config, inputs, outputs = (
            self._config,
            product.input_bytes,
            product.output_bytes,
        )
        capacity = config.activation_buffer_bytes
        spills = inputs + outputs > capacity
        columns = math.ceil(product.n / config.cols)
        total = 0
        if spills or self._in_memory:
            total += inputs * (1 if inputs <= capacity else columns)
        if spills:
            total += outputs
        self._in_memory = spills
        return total + self._sums(product)

    def _sums(self, product: MatMul) -> int:
        if self._config.dataflow == "os":
            return 0  # they stay in the array
        rounds = math.ceil(product.k / self._config.rows) - 1
        total = 0
        for start in range(0, product.n, self._config.cols):
            cols = min(self._config.cols, product.n - start)
            excess = SUM_BYTES * product.m * cols - self._config.accumulator_bytes
            total += 2 * rounds * max(0, excess)
        return product.count * total
