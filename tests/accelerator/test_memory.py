"""Main memory and the weight buffer alone."""

import math

import pytest

from ssvq_jax import accelerator as acc
from ssvq_jax.accelerator.memory import Channel, WeightBuffer


def test_requests_follow_each_other_and_overlap_their_latency():
    channel = Channel(acc.Config(dram_bytes_per_cycle=4, dram_latency=10))
    assert channel.transfer(40) == (10, 20)
    assert channel.transfer(6) == (20, 22)  # 11.5 cycles of transfer, and the latency
    assert channel.transfer(2, not_before=100) == (110, 111)
    assert channel.transfer(0, not_before=7) == (7, 7)
    assert channel.idle == 101


def test_unlimited_memory_takes_the_latency_only():
    channel = Channel(acc.Config(dram_bytes_per_cycle=math.inf, dram_latency=3))
    assert channel.transfer(10**12, not_before=5) == (8, 8)


def test_a_buffer_makes_room_as_tiles_leave():
    buffer = WeightBuffer(100)
    assert buffer.room("a", 60) == 0
    buffer.hold(60, until=30)
    buffer.hold(40, until=50)
    assert buffer.room("a", 10) == 30
    buffer.hold(10, until=70)
    assert buffer.room("a", 90) == 50
    with pytest.raises(ValueError, match="weight_buffer_bytes: 100 is smaller.* of b"):
        buffer.room("b", 101)
