"""Activations and sums on the chip, and what spills to memory."""

import math

from ssvq_jax.accelerator.config import Config
from ssvq_jax.accelerator.workloads import MatMul

SUM_BYTES = 4


class Activations:
    """Where the output of the last product is: on the chip or in memory.

    Inputs and outputs of a product that fit the buffer together stay there. If not,
    the outputs are written to memory. Inputs that are there, or are larger than the
    buffer, are read: once if they fit alone, else once for every column of tiles. Sums
    of a column of tiles that exceed the accumulators are written and read back between
    its tiles. What else may be alive, as for a residual, is not counted.
    """

    def __init__(self, config: Config):
        self._config = config
        self._in_memory = False

    def traffic(self, product: MatMul) -> tuple[int, int]:
        """Bytes that a product reads (sums included), and those that it writes."""
        config, inputs, outputs = (
            self._config,
            product.input_bytes,
            product.output_bytes,
        )
        capacity = config.activation_buffer_bytes
        spills = inputs + outputs > capacity
        columns = math.ceil(product.n / config.cols)
        read = product.cached + self._sums(product)
        if self._in_memory or inputs > capacity:
            read += inputs * (1 if inputs <= capacity else columns)
        self._in_memory = spills
        return read, outputs if spills else 0

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
