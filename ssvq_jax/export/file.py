"""`save` and `load`: the packed file. The format itself is described in FORMAT.md."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from ssvq_jax.codecs import Compressed, is_compressed
from ssvq_jax.codecs.codec import Field
from ssvq_jax.export.container import (
    DTYPES,
    LARGEST_HEADER,
    NAMES,
    Container,
    Tensor,
    header_bytes,
    parse_json,
    replacing,
)
from ssvq_jax.export.description import LARGEST_ALIGNMENT, Description, Entry
from ssvq_jax.export.error import FormatError, naming
from ssvq_jax.export.names import build_tree, check_name, name_leaves
from ssvq_jax.export.packing import pack_integers, unpack_integers
from ssvq_jax.tree import finalize

_KEY = "ssvq_jax"
_HASHES = "ssvq_jax.hashes"
_HASH_BYTES = 8


def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
    alignment: int = 1,
) -> None:
    """Write the packed file of `finalize(tree)`.

    One parameter at a time is finalized, packed and written, beside the file's place;
    when all of it is on disk it is renamed. A crash leaves the old file, or none.

    Args:
      path: Name of the file; `*.ssvq.safetensors` by convention. Its directory exists.
      tree: Pytree of arrays and `Compressed` nodes. Dicts, lists, tuples and `None`
        come back from `load` as they are, other containers as dicts. NumPy memory maps
        are read one by one.
      metadata: JSON-serialisable values to keep with the file.
      alignment: Every compressed parameter starts at a multiple of this many bytes, a
        power of two: the burst of a device's memory, for example.

    Raises:
      OSError: A directory that is missing or cannot be written.
      TypeError: A leaf that is no array of numbers; metadata that is not JSON.
      ValueError: What `finalize` raises; a key that is empty or has control
        characters; more than 256 weights per stored byte; an alignment that is no
        power of two below 2^20.

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
    leaves, containers = name_leaves(tree)
    check_savable(leaves, alignment)
    nodes = {name: leaf for name, leaf in leaves.items() if is_compressed(leaf)}
    plain = {n: _plain_tensor(n, leaf) for n, leaf in leaves.items() if n not in nodes}
    # Wider dtypes first: so every tensor is aligned to its own.
    plain = dict(sorted(plain.items(), key=lambda item: -_itemsize(item[1])))
    entries = {name: _entry(name, node) for name, node in nodes.items()}
    description = Description(
        list(entries.values()), containers, dict(metadata or {}), alignment
    )
    hashes = _HASH_BYTES * (1 + len(leaves))
    before = sum(tensor.nbytes for tensor in plain.values())
    # The header ends at a multiple of it; payloads have to begin at one, too.
    hashes += -(before + hashes) % alignment
    sizes = {name: entry.nbytes for name, entry in entries.items()}
    tensors = {
        **plain,
        _HASHES: Tensor("U8", (hashes,)),
        **{n: Tensor("U8", (size + -size % alignment,)) for n, size in sizes.items()},
    }
    text = _checked_json(description)
    header = header_bytes(tensors, {_KEY: text}, max(8, alignment))
    if len(header) > LARGEST_HEADER:
        raise ValueError(
            f"the header has {len(header)} bytes; expected at most {LARGEST_HEADER}: "
            "keep less metadata"
        )
    digests = [_hash(header)]

    with replacing(path) as file:
        file.write(header)
        for name in plain:
            digests.append(_write(file, _as_array(name, leaves[name])))
        place = file.tell()
        file.write(bytes(hashes))
        for name, node in nodes.items():
            packed = _pack(name, node)
            fill = tensors[name].nbytes - packed.size
            if fill:
                packed = np.pad(packed, (0, fill))
            digests.append(_write(file, packed))
        file.seek(place)
        file.write(b"".join(digests))


