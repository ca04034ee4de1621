"""Checkpoints, packed or not: arrays by name, read when asked for."""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from safetensors import safe_open

from ssvq_jax.export import FormatError, PackedFile, shards
from ssvq_jax.export.container import DTYPES
from ssvq_jax.export.error import naming
from ssvq_jax.export.kinds import require_safetensors
from ssvq_jax.export.names import original_name
from ssvq_jax.tree import decode

_FOREIGN = "no safetensors file"


class Checkpoint(Mapping[str, np.ndarray]):
    """A checkpoint, packed or not: its weights by their original names.

    Attributes:
      path: Its name, as text: of a safetensors file, an index of shards, or a folder
        with either, see `ssvq_jax.export.shards`.
      files: Its files.
      packed: The packed file, where it is one.
      metadata: The text values of the original's header, of shards the first one's.
      stored: Name in the file by original name.

    Raises:
      OSError: A file that is missing or cannot be read.
      FormatError: A file that is no safetensors file, or a damaged packed one; shards
        that do not have the tensors of their index.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self.packed: PackedFile | None = None
        with naming(self.path):
            listed = shards.files(self.path)
        self.files = tuple(map(os.fspath, listed))
        opened = [*map(_open, self.files, listed.values())]
        self._header = functools.cache(_header)
        self.metadata = opened[0].metadata() or {}
        self._places = {
            name: (file, place)
            for file, place in zip(opened, self.files, strict=True)
            for name in file.keys()  # noqa: SIM118 (no mapping)
        }
        self.stored = {name: name for name in sorted(self._places)}
        if "ssvq_jax" not in self.metadata:
            return
        first, *others = self.files
        if others:
            raise FormatError(f"{first}: a packed file among shards")
        self.packed = PackedFile(first)
        self.metadata = _original_metadata(self.packed)
        self.stored = {original_name(name): name for name in self.packed}
        if len(self.stored) < len(self.packed):
            raise FormatError(f"{self.path}: two parameters of one original name")

    def __contains__(self, name: object) -> bool:
        return name in self.stored  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self.stored[name]
        if self.packed is not None:
            decoded = np.asarray(decode(self.packed[stored]))
            return decoded.astype(self.dtype(name), copy=False)
        with naming(self.path, name, _FOREIGN):
            file, path = self._places[stored]
            dtype = self.dtype(name)
            if not dtype.name.startswith("float8"):
                return file.get_tensor(stored)
            # The library leaves these to NumPy, which does not have them.
            start, header = self._header(path)
            first, end = header[stored]["data_offsets"]
            data = np.fromfile(path, np.uint8, end - first, offset=start + first)
            return data.view(dtype).reshape(self.shape(name))

    def dtype(self, name: str) -> np.dtype:
        """Dtype of a weight in the original, without reading it.

        Raises:
          FormatError: One that JAX does not have.
        """
        stored = self.stored[name]
        if self.packed is None:
            dtype = self._places[stored][0].get_slice(stored).get_dtype()
        elif stored in self.packed.entries:
            return jnp.dtype(self.packed.entries[stored].dtype)
        else:
            dtype = self.packed.tensors[stored].dtype
        if dtype not in DTYPES:
            raise FormatError(f"{self.path}: {name}: dtype {dtype} is not supported")
        return jnp.dtype(DTYPES[dtype])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight in the original, without reading it."""
        stored = self.stored[name]
        if self.packed is None:
            return tuple(self._places[stored][0].get_slice(stored).get_shape())
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


class LazyArray:
    """An array of a checkpoint that is not read yet."""

    def __init__(self, checkpoint: Checkpoint, name: str):
        self._checkpoint, self._name = checkpoint, name
        self.shape, self.dtype = checkpoint.shape(name), checkpoint.dtype(name)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self._checkpoint[self._name], dtype)


def _open(path: str, listed: set[str] | None) -> Any:
    """A safetensors file, with the tensors that an index lists for it."""
    with naming(path):
        require_safetensors(path)
        with naming(_FOREIGN):
            file = safe_open(path, "np")
            differing = [] if listed is None else sorted(listed ^ set(file.keys()))
        if differing:
            raise FormatError(
                f"its tensors are not those of the index: {', '.join(differing[:5])}"
            )
    return file


def _header(path: str) -> tuple[int, dict[str, Any]]:
    """Where the data of a checked file start, and its header."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length, json.loads(file.read(length))


def bytes_of(x: np.ndarray) -> UInt8[np.ndarray, " bytes"]:
    """An array's own bytes, row-major."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def _original_metadata(packed: PackedFile) -> dict[str, str]:
    source = packed.metadata.get("source")
    metadata = source.get("metadata") if isinstance(source, dict) else None
    if not isinstance(metadata, dict):
        return {}
    return {k: v for k, v in metadata.items() if isinstance(v, str)}
