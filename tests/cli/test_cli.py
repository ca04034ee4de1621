"""The command `ssvq`, from checkpoints to packed files and back."""

import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import ssvq_jax as ssvq
from ssvq_jax.cli import main
from ssvq_jax.cli.inspect import relative_error
from tests.export.test_streaming import formula
from tests.shared import shared

MODELS = (
    "deeplabv3_mnv2_050",
    "deit_tiny_cifar10",
    "efficientnet_lite0",
    "mobilenet_v1_025",
    "mobilenet_v2_100",
    "yolox_nano",
)

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def ssvq_command(monkeypatch, capsys):
    """Run `ssvq ...`; gives the exit status, the output and the error output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ssvq", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as status:
            main()
        captured = capsys.readouterr()
        return status.value.code, captured.out, captured.err

    return run


@pytest.fixture
def source(tmp_path, rng):
    """A checkpoint with torch's layouts, names and metadata."""

    def normal(*shape):
        return rng.normal(size=shape).astype("f4")

    tensors = {
        "layers.0.linear.weight": normal(96, 64),
        "layers.0.linear.bias": normal(96),
        "conv.weight": normal(32, 24, 3, 3).astype(jnp.bfloat16),
        "depthwise.weight": normal(480, 1, 3, 3).astype("f2"),
        "a/~b[red]": normal(64, 65),
        "cls_token": normal(1, 1, 4096),
        "position_ids": np.arange(5000).reshape(2, 2500),
        "double": normal(80, 80).astype("f8"),
        "empty": normal(0, 3),
    }
    path = tmp_path / "in.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path, tensors


COMPRESSED = {"layers.0.linear.weight", "conv.weight", "depthwise.weight", "a/~b[red]"}
METHODS = {
    "ssvq": ssvq.SSVQ(16, 8),
    "vq": ssvq.VQ(16, 8),
    "uniform": ssvq.Uniform(2),
    "mvq": ssvq.MVQ(16, 8, (2, 4)),
}


@pytest.mark.parametrize("method", METHODS)
def test_there_and_back(method, source, tmp_path, ssvq_command):
    path, tensors = source
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


def test_blocks_run_along_the_inputs(source, tmp_path, ssvq_command):
    path, tensors = source
    torch, flax = tmp_path / "torch", tmp_path / "flax"
    assert ssvq_command("compress", path, torch)[0] == 0
    entries = ssvq.load(torch, lazy=True).entries
    assert entries["layers.0.linear.weight"].axis == 1
    assert entries["conv.weight"].axis == 1
    assert entries["depthwise.weight"].axis == 0
    transposed = {
        "dense/kernel": np.ascontiguousarray(tensors["layers.0.linear.weight"].T),
        "conv/kernel": np.ascontiguousarray(
            tensors["conv.weight"].transpose(2, 3, 1, 0)
        ),
        "table/embedding": tensors["layers.0.linear.weight"],
    }
    save_file(transposed, path)
    assert ssvq_command("compress", path, flax, "--layout", "flax")[0] == 0
    entries = ssvq.load(flax, lazy=True).entries
    assert {n: e.axis for n, e in entries.items()} == {
        "dense~1kernel": 0,
        "conv~1kernel": 2,
        "table~1embedding": 1,
    }


def test_the_same_as_the_library(source, tmp_path, ssvq_command):
    path, tensors = source
    packed = tmp_path / "x"
    arguments = "--codewords", 4, "--block", 4, "--codebook-dtype", "int8", "--seed", 3
    assert ssvq_command("compress", path, packed, *arguments)[0] == 0
    name = "layers.0.linear.weight"
    codec = ssvq.SSVQ(4, 4, codebook_dtype="int8")
    expected = ssvq.compress(
        {name: tensors[name]}, [ssvq.Rule(name, codec, axis=1)], key=jax.random.key(3)
    )
    np.testing.assert_array_equal(
        ssvq.decode(ssvq.load(packed, lazy=True)[name]),
        ssvq.decode(ssvq.finalize(expected))[name],
    )
    again = tmp_path / "y"
    ssvq_command("compress", path, again, *arguments)
    assert again.read_bytes() == packed.read_bytes()