def load(path: str | os.PathLike[str], *, lazy: bool = False) -> Any:
    """Read a packed file: `decode(load(path))` equals `decode(finalize(tree))`.

    Everything is checked before it is used: structure, sizes, a hash of every tensor,
    the range of every code.

    Args:
      path: A file that `save` wrote.
      lazy: Read the header only, and every parameter when it is asked for.

    Returns:
      The finalized tree: dicts, lists and tuples of `Compressed` nodes and arrays. With
      `lazy`, a `PackedFile`, which maps the names of the parameters to them.

    Raises:
      OSError: A file that is missing or cannot be read.
      FormatError: A file that is truncated, altered, or none of ours; the message
        names the file and the parameter.
    """
    file = PackedFile(path)
    return file if lazy else file.tree()


class PackedFile(Mapping[str, Any]):
    """An open packed file: its parameters by name, each read when it is asked for.

    Opening it reads the header. A parameter's bytes are read, checked against their
    hash and unpacked anew every time; no other parameter's are touched.

    Attributes:
      path: The file's name, as text.
      metadata: What `save` was given.
      entries: Codec, dtype, axis and shape of the compressed parameters, by name.
      tensors: Dtype, shape and place of all stored tensors, by name.
      header_bytes: Length of the header, in bytes.

    Raises:
      OSError, FormatError: As `load`; on access too.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        with naming(self.path):
            self._container = Container(self.path)
            self.tensors = self._container.tensors
            self.header_bytes = len(self._container.header)
            header = self._container.metadata.get(_KEY)
            if not isinstance(header, str) or _HASHES not in self.tensors:
                raise FormatError("not written by ssvq_jax: its description is missing")
            names = list(self.tensors)
            for name in names:
                check_name(name)
            payloads = names[names.index(_HASHES) + 1 :]
            self._names = [name for name in names if name != _HASHES]
            self._digests = self._read_digests()
            description = Description.from_json(header, payloads)
            start, size = self.tensors[_HASHES].start, 8 * (1 + len(self._names))
            if self.tensors[_HASHES].shape != (
                size + -(start + size) % description.alignment,
            ):
                raise FormatError(f"{_HASHES}: expected {size} bytes and fill")
            self.metadata = description.metadata
            self.entries = dict(zip(payloads, description.entries, strict=True))
            self._containers = description.containers
            for name, entry in self.entries.items():
                size = entry.nbytes + -entry.nbytes % description.alignment
                tensor = self.tensors[name]
                if (tensor.dtype, tensor.shape) != ("U8", (size,)):
                    raise FormatError(
                        f"{name}: expected {size} bytes, got {tensor.dtype} "
                        f"{list(tensor.shape)}"
                    )
                if tensor.start % description.alignment:
                    raise FormatError(f"{name}: not aligned")
            described = {name: self.entries.get(name) for name in self._names}
            build_tree(described, self._containers, _alike)

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        with naming(self.path, name):
            data = self._container.read(name)
            if _hash(data) != self._digests[name]:
                raise FormatError("the values do not match their hash")
            if name in self.entries:
                return _unpack(self.entries[name], data)
            tensor = self.tensors[name]
            array = data.view(jnp.dtype(DTYPES[tensor.dtype])).reshape(tensor.shape)
            if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
                raise FormatError("expected booleans of 0 and 1")
            # JAX would narrow 64 bits where they are not enabled.
            return array if array.dtype.itemsize == 8 else jnp.asarray(array)

    def __contains__(self, name: object) -> bool:
        return name in self._digests  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def tree(self) -> Any:
        """All parameters, in the containers that were saved."""
        leaves = {name: self[name] for name in self}
        return build_tree(leaves, self._containers)

    def _read_digests(self) -> dict[str, bytes]:
        """The hashes of all parameters by name; the header's is checked."""
        tensor = self.tensors[_HASHES]
        size = _HASH_BYTES * (1 + len(self._names))
        most = size + LARGEST_ALIGNMENT
        if tensor.dtype != "U8" or not size <= tensor.nbytes < most:
            raise FormatError(f"{_HASHES}: expected {size} bytes and fill")
        data = self._container.read(_HASHES).tobytes()
        if data.rstrip(b"\0") != data[:size].rstrip(b"\0"):
            raise FormatError(f"{_HASHES}: expected zeros after {size} bytes")
        digests = [data[i : i + _HASH_BYTES] for i in range(0, size, _HASH_BYTES)]
        if _hash(self._container.header) != digests[0]:
            raise FormatError("the header does not match its hash")
        return dict(zip(self._names, digests[1:], strict=True))


