"""Packed files without JAX: one module that needs NumPy alone.

For programs in PyTorch or plain NumPy. It imports nothing of the library, so that the
file may also be copied into another project. The format is that of export/FORMAT.md.
"""

import functools
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

_PLAIN = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
    "C64": "<c8", "BF16": "<u2", "F8_E4M3": "u1", "F8_E4M3FNUZ": "u1", "F8_E5M2": "u1",
    "F8_E5M2FNUZ": "u1", "F8_E8M0": "u1", "F4": "u1",
}  # fmt: skip
_FLOATS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int8": "i1"}
_SCALES = ("float32", "float16", "bfloat16")
# The options of codecs: always in a file; and given later, with their defaults.
_CLUSTERED = {"codewords", "block", "codebook_dtype"}
_OPTIONS = {
    "SSVQ": _CLUSTERED | {"learn_signs", "latent_scale"},
    "VQ": _CLUSTERED,
    "MVQ": _CLUSTERED | {"keep"},
    "Uniform": {"bits", "scale_dtype"},
}
_LATER = {
    "SSVQ": {"channel_scale": None, "sign_code": "free"},
    "VQ": {"channel_scale": None},
    "MVQ": {"channel_scale": None},
    "Uniform": {},
}
_HASHES = "ssvq_jax.hashes"
_DESCRIBED = {
    "version": int,
    "alignment": int,
    "codecs": list,
    "compressed": list,
    "containers": dict,
    "metadata": dict,
}
_INDEXED = {"version": int, "containers": dict, "metadata": dict, "shards": dict}
_LARGEST_HEADER = 100_000_000
_MOST_AXES, _LARGEST_SIZE, _MOST_WEIGHTS_PER_BYTE = 32, 1 << 48, 256
# Of every eight signs by Hamming's code, the ones that are sums of others.
_CHECKS = {4: (0, 1, 2), 5: (0, 1, 3), 6: (0, 2, 3), 7: (1, 2, 3)}


