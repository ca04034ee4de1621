"""Packed files in shards, and parameters stored once under several names."""

import copy
import json
import os
import pathlib
import random
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq
from ssvq_jax.checkpoint import Checkpoint
from ssvq_jax.export import FormatError, container, shards
from ssvq_jax.export.names import original_name
from ssvq_jax.reader import Reader
from tests.export import reader
from tests.export.rewriting import put_together, take_apart

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def tree():
    """All kinds of containers, a stack over several shards, and ties."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    weights = [jnp.asarray(rng.normal(size=(16, 8)), "f4") for _ in range(5)]
    rules = [ssvq.Rule("stack", ssvq.VQ(4, 4), stack=1)]
    rules += [
        ssvq.Rule(".*kernel", ssvq.SSVQ(4, 8)),
        ssvq.Rule("l/.*", ssvq.Uniform(2)),
    ]
    params = {
        "a/b": {"kernel": weights[0], "bias": np.arange(8.0)},
        "l": [weights[1], (weights[2], None)],
        "stack": jnp.stack(weights[3:]),
    }
    packed = ssvq.finalize(ssvq.compress(params, rules, key=key))
    packed["tied"] = {"~x": packed["a/b"]["kernel"], "bias": packed["a/b"]["bias"]}
    return packed


def test_shards_are_the_tree(tree, tmp_path):
    whole = tmp_path / "model.ssvq.safetensors"
    assert ssvq.save(whole, tree, max_shard_size=10**6) == whole
    expected = ssvq.decode(ssvq.load(whole))
    index = ssvq.save(whole, tree, metadata={"n": [1]}, max_shard_size=100)
    assert index.name == "model.ssvq.safetensors.index.json"
    assert not whole.exists()  # it would be read in place of the index
    file = ssvq.load(index, lazy=True)
    assert file.metadata == {"n": [1]}
    chex.assert_trees_all_equal_structs(file.tree(), tree)
    chex.assert_trees_all_equal(ssvq.decode(file.tree()), expected)
    chex.assert_trees_all_equal(ssvq.decode(tree), expected)
    assert ssvq.load(index)["tied"]["~x"] is not None
    found = Reader(index)
    assert list(found) and found.metadata == {"n": [1]}
    *paths, last = file.files
    assert last == str(index) and len(paths) == len({*paths}) > 3
    seen = {}
    for i, path in enumerate(paths, 1):
        assert path.endswith(f"model-{i:05}-of-{len(paths):05}.ssvq.safetensors")
        part = ssvq.load(path, lazy=True)
        stored = {n: part.tensors[n].nbytes for n in part if n not in part.ties}
        assert sum(stored.values()) <= 100 or len(stored) == 1
        seen.update({original_name(n): v for n, v in Reader(path).items()})
        for name, (_, shape, values) in reader.read(path).items():
            array = found[original_name(name)]
            np.testing.assert_array_equal(array, np.reshape(values, shape))
    assert seen.keys() == found.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, seen[name])
    assert file.nbytes == sum(pathlib.Path(x).stat().st_size for x in file.files)


def test_what_is_one_object_is_stored_once(tree, tmp_path):
    separate = {**tree, "tied": copy.deepcopy(tree["tied"])}
    sizes = []
    for name, saved in (("once", tree), ("twice", separate)):
        ssvq.save(tmp_path / name, saved)
        file = ssvq.load(tmp_path / name, lazy=True)
        sizes.append(
            sum(x.nbytes for n, x in file.tensors.items() if n not in file.ties)
        )
        chex.assert_trees_all_equal(ssvq.load(tmp_path / name), tree)
        assert Reader(tmp_path / name).keys() == {original_name(n) for n in file}
    kernel = tree["a/b"]["kernel"].bits // 8
    assert sizes[1] - sizes[0] == kernel + tree["a/b"]["bias"].nbytes
    loaded = ssvq.load(tmp_path / "once")
    assert loaded["tied"]["~x"] is loaded["a/b"]["kernel"]


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([], []),
        ([5], ["a"]),
        ([1, 1, 1], ["abc"]),
        ([1, 1, 2], ["ab", "c"]),
        ([9, 1, 1, 9], ["a", "bc", "d"]),
        ([0, 3, 0, 1], ["abc", "d"]),
    ],
)
def test_groups(sizes, groups):
    found = shards.split(dict(zip("abcd", sizes, strict=False)), 3)
    assert found == [list(x) for x in groups]


@pytest.mark.parametrize(
    ("name", "shard"),
    [
        ("a.ssvq.safetensors", "a-00002-of-00003.ssvq.safetensors"),
        ("a-3.2.safetensors", "a-3.2-00002-of-00003.safetensors"),
        ("a.b", "a-00002-of-00003.b"),
        ("a", "a-00002-of-00003"),
    ],
)
def test_names(name, shard):
    assert shards.shard_of(pathlib.Path("x", name), 1, 3) == pathlib.Path("x", shard)


def test_the_example_in_the_specification(tmp_path):
    page = pathlib.Path(container.__file__).with_name("FORMAT.md").read_text()
    shown = re.findall(r"```json\n(.*?)```", page, re.DOTALL)[1]
    index = GOLDEN / "example4.ssvq.safetensors.index.json"
    assert json.loads(shown) == json.loads(index.read_text())
    tree = ssvq.load(index)
    assert tree["copy"] is tree["kernel"]
    example = ssvq.load(GOLDEN / "example1.ssvq.safetensors")
    chex.assert_trees_all_equal(tree, {**example, "copy": example["kernel"]})
    again = ssvq.save(tmp_path / "example4.ssvq.safetensors", tree, max_shard_size=16)
    for path in map(pathlib.Path, ssvq.load(again, lazy=True).files):
        assert path.read_bytes() == (GOLDEN / path.name).read_bytes()


def _index(tmp_path, tree):
    path = tmp_path / "x.safetensors"
    return ssvq.save(path, tree, max_shard_size=100)


def _refused(path, match="", error=FormatError):
    with pytest.raises(error, match=f"{path.name}.*{match}"):
        ssvq.load(path)
    with pytest.raises((ValueError, OSError)):
        dict(Reader(path))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: x["ssvq_jax"].update(version=2), "version: expected 1"),
        (lambda x: x["ssvq_jax"].update(version=True), "version: expected 1"),
        (lambda x: x["ssvq_jax"].update(more=1), "expected version, containers"),
        (lambda x: x["ssvq_jax"].pop("shards"), "expected version, containers"),
        (lambda x: x["ssvq_jax"].update(shards=[]), "expected mappings"),
        (lambda x: x["ssvq_jax"].update(metadata=3), "expected mappings"),
        (lambda x: x["ssvq_jax"]["shards"].popitem(), "expected a hash of each"),
        (lambda x: x["ssvq_jax"]["shards"].update(y="00"), "expected a hash of each"),
        (lambda x: x.update(ssvq_jax=1), "expected a mapping"),
        (lambda x: x["weight_map"].popitem(), ""),
        (lambda x: x["weight_map"].clear(), "expected names"),
        (lambda x: x["weight_map"].update({"l/0": "../x"}), "no file beside the index"),
    ],
)
def test_a_wrong_index_is_refused(change, match, tree, tmp_path):
    path = _index(tmp_path, tree)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    _refused(path, match)


def test_containers_and_sizes_of_an_index_are_checked(tree, tmp_path):
    path = _index(tmp_path, tree)
    text = path.read_text()
    for old, new, match in (
        ('"list"', '"null"', "None with parameters"),
        ('"list"', '"lisp"', "unknown container"),
        ('"total_size": ', '"total_size": 1', "total_size"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(FormatError, match=match):
            ssvq.load(path)
    path.write_text(text.replace('"ssvq_jax"', '"other"'))
    _refused(path, "shards that are not packed")


def test_shards_of_another_file_are_refused(tree, tmp_path):
    path = _index(tmp_path, tree)
    other = tmp_path / "other"
    other.mkdir()
    bias = np.arange(8.0) + 1
    changed = {**tree, "a/b": {**tree["a/b"], "bias": bias}, "tied": {}}
    changed["tied"] = {"~x": tree["a/b"]["kernel"], "bias": bias}
    ssvq.save(other / "x.safetensors", changed, max_shard_size=100)
    file = pathlib.Path(ssvq.load(path, lazy=True).files[0])
    whole = file.read_bytes()
    for content in ((other / file.name).read_bytes(), whole[:-1], b""):
        file.write_bytes(content)
        _refused(path, file.name if content else "")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="1 of . shards are missing"):
        ssvq.load(path)


def test_a_failure_leaves_the_old_shards(tree, tmp_path):
    path = _index(tmp_path, tree)
    before = {x.name: x.read_bytes() for x in tmp_path.iterdir()}
    late = {
        **tree,
        "z": ssvq.encode(ssvq.VQ(4, 4), np.ones((8, 8)), key=jax.random.key(0)),
    }
    late["z"] = late["z"].replace(codebook=late["z"].codebook * np.nan)
    with pytest.raises(ValueError, match="z: codebook"):
        ssvq.save(tmp_path / "x.safetensors", late, max_shard_size=100)
    assert before == {x.name: x.read_bytes() for x in tmp_path.iterdir()}
    chex.assert_trees_all_equal_structs(ssvq.load(path), tree)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_names_of_indices(tree, tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for read in (ssvq.load, Reader, Checkpoint):
        with pytest.raises(ValueError, match="not a regular file"):
            read(pipe)
    with pytest.raises(ValueError, match="is for the index of shards"):
        ssvq.save(tmp_path / "x.json", tree)


def test_a_whole_file_takes_the_place_of_shards(tree, tmp_path):
    path = tmp_path / "x"
    index = ssvq.save(path, tree, max_shard_size=100)
    assert index != path
    ssvq.save(path, tree)
    assert not index.exists()
    foreign = b'{"weight_map": {"a": "other.safetensors"}}'
    index.write_bytes(foreign)
    ssvq.save(path, tree)
    assert index.read_bytes() == foreign


def test_more_names_of_one_object_than_a_reader_takes(tmp_path, key):
    node = ssvq.encode(ssvq.SSVQ(16, 8), jax.random.normal(key, (256, 256)), key=key)
    tree = {f"layer{i:02}": node for i in range(64)}
    path = ssvq.save(tmp_path / "x", tree)
    file = ssvq.load(path, lazy=True)
    assert 0 < len(file.ties) < 63 and set(file) == set(tree)
    expected = ssvq.decode(ssvq.finalize(node))
    assert (ssvq.decode(ssvq.load(path)["layer63"]) == expected).all()
    assert (Reader(path)["layer63"] == expected).all()


def test_what_stops_the_writing_is_named_as_it_is(tmp_path):
    class Gone:
        shape, dtype = (4,), np.dtype("f4")

        def __array__(self, dtype=None, copy=None):
            raise FileNotFoundError(2, "No such file or directory", "source-1")

    with pytest.raises(FileNotFoundError) as caught:
        ssvq.save(tmp_path / "x", {"a": np.ones(4), "b": Gone()}, max_shard_size=1)
    assert str(caught.value) == "[Errno 2] No such file or directory: 'source-1'"
    assert not list(tmp_path.iterdir())


def test_fill_counts_in_shards(tree, tmp_path):
    index = ssvq.save(tmp_path / "x", tree, alignment=4096, max_shard_size=10_000)
    for path in ssvq.load(index, lazy=True).files[:-1]:
        assert pathlib.Path(path).stat().st_size < 10_000 + 2 * 4096


def test_ties_that_would_fill_memory(tmp_path):
    path = tmp_path / "x"
    parts = {str(i): ssvq.finalize(_constant(256)) for i in range(2)}
    ssvq.save(path, {"s": parts})
    description, tensors = take_apart(path)
    for ties, containers, match in (
        ({"s/2": "s/0"}, {"s": "stack"}, "s/2: a part of a stack"),
        ({f"t{i}": "s/0" for i in range(99)}, {}, "ties: .* weights in"),
        ({"__metadata__": "s/0"}, {}, "not tied"),
    ):
        changed = {**description, "ties": ties, "containers": containers}
        put_together(path, changed, tensors)
        with pytest.raises(FormatError, match=match):
            ssvq.load(path)
        if not containers:
            with pytest.raises(ValueError, match="no packed file"):
                Reader(path)


def _constant(size):
    """Many weights in few bytes."""
    codec = ssvq.VQ(2, 128, codebook_dtype="int8")
    weight = np.ones((size, 128), "f4")
    return ssvq.encode(codec, weight, key=jax.random.key(0), axis=1)


def test_decoding_keeps_ties(tree, tmp_path):
    path = ssvq.save(tmp_path / "x", tree)
    decoded = ssvq.decode(ssvq.load(path))
    assert decoded["tied"]["~x"] is decoded["a/b"]["kernel"]
    nothing = ssvq.save(tmp_path / "nothing", {})
    assert ssvq.load(nothing, lazy=True).hash_bytes == 8


@pytest.mark.parametrize("size", [True, 1.5, "5", float("nan")])
def test_sizes_of_shards_that_are_none(size, tree, tmp_path):
    with pytest.raises(TypeError, match="max_shard_size"):
        ssvq.save(tmp_path / "x", tree, max_shard_size=size)


def test_200_damaged_indices(tree, tmp_path):
    path = _index(tmp_path, tree)
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 4))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        for read, errors in (
            (ssvq.load, (FormatError, FileNotFoundError)),
            (Reader, (ValueError, OSError)),
        ):
            try:
                found = read(path)
            except errors:
                continue
            # Metadata and kinds of containers are not hashed; values are.
            names = ssvq.load(path, lazy=True) if read is ssvq.load else found
            assert len(names) == 8


@pytest.mark.parametrize(
    ("ties", "match"),
    [
        ({"c": "d", "d": "c"}, "c: not tied to a parameter"),
        ({"c": "c"}, "c: not tied"),
        ({"b": "a/kernel"}, "b: not tied"),
        ({"c": "ssvq_jax.hashes"}, "c: not tied"),
        ({"c": 1}, "ties: expected names"),
        ({"c": ["b"]}, "ties: expected names"),
        ({"a//c": "b"}, "without control characters"),
        ({"a": "b"}, "a: both a parameter and a container|lies in"),
        ([], "ties: expected names"),
        (None, "ties: expected names"),
        *(
            ({f"x{i}": f"x{(i + 1) % n}" for i in range(n)}, "not tied")
            for n in (3, 99)
        ),
    ],
    ids=lambda x: str(x)[:30],
)
def test_wrong_ties_are_refused(ties, match, saved):
    path, _ = saved
    description, tensors = take_apart(path)
    put_together(path, {**description, "ties": ties}, tensors)
    with pytest.raises(FormatError, match=match):
        ssvq.load(path)
    if "contain" not in match and "control" not in match:  # names alone matter to it
        with pytest.raises(ValueError, match="no packed file"):
            Reader(path)


@pytest.mark.parametrize("size", [0, -1])
def test_shards_of_no_bytes(size, tree, tmp_path):
    with pytest.raises(ValueError, match="max_shard_size: expected bytes"):
        ssvq.save(tmp_path / "x", tree, max_shard_size=size)


def test_200_hostile_ties(saved):
    path, _ = saved
    description, tensors = take_apart(path)
    names = [
        "a/kernel",
        "b",
        "c",
        "d/e",
        "..",
        "../b",
        "/b",
        "b/",
        "",
        "a",
        "b/c",
        "~2",
    ]
    chance, accepted = random.Random(0), 0
    for _ in range(200):
        ties = {
            chance.choice(names): chance.choice(names)
            for _ in range(chance.randint(1, 4))
        }
        put_together(path, {**description, "ties": ties}, tensors)
        try:
            found = ssvq.load(path, lazy=True)
        except FormatError as error:
            assert str(path) in str(error)
            continue
        accepted += 1
        assert set(ties.values()) <= {"a/kernel", "b"}
        assert set(found) == {"a/kernel", "b", *ties} and "" not in found
        assert Reader(path).keys() == {original_name(name) for name in found}
    assert 2 < accepted < 100


def test_200_hostile_names_of_files(tree, tmp_path):
    path = _index(tmp_path, tree)
    content = json.loads(path.read_text())
    own = list(content["ssvq_jax"]["shards"])
    parts = [
        "..",
        ".",
        "/",
        "etc",
        "x",
        "\0",
        "\n",
        "~",
        "\\",
        own[0],
        own[1],
        "\ud800",
    ]
    chance = random.Random(0)
    for _ in range(200):
        wrong = "".join(chance.choices(parts, k=chance.randint(0, 4)))
        moved = {own[0]: wrong}
        places = {n: moved.get(f, f) for n, f in content["weight_map"].items()}
        shard_hashes = content["ssvq_jax"]["shards"].items()
        hashes = {moved.get(f, f): digest for f, digest in shard_hashes}
        ours = {**content["ssvq_jax"], "shards": hashes}
        packed = {**content, "weight_map": places, "ssvq_jax": ours}
        path.write_text(json.dumps(chance.choice((packed, {"weight_map": places}))))
        read = chance.choice((ssvq.load, Checkpoint, Reader))
        if wrong != own[0]:
            with pytest.raises((ValueError, OSError)) as refused:
                read(path)
            assert str(tmp_path) in str(refused.value)
