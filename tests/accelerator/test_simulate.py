"""The simulation: bounds, conservation, monotony, points of reference."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ssvq_jax as ssvq
from ssvq_jax import accelerator as acc
from ssvq_jax.accelerator import systolic
from ssvq_jax.accelerator.report import CAUSES
from ssvq_jax.accelerator.stored import WEIGHT_KINDS

DEIT = acc.workloads.deit_tiny()
SSVQ = ssvq.SSVQ(16, 8, codebook_dtype="int8")
WIDE = math.inf

products = st.lists(
    st.builds(
        lambda m, k, n, count, stored: acc.MatMul(
            "p", m, k, n, count, "w" if stored else None
        ),
        *[st.integers(1, 60)] * 3,
        st.integers(1, 3),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)
codecs = st.sampled_from(
    ["int8", "float32", SSVQ, ssvq.VQ(8, 4), ssvq.MVQ(4, 8, (2, 4)), ssvq.Uniform(2)]
)
configs = st.builds(
    acc.Config,
    rows=st.sampled_from([4, 7, 16, 64]),
    cols=st.sampled_from([5, 16, 64]),
    dataflow=st.sampled_from(["ws", "os"]),
    weight_load=st.sampled_from(["serial", "hidden"]),
    dram_bytes_per_cycle=st.sampled_from([0.1, 1.6, 7.3, 100.0, math.inf]),
    dram_latency=st.integers(0, 50),
    burst_bytes=st.sampled_from([1, 32, 64]),
    weight_buffer_bytes=st.sampled_from([3_600, 5_000, 9_000, 10**6]),
    prefetch=st.booleans(),
    decode_codewords_per_cycle=st.sampled_from([1, 3, WIDE]),
    activation_buffer_bytes=st.integers(0, 20_000),
    accumulator_bytes=st.integers(0, 12_000),
    vector_elements_per_cycle=st.sampled_from([0, 16]),
)


def _tile_count(product, config):
    return product.count * len([*systolic.tiles(product, config)])


def _simulated(workload, config, weights):
    try:
        return acc.simulate(workload, config, weights)
    except ValueError as error:
        assert "weight_buffer_bytes: " in str(error)
        assume(False)


@settings(max_examples=100)
@given(products, configs, codecs)
def test_what_holds_for_every_machine(workload, config, weights):
    report = _simulated(workload, config, weights)
    rate = config.dram_bytes_per_cycle
    # Conservation.
    for layer in report.layers:
        assert layer.compute_cycles + sum(layer.stall_cycles.values()) == layer.cycles
        assert min(layer.stall_cycles.values()) >= 0
        assert set(layer.stall_cycles) == set(CAUSES)
        assert layer.ideal_cycles <= layer.compute_cycles
    starts = np.cumsum([0, *(layer.cycles for layer in report.layers)])
    assert [layer.start for layer in report.layers] == list(starts[:-1])
    assert report.cycles == starts[-1]
    assert 0 < report.utilization <= 1
    # Bounds.
    assert report.cycles >= report.compute_cycles
    assert report.cycles >= report.dram_bytes / rate - 1
    longest = 0
    stored = acc.stored.resolve(workload, weights)
    for layer, each in zip(report.layers, stored, strict=True):
        fixed = sum(layer.stall_cycles[cause] for cause in CAUSES if cause != "dram")
        tiles = _tile_count(layer.product, config)
        requests = (config.dram_latency + 1) * (1 + 2 * tiles)
        longest += layer.compute_cycles + fixed + layer.dram_bytes / rate + requests
        # A tile that comes late is still to be decoded and shifted in.
        blocks = each.blocks if each else 0
        decoding = blocks / config.decode_codewords_per_cycle + tiles
        longest += tiles * systolic.load_cycles(config) + decoding
    assert report.cycles <= longest
    # Every byte of the weights is fetched once.
    fetched = sum(report.traffic.get(kind, 0) for kind in WEIGHT_KINDS)
    assert fetched == sum(each.nbytes for each in stored if each)


@settings(max_examples=100)
@given(products, configs, codecs, st.integers(1, 2000))
def test_more_of_anything_never_costs_time(workload, config, weights, some):
    report = _simulated(workload, config, weights)
    for more in (
        {"dram_bytes_per_cycle": config.dram_bytes_per_cycle + some / 100},
        {"weight_buffer_bytes": config.weight_buffer_bytes + some},
        {"decode_codewords_per_cycle": config.decode_codewords_per_cycle + some},
        {"accumulator_bytes": config.accumulator_bytes + some},
        {"activation_buffer_bytes": 10**9},
        {"dram_latency": 0},
        {"prefetch": True},
        {"weight_load": "hidden"},
    ):
        faster = acc.simulate(workload, config.replace(**more), weights)
        assert faster.cycles <= report.cycles, more
    # The end of a tile's last burst is the start of the next tile, fetched early even
    # without prefetching: for every tile a smaller burst may cost as much as that.
    smaller = acc.simulate(workload, config.replace(burst_bytes=1), weights)
    kinds = len(WEIGHT_KINDS) + 1
    early = kinds * config.burst_bytes / config.dram_bytes_per_cycle + 1
    tiles = sum(_tile_count(product, config) for product in workload)
    assert smaller.cycles <= report.cycles + tiles * early
    assert smaller.dram_bytes <= report.dram_bytes


@pytest.mark.parametrize(
    ("rate", "bound"), [(1.6, 4.89), (3.2, 4.55), (6.4, 2.74), (12.8, 1.48)]
)
def test_roofline_of_deit_tiny(rate, bound):
    config = acc.Config(dram_bytes_per_cycle=rate, burst_bytes=1)
    int8, compressed = (acc.simulate(DEIT, config, w) for w in ("int8", SSVQ))
    assert int8.roofline_cycles / compressed.roofline_cycles == pytest.approx(
        bound, abs=0.005
    )
    for report in (int8, compressed):
        for layer in report.layers:
            array = systolic.roofline_cycles(layer.product, config)
            assert layer.cycles >= max(array, layer.dram_bytes / rate)
    speedup = int8.cycles / compressed.cycles
    # Not below at 12.8: see experiments/results/accelerator.md.
    assert speedup < bound or (rate == 12.8 and speedup < 1.03 * bound)


def test_limits_of_bandwidth():
    slow = acc.Config(dram_bytes_per_cycle=1e-3, burst_bytes=1)
    fast = acc.Config(dram_bytes_per_cycle=math.inf, dram_latency=0)
    int8, compressed = (acc.simulate(DEIT, slow, w) for w in ("int8", SSVQ))
    ratio = int8.dram_bytes / compressed.dram_bytes
    assert int8.cycles / compressed.cycles == pytest.approx(ratio, rel=1e-3)
    int8, compressed = (acc.simulate(DEIT, fast, w) for w in ("int8", SSVQ))
    assert int8.cycles / compressed.cycles == pytest.approx(1, rel=1e-3)


def test_the_cause_of_waiting():
    """Memory that is too slow is to blame, not what hides behind it."""
    int8 = acc.simulate(DEIT, acc.Config(dram_bytes_per_cycle=1.6), "int8")
    assert int8.stall_cycles["dram"] > 0.9 * int8.cycles - int8.compute_cycles
    # 64 cycles for the first tile of 50 matrices and of 24 products of 3 heads; in the
    # head, whose one token streams in a cycle, for all of 48 tiles.
    assert int8.stall_cycles["weight_load"] <= 64 * (50 + 24 * 3 + 48)


def test_a_narrow_decoder_takes_the_gain_away():
    config = acc.Config(decode_codewords_per_cycle=1)
    int8, compressed = (acc.simulate(DEIT, config, w) for w in ("int8", SSVQ))
    assert compressed.stall_cycles["decoder"] > 0.5 * compressed.cycles
    assert int8.cycles / compressed.cycles < 1.5
    assert int8.stall_cycles["decoder"] == 0


def test_codebooks_of_vq_are_read_once_per_matrix():
    config = acc.Config(burst_bytes=1)
    small, large = (
        acc.simulate(DEIT, config, ssvq.VQ(k, d, codebook_dtype="int8"))
        for k, d in ((64, 4), (4096, 8))
    )
    signs = acc.simulate(DEIT, config, SSVQ)
    assert small.dram_bytes == pytest.approx(signs.dram_bytes, rel=0.02)
    assert small.traffic["codebooks"] == 50 * (64 * 4 + 4)
    assert large.traffic["codebooks"] > 1.6e6 > signs.dram_bytes - 1e6
    assert large.cycles > 1.2 * small.cycles


def test_scales_of_channels_are_read_with_the_codebook():
    config = acc.Config(burst_bytes=1)
    dense = acc.MatMul("a", 10, 32, 24, weights="a")
    depthwise = acc.MatMul("b", 10, 9, 1, count=64, weights="b")
    codec = ssvq.VQ(16, 4, codebook_dtype="int8", channel_scale="float16")
    layers = acc.simulate([dense, depthwise], config, codec).layers
    for layer, channels in zip(layers, (24, 64), strict=True):
        assert layer.traffic["codebooks"] == 16 * 4 + 4 + 2 * channels


def test_codebooks_wait_for_a_free_set_of_registers():
    codec = ssvq.VQ(4096, 8, codebook_dtype="int8")
    workload = [acc.MatMul("long", 200_000, 64, 512, weights="a")]
    workload += [acc.MatMul("p", 1, 512, 64, weights="a")] * 8
    config = acc.Config(
        prefetch=True,
        dram_bytes_per_cycle=10,
        activation_buffer_bytes=10**9,
        accumulator_bytes=10**9,
    )
    layers = acc.simulate(workload, config, codec).layers
    assert layers[1].stall_cycles["dram"] < 4096 * 8 / 10  # fetched meanwhile
    for layer in layers[3:]:
        assert layer.cycles > 4096 * 8 / 10


def test_results_are_not_used_before_they_are_there():
    """Prefetch is of weights: not of operands of attention, nor of spilled inputs."""
    workload = [
        acc.MatMul("qkv", 197, 192, 192, weights="w"),
        acc.MatMul("scores", 197, 64, 197),
    ]
    config = acc.Config(dram_bytes_per_cycle=math.inf, dram_latency=0)
    cycles = [
        acc.simulate(workload, config.replace(prefetch=p)).layers[1].cycles
        for p in (False, True)
    ]
    assert cycles == [978, 978]
    products = [acc.MatMul(n, 10**5, 64, 64, weights=n) for n in "ab"]
    config = acc.Config(
        prefetch=True,
        dram_bytes_per_cycle=100,
        activation_buffer_bytes=0,
        accumulator_bytes=10**9,
    )
    _, second = acc.simulate(products, config).layers
    # It waits until the other's outputs are written, and read back.
    assert second.cycles > 2 * 6_400_000 / 100 + 10**5


def test_a_cache_of_keys_and_values_comes_from_memory():
    llama = acc.workloads.llama()
    report = acc.simulate(llama, acc.Config(burst_bytes=1), SSVQ)
    assert report.traffic["activations"] == 30 * 2 * 3 * 64 * 512


def test_blocks_of_an_output_stationary_array_are_decoded_for_every_fold():
    product = acc.MatMul("a", 40, 64, 16, weights="a")
    config = acc.Config(
        dataflow="os", rows=16, cols=16, decode_codewords_per_cycle=1, dram_latency=0
    )
    layer = acc.simulate([product], config, SSVQ).layers[0]
    assert layer.stall_cycles["decoder"] == 3 * (64 * 16 // 8 - 64)


def test_activations_that_do_not_fit_spill():
    workload = [
        acc.MatMul("a", 100, 64, 64, weights="a"),
        acc.MatMul("b", 100, 64, 8, weights="b"),
    ]
    config = acc.Config(rows=16, cols=32, burst_bytes=1, accumulator_bytes=10**6)
    fits = config.replace(activation_buffer_bytes=12_800)
    assert "activations" not in acc.simulate(workload, fits).traffic
    small = config.replace(activation_buffer_bytes=12_799)
    first, second = acc.simulate(workload, small).layers
    assert first.traffic["activations"] == 6400  # written; the input was there
    assert second.traffic["activations"] == 6400  # read; the rest fits
    none = config.replace(activation_buffer_bytes=0)
    first, _ = acc.simulate(workload, none).layers
    assert first.traffic["activations"] == 2 * 6400 + 6400  # for each of two columns
    sums = fits.replace(accumulator_bytes=100 * 32 * 4 - 10)
    first, _ = acc.simulate(workload, sums).layers
    assert first.traffic["activations"] == 2 * 2 * 3 * 10