def test_include_exclude_and_alignment(source, tmp_path, ssvq_command):
    path, _ = source
    packed = tmp_path / "x"
    arguments = "--include", r".*\.weight", "--exclude", "conv.*", "--alignment", 64
    assert ssvq_command("compress", path, packed, *arguments)[0] == 0
    file = ssvq.load(packed, lazy=True)
    assert set(file.entries) == {"layers.0.linear.weight", "depthwise.weight"}
    assert all(file.tensors[name].start % 64 == 0 for name in file.entries)
    status, output, _ = ssvq_command("info", packed)
    assert status == 0 and "alignment" in output and "a/~b[red]" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--include", "nothing"], "--include: 'nothing' matches no whole name"),
        (["--exclude", "("], r"--exclude: '\('"),
        (["--min-weights", 10**9], "nothing to compress"),
        (["--codewords", 1], "codewords: expected at least 2"),
        (["--method", "mvq", "--keep", 3, 5], "block: expected a multiple of M = 5"),
        (["--alignment", 3], "alignment: expected a power of two"),
    ],
)
def test_options_that_cannot_be(arguments, message, source, tmp_path, ssvq_command):
    path, _ = source
    status, _, error = ssvq_command("compress", path, tmp_path / "x", *arguments)
    assert status == 2
    assert re.search(message, " ".join(error.split()))
    assert not (tmp_path / "x").exists()


def test_files_that_cannot_be_read(source, tmp_path, ssvq_command):
    path, _ = source
    out = tmp_path / "x"
    status, _, error = ssvq_command("compress", tmp_path / "absent", out)
    assert status == 2 and "absent" in error
    (tmp_path / "text").write_text("no checkpoint")
    for command in (["info"], ["verify"], ["compress", path], ["diff", path]):
        first, *rest = command
        status, _, error = ssvq_command(first, tmp_path / "text", *rest)
        assert status == 2 and "text" in error, command
    for command in (["info", path], ["verify", path], ["decode", path, out]):
        status, _, error = ssvq_command(*command)
        assert status == 2 and "not written by ssvq_jax" in " ".join(error.split())
    assert ssvq_command("compress", path, out)[0] == 0
    status, _, error = ssvq_command("compress", out, tmp_path / "y")
    assert status == 2 and "packed already" in error


def test_what_cannot_be_compressed_is_kept_and_named(source, tmp_path, ssvq_command):
    path, tensors = source
    tensors["layers.0.linear.weight"][0, 0] = np.nan
    tensors["a/~b[red]"] *= 1e-12  # below float16
    save_file(tensors, path)
    status, output, _ = ssvq_command("compress", path, tmp_path / "x", "--json")
    kept = json.loads(output)["kept"]
    assert status == 0 and set(kept) == {"layers.0.linear.weight", "a/~b[red]"}
    assert "NaN" in kept["layers.0.linear.weight"]
    assert "underflows" in kept["a/~b[red]"]
    status, output, _ = ssvq_command("compress", path, tmp_path / "x")
    assert "Kept as it is" in output
    arguments = "verify", tmp_path / "x", "--against", path
    assert ssvq_command(*arguments)[0] == 0


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


def test_flax_kernels_of_which_the_name_tells_the_axis(tmp_path, rng, ssvq_command):
    path, packed = tmp_path / "a", tmp_path / "b"
    save_file({"dw/kernel": rng.normal(size=(3, 3, 1, 512)).astype("f4")}, path)
    arguments = "compress", path, packed, "--layout", "flax", "--codewords"
    status, _, error = ssvq_command(*arguments, 600)  # it has 576 blocks
    assert status == 2 and "nothing to compress" in error
    assert ssvq_command(*arguments, 500)[0] == 0


def test_names_cannot_write_to_the_terminal(tmp_path, ssvq_command):
    path, other = tmp_path / "a", tmp_path / "b"
    save_file({"\x1b[31mEVIL\x1b]0;x\x07": np.ones(2)}, path)
    save_file({"b": np.ones(2)}, other)
    for arguments in (["diff", path, other], ["compress", path, tmp_path / "c"]):
        status, output, error = ssvq_command(*arguments)
        assert status and "EVIL" in output + error
        assert "\x1b[31m" not in output + error