class Reader(Mapping[str, np.ndarray]):
    """The weights of a packed file, by the names of the checkpoint that it came from.

    Each is read, checked against its hash and decoded when it is asked for. Values are
    those of `ssvq_jax.decode`, bit for bit but for those below float32's normal
    numbers, 1.2e-38, which XLA takes for 0. NumPy has no bfloat16: such tensors come as
    float32, which holds all its values; those of float8 and float4 as their bits.

    Args:
      path: A file that `ssvq_jax.save` or `ssvq compress` wrote; of shards the index.

    Attributes:
      dtypes: By name, the dtype in the file, as safetensors has it: "BF16". What was
        float8 and is compressed is "F32".
      metadata: What the writer was given.

    Raises:
      OSError: A file that is missing or cannot be read.
      ValueError: A file that is truncated, altered, or none of ours; also when a tensor
        is asked for.

    Examples:
      >>> import jax, pathlib, tempfile, ssvq_jax as ssvq
      >>> from ssvq_jax.reader import Reader
      >>> weight = jax.random.normal(jax.random.key(0), (64, 64))
      >>> node = ssvq.encode(ssvq.SSVQ(), weight, key=jax.random.key(1))
      >>> file = pathlib.Path(tempfile.mkdtemp(), "model.ssvq.safetensors")
      >>> file = ssvq.save(file, {"kernel": node})
      >>> {name: weight.shape for name, weight in Reader(file).items()}
      {'kernel': (64, 64)}
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = os.fspath(path)
        self.dtypes: dict[str, str] = {}
        self.metadata: dict[str, Any] = {}
        self._tensors: dict[str, _Place] = {}
        try:
            if self._path.endswith(".json"):
                self._open_shards()
            else:
                self.metadata, _ = self._open(self._path)
        except _REFUSALS as error:
            reason = f"no packed file, or a damaged one: {error}"
            raise ValueError(f"{self._path}: {reason}") from error

    def __getitem__(self, name: str) -> np.ndarray:
        path, start, size, digest, decode = self._tensors[name]
        try:
            with open(path, "rb") as file:
                file.seek(start)
                data = np.fromfile(file, np.uint8, size)
            _expect(_hash(data) == digest, "the values do not match their hash")
            return decode(data)
        except _REFUSALS as error:
            raise ValueError(f"{path}: {name}: {error}") from error

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _open_shards(self) -> None:
        _require_file(self._path)
        with open(self._path, "rb") as file:
            content = _parse(file.read(_LARGEST_HEADER).decode())
        ours, places = content["ssvq_jax"], content["weight_map"]
        found = {name: type(value) for name, value in ours.items()}
        _expect(found == _INDEXED, "its index has other entries")
        _expect(ours["version"] == 1, "another version")
        _expect(set(places.values()) == set(ours["shards"]), "a shard without a hash")
        listed = {name: set() for name in ours["shards"]}
        for name, place in places.items():
            listed[place].add(_original(name))
        for name, digest in ours["shards"].items():
            inside = os.path.basename(name) == name and name not in ("", ".", "..")
            _expect(inside, f"{name!r}: no file beside the index")
            before = set(self._tensors)
            path = os.path.join(os.path.dirname(self._path), name)
            try:
                _, hashes = self._open(path)
            except _REFUSALS as error:
                raise ValueError(f"{name}: {error}") from error
            _expect(_hash(hashes).hex() == digest, f"{name}: not as its hash")
            found = self._tensors.keys() - before
            _expect(found == listed[name], f"{name}: other tensors")
        self.metadata = ours["metadata"]

    def _open(self, path: str) -> tuple[dict[str, Any], bytes]:
        """Add the tensors of a file; its metadata, and its hashes."""
        _require_file(path)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = file.read(8)
            count = int.from_bytes(length, "little")
            _expect(8 + count <= size, "its header is longer than the file")
            text = file.read(count)
            content = _parse(text.decode())
            description = _parse(content.pop("__metadata__")["ssvq_jax"])
            found = {name: type(value) for name, value in description.items()}
            ties = description.pop("ties", {})
            found.pop("ties", None)
            _expect(found == _DESCRIBED, "its description has other entries")
            _expect(description["version"] == 1, "another version")
            alignment = description["alignment"]
            _expect(_natural(alignment, 1 << 20).bit_count() == 1, "its alignment")
            places = _places(content, 8 + count, size)
            start, hashed = places.pop(_HASHES)
            most = 8 * (1 + len(places)) + (1 << 20)
            _expect(content[_HASHES]["dtype"] == "U8" and hashed < most, "its hashes")
            file.seek(start)
            hashes = file.read(hashed)
        _expect(hashes[:8] == _hash(length + text), "its header is not as its hash")
        _expect(not any(hashes[8 + 8 * len(places) :]), "bytes behind its hashes")
        names = list(content)
        payloads = names[names.index(_HASHES) + 1 :]
        entries = dict(zip(payloads, description["compressed"], strict=True))
        counts = {name: math.prod(content[name]["shape"]) for name in places}
        for i, (name, (start, size)) in enumerate(places.items(), 1):
            if name in entries:
                codec, dtype, axis, shape = entries[name]
                options = description["codecs"][_natural(codec, _LARGEST_SIZE)]
                payload = _Payload(options, dtype, axis, shape)
                whole = payload.nbytes + -payload.nbytes % alignment
                kind = content[name]["dtype"], content[name]["shape"]
                _expect(kind == ("U8", [whole]), f"{name}: expected {whole} bytes")
                decode, counts[name] = payload.decode, math.prod(shape)
            else:
                dtype, shape = content[name]["dtype"], content[name]["shape"]
                decode = functools.partial(_plain, dtype, tuple(shape))
            digest = hashes[8 * i : 8 * i + 8]
            self._add(name, dtype, (path, start, size, digest, decode))
        size, tied = os.path.getsize(path), 0
        for name, to in ties.items():  # stored under another name
            _expect(name != "__metadata__", "a tie without a name")
            _expect(to in places, f"{name}: not tied to a tensor")
            tied += counts[to]
            _expect(tied <= _MOST_WEIGHTS_PER_BYTE * size, "more ties than bytes")
            found = _original(to)
            self._add(name, self.dtypes[found], self._tensors[found])
        return description["metadata"], hashes

    def _add(self, name: str, dtype: str, place: "_Place") -> None:
        original = _original(name)
        _expect(original not in self.dtypes, f"{original}: a name twice")
        self.dtypes[original], self._tensors[original] = dtype, place


_Place = tuple[str, int, int, bytes, Callable[[Any], Any]]
"""Of a tensor: its file, first byte, size, hash, and what makes an array of it."""


_REFUSALS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What malformed content raises on its way through checks."""


def _require_file(path: str) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")  # a pipe would wait for ever


