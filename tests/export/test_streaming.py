"""Lazy reading, writing one parameter at a time, alignment, sizes, killed writers."""

import math
import os
import resource
import subprocess
import sys

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq
from ssvq_jax.export import container, description


def _tree(rng, key, codec):
    params = {
        "a": {"kernel": jnp.asarray(rng.normal(size=(40, 24)), "f4")},
        "b": [jnp.asarray(rng.normal(size=(7,)), "f2"), jnp.arange(3.0)],
        "c": jnp.asarray(rng.normal(size=(16, 5)), "f4"),
    }
    rules = [ssvq.Rule("a/.*|c", codec)]
    return ssvq.finalize(ssvq.compress(params, rules, key=key))


@pytest.mark.parametrize("alignment", [1, 2, 16, 4096])
@pytest.mark.parametrize("codec", [ssvq.SSVQ(4, 8), ssvq.Uniform(3)], ids=str)
def test_a_parameter_alone(alignment, codec, tmp_path, rng, key):
    tree = _tree(rng, key, codec)
    path = tmp_path / "x"
    ssvq.save(path, tree, alignment=alignment)
    file = ssvq.load(path, lazy=True)
    assert set(file) == {"a/kernel", "b/0", "b/1", "c"} and len(file) == 4
    chex.assert_trees_all_equal(file["a/kernel"], tree["a"]["kernel"])
    chex.assert_trees_all_equal(file["b/0"], tree["b"][0])
    chex.assert_trees_all_equal(file.tree(), tree)
    assert file.entries["c"].shape == (16, 5)
    assert all(file.tensors[name].start % alignment == 0 for name in file.entries)
    assert "d" not in file
    with pytest.raises(KeyError, match="'d'"):
        file["d"]


def test_only_what_is_asked_for_is_checked(tmp_path, rng, key):
    path = tmp_path / "x"
    ssvq.save(path, _tree(rng, key, ssvq.SSVQ(4, 8)))
    start = ssvq.load(path, lazy=True).tensors["c"].start
    data = bytearray(path.read_bytes())
    data[start] ^= 1
    path.write_bytes(data)
    file = ssvq.load(path, lazy=True)
    assert file["a/kernel"].shape == (40, 24) and "c" in file
    with pytest.raises(ssvq.FormatError, match="x: c: .*do not match their hash"):
        file["c"]


def test_a_large_file_is_opened_and_read_in_no_memory(tmp_path):
    """10 GB, of which all but one parameter are a hole."""
    small, large = (2**10, 2**10), (2**31 + 2**29,)
    tensors = {"large": container.Tensor("F32", large)}
    tensors["small"] = container.Tensor("F32", small)
    tensors["ssvq_jax.hashes"] = container.Tensor("U8", (24,))
    text = description.Description([], {}, {}).to_json()
    header = container.header_bytes(tensors, {"ssvq_jax": text})
    values = np.ones(small, np.float32)
    path = tmp_path / "x"
    with open(path, "wb") as file:
        file.write(header)
        file.seek(4 * math.prod(large), os.SEEK_CUR)
        file.write(values.tobytes())
        digests = [container.hash_of(header), bytes(8), container.hash_of(values)]
        file.write(b"".join(digests))
    assert path.stat().st_size > 10e9
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file = ssvq.load(path, lazy=True)
    np.testing.assert_array_equal(file["small"], values)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024  # KiB


def test_memory_maps_are_written_one_by_one(tmp_path):
    """256 MiB of weights from files, in the memory of one parameter of 16."""
    files = {}
    for number in range(16):
        name = tmp_path / f"{number}.npy"
        shape = (2**11, 2**11)
        array = np.lib.format.open_memmap(name, "w+", "float32", shape)
        array[0] = number
        files[str(number)] = np.load(name, mmap_mode="r")
    del array
    path = tmp_path / "x"
    code = (
        "import pathlib, resource, sys, numpy as np, ssvq_jax as ssvq\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "tree = {f.stem: np.load(f, mmap_mode='r') for f in folder.glob('*.npy')}\n"
        "def anonymous():\n"
        "    status = open('/proc/self/status').read()\n"
        "    return int(status.split('RssAnon:')[1].split()[0])\n"
        "ssvq.save  # imports the library, which is not what is measured\n"
        "before = anonymous()\n"
        "hash_of, most = ssvq.export.saving.hash_of, [0]\n"
        "def measured(data):\n"
        "    most[0] = max(most[0], anonymous() - before)\n"
        "    return hash_of(data)\n"
        "ssvq.export.saving.hash_of = measured\n"
        "ssvq.save(folder / 'x', tree)\n"
        "print(most[0])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 40 * 1024  # KiB
    file = ssvq.load(path, lazy=True)
    assert {float(file[str(i)][0, 0]) for i in range(16)} == set(map(float, range(16)))


CODECS = [
    ssvq.SSVQ(16, 8),
    ssvq.SSVQ(256, 8),
    ssvq.SSVQ(12, 4, codebook_dtype="int8"),
    ssvq.VQ(64, 4),
    ssvq.MVQ(64, 16, (4, 8)),
    ssvq.Uniform(2),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
def test_bits_per_weight_are_those_of_the_formula(codec, tmp_path, rng, key):
    weight = jnp.asarray(rng.normal(size=(256, 256)), "f4")
    path = tmp_path / "x"
    ssvq.save(path, {"a": ssvq.encode(codec, weight, key=key)})
    stored = 8 * ssvq.load(path, lazy=True).tensors["a"].nbytes / weight.size
    expected = formula(codec, weight.shape)
    assert expected <= stored <= 1.01 * expected


def formula(codec, shape):
    """Bits per weight, by the formulas of the papers."""
    size = math.prod(shape)
    if isinstance(codec, ssvq.Uniform):
        return codec.bits + 16 * shape[-1] / size
    codebook = jnp.dtype(codec.codebook_dtype).itemsize * 8
    bits = math.ceil(math.log2(codec.codewords)) / codec.block
    bits += codec.codewords * codec.block * codebook / size
    if isinstance(codec, ssvq.SSVQ):
        bits += 1
    if isinstance(codec, ssvq.MVQ):
        kept, group = codec.keep
        bits += math.ceil(math.log2(math.comb(group, kept))) / group
    return bits


KILLER = """
import os, pathlib, random, signal, sys, time
import numpy as np
from ssvq_jax.api import save  # once, not by every writer

folder = pathlib.Path(sys.argv[1])
random.seed(0)
for number in range(80):
    path, log = folder / f"{number}.ssvq", folder / f"{number}.log"
    ready, told = os.pipe()
    writer = os.fork()
    if writer == 0:
        count = 0
        while True:
            count += 1
            tree = {str(i): np.full((64, 257), count, np.float32) for i in range(40)}
            save(path, tree, metadata={"count": count})
            with open(log, "a") as file:
                file.write(f"{count}\\n")
            if count == 1:
                os.write(told, b"1")
    os.read(ready, 1)
    time.sleep(random.random() * 0.05)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """80 processes that save again and again, each killed at a random moment."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLER, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    files = list(tmp_path.glob("*.ssvq"))
    assert len(files) == 80
    for path in files:
        done = len(path.with_suffix(".log").read_text().split())
        file = ssvq.load(path, lazy=True)
        count = file.metadata["count"]
        # A file may be in place a moment before its writer could say so.
        assert count in (done, done + 1)
        for name in file:
            np.testing.assert_array_equal(file[name], np.float32(count), strict=False)
    interrupted = list(tmp_path.glob(".*.tmp"))
    assert len(interrupted) >= 20  # killed while the next file was written
