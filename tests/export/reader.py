"""A reader of packed files, written from FORMAT.md alone, in plain Python.

It shows that the specification suffices: nothing of the library, no NumPy.
"""

import hashlib
import itertools
import json
import math
import struct

FLOATS = {"float64": "d", "float32": "f", "float16": "e", "int8": "b"}
SAFETENSORS = dict(
    BOOL="?", U8="B", I8="b", U16="H", I16="h", F16="e", U32="I", I32="i", F32="f",
    U64="Q", I64="q", F64="d",
)  # fmt: skip
SIZES = {"BF16": 2, **{name: struct.calcsize(c) for name, c in SAFETENSORS.items()}}


def read(path):
    """`{name: (dtype, shape, flat list of Python numbers)}`, decoded."""
    with open(path, "rb") as file:
        data = file.read()
    (length,) = struct.unpack_from("<Q", data)
    header_bytes = data[: 8 + length]
    header = json.loads(header_bytes[8:])
    description = json.loads(header.pop("__metadata__")["ssvq_jax"])
    assert description["version"] == 1
    names = list(header)
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        tensors[name] = data[8 + length + start : 8 + length + stop]
    hashes = tensors.pop("ssvq_jax.hashes")
    hashed = [header_bytes, *tensors.values()]
    for number, content in enumerate(hashed):
        digest = hashlib.blake2b(content, digest_size=8).digest()
        assert hashes[8 * number : 8 * number + 8] == digest

    decoded = {}
    payloads = names[names.index("ssvq_jax.hashes") + 1 :]
    for name, entry in zip(payloads, description["compressed"], strict=True):
        codec, dtype, axis, shape = entry
        options = description["codecs"][codec]
        weights = decode(options, shape, axis, tensors.pop(name))
        decoded[name] = dtype, shape, [rounded(w, dtype) for w in weights]
    for name, content in tensors.items():
        dtype, shape = header[name]["dtype"], header[name]["shape"]
        decoded[name] = dtype, shape, numbers(content, dtype)
    for name, to in description.get("ties", {}).items():
        decoded[name] = decoded[to]
    return decoded


