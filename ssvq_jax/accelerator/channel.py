"""Main memory: one channel for all traffic, requests in order."""

import collections
import math

from ssvq_jax.accelerator.config import Config

_ROUNDING = 1e-6  # cycles: float error of sums of transfers


class Channel:
    """The one channel to main memory. Requests are served in order, without gaps.

    Attributes:
      bytes: Bytes transferred so far, by kind; what rounding to bursts adds is
        "rounding".
    """

    def __init__(self, config: Config):
        self._rate = config.dram_bytes_per_cycle
        self._latency = config.dram_latency
        self._burst = config.burst_bytes
        self._free = 0.0
        self.bytes: collections.Counter[str] = collections.Counter()

    def transfer(self, sizes: dict[str, int], not_before: int = 0) -> tuple[int, int]:
        """Fetch (or write) so many bytes of every kind, one request per kind.

        Returns:
          The cycles at which the first and the last byte are there.
        """
        rounded = 0
        for kind, size in sizes.items():
            padding = -size % self._burst
            self.bytes[kind] += size
            if padding:
                self.bytes["rounding"] += padding
            rounded += size + padding
        if rounded == 0:
            return math.ceil(not_before), math.ceil(not_before)
        start = max(self._free, float(not_before))
        self._free = start + rounded / self._rate
        return self._cycle(start), self._cycle(self._free)

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
