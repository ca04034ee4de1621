import dataclasses
import json
import os
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import ssvq_jax as ssvq
from ssvq_jax.codecs import CODECS as CODECS_BY_NAME
from ssvq_jax.codecs.vq import VQWeight
from ssvq_jax.export.description import Description, Entry

CODECS = [
    ssvq.SSVQ(4, 8),
    ssvq.SSVQ(5, 3, codebook_dtype="float32"),
    ssvq.SSVQ(4, 4, learn_signs=False, codebook_dtype="bfloat16"),
    ssvq.SSVQ(300, 1, codebook_dtype="int8"),
    ssvq.VQ(2, 4, starts=3),
    ssvq.VQ(3, 5, codebook_dtype="int8"),
    ssvq.Uniform(2),
    ssvq.Uniform(5, scale_dtype="bfloat16"),
    ssvq.MVQ(4, 8, (2, 4)),
    ssvq.MVQ(3, 6, (1, 3), codebook_dtype="float16"),
    ssvq.SSVQ(4, 8, codebook_dtype="int8", channel_scale="float16"),
    ssvq.VQ(3, 5, channel_scale="bfloat16"),
    ssvq.SSVQ(4, 8, sign_code="parity"),
    ssvq.MVQ(4, 8, (2, 4), channel_scale="float32"),
]


def _params(rng):
    return {
        "dense": jnp.asarray(rng.normal(size=(27, 13)), "f4"),
        "conv": jnp.asarray(rng.normal(size=(3, 3, 5, 24)), "bfloat16"),
    }


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
def test_load_gives_the_finalized_tree_bit_for_bit(codec, tmp_path, rng, key):
    tree = ssvq.compress(_params(rng), [ssvq.Rule(".*", codec)], key=key)
    final = ssvq.finalize(tree)
    path = tmp_path / "model.ssvq.safetensors"
    ssvq.save(path, tree)
    loaded = ssvq.load(path)
    chex.assert_trees_all_equal_structs(loaded, final)
    chex.assert_trees_all_equal_dtypes(loaded, final)
    chex.assert_trees_all_equal(loaded, final)
    chex.assert_trees_all_equal(ssvq.decode(loaded), ssvq.decode(final))
    chex.assert_trees_all_equal_dtypes(ssvq.decode(loaded), ssvq.decode(final))
    again = tmp_path / "again.ssvq.safetensors"
    ssvq.save(again, loaded)
    assert again.read_bytes() == path.read_bytes()
    payloads = load_file(path)
    for name, node in final.items():
        assert payloads[name].dtype == np.uint8
        assert 8 * payloads[name].size == node.bits


def test_what_is_not_compressed_comes_back_as_it_was(tmp_path):
    dtypes = ("f4", "f2", "f8", "bfloat16", "i1", "i8", "u2", "bool", "c8")
    dtypes += ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn")
    tree = {
        "dtypes": {name: np.ones((2, 3), jnp.dtype(name)) for name in dtypes},
        "list": [np.float32(1.5), (np.arange(3), None)],
        "numbers": {0: np.ones(2), 10: {"empty": np.ones((0, 3), "f4")}},
        "nothing": {},
        "strided": np.arange(12.0).reshape(3, 4).T,
        "~a/b~1": {"c": np.ones(2)},
        "~a": {"b~1": {"c": np.zeros(2)}},
    }
    ssvq.save(tmp_path / "x", tree)
    loaded = ssvq.load(tmp_path / "x")
    chex.assert_trees_all_equal_structs(loaded, tree)
    chex.assert_trees_all_equal(loaded, tree)
    chex.assert_trees_all_equal_dtypes(loaded, tree)


def test_key_named_value_and_byte_order(tmp_path):
    class Projections(NamedTuple):
        key: np.ndarray
        value: np.ndarray

    tree = {"a": Projections(np.ones(2), np.arange(3, dtype=">f4"))}
    ssvq.save(tmp_path / "x", tree)
    loaded = ssvq.load(tmp_path / "x")
    np.testing.assert_array_equal(loaded["a"]["value"], [0, 1, 2])
    assert set(loaded["a"]) == {"key", "value"}
    assert [row.path for row in ssvq.report(loaded).rows] == ["a/key", "a/value"]


