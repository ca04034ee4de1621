"""What a report says: events, energy, tables."""

import csv
import io
import json
import math

import pytest

import ssvq_jax as ssvq
from ssvq_jax import accelerator as acc

DEIT = acc.workloads.deit_tiny()
SSVQ = ssvq.SSVQ(16, 8, codebook_dtype="int8")


def test_energy_falls_by_little():
    config = acc.Config()
    int8, compressed = (acc.simulate(DEIT, config, w) for w in ("int8", SSVQ))
    assert 1.1 < int8.energy_pj / compressed.energy_pj < 1.5
    parts = int8.energy_by_component
    assert parts["mac"] == pytest.approx(0.23 * 1_253_683_200)
    assert parts["dram"] == int8.dram_bytes * 64
    assert sum(parts.values()) == pytest.approx(int8.energy_pj)
    assert sum(row["energy_pj"] for row in int8.rows()) == pytest.approx(int8.energy_pj)


def test_events_of_small_products():
    product = acc.MatMul("a", 10, 32, 24, weights="a")
    sizes = {"rows": 16, "cols": 8}
    codec = ssvq.SSVQ(4, 8, codebook_dtype="int8")
    macs, codes, codebook = 10 * 32 * 24, 24 + 96, 4 * 8 + 4
    stationary = acc.simulate([product], acc.Config(**sizes), codec).layers[0]
    assert stationary.events == {
        "mac": macs,
        "register": macs + 32 * 24 + codebook,
        "neighbour": 2 * macs + 32 * 24 * 8,
        # Inputs for 3 columns, sums between 2 tiles, outputs, stored weights in, out.
        "buffer": 10 * 32 * 3 + 2 * 240 + 240 + 2 * codes,
        "negate": 32 * 24,
        "check": 0,
    }
    config = acc.Config(dataflow="os", rows=4, cols=8)
    outputs = acc.simulate([product], config, codec).layers[0]
    assert outputs.events == {
        "mac": macs,
        "register": macs + 3 * 32 * 24 + codebook,  # decoded for 3 rows of tiles
        "neighbour": 2 * macs,
        "buffer": 10 * 32 * 3 + 240 + (1 + 3) * codes,
        "negate": 3 * 32 * 24,
        "check": 0,
    }


def test_signs_that_follow_are_not_fetched_but_computed():
    product = acc.MatMul("a", 10, 32, 24, weights="a")
    free, coded = (
        acc.simulate([product], acc.Config(), ssvq.SSVQ(4, 8, sign_code=code))
        for code in ("free", "hamming")
    )
    fetched = [x.layers[0].events["buffer"] for x in (free, coded)]
    assert fetched[0] - fetched[1] == 2 * 32 * 24 // 2 // 8
    assert coded.layers[0].events["check"] == 32 * 24 // 2
    energy = coded.energy_by_component["check"]
    assert energy == pytest.approx(0.03 * 32 * 24 / 2)


def test_vector_unit_and_what_is_left_out():
    without = acc.simulate(DEIT, acc.Config())
    elements = sum(p.elementwise for p in DEIT)
    assert without.excluded_elements == elements > 0
    assert without.stall_cycles["vector"] == 0
    included = acc.simulate(DEIT, acc.Config(vector_elements_per_cycle=64))
    assert included.excluded_elements == 0
    assert included.stall_cycles["vector"] >= elements / 64


def test_report_as_table_csv_and_json():
    report = acc.simulate(DEIT, acc.Config(dram_bytes_per_cycle=math.inf), SSVQ)
    contents = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert contents["config"]["dram_bytes_per_cycle"] == "inf"
    assert set(contents["sources"]) == set(contents["config"])
    assert sum(layer["cycles"] for layer in contents["layers"]) == contents["cycles"]
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [row["name"] for row in rows] == [p.name for p in DEIT]
    assert sum(int(row["dram_signs"]) for row in rows) == report.traffic["signs"]
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(report)
    assert "blocks.11.mlp.fc2" in console.file.getvalue()