def test_the_source_is_not_overwritten(source, tmp_path, ssvq_command):
    path, _ = source
    before = path.read_bytes()
    for out in (path, tmp_path, tmp_path / "absent" / "x"):
        status, _, error = ssvq_command("compress", path, out)
        assert status == 2 and error
    assert path.read_bytes() == before
    packed = tmp_path / "x"
    ssvq_command("compress", path, packed)
    assert ssvq_command("decode", packed, packed)[0] == 2


def test_damage_is_found_and_named(source, tmp_path, ssvq_command):
    path, _ = source
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


def test_another_original_is_noticed(source, tmp_path, ssvq_command):
    path, tensors = source
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


@pytest.mark.parametrize("codewords", [16, 256])
@pytest.mark.parametrize("model", MODELS)
def test_whole_files_are_near_theory(model, codewords, tmp_path, ssvq_command):
    path, packed = shared(f"models/{model}.safetensors"), tmp_path / "x"
    arguments = "--codewords", codewords, "--exclude", ".*patch_embed.*", "--json"
    if not model.startswith("deit"):
        arguments = "--codewords", codewords, "--json"
    status, output, _ = ssvq_command("compress", path, packed, *arguments)
    assert status == 0
    codec, theory, weights = ssvq.SSVQ(codewords, 8), 0, 0
    for row in json.loads(output)["parameters"]:
        size = math.prod(row["shape"])
        weights += size
        is_compressed = row["error"] is not None
        bits = formula(codec, tuple(row["shape"])) if is_compressed else 32
        theory += size * bits / 8
        if is_compressed and size >= 2**16:
            assert 0.999 * bits <= row["bits_per_weight"] <= 1.01 * bits, row
    size = packed.stat().st_size
    assert theory <= size
    assert size <= 1.02 * theory or weights < 1_000_000
    assert ssvq_command("verify", packed, "--against", path)[0] == 0


def test_simulate(tmp_path, rng, ssvq_command):
    width, classes = 64, 10
    shapes = {
        "pos_embed": (1, 5, width),
        "patch_embed.proj.weight": (width, 3, 8, 8),
        "blocks.0.attn.qkv.weight": (3 * width, width),
        "blocks.0.attn.proj.weight": (width, width),
        "blocks.0.mlp.fc1.weight": (4 * width, width),
        "blocks.0.mlp.fc2.weight": (width, 4 * width),
        "head.weight": (classes, width),
    }
    tensors = {name: rng.normal(size=s).astype("f4") for name, s in shapes.items()}
    path, packed, csv = (tmp_path / name for name in ("a", "b", "c.csv"))
    save_file(tensors, path)
    ssvq_command("compress", path, packed)
    machine = "--array", "16x8", "--bandwidth", 1.6, "--decoder", 4, "--prefetch"
    status, output, _ = ssvq_command("simulate", packed, *machine, "--json")
    contents = json.loads(output)
    assert status == 0
    expected = {"rows": 16, "cols": 8, "dram_bytes_per_cycle": 1.6, "prefetch": True}
    assert expected.items() <= contents["config"].items()
    assert contents["over_int8"]["dram_bytes"] > 0.5  # tiny matrices
    status, output, _ = ssvq_command("simulate", packed, "--csv", csv)
    assert status == 0 and "blocks.0.mlp.fc2" in output and "as fast as int8" in output
    assert len(csv.read_text().splitlines()) == 1 + 8
    for wrong, message in (
        (["--array", "64"], "expected rows x columns"),
        (["--bandwidth", 0], "dram_bytes_per_cycle: expected at least 1e-06"),
        (["--image", 32], "--image: of no use for vit"),
        (["--model", "mobilenet_v2"], "conv_stem.weight: not in the weights"),
    ):
        status, _, error = ssvq_command("simulate", packed, *wrong)
        assert status == 2 and message in " ".join(error.split())


def test_output_loads_in_pytorch(source, tmp_path, ssvq_command):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from safetensors.torch import load_file as load_torch

    path, _ = source
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