def test_permissions_and_links(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    old = os.umask(0o022)
    try:
        ssvq.save(link, {"a": np.ones(2)})
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o644


def test_trained_codebooks_of_another_dtype_are_saved_right(tmp_path, rng, key):
    for codec in (ssvq.SSVQ(4, 4, codebook_dtype="int8"), ssvq.MVQ(4, 4, (2, 4))):
        node = ssvq.encode(codec, rng.normal(size=(16, 8)).astype("f4"), key=key)
        node = node.replace(codebook=node.codebook.astype(jnp.bfloat16))
        ssvq.save(tmp_path / "x", node)
        loaded = ssvq.load(tmp_path / "x")
        chex.assert_trees_all_equal(
            ssvq.decode(loaded), ssvq.decode(ssvq.finalize(node))
        )
    float32 = ssvq.encode(
        ssvq.VQ(2, 4, codebook_dtype="float32"), np.ones((8, 4), "f4"), key=key
    )
    broken = float32.replace(codebook=float32.codebook.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="a: codebook.*1 NaN"):
        ssvq.save(tmp_path / "y", {"a": broken})


def test_state_of_a_module_comes_back_as_dicts(tmp_path):
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
    state = nnx.state(model, nnx.Param)
    ssvq.save(tmp_path / "x", state)
    chex.assert_trees_all_equal(ssvq.load(tmp_path / "x"), nnx.to_pure_dict(state))


@dataclasses.dataclass(frozen=True)
class Later(ssvq.VQ):
    """A codec with an option that the first files do not have."""

    later: str | None = None


@pytest.mark.parametrize("later", [None, "x"])
def test_later_options_are_written_where_they_differ(later, monkeypatch):
    monkeypatch.setitem(CODECS_BY_NAME, "Later", Later)
    entry = Entry(Later(2, 4, later=later), "float32", 0, (8, 4))
    text = Description([entry], {}, {}).to_json()
    first = {"name": "Later", "codewords": 2, "block": 4, "codebook_dtype": "float16"}
    written = first if later is None else {**first, "later": later}
    assert json.loads(text)["codecs"] == [written]
    assert Description.from_json(text, ["a"]).entries == [entry]


def test_a_single_node(tmp_path, rng, key):
    node = ssvq.encode(ssvq.VQ(2, 4), rng.normal(size=(8, 4)).astype("f4"), key=key)
    ssvq.save(tmp_path / "x", node)
    chex.assert_trees_all_equal(ssvq.load(tmp_path / "x"), ssvq.finalize(node))


def test_metadata(saved, tmp_path):
    path, tree = saved
    assert ssvq.load(path, lazy=True).metadata == {"note": "small"}
    with pytest.raises(TypeError, match="JSON"):
        ssvq.save(tmp_path / "y", tree, metadata={"bad": object()})
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("parent", ["absent", "file"])
def test_a_directory_that_cannot_be_written(parent, tmp_path):
    (tmp_path / "file").touch()
    target = tmp_path / parent / "model"
    error = FileNotFoundError if parent == "absent" else NotADirectoryError
    with pytest.raises(error, match=f"cannot write.*{parent}.*model"):
        ssvq.save(target, {"a": np.ones(2)})


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(saved, moment, monkeypatch):
    path, _ = saved
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, moment, fail)
    with pytest.raises(OSError, match="No space left"):
        ssvq.save(path, {"a": np.ones(2)})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("leaf", "error", "message"),
    [
        ("text", TypeError, "a/b: expected an array of numbers, got .*U"),
        (jax.random.key(0), TypeError, "a/b: expected an array of numbers"),
        (np.ones(2, "complex128"), TypeError, "a/b.*complex128"),
        (np.ones((1,) * 33), ValueError, "a/b: expected at most 32 axes, got 33"),
    ],
)
def test_leaves_that_cannot_be_saved(leaf, error, message, tmp_path):
    with pytest.raises(error, match=message):
        ssvq.save(tmp_path / "x", {"a": {"b": leaf}})
    assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("unchecked_types")
def test_trees_that_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="__metadata__"):
        ssvq.save(tmp_path / "x", {"__metadata__": np.ones(1)})
    for key_ in ("", "a\n", "\x1b[2J"):
        with pytest.raises(ValueError, match="tree: expected keys that are not empty"):
            ssvq.save(tmp_path / "x", {key_: np.ones(1)})
    deep = np.ones(1)
    for _ in range(65):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="at most 64 levels"):
        ssvq.save(tmp_path / "x", deep)
    for alignment in (0, 3, -8, 1 << 20):
        with pytest.raises(ValueError, match="alignment: expected a power of two"):
            ssvq.save(tmp_path / "x", {}, alignment=alignment)
    huge = VQWeight(
        codec=ssvq.VQ(2, 4096),
        shape=(2**24,),
        dtype=jnp.dtype("float32"),
        axis=0,
        codebook=jnp.zeros((2, 4096)),
        codes=jnp.zeros(4096, jnp.uint8),
    )
    with pytest.raises(
        ValueError, match="a: 16777216 weights, padding included, in 16896 b"
    ):
        ssvq.save(tmp_path / "x", {"a": huge})
