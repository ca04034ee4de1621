"""Checkpoints, packed or not: arrays by name, read when asked for."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ssvq_jax.codecs import is_compressed
from ssvq_jax.export import FormatError, PackedFile
from ssvq_jax.export.container import DTYPES, bytes_of
from ssvq_jax.export.description import KEY
from ssvq_jax.export.error import naming
from ssvq_jax.export.names import original_name
from ssvq_jax.export.sources import Layout, open_source
from ssvq_jax.tree import decode
from ssvq_jax.tree.report import NOT_COMPRESSED, Row

UPCAST = ("float8_e4m3fn", "float8_e5m2")
"""Dtypes that are compressed as float32 and come back: `source` in the metadata of a
packed file says of which weights."""


class Checkpoint(Mapping[str, np.ndarray]):
    """A checkpoint, packed or not: its weights by their original names.

    Attributes:
      path: Its name, as text: of whatever `ssvq_jax.export.sources.open_source` opens.
      files: Its files.
      packed: The packed file, where it is one.
      metadata: The text values of the original's header, of shards the first one's.
      layout: Of its kernels, "torch" or "flax", as far as its kind tells.
      shards: Names of weights by file, of an original in shards.
      stored: Name in the file by original name.

    Raises:
      OSError: A file that is missing or cannot be read.
      FormatError: None of the kinds that can be read, or a damaged file; shards that do
        not have the tensors of their index.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self.packed: PackedFile | None = None
        with naming(self.path):
            self._source = open_source(self.path)
        self.files, self.metadata = self._source.files, self._source.metadata
        self.layout: Layout = self._source.layout
        self.shards = self._source.shards
        self.stored = {name: name for name in self._source.names}
        if KEY not in self.metadata:
            return
        first, *others = self.files
        if others:
            raise FormatError(f"{first}: a packed file among shards")
        self._unpacked(PackedFile(first))

    def _unpacked(self, packed: PackedFile) -> None:
        """Take all from a packed file."""
        self.packed, self.files = packed, packed.files
        source = packed.metadata.get("source")
        source = source if isinstance(source, dict) else {}
        metadata = source.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        self.metadata = {k: v for k, v in metadata.items() if isinstance(v, str)}
        self.stored = {original_name(name): name for name in packed}
        if len(self.stored) < len(packed):
            raise FormatError(f"{self.path}: two parameters of one original name")
        self.shards = source.get("shards", {})
        upcast = source.get("upcast")
        upcast = upcast if isinstance(upcast, dict) else {}
        self._upcast = {k: v for k, v in upcast.items() if v in UPCAST}

    def __contains__(self, name: object) -> bool:
        return name in self.stored  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self.stored[name]
        if self.packed is not None:
            decoded, dtype = _decoded(self.packed[stored]), self.dtype(name)
            # What float8 cannot hold would be NaN; what was not compressed, it holds.
            if dtype.name in UPCAST and stored in self.packed.entries:
                largest = float(jnp.finfo(dtype).max)
                decoded = np.clip(decoded, -largest, largest)
            return decoded.astype(dtype, copy=False)
        with naming(self.path, name):
            return self._source.read(stored)

    def dtype(self, name: str) -> np.dtype:
        """Dtype of a weight in the original, without reading it.

        Raises:
          FormatError: One that JAX does not have.
        """
        stored = self.stored[name]
        if self.packed is None:
            with naming(self.path, name):
                return self._source.dtype(stored)
        if stored in self.packed.entries:
            own = self.packed.entries[stored].dtype
            return jnp.dtype(self._upcast.get(name, own))
        return jnp.dtype(DTYPES[self.packed.tensors[stored].dtype])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight in the original, without reading it."""
        stored = self.stored[name]
        if self.packed is None:
            return self._source.shape(stored)
        if stored in self.packed.entries:
            return self.packed.entries[stored].shape
        return self.packed.tensors[stored].shape

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(map(os.path.getsize, self.files))

    def lazy(self, name: str) -> "LazyArray":
        """A stand-in for a weight that reads it whenever NumPy asks for it."""
        return LazyArray(self, name)


def _decoded(x: Any) -> np.ndarray:
    """A parameter's values; large ones part by part, for less room."""
    if not is_compressed(x):
        return np.asarray(x)
    values = np.empty(x.array_shape, x.dtype)
    for place, part in x.slabs():
        values[place] = decode(part)
    return values


class LazyArray:
    """An array of a checkpoint that is not read yet."""

    def __init__(self, checkpoint: Checkpoint, name: str):
        self._checkpoint, self._name = checkpoint, name
        self.shape, self.dtype = checkpoint.shape(name), checkpoint.dtype(name)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self._checkpoint[self._name], dtype)


def stored_row(packed: PackedFile, name: str) -> Row:
    """A row of the report of a file, from its header alone."""
    if name in packed.ties:
        return tied_row(original_name(name), stored_row(packed, packed.ties[name]))
    if name in packed.entries:
        entry = packed.entries[name]
        shape, rule, nbytes = entry.shape, entry.codec.describe(), entry.nbytes
    else:
        tensor = packed.tensors[name]
        shape, rule, nbytes = tensor.shape, NOT_COMPRESSED, tensor.nbytes
    return Row(original_name(name), shape, rule, math.prod(shape), 8 * nbytes)


def tied_row(name: str, row: Row) -> Row:
    """A row of what is stored under another name, which counts it."""
    return dataclasses.replace(row, path=name, rule=f"= {row.path}", weights=0, bits=0)


def widened(x: np.ndarray) -> np.ndarray:
    """An array as it is compressed: float8 as float32."""
    return x.astype(np.float32) if x.dtype.name in UPCAST else x


def digest(x: np.ndarray) -> bytes:
    """What arrays of the same dtype, shape and bytes have in common."""
    content = (
        f"{x.dtype} {x.shape} ".encode() + hashlib.blake2b(bytes_of(x).data).digest()
    )
    return hashlib.blake2b(content).digest()
