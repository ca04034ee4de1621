"""Machines and simulations that cannot be, and where values come from."""

import math

import pytest

import ssvq_jax as ssvq
from ssvq_jax import accelerator as acc

DEIT = acc.workloads.deit_tiny()
SSVQ = ssvq.SSVQ(16, 8, codebook_dtype="int8")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"rows": 0}, ValueError, "rows: expected at least 1, got 0"),
        ({"cols": 1.5}, TypeError, "cols: expected an integer"),
        ({"dram_bytes_per_cycle": 0}, ValueError, "dram_bytes_per_cycle: expected at"),
        ({"dram_bytes_per_cycle": 5e-324}, ValueError, "dram_bytes_per_cycle"),
        ({"prefetch": "no"}, TypeError, "prefetch: expected True or False"),
        ({"energy": 3}, TypeError, "energy: expected an Energy"),
        ({"dram_bytes_per_cycle": -1.0}, ValueError, "dram_bytes_per_cycle"),
        ({"dram_bytes_per_cycle": math.nan}, ValueError, "dram_bytes_per_cycle"),
        ({"dataflow": "is"}, ValueError, "dataflow: expected one of ws, os"),
        ({"weight_load": "no"}, ValueError, "weight_load"),
        ({"dram_latency": -1}, ValueError, "dram_latency"),
        ({"decode_codewords_per_cycle": 0}, ValueError, "decode_codewords_per_cycle"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_machines_that_cannot_be(values, error, message):
    with pytest.raises(error, match=message):
        acc.Config(**values)


def test_simulations_that_cannot_be():
    config = acc.Config()
    with pytest.raises(ValueError, match="weight_buffer_bytes: 100 is smaller than a"):
        acc.simulate(DEIT, config.replace(weight_buffer_bytes=100))
    with pytest.raises(ValueError, match="codebook_bytes: 10 is smaller.*patch_embed"):
        acc.simulate(DEIT, config.replace(codebook_bytes=10), SSVQ)
    with pytest.raises(ValueError, match="workload: expected at least one product"):
        acc.simulate([], config)
    with pytest.raises(TypeError, match="weights: expected"):
        acc.simulate(DEIT, config, 3)
    with pytest.raises(FileNotFoundError, match="'INT8' is neither 'int8', 'float32'"):
        acc.simulate(DEIT, config, "INT8")
    for size in ({"m": 0}, {"count": 0}, {"elementwise": -1}, {"inputs": -1}):
        with pytest.raises(ValueError, match=f"a: {next(iter(size))}"):
            acc.MatMul(**{"name": "a", "m": 1, "k": 1, "n": 1, **size})


def test_every_value_of_a_preset_has_a_source():
    for preset in acc.presets.values():
        for name, _, source in preset.described():
            assert source, name
    sources = {name: s for name, _, s in acc.Config(rows=3).described()}
    assert sources["rows"] == "assumed" and "Horowitz" in sources["mac"]
