"""Files that are damaged, or made to do harm: refused, and named."""

import json
import os
import re

import chex
import numpy as np
import pytest
from safetensors.numpy import save_file

import ssvq_jax as ssvq
from ssvq_jax.reader import Reader
from tests.export.rewriting import put_together, repaired, rewrite

# The reader without JAX gives arrays by name: it looks neither at containers nor at
# options of training.
TREES = (
    "container|no integers|: both|None with|without control|without a name|lies in"
    "|no stack|at most 64|latent_scale"
)


def test_truncated_at_every_length(saved, tmp_path):
    path, _ = saved
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ssvq.FormatError, match="small.ssvq"):
            ssvq.load(path)


def test_every_flipped_bit_is_noticed(saved):
    path, tree = saved
    data = path.read_bytes()
    accepted = []
    for position in range(8 * len(data)):
        altered = bytearray(data)
        altered[position // 8] ^= 1 << position % 8
        path.write_bytes(altered)
        try:
            loaded = ssvq.load(path)
        except ssvq.FormatError as error:
            assert "small.ssvq" in str(error)
        else:
            chex.assert_trees_all_equal(loaded, tree)
            accepted.append(position // 8)
    assert accepted == []


def _set(codec=0, dtype="F32", axis=0, shape=(8, 4)):
    entry = [codec, dtype, axis, shape]
    return lambda spec, tensors: spec.update(compressed=[entry])


def _codec(**entries):
    return lambda spec, tensors: spec["codecs"][0].update(entries)


def _spec(**entries):
    return lambda spec, tensors: spec.update(entries)


def _bad_code(spec, tensors):
    spec["codecs"][0]["codewords"] = 3  # codes of 2 bits, of which 3 is too large
    tensors["a/kernel"] = np.concatenate(
        [
            np.zeros(3 * 4 * 2, np.uint8),
            np.full(2, 255, np.uint8),
            np.zeros(4, np.uint8),
        ]
    )


def _bad_mask(spec, tensors):
    sizes = {"codewords": 2, "block": 3, "keep": [1, 3], "codebook_dtype": "int8"}
    spec["codecs"] = [{"name": "MVQ", **sizes}]
    spec["compressed"] = [[0, "F32", 0, [3, 2]]]
    payload = [1, 2, 3, 4, 5, 6, 0, 0, 0, 0x3F, 0, 0b1110]
    tensors["a/kernel"] = np.array(payload, np.uint8)


def _nan_codebook(spec, tensors):
    payload = tensors["a/kernel"].copy()
    payload[:2] = [0, 0x7E]  # NaN in float16
    tensors["a/kernel"] = payload


def _uniform_scale(dtype, *scale):
    def change(spec, tensors):
        spec["codecs"] = [{"name": "Uniform", "bits": 2, "scale_dtype": "float16"}]
        spec["compressed"] = [[0, dtype, 0, [4, 1]]]
        tensors["a/kernel"] = np.array([*scale, 0], np.uint8)

    return change


def _large_channel(scale):
    """A scale with which 300, the largest of the codebook, is not finite."""

    def change(spec, tensors):
        codec = {"name": "VQ", "codewords": 2, "block": 2, "codebook_dtype": "float16"}
        spec["codecs"] = [{**codec, "channel_scale": "float32"}]
        spec["compressed"] = [[0, "F16", 0, [4, 1]]]
        codebook = np.array([1, 300, 0, 0], np.float16).tobytes()
        payload = codebook + np.float32(scale).tobytes() + b"\0"
        tensors["a/kernel"] = np.frombuffer(payload, np.uint8)

    return change


def _bomb(block, bytes_, shape, axis=0, name="VQ"):
    """A payload of few bytes that stands for a huge weight."""
    codec = {"name": name, "codewords": 2, "block": block, "codebook_dtype": "int8"}
    if name == "SSVQ":
        codec.update(learn_signs=False, latent_scale=1.0)

    def change(spec, tensors):
        spec["codecs"] = [codec]
        spec["compressed"] = [[0, "F32", axis, shape]]
        tensors["a/kernel"] = np.zeros(bytes_, np.uint8)

    return change


def _rename(name):
    def change(spec, tensors):
        tensors[name] = tensors.pop("a/kernel")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_spec(version=2), "version: expected 1, got 2"),
        (_spec(version=True), "version.*got True"),
        (_spec(version=None), "version.*got None"),
        (_spec(codecs={}), "codecs: expected a list"),
        (_spec(compressed={}), "compressed: expected a list"),
        (_spec(compressed=[[0, "F32", 0, [8, 4]]] * 2), "b: expected|compressed"),
        (_spec(containers=[1]), "containers: expected a dict"),
        (_spec(metadata=[1]), "metadata: expected a dict"),
        (_spec(containers={"a": "set"}), "a: unknown container 'set'"),
        (_spec(containers={"a": []}), "a: unknown container"),
        (_spec(containers={"a": "list"}), "a: keys are no integers"),
        (_spec(containers={"": "int"}), "tree: keys are no integers"),
        (_spec(containers={"b": "null"}), "b: both"),
        (_spec(containers={"a": "null"}), "a: None with parameters"),
        (_spec(containers={"a//b": "dict"}), "without control"),
        (_spec(containers={"x/" * 99 + "x": "dict"}), "at most 64"),
        (_spec(alignment=0), "alignment"),
        (_spec(alignment=3), "alignment: expected a power of two"),
        (_spec(alignment=64), "ssvq_jax.hashes: expected 24 bytes"),
        (_spec(alignment=1 << 40), "alignment"),
        (_codec(name="os.system"), "codec.*os.system"),
        (_codec(name=[]), "codec"),
        (_codec(codewords=1), "codec.*codewords.*got 1"),
        (_codec(codewords="16"), "codec.*codewords"),
        (_codec(more=1), r"codec.*unknown options \['more'\]"),
        (_codec(block=8), "a/kernel.*expected .* bytes"),
        (_codec(latent_scale=10**400), "codec"),
        (_codec(codewords=10**400), "a/kernel"),
        (_set(codec=1), "a/kernel: codec"),
        (_set(codec=-1), "a/kernel: codec"),
        (_set(codec=True), "a/kernel: codec"),
        (_set(shape=[8, 2**40]), "a/kernel.*bytes"),
        (_set(shape=[2**47] * 40), "a/kernel"),
        (_set(shape=[2**61]), "a/kernel: shape"),
        (_set(shape=[-8, 4]), "a/kernel: shape"),
        (_set(shape=[8, 4.0]), "a/kernel: shape"),
        (_set(shape=[0, 4]), "a/kernel: shape"),
        (_set(shape=[]), "a/kernel: shape"),
        (_set(shape="84"), "a/kernel: shape"),
        (_set(shape=None), "a/kernel: shape"),
        (_set(axis=2), "a/kernel: axis"),
        (_set(dtype="I8"), "a/kernel: dtype"),
        (_set(dtype=["F32"]), "a/kernel"),
        (_spec(compressed=[7]), "a/kernel"),
        (_bad_code, "a/kernel: codes: expected values below 3, got 3"),
        (_bad_mask, "a/kernel: mask: expected values below 3, got 3"),
        (_nan_codebook, "a/kernel: codebook.*1 NaN"),
        (_uniform_scale("F32", 0, 0x7C), "a/kernel: scale.*1 NaN or inf"),
        (_uniform_scale("BF16", 0xFF, 0x7F), "a/kernel: scale.*1 NaN or inf"),
        (_codec(codebook_dtype=8), "codec.*codebook_dtype"),
        (_codec(codebook_dtype=0, codewords=2**47), "codec.*codebook_dtype"),
        (_large_channel(np.inf), "a/kernel: channel_scale.*1 NaN or inf"),
        (_large_channel(np.nan), "a/kernel: channel_scale.*1 NaN or inf"),
        (_large_channel(1e3), "a/kernel: channel_scale.*1 NaN or inf"),
        (_large_channel(-1e3), "a/kernel: channel_scale.*1 NaN or inf"),
        (_codec(channel_scale="int8"), "codec.*channel_scale.*got 'int8'"),
        (_codec(channel_scale=[]), r"codec.*channel_scale.*got \[\]"),
        (_codec(channel_scale="float16"), "a/kernel.*expected .* bytes"),
        (_bomb(2**40, 4, [2**41]), "a/kernel: expected .* bytes"),
        (_bomb(4096, 8708, [2**24]), "a/kernel: 16777216 weights, padding included"),
        (
            _bomb(200_000, 450_004, [200_000, 1], 1, "SSVQ"),
            "a/kernel: 40000000000 weights, padding included",
        ),
        (_set(shape=[2**47] * 33), "a/kernel: shape: expected a list of at most 32"),
        (_codec(latent_scale=float("inf")), "Infinity is no JSON"),
        (_codec(block=1 << 40), "a/kernel: "),
        (lambda spec, tensors: spec["codecs"][0].pop("block"), "expected the options"),
        (_spec(codecs=[[["name", "SSVQ"]]]), "expected a mapping"),
        (_spec(more=1), "expected version, alignment"),
        (_rename("a/../../etc/\x1b[2J"), "no safetensors|without control"),
        (_rename("/etc/passwd"), "none empty"),
        (_rename("b/c"), "b/c: lies in another parameter"),
        (_rename(""), "without a name"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_well_hashed_nonsense_is_refused(saved, change, message):
    path, _ = saved
    rewrite(path, change)
    with pytest.raises(ssvq.FormatError, match=message) as info:
        ssvq.load(path)
    assert "small.ssvq" in str(info.value)
    if not re.search(TREES, str(info.value)):
        with pytest.raises(ValueError, match="small.ssvq"):
            dict(Reader(path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"b":{"dtype"', b'"a":{"dtype"', "both|lies in"),
        (b'"b":{', b'"ssvq_jax.hashes":{', "appears twice"),
        (b'"F32","shape":[3]', b'"F32","shape":[4]', "b.*data_offsets"),
        (b'"F32","shape":[3]', b'"F64","shape":[3]', "b.*data_offsets"),
        (b'"F32","shape":[3]', b'"F4","shape":[24]', "b.*F4"),
        (b'"F32","shape":[3]', b'"U8","shape":[-12]', "b.*shape"),
        (b'"data_offsets":[0,12]', b'"data_offsets":[0,1e1]', "b.*data_offsets"),
        (b'"data_offsets":[0,12]', b'"data_offsets":NaN', "NaN"),
        (b'"shape":[3]', b'"shape":[99999999999999,9999999999999]', "b.*shape|data"),
        (b'{"__metadata__"', b'{"__metadat__"', "no safetensors"),
        (b'{"__metadata__"', b'["__metadata__"', "no safetensors"),
    ],
)
def test_headers_that_do_not_add_up(saved, old, new, message):
    path, _ = saved
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    assert old in header
    header = header.replace(old, new)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    with pytest.raises(ssvq.FormatError, match=f"small.ssvq.*({message}|hash)"):
        ssvq.load(path)


def test_a_shape_of_many_axes_is_refused_at_once(saved):
    path, _ = saved
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    shape = f'"shape":[{",".join(["281474976710655"] * 40_000)}]'.encode()
    header = data[8 : 8 + length].replace(b'"shape":[3]', shape)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    with pytest.raises(ssvq.FormatError, match="b.*at most 32"):
        ssvq.load(path)


def test_hashes_with_a_long_tail_are_refused(saved):
    path, _ = saved
    rewrite(path, lambda spec, tensors: None)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["ssvq_jax.hashes"].update(shape=[2**24], data_offsets=[12, 12 + 2**24])
    start, stop = header["a/kernel"]["data_offsets"]
    header["a/kernel"]["data_offsets"] = [12 + 2**24, 12 + 2**24 + stop - start]
    text = json.dumps(header).encode()
    body = data[8 + length :]
    tail = bytes(2**24 - 24)
    body = body[:36] + tail + body[36:]
    path.write_bytes(repaired(len(text).to_bytes(8, "little") + text + body))
    with pytest.raises(ssvq.FormatError, match="hashes: expected 24 bytes and fill"):
        ssvq.load(path, lazy=True)


def test_a_file_that_is_cut_short_while_it_is_open(saved):
    path, _ = saved
    file = ssvq.load(path, lazy=True)
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(ssvq.FormatError, match="a/kernel: the file was cut short"):
        file["a/kernel"]


def test_only_regular_files_are_read_and_replaced(tmp_path):
    fifo, folder = tmp_path / "fifo", tmp_path / "folder"
    os.mkfifo(fifo)
    folder.mkdir()
    for path in (fifo, folder):
        with pytest.raises(ssvq.FormatError, match=f"{path.name}.*regular"):
            ssvq.load(path)
        with pytest.raises(OSError, match=f"cannot write.*regular.*{path.name}"):
            ssvq.save(path, {"a": np.ones(2)})
    assert fifo.is_fifo() and folder.is_dir()
    private = tmp_path / "private"
    private.touch(mode=0o600)
    ssvq.save(private, {"a": np.ones(2)})
    assert private.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({1: "a", "1": "b"}, ValueError, "metadata.*'1' appears twice"),
        ({"x": np.int64(3)}, TypeError, "metadata.*JSON"),
        ({"x": float("nan")}, ValueError, "metadata"),
        ({"x": "a" * 101_000_000}, ValueError, "keep less metadata"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_metadata_that_could_not_be_read_again(metadata, error, message, tmp_path):
    with pytest.raises(error, match=message):
        ssvq.save(tmp_path / "x", {"a": np.ones(2)}, metadata=metadata)
    assert not list(tmp_path.iterdir())


def test_foreign_and_missing_files(tmp_path):
    foreign = tmp_path / "foreign"
    save_file({"a": np.ones(3)}, foreign)
    with pytest.raises(ssvq.FormatError, match="foreign.*not written by ssvq_jax"):
        ssvq.load(foreign)
    for content in (b"", b"PK\x03\x04" * 100, b"\xff" * 64, b"{}" * 50):
        foreign.write_bytes(content)
        with pytest.raises(ssvq.FormatError, match="foreign.*safetensors"):
            ssvq.load(foreign)
    with pytest.raises(FileNotFoundError, match="absent"):
        ssvq.load(tmp_path / "absent")


@pytest.mark.parametrize(
    "text",
    [
        '{"version":1,"containers":' + '{"a":' * 100_000 + "1" + "}" * 100_001,
        "[" * 1_000_000,
        '{"version":1,"codecs":[' + ",".join(["{}"] * 100_000) + "]}",
        '{"version":' + "9" * 10_000 + "}",
        '{"version":1,"version":1}',
        '{"version":NaN}',
        "",
        "null",
    ],
    ids=lambda text: text[:24],
)
def test_deep_and_huge_and_wrong_json_is_refused(saved, text):
    path, _ = saved
    put_together(path, None, {}, text)
    with pytest.raises(ssvq.FormatError, match="small.ssvq"):
        ssvq.load(path)
