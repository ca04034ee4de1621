"""`load`: packed files and their shards. The format is described in FORMAT.md."""

import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from ssvq_jax.codecs import Compressed
from ssvq_jax.codecs.codec import Field
from ssvq_jax.export import shards
from ssvq_jax.export.container import (
    HASH_BYTES,
    Container,
    Tensor,
    from_bytes,
    hash_of,
)
from ssvq_jax.export.description import (
    HASHES,
    KEY,
    LARGEST_ALIGNMENT,
    MOST_WEIGHTS_PER_BYTE,
    Description,
    Entry,
)
from ssvq_jax.export.error import FormatError, naming
from ssvq_jax.export.names import build_tree, check_name
from ssvq_jax.export.packing import unpack_integers


def load(path: str | os.PathLike[str], *, lazy: bool = False) -> Any:
    """Read a packed file: `decode(load(path))` equals `decode(finalize(tree))`.

    Everything is checked before it is used: structure, sizes, a hash of every tensor,
    the range of every code. Parameters that were one object are one again.

    Args:
      path: A file that `save` wrote; of shards their index, or one of them.
      lazy: Read headers only, and every parameter when it is asked for.

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
    """An open packed file, or its shards: parameters by name, read when asked for.

    Opening it reads headers. A parameter's bytes are read, checked against their hash
    and unpacked anew every time; no other parameter's are touched.

    Attributes:
      path: The file's or the index's name, as text.
      files: All its files, the index included.
      metadata: What `save` was given.
      entries: Codec, dtype, axis and shape of the compressed parameters, by name.
      tensors: Dtype, shape and place in its file of all parameters, by name.
      ties: Names that are stored under another one, and that one.
      header_bytes: Length of headers and index.

    Raises:
      OSError, FormatError: As `load`; on access too.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        with naming(self.path):
            index = shards.read_index(pathlib.Path(path))
            if index is None:
                parts = [_File(self.path)]
                description = parts[0].description
                self.metadata = description.metadata
                self._containers = description.containers
                self.header_bytes = 0
            else:
                if index.packed is None:
                    raise FormatError("an index of shards that are not packed")
                parts = [_shard(index, *item) for item in index.files.items()]
                size = sum(x.nbytes for part in parts for x in part.tensors.values())
                if index.total_size != size:
                    raise FormatError(f"total_size: expected {size}")
                self.metadata = index.packed["metadata"]
                self._containers = index.packed["containers"]
                self.header_bytes = index.path.stat().st_size
            self._parts = parts
            self.files = tuple(part.path for part in parts)
            if index is not None:
                self.files += (self.path,)
            self.header_bytes += sum(part.header_bytes for part in parts)
            self.ties = {k: v for part in parts for k, v in part.ties.items()}
            self._places = {name: part for part in parts for name in part.names}
            if index is not None:
                self._places = {name: self._places[name] for name in index.places}
            stored = {name: self.ties.get(name, name) for name in self._places}
            places = self._places.items()
            self.tensors = {n: part.tensors[stored[n]] for n, part in places}
            self.entries = {
                n: part.entries[stored[n]]
                for n, part in places
                if stored[n] in part.entries
            }
            for name in self.ties:
                if self._containers.get(name.rpartition("/")[0]) == "stack":
                    raise FormatError(f"{name}: a part of a stack, but tied")
            described = {name: self.entries.get(name) for name in self._places}
            build_tree(described, self._containers, _alike)

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        part = self._places[name]
        with naming(part.path, name):
            return part.read(self.ties.get(name, name))

    def __contains__(self, name: object) -> bool:
        return name in self._places  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(map(os.path.getsize, self.files))

    @property
    def hash_bytes(self) -> int:
        """Bytes of all hashes, without what fills them up."""
        return HASH_BYTES * sum(1 + len(part.tensors) for part in self._parts)

    def tree(self) -> Any:
        """All parameters, in the containers that were saved."""
        leaves = {name: self[name] for name in self if name not in self.ties}
        leaves = {name: leaves[self.ties.get(name, name)] for name in self}
        return build_tree(leaves, self._containers)


