"""The array: cycles and outputs against a simulation element by element."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssvq_jax import accelerator as acc
from ssvq_jax.accelerator import systolic
from tests.accelerator.systolic_reference import product as by_elements

sizes = st.integers(1, 11)
IDEAL = acc.presets["ideal_memory"]


@given(sizes, sizes, sizes, st.sampled_from(["ws", "os"]), st.integers(0, 2**32 - 1))
def test_cycles_and_outputs_of_every_element(m, k, n, dataflow, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, (m, k))
    weights = rng.integers(-128, 128, (k, n))
    outputs, cycles = by_elements(x, weights, 4, 4, dataflow)
    np.testing.assert_array_equal(outputs, x @ weights)
    config = IDEAL.replace(rows=4, cols=4, dataflow=dataflow)
    product = acc.MatMul("a", m, k, n)
    assert systolic.serial_cycles(product, config) == cycles
    layer = acc.simulate([product], config).layers[0]
    assert layer.compute_cycles == layer.cycles == cycles


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("cols", [1, 5, 64])
@pytest.mark.parametrize("dataflow", ["ws", "os"])
def test_serial_cycles_are_those_of_scale_sim(rows, cols, dataflow):
    config = IDEAL.replace(rows=rows, cols=cols, dataflow=dataflow)
    workload = [
        acc.MatMul("a", 97, 72, 101, weights="a"),
        acc.MatMul("b", 1, 50, 130, weights="b"),
        acc.MatMul("c", 13, 1, 1, weights="c"),
        acc.MatMul("d", 17, 9, 1, count=6, weights="d"),
    ]
    report = acc.simulate(workload, config, "int8")
    for layer in report.layers:
        m, k, n = layer.product.m, layer.product.k, layer.product.n
        columns = math.ceil(n / cols)
        expected = math.ceil(k / rows) * columns * (m + 2 * rows + cols - 2)
        if dataflow == "os":
            expected = math.ceil(m / rows) * columns * (k + rows + cols - 2)
        assert layer.compute_cycles == layer.product.count * expected
        assert layer.cycles == layer.compute_cycles


@pytest.mark.parametrize(
    ("dataflow", "printed"), [("ws", [467, 229, 61]), ("os", [395, 114, 109])]
)
def test_what_scale_sim_printed(dataflow, printed):
    """SCALE-Sim 3.0.0, 8x8 array: the index of the last cycle."""
    config = IDEAL.replace(rows=8, cols=8, dataflow=dataflow)
    sizes = [(17, 30, 20), (1, 9, 33), (40, 8, 8)]
    workload = [acc.MatMul("a", *size, weights="a") for size in sizes]
    report = acc.simulate(workload, config)
    assert [layer.compute_cycles - 1 for layer in report.layers] == printed


@pytest.mark.parametrize("dataflow", ["ws", "os"])
def test_hidden_loading_is_between_streaming_and_serial(dataflow):
    config = IDEAL.replace(dataflow=dataflow, weight_load="hidden")
    for workload in (acc.workloads.deit_tiny(), acc.workloads.mobilenet_v2()):
        for layer in acc.simulate(workload, config).layers:
            serial = systolic.serial_cycles(layer.product, config)
            assert layer.ideal_cycles <= layer.cycles <= serial
            assert layer.cycles == systolic.roofline_cycles(layer.product, config)
