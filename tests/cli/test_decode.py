"""`ssvq decode`: from checkpoints to packed files and back."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import ssvq_jax as ssvq
from ssvq_jax.cli.inspect import relative_error
from ssvq_jax.export.container import Container, Tensor, bits_of, header_bytes

pytestmark = pytest.mark.usefixtures("standard_promotion")

COMPRESSED = {"layers.0.linear.weight", "conv.weight", "depthwise.weight", "a/~b[red]"}
METHODS = {
    "ssvq": ssvq.SSVQ(16, 8),
    "vq": ssvq.VQ(64, 4),
    "uniform": ssvq.Uniform(2),
    "mvq": ssvq.MVQ(16, 8, (2, 4)),
}


@pytest.mark.parametrize("method", METHODS)
def test_there_and_back(method, torch_checkpoint, tmp_path, ssvq_command):
    path, tensors = torch_checkpoint
    packed, out = tmp_path / "x.ssvq.safetensors", tmp_path / "out.safetensors"
    arguments = "compress", path, packed, "--method", method, "--json"
    status, output, _ = ssvq_command(*arguments)
    report = json.loads(output)
    assert status == 0
    assert report["bytes"] == packed.stat().st_size
    parts = ("parameters", "header", "hashes", "alignment")
    assert len(report["parameters"]) == len(tensors)
    listed = {row["name"]: row for row in report["parameters"]}
    stored = sum(row["bytes"] for row in listed.values())
    sizes = json.loads(ssvq_command("info", packed, "--json")[1])
    assert stored + sum(sizes[part] for part in parts[1:]) == sizes["bytes"]
    assert {n for n, r in listed.items() if r["error"] is not None} == COMPRESSED
    file = ssvq.load(packed, lazy=True)
    assert {e.codec for e in file.entries.values()} == {METHODS[method]}

    assert ssvq_command("decode", packed, out, "--json")[0] == 0
    decoded = load_file(out)
    with safe_open(out, "np") as restored:
        assert restored.metadata() == {"format": "pt"}
    assert set(decoded) == set(tensors)
    for name, values in tensors.items():
        assert (decoded[name].dtype, decoded[name].shape) == (
            values.dtype,
            values.shape,
        )
        if name in COMPRESSED:
            error = relative_error(decoded[name], values)
            assert error == pytest.approx(listed[name]["error"], rel=1e-3, abs=1e-6)
        else:
            np.testing.assert_array_equal(decoded[name], values)
    node = file["layers.0.linear.weight"]
    np.testing.assert_array_equal(decoded["layers.0.linear.weight"], ssvq.decode(node))

    assert ssvq_command("verify", packed, "--against", path)[0] == 0
    assert ssvq_command("diff", packed, out)[0] == 0
    status, output, _ = ssvq_command("diff", out, path)
    assert status == 1 and f"{len(tensors) - 4} of {len(tensors)}" in output


def test_output_loads_in_pytorch(torch_checkpoint, tmp_path, ssvq_command):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from safetensors.torch import load_file as load_torch

    path, _ = torch_checkpoint
    packed, out = tmp_path / "x", tmp_path / "out.safetensors"
    ssvq_command("compress", path, packed)
    ssvq_command("decode", packed, out)
    original, restored = load_torch(path), load_torch(out)
    layer = torch.nn.Linear(64, 96)
    layer.load_state_dict(
        {key: restored[f"layers.0.linear.{key}"].float() for key in ("weight", "bias")}
    )
    for name, values in original.items():
        assert restored[name].dtype == values.dtype
        assert restored[name].shape == values.shape
        if name not in COMPRESSED:
            assert torch.equal(restored[name], values)


@pytest.mark.parametrize("dtype", ["C64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"])
def test_dtypes_that_are_kept_come_back(dtype, tmp_path, rng, ssvq_command):
    path, packed, out = (tmp_path / name for name in "abc")
    weight = rng.normal(size=(64, 64)).astype("f4")
    kept = np.full((4, 64 * 64), 0x38, np.uint8)
    shape = (4, 8 * kept.size // 4 // bits_of(dtype))
    header = header_bytes({"x": Tensor(dtype, shape), "w": Tensor("F32", (64, 64))}, {})
    path.write_bytes(header + kept.tobytes() + weight.tobytes())
    assert ssvq_command("compress", path, packed, "--exclude", "x")[0] == 0
    assert ssvq_command("decode", packed, out)[0] == 0
    decoded = Container(out)
    assert decoded.tensors["x"].dtype == dtype and decoded.tensors["x"].shape == shape
    np.testing.assert_array_equal(decoded.read("x"), kept.reshape(-1))
    for first, second in ((path, out), (path, packed)):
        status, output, _ = ssvq_command("diff", first, second, "--json")
        assert status in (0, 1) and "x" in output
