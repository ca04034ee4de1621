"""`save` and `load`: the packed file. The format itself is described in FORMAT.md."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from ssvq_jax.codecs import MVQ, SSVQ, VQ, Codec, Compressed, Uniform, is_compressed
from ssvq_jax.codecs.protocol import WEIGHT_DTYPES, Field
from ssvq_jax.export.error import FormatError
from ssvq_jax.export.packing import pack_integers, unpack_integers
from ssvq_jax.export.structure import describe, rebuild
from ssvq_jax.tree import finalize

VERSION = 1
_CODECS: dict[str, type[Codec]] = {
    codec.__name__: codec for codec in (SSVQ, VQ, Uniform, MVQ)
}
_PLAIN_DTYPES = "BOOL I8 U8 I16 U16 I32 U32 I64 U64 F16 BF16 F32 F64".split()
# What malformed content raises on the way through checks and constructors.
_REFUSALS = (
    FormatError,
    SafetensorError,
    ArithmeticError,
    KeyError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_DTYPES = (*WEIGHT_DTYPES, *_INTEGERS, "bool")


def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the packed file of `finalize(tree)`.

    The file is written beside its place and then renamed into it: a crash leaves the
    old file, or none.

    Args:
      path: Name of the file; `*.ssvq.safetensors` by convention. Its directory exists.
      tree: Pytree of arrays and `Compressed` nodes. Dicts, lists, tuples and `None`
        come back from `load` as they are, other containers as dicts.
      metadata: JSON-serialisable values to keep with the file, for `read_metadata`.

    Raises:
      OSError: A directory that is missing or cannot be written.
      TypeError: A leaf that is no array of numbers; metadata that is not JSON.
      ValueError: What `finalize` raises; two parameters of one path.

    Example:
      >>> import jax, pathlib, tempfile, ssvq_jax as ssvq
      >>> params = {"kernel": jax.random.normal(jax.random.key(0), (64, 64))}
      >>> rules = [ssvq.Rule("kernel", ssvq.SSVQ())]
      >>> compressed = ssvq.compress(params, rules, key=jax.random.key(1))
      >>> file = pathlib.Path(tempfile.mkdtemp(), "model.ssvq.safetensors")
      >>> ssvq.save(file, compressed)
      >>> bool((ssvq.decode(ssvq.load(file))["kernel"]
      ...     == ssvq.decode(ssvq.finalize(compressed))["kernel"]).all())
      True
    """
    path = pathlib.Path(os.path.realpath(path))
    tensors: dict[str, np.ndarray] = {}
    codecs: list[Codec] = []

    def leaf(name: str, value: Any) -> dict[str, Any]:
        if name in tensors:
            raise ValueError(f"{name}: two parameters of this path")
        if name == "__metadata__":
            raise ValueError(f"{name}: safetensors keeps this name for itself")
        if not is_compressed(value):
            tensors[name] = _as_array(name, value)
            return {"hash": _hash(tensors[name])}
        tensors[name] = _pack(name, value)
        if value.codec not in codecs:
            codecs.append(value.codec)
        return {
            "codec": codecs.index(value.codec),
            "shape": list(value.shape),
            "dtype": jnp.dtype(value.dtype).name,
            "axis": value.axis,
            "hash": _hash(tensors[name]),
        }

    described = describe(finalize(tree), leaf)
    spec = {
        "version": VERSION,
        "codecs": [_codec_json(codec) for codec in codecs],
        "tree": described,
        "metadata": dict(metadata or {}),
    }
    text = json.dumps(spec, separators=(",", ":"), allow_nan=False)
    header = {"ssvq_jax": f"{_hash_bytes(text.encode())} {text}"}
    data = serialize(tensors, metadata=header)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = f"cannot write the packed file: {error.strerror}"
        raise type(error)(error.errno, reason, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> Any:
    """Read a packed file: `decode(load(path))` equals `decode(finalize(tree))`.

    Everything is checked before it is used: structure, sizes, a hash of every tensor,
    the range of every code.

    Args:
      path: A file that `save` wrote.

    Returns:
      The finalized tree: dicts, lists and tuples of `Compressed` nodes and arrays.

    Raises:
      OSError: A file that is missing or cannot be read.
      FormatError: A file that is truncated, altered, or none of ours; the message
        names the file and the parameter.
    """
    with _reading(path) as file:
        spec = _read_spec(file)
        codecs = [_codec(entry) for entry in _expect(spec, "codecs", list)]
        unread = set(file.keys())

        def leaf(name: str, entry: Any) -> Any:
            if name not in unread:
                raise FormatError(f"{name}: no tensor of this name")
            unread.remove(name)
            try:
                return _read_leaf(file, name, entry, codecs)
            except _REFUSALS as error:
                raise FormatError(f"{name}: {error}") from error

        if "tree" not in spec:
            raise FormatError("tree: expected the description of a tree")
        tree = rebuild(spec["tree"], leaf)
        if unread:
            raise FormatError(f"{min(unread)}: tensor that no parameter describes")
        return tree


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `save` was given, without reading any tensor.

    Raises:
      OSError, FormatError: As `load`.
    """
    with _reading(path) as file:
        return _expect(_read_spec(file), "metadata", dict)


class _reading:
    """An open safetensors file whose errors name it."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)

    def __enter__(self) -> Any:
        try:
            self.file = safe_open(self.path, "np")
        except SafetensorError as error:
            raise FormatError(f"{self.path}: no safetensors file: {error}") from error
        return self.file.__enter__()

    def __exit__(self, kind, error, traceback):
        self.file.__exit__(kind, error, traceback)
        if isinstance(error, _REFUSALS):
            raise FormatError(f"{self.path}: {error}") from error


def _read_spec(file: Any) -> dict[str, Any]:
    header = file.metadata() or {}
    if "ssvq_jax" not in header:
        raise FormatError("not written by ssvq_jax: its description is missing")
    digest, _, text = header["ssvq_jax"].partition(" ")
    if digest != _hash_bytes(text.encode()):
        raise FormatError("the description does not match its hash")
    try:
        spec = json.loads(text)
    except ValueError as error:
        raise FormatError(f"the description is no JSON: {error}") from error
    version = spec.get("version") if isinstance(spec, dict) else None
    if type(version) is not int or version != VERSION:
        found = spec.get("version") if isinstance(spec, dict) else spec
        raise FormatError(f"version: expected {VERSION}, got {found!r}")
    return spec


def _read_leaf(file: Any, name: str, entry: Any, codecs: list[Codec]) -> Any:
    tensor = file.get_slice(name)
    if "codec" not in entry:
        if tensor.get_dtype() not in _PLAIN_DTYPES:
            raise FormatError(f"dtype: {tensor.get_dtype()} is not supported")
        array = file.get_tensor(name)
        if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
            raise FormatError("expected booleans of 0 and 1")
        if _hash(array) != entry["hash"]:
            raise FormatError("the values do not match their hash")
        # JAX would narrow 64 bits where they are not enabled.
        return array if array.dtype.itemsize == 8 else jnp.asarray(array)

    codec = codecs[_integer("codec", entry["codec"], len(codecs))]
    shape = tuple(_integer("shape", n) for n in entry["shape"])
    if not shape or 0 in shape:
        raise FormatError(f"shape: expected at least one axis, none empty, got {shape}")
    axis = _integer("axis", entry["axis"], len(shape))
    if entry["dtype"] not in WEIGHT_DTYPES:
        raise FormatError(f"dtype: expected a floating one, got {entry['dtype']!r}")
    fields = codec.fields(shape, axis)
    size = sum(field.nbytes for field in fields)
    if tensor.get_dtype() != "U8" or tensor.get_shape() != [size]:
        raise FormatError(
            f"expected {size} bytes, got {tensor.get_dtype()} {tensor.get_shape()}"
        )
    payload = file.get_tensor(name)
    if _hash(payload) != entry["hash"]:
        raise FormatError("the values do not match their hash")
    stored, start = {}, 0
    for field in fields:
        stored[field.name] = _unpack(field, payload[start : start + field.nbytes])
        start += field.nbytes
    return codec.restore(shape, jnp.dtype(entry["dtype"]), axis, stored)


def _pack(name: str, node: Compressed) -> np.ndarray:
    stored = node.stored()
    parts = []
    for field in node.codec.fields(node.shape, node.axis):
        values = stored[field.name]
        if values.size != field.count:
            raise ValueError(
                f"{name}: {field.name}: expected {field.count} values, got "
                f"{values.size}; save the layers of a stack one by one"
            )
        if field.dtype is None:
            parts.append(pack_integers(values, field.bits))
        else:
            values = np.ascontiguousarray(values, jnp.dtype(field.dtype))
            parts.append(values.view(np.uint8))
    return np.concatenate(parts)


def _unpack(field: Field, data: np.ndarray) -> np.ndarray:
    if field.dtype is not None:
        return data.copy().view(jnp.dtype(field.dtype))
    values = unpack_integers(data, field.count, field.bits)
    if values.size and int(values.max()) >= field.limit:
        raise FormatError(
            f"{field.name}: expected values below {field.limit}, got {values.max()}"
        )
    return values


def _as_array(name: str, value: Any) -> np.ndarray:
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    )
    array = None if is_key else np.asarray(value)
    if array is None or array.dtype.name not in _DTYPES:
        found = type(value).__name__ if array is None else array.dtype
        raise TypeError(f"{name}: expected an array of numbers, got {found}")
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(array).reshape(array.shape)


def _hash(array: np.ndarray) -> str:
    kind = f"{array.dtype.name}{list(array.shape)}".encode()
    return _hash_bytes(kind + b"\0" + array.tobytes())


def _hash_bytes(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _codec_json(codec: Codec) -> dict[str, Any]:
    return {"name": type(codec).__name__, **dataclasses.asdict(codec)}


def _codec(entry: Any) -> Codec:
    """A codec from JSON; its own checks refuse values out of range."""
    try:
        options = dict(entry)
        return _CODECS[options.pop("name")](**options)
    except _REFUSALS as error:
        raise FormatError(f"codec: {entry!r}: {error}") from error


def _expect(spec: dict[str, Any], name: str, kind: type) -> Any:
    if not isinstance(spec.get(name), kind):
        raise FormatError(f"{name}: expected a {kind.__name__}")
    return spec[name]


def _integer(name: str, value: Any, limit: int = 1 << 62) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
        raise FormatError(f"{name}: expected an integer from 0 to below {limit}")
    return value
