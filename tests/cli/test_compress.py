"""`ssvq compress`: what is compressed, how, and what is refused."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import ssvq_jax as ssvq
from ssvq_jax import calibration
from ssvq_jax.checkpoint import Checkpoint
from ssvq_jax.export import FormatError, container
from ssvq_jax.export.container import Container, Tensor
from tests.export.test_streaming import formula
from tests.shared import shared

pytestmark = pytest.mark.usefixtures("standard_promotion")

MODELS = (
    "deeplabv3_mnv2_050",
    "deit_tiny_cifar10",
    "efficientnet_lite0",
    "mobilenet_v1_025",
    "mobilenet_v2_100",
    "yolox_nano",
)


def test_blocks_run_along_the_inputs(torch_checkpoint, tmp_path, ssvq_command):
    path, tensors = torch_checkpoint
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


def test_the_same_as_the_library(torch_checkpoint, tmp_path, ssvq_command):
    path, tensors = torch_checkpoint
    packed = tmp_path / "x"
    arguments = "--codewords", 4, "--block", 4, "--codebook-dtype", "int8", "--seed", 3
    arguments += "--channel-scale", "float16", "--sign-code", "parity", "--starts", 3
    assert ssvq_command("compress", path, packed, *arguments)[0] == 0
    name = "layers.0.linear.weight"
    scaled = {"codebook_dtype": "int8", "channel_scale": "float16"}
    codec = ssvq.SSVQ(4, 4, sign_code="parity", starts=3, **scaled)
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


def test_include_exclude_and_alignment(torch_checkpoint, tmp_path, ssvq_command):
    path, _ = torch_checkpoint
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
def test_options_that_cannot_be(
    arguments, message, torch_checkpoint, tmp_path, ssvq_command
):
    path, _ = torch_checkpoint
    status, _, error = ssvq_command("compress", path, tmp_path / "x", *arguments)
    assert status == 2
    assert re.search(message, " ".join(error.split()))
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_compressed_is_kept_and_named(
    torch_checkpoint, tmp_path, ssvq_command
):
    path, tensors = torch_checkpoint
    tensors["layers.0.linear.weight"][0, 0] = np.nan
    tensors["a/~b[red]"] *= 1e-12  # below float16
    save_file(tensors, path)
    status, output, _ = ssvq_command("compress", path, tmp_path / "x", "--json")
    kept = json.loads(output)["kept"]
    methods = {row["name"]: row["method"] for row in json.loads(output)["parameters"]}
    assert status == 0 and set(kept) == {"layers.0.linear.weight"}
    assert "NaN" in kept["layers.0.linear.weight"]
    assert "bfloat16" in methods["a/~b[red]"]
    status, output, _ = ssvq_command("compress", path, tmp_path / "x")
    assert "Kept as it is" in output
    arguments = "verify", tmp_path / "x", "--against", path
    assert ssvq_command(*arguments)[0] == 0


def test_flax_kernels_of_which_the_name_tells_the_axis(tmp_path, rng, ssvq_command):
    path, packed = tmp_path / "a", tmp_path / "b"
    save_file({"dw/kernel": rng.normal(size=(3, 3, 1, 512)).astype("f4")}, path)
    arguments = "compress", path, packed, "--layout", "flax", "--codewords"
    status, _, error = ssvq_command(*arguments, 600)  # it has 576 blocks
    assert status == 2 and "nothing to compress" in error
    assert ssvq_command(*arguments, 500)[0] == 0


@pytest.mark.parametrize(
    ("model", "codewords"),
    [*((model, 16) for model in MODELS), ("mobilenet_v1_025", 256)],
)
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


def test_tied_tensors_stay_equal(tmp_path, rng, ssvq_command):
    path, packed, out = (tmp_path / name for name in "abc")
    weight = rng.normal(size=(64, 80)).astype("f4")
    tensors = {"head": weight, "other": -weight, "table": weight.copy()}
    save_file(tensors, path)
    status, output, _ = ssvq_command("compress", path, packed, "--json")
    rows = {row["name"]: row["error"] for row in json.loads(output)["parameters"]}
    assert status == 0 and list(rows) == ["head", "other", "table"]
    assert rows["head"] == rows["table"] > 0
    assert ssvq_command("decode", packed, out)[0] == 0
    decoded = load_file(out)
    np.testing.assert_array_equal(decoded["head"], decoded["table"])
    assert not np.array_equal(decoded["head"], -decoded["other"])


def test_shards_give_the_bytes_of_the_whole(torch_checkpoint, tmp_path, ssvq_command):
    path, tensors = torch_checkpoint
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    folder = tmp_path / "shards"
    folder.mkdir()
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for place in set(places.values()):
        part = {name: x for name, x in tensors.items() if places[name] == place}
        save_file(part, folder / place, metadata)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    packed = [tmp_path / f"{i}.ssvq.safetensors" for i in range(3)]
    for source, out in zip((path, folder, index), packed, strict=True):
        assert ssvq_command("compress", source, out)[0] == 0
    contents = [Container(out) for out in packed]
    for name in contents[0].tensors.keys() - {"ssvq_jax.hashes"}:
        assert len({found.read(name).tobytes() for found in contents}) == 1
    # What the original's files were is all that differs.
    described = [ssvq.load(out, lazy=True).metadata["source"] for out in packed]
    assert [x.pop("shards", None) is None for x in described] == [True, False, False]
    assert described[0] == described[1] == described[2]
    assert packed[1].read_bytes() == packed[2].read_bytes()
    assert ssvq_command("verify", packed[0], "--against", folder)[0] == 0
    status, _, error = ssvq_command("compress", folder, folder / "model-0.safetensors")
    assert status == 2 and "is the source" in " ".join(error.split())


def test_shards_there_and_back(torch_checkpoint, tmp_path, ssvq_command):
    path, tensors = torch_checkpoint
    folder, back = tmp_path / "shards", tmp_path / "back"
    folder.mkdir()
    back.mkdir()
    places = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for place in set(places.values()):
        part = {name: x for name, x in tensors.items() if places[name] == place}
        save_file(part, folder / place, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    whole, out = tmp_path / "whole.safetensors", tmp_path / "x.ssvq.safetensors"
    assert ssvq_command("compress", folder, whole)[0] == 0
    arguments = "compress", folder, out, "--max-shard-size", "4 KB"
    assert ssvq_command(*arguments, "--json")[0] == 0
    index = tmp_path / "x.ssvq.safetensors.index.json"
    file = ssvq.load(index, lazy=True)
    assert not out.exists() and len(file.files) > 3
    status, output, _ = ssvq_command("info", index)
    assert status == 0 and " shards: " in " ".join(output.split())
    assert ssvq_command("verify", index)[0] == 0
    assert ssvq_command("diff", index, whole)[0] == 0
    assert ssvq_command("verify", index, "--against", folder)[0] == 0
    page = tmp_path / "x.html"
    assert ssvq_command("report", index, "--html", page)[0] == 0 and page.exists()
    assert ssvq_command("decode", index, back)[0] == 0
    assert {x.name for x in back.iterdir()} == {x.name for x in folder.iterdir()}
    for place in places.values():
        assert load_file(back / place).keys() == load_file(folder / place).keys()
    assert ssvq_command("diff", back, whole)[0] == 0
    assert ssvq_command("decode", index, tmp_path / "one.safetensors")[0] == 0
    assert ssvq_command("diff", back, tmp_path / "one.safetensors")[0] == 0
    assert ssvq_command("compress", path, whole)[0] == 0  # no shards: one file
    before = {x.name: x.read_bytes() for x in back.iterdir()}
    for source in (whole, index):  # what is there was not named by the user
        status, _, error = ssvq_command("decode", source, back)
        assert status == 2 and "name an empty folder" in " ".join(error.split())
    assert before == {x.name: x.read_bytes() for x in back.iterdir()}
    empty = tmp_path / "empty"
    empty.mkdir()
    assert ssvq_command("decode", whole, empty)[0] == 0
    assert [x.name for x in empty.iterdir()] == ["model.safetensors"]
    assert ssvq_command("diff", empty, whole)[0] == 0
    # A shard of the output would be the source.
    source = tmp_path / "x-00001-of-00002.ssvq.safetensors"
    source.write_bytes(path.read_bytes())
    status, _, error = ssvq_command(*arguments[:1], source, *arguments[2:])
    assert status == 2 and "is the source" in " ".join(error.split())
    assert source.read_bytes() == path.read_bytes()


def test_tied_tensors_have_the_moments_of_any(tmp_path, rng, ssvq_command):
    weight = rng.normal(size=(64, 80)).astype("f4")
    path, packed, found = (tmp_path / name for name in "abc")
    large = np.full((64, 80), np.nan, "f4")
    tensors = {
        "a": weight,
        "b": weight,
        "c": large,
        "d": large,
        "e": weight.astype("i4"),
    }
    tensors |= {"f": tensors["e"], "g": -weight.astype(jnp.float8_e4m3fn)}
    save_file({k: v for k, v in tensors.items() if k != "g"}, path)
    x = jnp.asarray(rng.normal(size=(200, 80)) * np.linspace(0.1, 3, 80), "f4")
    params = {"b": jnp.asarray(weight)}
    moments = ssvq.calibrate(lambda p, x: x @ p["b"].T, params, [x])
    ssvq.save(found, moments)
    options = ("--statistics", found, "--json")
    status, output, _ = ssvq_command("compress", path, packed, *options)
    report = json.loads(output)
    assert status == 0 and report["statistics"]["used"] == ["a", "b"]
    assert sorted(report["kept"]) == ["c", "d"]
    assert report["statistics"]["missing"] == []
    node = ssvq.load(packed, lazy=True)["a"]
    own = calibration.compress(
        params,
        [ssvq.Rule("b", ssvq.SSVQ(), axis=1)],
        key=jax.random.key(0),
        moments=moments,
    )
    np.testing.assert_array_equal(node.codes, own["b"].codes)


@pytest.mark.parametrize("size", ["", "much", "-1", "1.5XB", "0", "1e9", "9" * 400])
def test_sizes_that_are_none(size, torch_checkpoint, tmp_path, ssvq_command):
    path, _ = torch_checkpoint
    arguments = "compress", path, tmp_path / "x", f"--max-shard-size={size}"
    status, _, error = ssvq_command(*arguments)
    assert status == 2 and "expected bytes" in error


@pytest.mark.parametrize(
    "shards",
    [
        {"../x.safetensors": ["w"]},
        {"/tmp/x.safetensors": ["w"]},
        {"..": ["w"]},
        {"x": ["w"]},
        {".safetensors": ["w"]},
        {"a\0.safetensors": ["w"]},
        {"a\n.safetensors": ["w"]},
        {"\x1b[31m.safetensors": ["w"]},
        {f"{'a' * 300}.safetensors": ["w"]},
        {"x.safetensors": []},
        {"x.safetensors": ["w", "w"]},
        {"x.safetensors": ["w"], "y.safetensors": ["w"]},
        {"x.safetensors": "w", "y.safetensors": ["v"]},
        {"x.safetensors": 3},
        {"x.safetensors": [3]},
        ["x.safetensors"],
        "x.safetensors",
    ],
    ids=str,
)
def test_files_of_an_original_are_checked(shards, tmp_path, ssvq_command):
    path, back = tmp_path / "x", tmp_path / "back"
    back.mkdir()
    ssvq.save(path, {"w": np.ones(3)}, metadata={"source": {"shards": shards}})
    status, _, error = ssvq_command("decode", path, back)
    assert status == 2 and "the shards of its original" in " ".join(error.split())
    assert not any(back.iterdir()) and {*tmp_path.iterdir()} == {path, back}


def test_links_in_a_folder_are_not_followed(tmp_path, ssvq_command):
    path, back, other = tmp_path / "x", tmp_path / "back", tmp_path / "other"
    back.mkdir()
    other.write_text("mine")
    shards = {"x.safetensors": ["w"], "y.safetensors": ["v"]}
    tree = {"w": np.ones(3), "v": np.zeros(2)}
    ssvq.save(path, tree, metadata={"source": {"shards": shards}})
    for name in ("x.safetensors", "model.safetensors.index.json"):
        (back / name).symlink_to(other)
        status, _, error = ssvq_command("decode", path, back)
        assert status == 2 and "name an empty folder" in " ".join(error.split())
        (back / name).unlink()
    (tmp_path / "z-00002-of-00002").symlink_to(other)
    with pytest.raises(OSError, match="a link"):
        ssvq.save(tmp_path / "z", tree, max_shard_size=8)
    assert other.read_text() == "mine" and not any(back.iterdir())


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_by_way_of_float32_and_back(dtype, tmp_path, rng, ssvq_command):
    path, packed, out = (tmp_path / name for name in "abc")
    dtype = jnp.dtype(dtype)
    values = (60 * rng.normal(size=(96, 64))).astype(dtype)
    tensor = Tensor(container.NAMES[dtype.name], values.shape)
    header = container.header_bytes({"w": tensor}, {})
    path.write_bytes(header + values.tobytes())
    assert ssvq_command("compress", path, packed, "--channel-scale", "float16")[0] == 0
    assert ssvq.load(packed, lazy=True).entries["w"].dtype == "float32"
    assert ssvq_command("verify", packed, "--against", path)[0] == 0
    assert ssvq_command("decode", packed, out)[0] == 0
    back = Checkpoint(out)
    assert back.dtype("w") == dtype
    difference = back["w"].astype("f4") - values.astype("f4")
    assert np.mean(difference**2) < 0.4 * np.mean(values.astype("f4") ** 2)


def test_200_damaged_indices(tmp_path, rng):
    path = tmp_path / "model.safetensors.index.json"
    for name in "ab":
        save_file({name: np.full((2, 3), ord(name), "f4")}, tmp_path / name)
    whole = json.dumps({"metadata": {}, "weight_map": {"a": "a", "b": "b"}}).encode()
    for _ in range(200):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=rng.choice([1, 1, 3])):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            found = Checkpoint(path)
        except (FormatError, FileNotFoundError) as error:
            assert str(path) in str(error)
        else:
            assert list(found) == ["a", "b"]