class _File:
    """One file.

    Attributes:
      path: Its name.
      description: What its header says.
      tensors: Its parameters, without ties.
      entries: Those compressed.
      ties: Other names of parameters.
      names: Those of parameters and ties.
      header_bytes: Length of its header.
      digest: A hash of all of it.
    """

    def __init__(self, path: str):
        self.path = path
        self._container = Container(path)
        tensors = self._container.tensors
        header = self._container.metadata.get(KEY)
        if not isinstance(header, str) or HASHES not in tensors:
            raise FormatError("not written by ssvq_jax: its description is missing")
        names = list(tensors)
        for name in names:
            check_name(name)
        payloads = names[names.index(HASHES) + 1 :]
        self.tensors = {name: x for name, x in tensors.items() if name != HASHES}
        self.header_bytes = len(self._container.header)
        self.digest, self._digests = self._read_digests(tensors[HASHES])
        self.description = description = Description.from_json(header, payloads)
        hashes, size = tensors[HASHES], HASH_BYTES * (1 + len(self.tensors))
        if hashes.shape != (size + -(hashes.start + size) % description.alignment,):
            raise FormatError(f"{HASHES}: expected {size} bytes and fill")
        self.entries = dict(zip(payloads, description.entries, strict=True))
        for name, entry in self.entries.items():
            size = entry.nbytes + -entry.nbytes % description.alignment
            tensor = tensors[name]
            if (tensor.dtype, tensor.shape) != ("U8", (size,)):
                raise FormatError(
                    f"{name}: expected {size} bytes, got {tensor.dtype} "
                    f"{list(tensor.shape)}"
                )
            if tensor.start % description.alignment:
                raise FormatError(f"{name}: not aligned")
        self.ties = description.ties
        for name, to in self.ties.items():
            check_name(name)
            # Of what is stored: so there are no cycles.
            taken = name in tensors or name == "__metadata__"
            if taken or to not in self.tensors:
                raise FormatError(f"{name}: not tied to a parameter")
        tied = [math.prod(self._shape(to)) for to in self.ties.values()]
        size = os.path.getsize(path)
        if sum(tied) > MOST_WEIGHTS_PER_BYTE * size:
            raise FormatError(f"ties: {sum(tied)} weights in {size} bytes")
        self.names = [*self.tensors, *self.ties]

    def _shape(self, name: str) -> tuple[int, ...]:
        described = self.entries.get(name) or self.tensors[name]
        return tuple(described.shape)

    def read(self, name: str) -> Any:
        """A parameter."""
        data = self._container.read(name)
        if hash_of(data) != self._digests[name]:
            raise FormatError("the values do not match their hash")
        if name in self.entries:
            return _unpack(self.entries[name], data)
        array = from_bytes(self.tensors[name], data)
        if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
            raise FormatError("expected booleans of 0 and 1")
        # JAX would narrow 64 bits where they are not enabled.
        return array if array.dtype.itemsize == 8 else jnp.asarray(array)

    def _read_digests(self, tensor: Tensor) -> tuple[str, dict[str, bytes]]:
        """The hash of all, and those of parameters by name; the header's is checked."""
        size = HASH_BYTES * (1 + len(self.tensors))
        most = size + LARGEST_ALIGNMENT
        if tensor.dtype != "U8" or not size <= tensor.nbytes < most:
            raise FormatError(f"{HASHES}: expected {size} bytes and fill")
        data = self._container.read(HASHES).tobytes()
        if data.rstrip(b"\0") != data[:size].rstrip(b"\0"):
            raise FormatError(f"{HASHES}: expected zeros after {size} bytes")
        starts = range(0, size, HASH_BYTES)
        first, *digests = [data[i : i + HASH_BYTES] for i in starts]
        if hash_of(self._container.header) != first:
            raise FormatError("the header does not match its hash")
        return hash_of(data).hex(), dict(zip(self.tensors, digests, strict=True))


def _shard(index: shards.Index, path: pathlib.Path, names: set[str]) -> _File:
    """A file of those that an index lists, as it lists it."""
    with naming(path.name):
        file = _File(os.fspath(path))
        if set(file.names) != names:
            raise FormatError("its parameters are not those of the index")
        assert index.packed is not None
        if index.packed["shards"][path.name] != file.digest:
            raise FormatError("another file than the index says: its hash differs")
        return file


def _alike(entries: list[Any]) -> Any:
    """What stands for a stack: how many parts it has, and what all of them are."""
    first = entries[0] if entries else None
    if first is None or any(entry != first for entry in entries):
        raise ValueError("expected compressed weights of one codec, shape and dtype")
    return len(entries), first


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
