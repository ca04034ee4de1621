"""Checkpoints of other programs: `.npz` and Orbax."""

import io
import json
import struct
import zipfile

import gguf
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

import ssvq_jax as ssvq
from ssvq_jax.checkpoint import Checkpoint
from ssvq_jax.export import FormatError

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def tree(rng):
    """Parameters as Flax has them, nested."""
    return {
        "dense": {
            "kernel": rng.normal(size=(64, 96)).astype("f4"),
            "bias": np.ones(96),
        },
        "layers": [{"w": rng.normal(size=(80, 64)).astype("f4")} for _ in range(2)],
        "half": rng.normal(size=(3, 5)).astype("f2"),
        "step": np.int32(7),
    }


@pytest.fixture
def flat(tree):
    return {
        "dense/kernel": tree["dense"]["kernel"],
        "dense/bias": tree["dense"]["bias"],
        "layers/0/w": tree["layers"][0]["w"],
        "layers/1/w": tree["layers"][1]["w"],
        "half": tree["half"],
        "step": np.asarray(tree["step"]),
    }


def assert_same(path, flat):
    found = Checkpoint(path)
    assert list(found) == sorted(flat) and found.layout == "flax" and found.nbytes > 0
    assert_arrays(found, flat)


def assert_arrays(found, expected):
    for name, values in expected.items():
        assert found.shape(name) == values.shape
        assert found.dtype(name) == values.dtype
        np.testing.assert_array_equal(found[name], values)


def test_gguf(rng, tmp_path):
    weight = rng.normal(size=(6, 64)).astype("f4")
    tensors = {
        "w": weight,
        "half": weight.astype("f2"),
        "bias": weight[0],
        "ids": np.arange(5, dtype=np.int32),
    }
    kind = gguf.GGMLQuantizationType.Q8_0
    blocks = gguf.quants.quantize(weight, kind)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.add_tensor("q", blocks, raw_dtype=kind)
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    found = Checkpoint(tmp_path / "x.gguf")
    assert list(found) == ["bias", "half", "ids", "q", "w"] and found.layout == "torch"
    for name, expected in tensors.items():
        assert (found.shape(name), found.dtype(name)) == (
            expected.shape,
            expected.dtype,
        )
        np.testing.assert_array_equal(found[name], expected)
    assert (found.shape("q"), found.dtype("q")) == ((6, 64), np.float32)
    np.testing.assert_array_equal(found["q"], gguf.quants.dequantize(blocks, kind))
    whole = (tmp_path / "x.gguf").read_bytes()
    for length in (4, 30, 100, len(whole) - 200):
        (tmp_path / "x.gguf").write_bytes(whole[:length])
        with pytest.raises(FormatError, match="x.gguf: no GGUF file"):
            Checkpoint(tmp_path / "x.gguf")


def test_gguf_that_has_no_end(tmp_path):
    array = struct.pack("<IIQ", 9, 0, 1 << 60)  # so many bytes, it says
    pair = struct.pack("<Q", 1) + b"a" + array
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError, match="x: no GGUF file: truncated"):
        Checkpoint(tmp_path / "x")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save, flat, tmp_path):
    save(tmp_path / "x.npz", **flat)
    assert_same(tmp_path / "x.npz", flat)


def test_orbax(tree, flat, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "folder/item", tree)
    for path in (tmp_path / "folder/item", tmp_path / "folder"):
        assert_same(path, flat)
    with ocp.StandardCheckpointer() as checkpointer:
        bfloat16 = {"x": jnp.arange(3, dtype="bfloat16")}
        checkpointer.save(tmp_path / "folder/other", bfloat16)
    found = Checkpoint(tmp_path / "folder/other")["x"]
    assert found.dtype == jnp.bfloat16 and found.tolist() == [0, 1, 2]
    with pytest.raises(FormatError, match="several Orbax checkpoints: name one of"):
        Checkpoint(tmp_path / "folder")
    (tmp_path / "folder/other/_METADATA").write_text("{")
    with pytest.raises(FormatError, match="no Orbax checkpoint"):
        Checkpoint(tmp_path / "folder/other")


def test_all_kinds_give_the_same_file(tree, flat, tmp_path, ssvq_command):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", tree)
    np.savez(tmp_path / "x.npz", **flat)
    save_file(flat, tmp_path / "x.safetensors")
    packed = []
    for name in ("orbax", "x.npz", "x.safetensors"):
        layout = ("--layout", "flax") if name.endswith("safetensors") else ()
        arguments = "compress", tmp_path / name, tmp_path / "packed", *layout
        assert ssvq_command(*arguments, "--quiet") == (0, "", "")
        packed.append((tmp_path / "packed").read_bytes())
    assert packed[0] == packed[1] == packed[2]
    entries = ssvq.load(tmp_path / "packed", lazy=True).entries
    assert {name: entry.axis for name, entry in entries.items()} == {
        "dense~1kernel": 0,
        "layers~10~1w": 0,
        "layers~11~1w": 0,
    }
    status, output, _ = ssvq_command("diff", tmp_path / "x.npz", tmp_path / "orbax")
    assert status == 0 and "6 of 6 parameters are the same" in output
    arguments = "verify", tmp_path / "packed", "--against", tmp_path / "orbax"
    assert json.loads(ssvq_command(*arguments, "--json")[1])["ok"]


def _zipped(**members):
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return text.getvalue()


def _array(array, header=None):
    text = io.BytesIO()
    np.save(text, array, allow_pickle=True)
    found = text.getvalue()
    return found if header is None else found.replace(*header)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no .npz file"),
        (b"PK\x03\x04" + bytes(99), "no .npz file"),
        (_zipped(a_npy=_array(np.ones(3)))[:-30], "no .npz file"),
        (_zipped(a_txt=b"x"), "expected arrays, got 'a.txt'"),
        (_zipped(a_npy=b"x"), "x.npz: "),
        (_zipped(a_npy=_array(np.ones(3), (b"(3,)", b"(9,)"))), "more numbers than"),
        (_zipped(a_npy=_array(np.ones(3), (b"(3,)", b"(-3, -1)"))), "x.npz: "),
        (_zipped(a_npy=_array(np.ones(3), (b"(3,)", b"(((("))), "x.npz: "),
        (_zipped(a_npy=_array(np.array([{}]))), "a: dtype object is not supported"),
        (_zipped(a_npy=_array(np.array(["x"]))), "a: dtype <U1 is not supported"),
    ],
)
def test_npz_that_are_none(content, message, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        dict(Checkpoint(tmp_path / "x.npz"))
