"""`ssvq verify` and `ssvq diff`: what is damaged or different is named."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import ssvq_jax as ssvq

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_large_weights_and_errors_that_are_not_finite(tmp_path, rng, ssvq_command):
    path, other, packed = (tmp_path / name for name in ("a", "b", "c"))
    weight = (rng.normal(size=(64, 64)) * 1e25).astype("f4")
    save_file({"w": weight}, path)
    arguments = "compress", path, packed, "--json", "--codebook-dtype", "float32"
    status, output, _ = ssvq_command(*arguments)
    assert status == 0 and 0 < json.loads(output)["parameters"][0]["error"] < 1
    weight[0, 0] = np.inf
    save_file({"w": weight}, other)
    arguments = "verify", packed, "--against", other, "--json"
    status, output, _ = ssvq_command(*arguments)
    assert status == 1 and not json.loads(output)["ok"]


def test_damage_is_found_and_named(torch_checkpoint, tmp_path, ssvq_command):
    path, _ = torch_checkpoint
    packed = tmp_path / "x"
    ssvq_command("compress", path, packed)
    start = ssvq.load(packed, lazy=True).tensors["conv.weight"].start
    data = bytearray(packed.read_bytes())
    data[start + 3] ^= 16
    packed.write_bytes(data)
    status, output, _ = ssvq_command("verify", packed)
    assert status == 1 and "conv.weight" in output and "8 of 9" in output
    status, output, _ = ssvq_command("verify", packed, "--json")
    rows = {row["name"]: row["problem"] for row in json.loads(output)["parameters"]}
    assert [name for name, problem in rows.items() if problem] == ["conv.weight"]
    status, _, error = ssvq_command("decode", packed, tmp_path / "out")
    assert status == 2 and "conv.weight" in error
    assert not (tmp_path / "out").exists()


def test_another_original_is_noticed(torch_checkpoint, tmp_path, ssvq_command):
    path, tensors = torch_checkpoint
    packed, other = tmp_path / "x", tmp_path / "other.safetensors"
    ssvq_command("compress", path, packed)
    changed = {name: values for name, values in tensors.items() if name != "empty"}
    changed["cls_token"] = changed["cls_token"] + 1
    changed["conv.weight"] = changed["conv.weight"][:8]
    changed["more"] = np.ones(2)
    save_file(changed, other)
    status, output, _ = ssvq_command("verify", packed, "--against", other, "--json")
    rows = {row["name"]: row["problem"] for row in json.loads(output)["parameters"]}
    assert status == 1
    assert {name: problem for name, problem in rows.items() if problem} == {
        "empty": "not in the original",
        "more": "missing from the packed file",
        "cls_token": "other values than the original",
        "conv.weight": "bfloat16[32, 24, 3, 3], originally bfloat16[8, 24, 3, 3]",
    }
    status, output, _ = ssvq_command("diff", path, other, "--json")
    rows = {r["name"]: r["difference"] for r in json.loads(output)["parameters"]}
    assert rows["more"] == "only in b" and rows["empty"] == "only in a"
    assert rows["conv.weight"] == "shape or dtype" and rows["double"] == "none"
    assert rows["cls_token"].startswith("relative squared error")
