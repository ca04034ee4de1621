"""The container: safetensors, that is a JSON header and the tensors without gaps.

Any safetensors library reads these files. They are read and written here because a
packed file asks for more: it may be written and read one tensor at a time, its header
is hashed, and nothing in it may be said twice.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import pathlib
import secrets
import shutil
import stat
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from ssvq_jax.export.error import FormatError
from ssvq_jax.export.kinds import require_safetensors

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn",
}
"""Names of dtypes: those of safetensors, and NumPy's for them."""

NAMES = {name: short for short, name in DTYPES.items()}

LARGEST_HEADER = 100_000_000
"""Bytes of JSON, the limit of the safetensors library."""

MOST_AXES = 32

LARGEST_SIZE = 1 << 48
"""No axis is as long."""

HASH_BYTES = 8

_CHUNK = 1 << 26  # bytes
_HALF = "float4_e2m1fn"  # two in a byte


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in a container.

    Attributes:
      dtype: Its safetensors name, such as `F32`.
      shape: Its shape.
      start: Its first byte, counted from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int = 0

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        bits = math.prod(self.shape) * bits_of(self.dtype)
        if bits % 8:
            raise ValueError(f"shape {list(self.shape)}: expected whole bytes")
        return bits // 8


class Container:
    """An open safetensors file: its header is read and checked, its data is not.

    Attributes:
      path: The file's name, as text.
      header: The first bytes of the file, up to the first tensor.
      metadata: The text values of the header's `__metadata__`.
      tensors: All tensors by name, in the order in which they lie in the file.

    Raises:
      OSError: A file that is missing or cannot be read.
      FormatError: No safetensors file, or one whose sizes do not add up.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        require_safetensors(path)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        size = os.fstat(self._file).st_size
        self.header = self._read_header(size)
        content = _parse(self.header[8:])
        self.metadata = content.pop("__metadata__", {})
        if not isinstance(self.metadata, dict):
            raise FormatError("no safetensors file: its metadata is no mapping")
        self.tensors: dict[str, Tensor] = {}
        end = len(self.header)
        for name, entry in content.items():
            try:
                tensor = _tensor(entry, end, len(self.header))
            except (TypeError, KeyError, ValueError) as error:
                raise FormatError(f"{name!r}: no safetensors entry: {error}") from error
            self.tensors[name] = tensor
            end += tensor.nbytes
        if end != size:
            raise FormatError(
                f"no safetensors file, or a truncated one: its header describes {end} "
                f"bytes, it has {size}"
            )

    def read(self, name: str) -> UInt8[np.ndarray, " bytes"]:
        """The bytes of a tensor.

        They are read, not mapped: a file that is cut short meanwhile is an error then,
        and not the end of the process.
        """
        tensor = self.tensors[name]
        return self._read(tensor.start, tensor.nbytes)

    def _read_header(self, size: int) -> bytes:
        length = int.from_bytes(self._read(0, min(size, 8)).tobytes(), "little")
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            raise FormatError(
                f"no safetensors file, or a truncated one: {size} bytes, header of "
                f"{length}"
            )
        return self._read(0, 8 + length).tobytes()

    def _read(self, start: int, size: int) -> UInt8[np.ndarray, " bytes"]:
        data, done = np.empty(size, np.uint8), 0
        while done < size:
            part = os.pread(self._file, min(size - done, _CHUNK), start + done)
            if not part:
                raise FormatError("the file was cut short while it was read")
            data[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        return data


def bits_of(dtype: str) -> int:
    """Bits of a number of a dtype, by its safetensors name."""
    name = DTYPES[dtype]
    return 4 if name == _HALF else 8 * jnp.dtype(name).itemsize


def bytes_of(x: np.ndarray) -> UInt8[np.ndarray, " bytes"]:
    """An array's own bytes as a file has them: row-major, little-endian."""
    data = np.ascontiguousarray(x, x.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    if x.dtype.name != _HALF:
        return data
    return data[::2] & 0xF | data[1::2] << 4


def from_bytes(tensor: Tensor, data: UInt8[np.ndarray, " bytes"]) -> np.ndarray:
    """The array that a tensor's bytes are."""
    dtype = jnp.dtype(DTYPES[tensor.dtype])
    if dtype.name == _HALF:
        data = np.stack([data & 0xF, data >> 4], axis=-1)
    return data.reshape(-1).view(dtype).reshape(tensor.shape)


def hash_of(data: Any) -> bytes:
    """The hash that files have: BLAKE2b of 8 bytes."""
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()


def header_bytes(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], alignment: int = 8
) -> bytes:
    """The header of a file that holds the tensors in this order.

    Args:
      tensors: By name; their `start` is not used.
      metadata: Text values.
      alignment: The data starts at a multiple of this many bytes.
    """
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, tensor in tensors.items():
        stop = start + tensor.nbytes
        content[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that takes its place under `path` when all of it is on disk.

    Whatever stops it before, the old file, or none, is still there.

    Raises:
      OSError: A directory that is missing or cannot be written; names the path.
    """
    target = pathlib.Path(os.path.realpath(path))
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    elsewhere = False
    try:
        check_replaceable(path)
        with open(temporary, "xb") as file:
            if target.exists():
                shutil.copymode(target, temporary)
            elsewhere = True
            yield file
            elsewhere = False
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        # One with a name is of another file: what was to be written could not be read.
        if elsewhere and (error.filename is not None or error.strerror is None):
            raise
        reason = f"cannot write the file: {error.strerror}"
        raise type(error)(error.errno, reason, str(target)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raise `OSError` if no file can be put at `path`, or what is there is no file."""
    # Of the path as it is: links such as /dev/stdout may lead to no name.
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EEXIST, "not a regular file", os.fspath(path))
    path = pathlib.Path(os.path.realpath(path))
    if not stat.S_ISDIR(os.stat(path.parent).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(path.parent))
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "not writable", str(path.parent))


def _parse(text: bytes) -> dict[str, Any]:
    try:
        content = parse_json(text.decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"no safetensors file: its header: {error}") from error
    if not isinstance(content, dict):
        raise FormatError("no safetensors file: its header is no mapping")
    return content


def parse_json(text: str) -> Any:
    """JSON, strictly: no key twice, no NaN.

    Raises:
      ValueError, RecursionError: Text that is not such JSON.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"{key!r} appears twice")
        content[key] = value
    return content


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _tensor(entry: Any, start: int, first: int) -> Tensor:
    """The tensor that starts at byte `start` of the file, from its header entry."""
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']!r} is not supported")
    shape = shape_of(entry["shape"])
    tensor = Tensor(entry["dtype"], shape, start)
    offsets = [start - first, start - first + tensor.nbytes]
    if entry["data_offsets"] != offsets:
        raise ValueError(
            f"data_offsets: expected {offsets}, got {entry['data_offsets']}"
        )
    return tensor


def shape_of(value: Any) -> tuple[int, ...]:
    """A shape from JSON; else a `FormatError`. Its product stays a small integer."""
    if not isinstance(value, list) or len(value) > MOST_AXES:
        raise FormatError(f"shape: expected a list of at most {MOST_AXES} integers")
    return tuple(natural("shape", n, LARGEST_SIZE) for n in value)


def natural(name: str, value: Any, limit: int) -> int:
    """`value`, an integer from 0 to below `limit`; else a `FormatError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
        raise FormatError(f"{name}: expected an integer from 0 to below {limit}")
    return value