def _expect(condition: Any, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _natural(value: Any, limit: int) -> int:
    _expect(type(value) is int and 0 <= value < limit, f"{value!r}: out of range")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    _expect(isinstance(value, list) and len(value) <= _MOST_AXES, "a shape is none")
    return tuple(_natural(n, _LARGEST_SIZE) for n in value)


def _original(name: str) -> str:
    """A name as the checkpoint has it."""
    return name.replace("~1", "/").replace("~0", "~")


def _parse(text: str) -> dict[str, Any]:
    def unique(pairs):
        found = dict(pairs)
        _expect(len(found) == len(pairs), "a key twice in its header")
        return found

    def constant(text):
        raise ValueError(f"{text} in its header")

    content = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    _expect(isinstance(content, dict), "its header is no mapping")
    return content


def _places(
    content: dict[str, Any], start: int, end: int
) -> dict[str, tuple[int, int]]:
    """First byte and size of every tensor; they lie one after the other."""
    places, place = {}, start
    for name, entry in content.items():
        bits = 8 * np.dtype(_PLAIN[entry["dtype"]]).itemsize
        bits = math.prod(_shape(entry["shape"])) * (
            4 if entry["dtype"] == "F4" else bits
        )
        _expect(bits % 8 == 0, f"{name}: not whole bytes")
        size = bits // 8
        found = entry["data_offsets"]
        expected = [place - start, place - start + size]
        _expect(found == expected, f"{name}: its place is not behind the last one")
        places[name] = place, size
        place += size
    _expect(place == end, "sizes do not add up to that of the file")
    return places


def _hash(data: Any) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def _plain(dtype: str, shape: tuple[int, ...], data: np.ndarray) -> np.ndarray:
    if dtype == "BOOL":
        _expect(data.max(initial=0) <= 1, "expected booleans of 0 and 1")
    if dtype == "F4":
        data = np.stack([data & 0xF, data >> 4], axis=-1).reshape(-1)
    values = data.view(_PLAIN[dtype]).reshape(shape)
    return _widened(values) if dtype == "BF16" else values


class _Payload:
    """A compressed weight: what its bytes mean.

    Attributes:
      nbytes: How many they are.
    """

    def __init__(self, options: dict[str, Any], dtype: str, axis: int, shape: Any):
        self._codec = name = options["name"]
        known = _OPTIONS[name] | {"name"}
        _expect(known <= options.keys(), f"{name}: an option is missing")
        later = _LATER[name]
        _expect(options.keys() <= known | later.keys(), f"{name}: an unknown option")
        _expect(dtype in ("F64", "F32", "F16", "BF16"), f"{dtype}: no dtype of weights")
        self._options = {**later, **options}
        self._dtype, self._shape = dtype, _shape(shape)
        self._axis = axis = _natural(axis, len(self._shape))
        self._block = _natural(options.get("block", 1), _LARGEST_SIZE)
        _expect(
            math.prod(self._shape) > 0 and self._block > 0, "an empty shape or block"
        )
        length = -(-self._shape[axis] // self._block)
        self._grid = (*self._shape[:axis], length, *self._shape[axis + 1 :])
        self._fields = self._uniform() if name == "Uniform" else self._clustered()
        self.nbytes = sum(map(_nbytes, self._fields.values()))
        padded = math.prod(self._grid) * self._block
        most = _MOST_WEIGHTS_PER_BYTE * self.nbytes
        _expect(padded <= most, "more weights than its bytes can hold")

    def decode(self, data: np.ndarray) -> np.ndarray:
        """The weights, of the bytes and what fills them up."""
        fields, place = {}, 0
        for name, field in self._fields.items():
            size = _nbytes(field)
            fields[name] = _values(field, data[place : place + size])
            place += size
        if self._codec == "Uniform":
            codes = fields["codes"].reshape(self._shape).astype(np.int32)
            weights = (codes - (1 << self._options["bits"] - 1)).astype(np.float32)
        else:
            weights = self._blocks(fields)
        scale = fields.get("channel_scale")
        if scale is not None:
            weights *= self._spread(scale)
        return _rounded(weights, self._dtype)

    def _uniform(self) -> dict[str, "_Field"]:
        bits, dtype = _natural(self._options["bits"], 17), self._options["scale_dtype"]
        _expect(bits > 0, "bits: expected some")
        _expect(dtype in _SCALES, f"scale_dtype: unknown {dtype!r}")
        count = math.prod(self._shape)
        return {"channel_scale": (self._channels(), dtype), "codes": (count, bits)}

    def _clustered(self) -> dict[str, "_Field"]:
        options, blocks = self._options, math.prod(self._grid)
        codewords, dtype = options["codewords"], options["codebook_dtype"]
        count = _natural(codewords, _LARGEST_SIZE) * self._block
        _expect(count > 0, "codewords: expected some")
        _expect(dtype in _FLOATS, f"codebook_dtype: unknown {dtype!r}")
        scales = options["channel_scale"]
        _expect(scales in (None, *_SCALES), f"channel_scale: unknown {scales!r}")
        fields: dict[str, _Field] = {"codebook": (count, dtype)}
        if dtype == "int8":
            fields["scale"] = 1, "float32"
        if scales is not None:
            fields["channel_scale"] = self._channels(), scales
        fields["codes"] = blocks, (codewords - 1).bit_length()
        lines = blocks // self._grid[self._axis]  # of blocks along the axis
        length = self._shape[self._axis]
        if self._codec == "SSVQ":
            code = options["sign_code"]
            known = code in ("free", "parity", "hamming")
            _expect(known, f"sign_code: {code!r} is unknown")
            _expect(code != "hamming" or self._block % 8 == 0, "hamming: blocks of 8")
            whole, rest = divmod(length, self._block)
            per_line = whole * int(self._stored(self._block)) + int(self._stored(rest))
            fields["signs"] = lines * per_line, 1
        elif self._codec == "MVQ":
            keep, group = (_natural(n, 17) for n in options["keep"])
            _expect(0 < keep <= group and self._block % group == 0, "keep: no masks")
            choices = math.comb(group, keep)
            per_line = -(-length // group)
            fields["masks"] = lines * per_line, (choices - 1).bit_length()
        return fields

    def _channels(self) -> int:
        return 1 if (channel := self._channel()) is None else self._shape[channel]

    def _channel(self) -> int | None:
        last = len(self._shape) - 1
        embedding = self._axis == last > 0 and self._shape[-2] > 1
        return None if last == 0 else 0 if embedding else last

    def _spread(self, scale: np.ndarray) -> np.ndarray:
        """The scales of channels, to be multiplied with weights."""
        shape = [1] * len(self._shape)
        channel = self._channel()
        if channel is not None:
            shape[channel] = -1
        return scale.reshape(shape)

    def _stored(self, positions: Any) -> Any:
        """How many signs are stored of a block's first positions, one or many."""
        code = self._options["sign_code"]
        if code == "hamming":
            return positions // 8 * 4 + np.minimum(positions % 8, 4)
        return np.minimum(positions, self._block - (code == "parity"))

    def _blocks(self, fields: dict[str, np.ndarray]) -> np.ndarray:
        """Weights of codewords, their signs or masks, without scales of channels."""
        codebook, codes = fields["codebook"], fields["codes"]
        if "scale" in fields:
            codebook = codebook * fields["scale"]
        codewords, block = self._options["codewords"], self._block
        _expect(int(codes.max()) < codewords, f"codes: expected less than {codewords}")
        # Codewords count in every channel, whether one of theirs has them or not.
        scale = np.abs(fields.get("channel_scale", np.ones(1, np.float32))).max()
        with np.errstate(over="ignore", invalid="ignore"):
            _rounded(np.abs(codebook).max(keepdims=True) * scale, self._dtype)
        blocks = codebook.reshape(codewords, block)[codes]
        if "signs" in fields:
            flips = self._signs(fields["signs"]).astype(np.uint32) << np.uint32(31)
            blocks.view(np.uint32)[...] ^= flips
        elif "masks" in fields:
            blocks = np.where(self._masks(fields["masks"]), blocks, np.float32(0))
        return self._joined(blocks)

    def _signs(self, stored: np.ndarray) -> np.ndarray:
        """1 for minus, `(blocks, block)`."""
        kept = np.diff(self._stored(np.arange(self._block + 1))) > 0
        signs = self._placed(stored, self._block, kept)
        if self._options["sign_code"] == "parity":
            signs[:, -1] = signs[:, :-1].sum(axis=1) % 2
        if self._options["sign_code"] == "hamming":
            eights = signs.reshape(-1, 8)
            for place, sources in _CHECKS.items():
                eights[:, place] = eights[:, sources].sum(axis=1) % 2
        return signs

    def _masks(self, ranks: np.ndarray) -> np.ndarray:
        """Whether a weight is kept, `(blocks, block)`."""
        keep, group = self._options["keep"]
        numbers = [n for n in range(1 << group) if n.bit_count() == keep]
        _expect(int(ranks.max()) < len(numbers), "masks: out of range")
        table = np.array(numbers)[:, None] >> np.arange(group) & 1
        masks = table.astype(bool)[self._placed(ranks, self._block // group)]
        return masks.reshape(-1, self._block)

    def _placed(self, stored: np.ndarray, width: int, kept: Any = True) -> np.ndarray:
        """Stored values `(blocks, width)`; 0 where there is none, as in padding."""
        blocks = math.prod(self._grid)
        if stored.size == blocks * width:
            return stored.reshape(blocks, width)
        placed = np.zeros((blocks, width), stored.dtype)
        line = np.arange(self._grid[self._axis] * width) * (self._block // width)
        inside = (line < self._shape[self._axis]).reshape(-1, width)
        following = math.prod(self._grid[self._axis + 1 :])
        inside = np.tile(inside[:, None] & kept, (1, following, 1)).reshape(-1, width)
        whole = np.tile(inside, (blocks // len(inside), 1))
        placed[whole] = stored
        return placed

    def _joined(self, blocks: np.ndarray) -> np.ndarray:
        """Blocks side by side along their axis, without padding."""
        axis, length = self._axis, self._shape[self._axis]
        parts = np.moveaxis(blocks.reshape(*self._grid, self._block), -1, axis + 1)
        padded = [*self._grid]
        padded[axis] *= self._block
        weights = parts.reshape(padded)
        return weights[(slice(None),) * axis + (slice(length),)]


_Field = tuple[int, Any]
"""How many values, and their dtype, or bits where they are packed."""


def _nbytes(field: _Field) -> int:
    count, kind = field
    if isinstance(kind, int):
        return -(-count * kind // 8)
    return count * np.dtype(_FLOATS[kind]).itemsize


def _values(field: _Field, data: np.ndarray) -> np.ndarray:
    """float32, or unsigned integers where they are packed."""
    count, kind = field
    if isinstance(kind, int):
        return _unpacked(data, count, kind)
    values = np.array(data).view(_FLOATS[kind])
    return _widened(values) if kind == "bfloat16" else values.astype(np.float32)


def _unpacked(data: np.ndarray, count: int, bits: int) -> np.ndarray:
    """Integers of so many bits, packed without gaps, the lowest bit first."""
    if bits == 0:
        return np.zeros(count, np.uint8)
    if bits == 1:
        return np.unpackbits(data, count=count, bitorder="little")
    if bits <= 8:  # eight of them are `bits` bytes
        groups = -(-count // 8)
        words = np.zeros((groups, 8), np.uint8)
        words[:, :bits] = np.pad(data, (0, groups * bits - data.size)).reshape(-1, bits)
        shifts = np.arange(8, dtype=np.uint64) * np.uint64(bits)
        values = words.view("<u8") >> shifts & np.uint64((1 << bits) - 1)
        return values.astype(np.uint8).reshape(-1)[:count]
    first = np.arange(count, dtype=np.uint64) * np.uint64(bits)
    place = (first >> np.uint64(3)).astype(np.int64)
    padded = np.pad(data, (0, 4)).astype(np.uint64)
    word = sum(padded[place + i] << np.uint64(8 * i) for i in range(5))
    values = word >> (first & np.uint64(7)) & np.uint64((1 << bits) - 1)
    return values.astype(np.uint32)


def _widened(values: np.ndarray) -> np.ndarray:
    """float32 from the bits of bfloat16."""
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _rounded(weights: np.ndarray, dtype: str) -> np.ndarray:
    """To the nearest number of a dtype, ties to even; bfloat16 stays in float32.

    Raises:
      ValueError: Weights that are not finite, or not so in the dtype.
    """
    # Before rounding, too: that may carry a NaN's bits into another number.
    _expect(np.isfinite(weights).all(), "values that are not finite")
    if dtype in ("F32", "F64"):
        return np.ascontiguousarray(weights, _PLAIN[dtype])
    if dtype == "F16":
        with np.errstate(over="ignore"):
            rounded = np.ascontiguousarray(weights, _PLAIN[dtype])
    else:
        bits = np.ascontiguousarray(weights).view(np.uint32)
        odd = bits >> np.uint32(16) & np.uint32(1)
        rounded = _widened((bits + odd + np.uint32(0x7FFF)) >> np.uint32(16))
    _expect(np.isfinite(rounded).all(), f"values that are not finite in {dtype}")
    return rounded
