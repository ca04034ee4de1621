"""`ssvq_jax.reader`: NumPy alone gives what the library decodes."""

import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq
from ssvq_jax.export.container import NAMES
from ssvq_jax.export.names import original_name
from ssvq_jax.reader import Reader

GOLDEN = pathlib.Path(__file__).parent / "export/golden"
CODECS = [
    ssvq.SSVQ(6, 8),
    ssvq.SSVQ(5, 3, codebook_dtype="int8", learn_signs=False),
    ssvq.SSVQ(3, 5, sign_code="parity", channel_scale="float16"),
    ssvq.SSVQ(2, 8, sign_code="hamming", codebook_dtype="bfloat16"),
    ssvq.SSVQ(2, 16, sign_code="hamming"),
    ssvq.VQ(300, 2),
    ssvq.VQ(4, 4, channel_scale="bfloat16", codebook_dtype="float32"),
    ssvq.MVQ(3, 8, (2, 4)),
    ssvq.MVQ(2, 6, (1, 3), channel_scale="float32"),
    ssvq.Uniform(2),
    ssvq.Uniform(5),
]
SHAPES = [(16, 8), (3, 3, 5, 4), (17,), (600, 3)]


def expected(array):
    """As the reader gives it: NumPy has neither bfloat16 nor float8."""
    array = np.asarray(array)
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    return array.view(np.uint8) if array.dtype.name.startswith("float8") else array


def assert_same(found, tree):
    assert found.keys() == tree.keys()
    for name, values in found.items():
        wanted = expected(tree[name])
        assert (values.dtype, values.shape) == (wanted.dtype, wanted.shape), name
        assert values.tobytes() == wanted.tobytes(), name


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_decodes_to_the_same_bits(codec, rng, key, tmp_path):
    tree = {}
    for i, shape in enumerate(SHAPES):
        dtype = ("float32", "float16", "bfloat16")[i % 3]
        weight = jnp.asarray(rng.normal(size=shape), dtype)
        for axis in {0, len(shape) - 1}:
            if codec.fits(shape, axis):
                node = ssvq.encode(codec, weight, key=key, axis=axis)
                tree[f"{shape} {axis}"] = node
    for alignment in (1, 64):
        file = tmp_path / "x.ssvq.safetensors"
        ssvq.save(file, tree, alignment=alignment)
        assert_same(Reader(file), ssvq.decode(ssvq.finalize(tree)))


@pytest.mark.parametrize("name", ["codecs", "channels", "signs", "example1"])
def test_golden_files(name):
    path = GOLDEN / f"{name}.ssvq.safetensors"
    file = ssvq.load(path, lazy=True)
    decoded = {original_name(name): ssvq.decode(file[name]) for name in file}
    found = Reader(path)
    assert_same(found, decoded)
    assert found.metadata == file.metadata
    dtypes = {name: NAMES[str(array.dtype)] for name, array in decoded.items()}
    assert found.dtypes == dtypes


def test_what_is_not_compressed_and_names(tmp_path):
    tree = {
        "a.b": {"x/y": np.arange(3), "~1": np.array(True)},
        "bf": jnp.array([1.5, -jnp.inf], "bfloat16"),
        "f8": jnp.array([[1.5]], "float8_e4m3fn"),
        "complex": np.array([1 + 2j], np.complex64),
        "none": np.zeros((0, 4), np.float16),
        "layers": [np.ones(2), np.int8(3)],
    }
    ssvq.save(tmp_path / "x", tree, metadata={"note": [1]})
    found = Reader(tmp_path / "x")
    assert_same(
        found,
        {
            "a.b/x/y": tree["a.b"]["x/y"],
            "a.b/~1": tree["a.b"]["~1"],
            "layers/0": tree["layers"][0],
            "layers/1": tree["layers"][1],
            **{name: tree[name] for name in ("bf", "f8", "complex", "none")},
        },
    )
    assert (found.dtypes["bf"], found.dtypes["f8"]) == ("BF16", "F8_E4M3")
    assert found.metadata == {"note": [1]} and "bf" in found and "x" not in found


def test_needs_neither_jax_nor_anything_but_numpy():
    absent = "jax", "jaxlib", "ml_dtypes", "flax", "safetensors", "jaxtyping", "rich"
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "from ssvq_jax import reader\n"
        "from ssvq_jax.reader import Reader\n"
        f"print(len(dict(Reader({str(GOLDEN / 'codecs.ssvq.safetensors')!r}))))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 10


def test_files_that_are_none_or_damaged(tmp_path):
    path = tmp_path / "x"
    whole = (GOLDEN / "example1.ssvq.safetensors").read_bytes()
    cut = [whole[:length] for length in range(0, len(whole), 7)]
    flipped = [bytes([*whole[:i], whole[i] ^ 1, *whole[i + 1 :]]) for i in range(8)]
    others = [b"\x80\x02pickle", b"[" * 5000, b"\2\0\0\0\0\0\0\0{}", *flipped]
    for content in (*cut, *others):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no packed file, or a damaged one"):
            Reader(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="kernel: the values do not match their hash"):
        dict(Reader(path))
    with pytest.raises(FileNotFoundError):
        Reader(tmp_path / "missing")
