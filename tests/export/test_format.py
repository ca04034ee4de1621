"""FORMAT.md, the golden files, and a reader written from FORMAT.md alone."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import ssvq_jax as ssvq
from ssvq_jax.export import container
from tests.export import reader

GOLDEN = pathlib.Path(__file__).parent / "golden"
FILES = ("example1", "example2", "example3", "codecs", "channels", "signs")


def _golden(name):
    return GOLDEN / f"{name}.ssvq.safetensors"


def _equal_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_the_independent_reader_decodes_to_the_same_bits(name):
    file = ssvq.load(_golden(name), lazy=True)
    decoded = reader.read(_golden(name))
    assert set(decoded) == set(file)
    for parameter, (dtype, shape, values) in decoded.items():
        dtype = jnp.dtype(container.DTYPES[dtype])
        expected = np.array(values, dtype).reshape(shape)
        _equal_bits(ssvq.decode(file[parameter]), expected)


@pytest.mark.parametrize("name", ["codecs", "channels", "signs"])
def test_golden_files_decode_to_what_they_did(name):
    expected = load_file(GOLDEN / f"{name}.decoded.safetensors")
    file = ssvq.load(_golden(name), lazy=True)
    assert set(file) == set(expected)
    for parameter, values in expected.items():
        _equal_bits(ssvq.decode(file[parameter]), values)
    assert file.metadata == {"note": "version 1"}


@pytest.mark.parametrize("name", FILES)
def test_golden_files_are_written_to_the_same_bytes(name, tmp_path):
    file = ssvq.load(_golden(name), lazy=True)
    alignment = 16 if name == "example2" else 1
    again = tmp_path / "again"
    ssvq.save(again, file.tree(), metadata=file.metadata, alignment=alignment)
    assert again.read_bytes() == _golden(name).read_bytes()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_examples_in_the_specification(number):
    page = pathlib.Path(container.__file__).with_name("FORMAT.md").read_text()
    dump = re.findall(r"```hexdump\n(.*?)```", page, re.DOTALL)[number - 1]
    lines = [line[6:45] for line in dump.splitlines()]
    assert bytes.fromhex("".join(lines)) == _golden(f"example{number}").read_bytes()
    weights = re.findall(r"```\n([^`]*?)\n```", page)[number - 1]
    shown = [float(x) for x in weights.split()]
    decoded = reader.read(_golden(f"example{number}"))
    values = [v for n in sorted(decoded) if n != "bias" for v in decoded[n][2]]
    assert sorted(shown) == sorted(values)


def test_other_libraries_read_the_container():
    tensors = load_file(_golden("codecs"))
    file = ssvq.load(_golden("codecs"), lazy=True)
    assert set(tensors) == {*file, "ssvq_jax.hashes"}
    _equal_bits(tensors["plain/9"], file["plain/9"])