def _alike(entries: list[Entry | None]) -> Entry:
    """The entry that all parts of a stack have."""
    first = entries[0] if entries else None
    if first is None or any(entry != first for entry in entries):
        raise ValueError("expected compressed weights of one codec, shape and dtype")
    return first


def check_savable(names: Iterable[str], alignment: int) -> None:
    """Raise `TypeError` or `ValueError` for what `save` would not accept, early."""
    for name in ("__metadata__", _HASHES):
        if name in names:
            raise ValueError(f"{name}: the file keeps this name for itself")
    if isinstance(alignment, bool) or not isinstance(alignment, int):
        raise TypeError(f"alignment: expected an integer, got {alignment!r}")
    if alignment.bit_count() != 1 or not 0 < alignment < LARGEST_ALIGNMENT:
        raise ValueError(
            f"alignment: expected a power of two below {LARGEST_ALIGNMENT}, "
            f"got {alignment}"
        )


def _checked_json(description: Description) -> str:
    """The description as text that a reader takes."""
    try:
        text = description.to_json()
        parse_json(text)
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise type(error)(f"metadata: expected JSON: {error}") from error


def _entry(name: str, node: Compressed) -> Entry:
    try:
        node.check()
        dtype = jnp.dtype(node.dtype).name
        entry = Entry(node.codec, dtype, node.axis, tuple(node.shape))
        entry.check()
        return entry
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from error


def _pack(name: str, node: Compressed) -> UInt8[np.ndarray, " bytes"]:
    """The payload of a node: the fields of its inference form one after the other."""
    node = finalize({name: node})[name]
    stored = node.stored()
    parts = []
    for field in node.codec.fields(node.shape, node.axis):
        values = stored[field.name]
        if field.dtype is None:
            parts.append(pack_integers(values, field.bits))
        else:
            values = np.ascontiguousarray(values, jnp.dtype(field.dtype))
            parts.append(values.view(np.uint8))
    return np.concatenate(parts)


def _unpack(entry: Entry, data: UInt8[np.ndarray, " bytes"]) -> Compressed:
    stored, start = {}, 0
    for field in entry.fields:
        stored[field.name] = _unpack_field(field, data[start : start + field.nbytes])
        start += field.nbytes
    return entry.codec.restore(entry.shape, jnp.dtype(entry.dtype), entry.axis, stored)


def _unpack_field(field: Field, data: np.ndarray) -> np.ndarray:
    if field.dtype is not None:
        # A copy: fields start at any byte, where their dtype may not be aligned.
        return np.array(data).view(jnp.dtype(field.dtype))
    values = unpack_integers(data, field.count, field.bits)
    if values.size and int(values.max()) >= field.limit:
        raise FormatError(
            f"{field.name}: expected values below {field.limit}, got {values.max()}"
        )
    return values


def _plain_tensor(name: str, leaf: Any) -> Tensor:
    """Dtype and shape of a leaf that is stored as it is."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if is_key or array.dtype.name not in NAMES:
        found = type(leaf).__name__ if is_key else array.dtype
        raise TypeError(f"{name}: expected an array of numbers, got {found}")
    return Tensor(NAMES[array.dtype.name], tuple(array.shape))


def _as_array(name: str, leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _itemsize(tensor: Tensor) -> int:
    return jnp.dtype(DTYPES[tensor.dtype]).itemsize


def _write(file: Any, array: np.ndarray) -> bytes:
    """Write an array's bytes; their hash."""
    data = array.reshape(-1).view(np.uint8)
    file.write(data)
    return _hash(data)


def _hash(data: Any) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).digest()
