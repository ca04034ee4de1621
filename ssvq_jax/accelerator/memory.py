"""Main memory: one channel for all traffic, requests in order."""

import collections
import math

from ssvq_jax.accelerator.config import Config

_ROUNDING = 1e-6  # cycles: float error of sums of transfers


class Channel:
    """The one channel to main memory. Requests are served in the order they come."""

    def __init__(self, config: Config):
        self._rate = config.dram_bytes_per_cycle
        self._latency = config.dram_latency
        self._free = 0.0

    def transfer(self, size: int, not_before: int = 0) -> tuple[int, int]:
        """Fetch, or write, so many bytes.

        Returns:
          The cycles at which the first and the last byte are there.
        """
        if size == 0:
            return not_before, not_before
        start = max(self._free, float(not_before))
        self._free = start + size / self._rate
        return self._cycle(start), self._cycle(self._free)

    @property
    def idle(self) -> int:
        """The cycle from which on nothing is left to transfer."""
        return math.ceil(self._free - _ROUNDING)

    def _cycle(self, time: float) -> int:
        return math.ceil(time + self._latency - _ROUNDING)


class WeightBuffer:
    """Stored weights that wait for the array, first in, first out.

    Raises:
      ValueError: A tile that does not fit.
    """

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._held: collections.deque[tuple[int, int]] = collections.deque()
        self._size = 0

    def room(self, name: str, size: int) -> int:
        """The cycle from which on there is room for a tile of `size` bytes."""
        if size > self._capacity:
            raise ValueError(
                f"weight_buffer_bytes: {self._capacity} is smaller than a tile of "
                f"{name}, {size} bytes"
            )
        since = 0
        while self._size + size > self._capacity:
            released, freed = self._held.popleft()
            self._size -= freed
            since = max(since, released)
        return since

    def hold(self, size: int, until: int) -> None:
        """Keep a tile until the array has taken it."""
        self._held.append((until, size))
        self._size += size