def decode(options, shape, axis, payload):
    """The weights of a payload, row-major, in float32."""
    fields = Fields(payload)
    if options["name"] == "Uniform":
        return decode_uniform(options, shape, axis, fields)
    k, d = options["codewords"], options["block"]
    codebook = fields.floats(k * d, options["codebook_dtype"])
    if options["codebook_dtype"] == "int8":
        (scale,) = fields.floats(1, "float32")
        codebook = [rounded(value * scale, "F32") for value in codebook]
    channel, scales = None, None
    dtype = options.get("channel_scale")  # by default there is none
    if dtype is not None:
        channel = channel_axis(shape, axis)
        scales = fields.floats(1 if channel is None else shape[channel], dtype)
    grid = [*shape]
    grid[axis] = -(-shape[axis] // d)
    blocks = list(itertools.product(*map(range, grid)))
    codes = fields.integers(len(blocks), (k - 1).bit_length())
    assert max(codes) < k
    positions = []  # of every block: those that are not padding
    for index in blocks:
        first = index[axis] * d
        positions.append([p for p in range(d) if first + p < shape[axis]])
    factors = [[1.0] * d for _ in blocks]
    if options["name"] == "SSVQ":
        code = options.get("sign_code", "free")
        stored = [p for p in range(d) if is_stored(p, d, code)]
        count = sum(p in stored for valid in positions for p in valid)
        signs = iter(fields.integers(count, 1))
        for row, valid in zip(factors, positions, strict=True):
            bits = {p: next(signs) for p in valid if p in stored}
            for p in valid:
                if p not in stored:
                    bits[p] = sum(bits[q] for q in sources(p, d, code)) % 2
                row[p] = -1.0 if bits[p] else 1.0
    elif options["name"] == "MVQ":
        read_masks(options["keep"], factors, positions, fields)
    else:
        assert options["name"] == "VQ"
    weights = [0.0] * math.prod(shape)
    for index, code, row, valid in zip(blocks, codes, factors, positions, strict=True):
        for p in valid:
            place = list(index)
            place[axis] = index[axis] * d + p
            value = codebook[code * d + p]
            if scales is not None:
                scale = scales[0 if channel is None else place[channel]]
                value = rounded(value * scale, "F32")
            weights[flat(place, shape)] = value * row[p] if row[p] else 0.0
    return weights


def is_stored(position, block, code):
    if code == "parity":
        return position < block - 1
    return code == "free" or position % 8 < 4


def sources(position, block, code):
    """The positions whose bits add up to one that is not stored."""
    if code == "parity":
        return range(block - 1)
    first, last = divmod(position, 8)
    checks = {4: (0, 1, 2), 5: (0, 1, 3), 6: (0, 2, 3), 7: (1, 2, 3)}
    return [8 * first + i for i in checks[last]]


def channel_axis(shape, axis):
    last = len(shape) - 1
    is_embedding = axis == last and last > 0 and shape[-2] > 1
    return None if last == 0 else 0 if is_embedding else last


def read_masks(keep, factors, positions, fields):
    kept, group = keep
    masks = [m for m in range(1 << group) if m.bit_count() == kept]
    stored = [
        (row, start)
        for row, valid in zip(factors, positions, strict=True)
        for start in range(0, len(row), group)
        if start < len(valid)
    ]
    ranks = fields.integers(len(stored), (len(masks) - 1).bit_length())
    for (row, start), rank in zip(stored, ranks, strict=True):
        for p in range(group):
            row[start + p] = float(masks[rank] >> p & 1)


def decode_uniform(options, shape, axis, fields):
    channel = channel_axis(shape, axis)
    channels = 1 if channel is None else shape[channel]
    scale = fields.floats(channels, options["scale_dtype"])
    codes = fields.integers(math.prod(shape), options["bits"])
    weights = []
    for index, code in zip(itertools.product(*map(range, shape)), codes, strict=True):
        step = scale[0 if channel is None else index[channel]]
        integer = code - (1 << options["bits"] - 1)
        weights.append(rounded(integer * step, "F32"))
    return weights


class Fields:
    """A payload, taken apart from the front."""

    def __init__(self, payload):
        self.payload = payload

    def take(self, size):
        taken, self.payload = self.payload[:size], self.payload[size:]
        assert len(taken) == size
        return taken

    def floats(self, count, dtype):
        if dtype == "bfloat16":
            return numbers(self.take(2 * count), "BF16")
        code = FLOATS[dtype]
        size = struct.calcsize(code) * count
        return list(struct.unpack(f"<{count}{code}", self.take(size)))

    def integers(self, count, bits):
        stream = int.from_bytes(self.take(-(-count * bits // 8)), "little")
        mask = (1 << bits) - 1
        return [stream >> i * bits & mask for i in range(count)]


def numbers(content, dtype):
    """The values of a plain tensor."""
    count = len(content) // SIZES[dtype]
    if dtype == "BF16":
        halves = struct.unpack(f"<{count}H", content)
        return [struct.unpack("<f", struct.pack("<I", h << 16))[0] for h in halves]
    return list(struct.unpack(f"<{count}{SAFETENSORS[dtype]}", content))


def rounded(value, dtype):
    """To the nearest number of a floating dtype, ties to even."""
    if dtype == "BF16":
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        bits = bits + 0x7FFF + (bits >> 16 & 1) >> 16 << 16
        return struct.unpack("<f", struct.pack("<I", bits))[0]
    code = "<" + SAFETENSORS[dtype]
    return struct.unpack(code, struct.pack(code, value))[0]


def flat(index, shape):
    """Row-major position."""
    position = 0
    for i, n in zip(index, shape, strict=True):
        position = position * n + i
    return position
