"""Checkpoints of other programs: arrays by name, each read when it is asked for."""

import abc
import importlib
import json
import math
import os
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from ssvq_jax.export import shards
from ssvq_jax.export.container import DTYPES, NAMES, Tensor, from_bytes
from ssvq_jax.export.description import KEY
from ssvq_jax.export.error import FormatError, naming
from ssvq_jax.export.kinds import require_safetensors
from ssvq_jax.tree.paths import flatten

_NO_TENSORS = "no safetensors file"
_ORBAX = "_METADATA"
# What a damaged archive raises, beside errors of values.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)
_MOST_DEFLATED = 1032
"""Bytes that one compressed byte stands for."""

Layout = Literal["torch", "flax"]
"""Of kernels: `(out, in)` and OIHW, or `(in, out)` and HWIO."""


class Source(abc.ABC):
    """A checkpoint.

    Attributes:
      names: Of its arrays, sorted.
      files: Its files.
      shards: Names of the arrays by the name of their file, where it has an index.
      metadata: Text values that it has beside the arrays.
      layout: Of its kernels, "torch" or "flax", as far as its kind tells.
    """

    layout: ClassVar[Layout] = "flax"
    names: list[str]
    files: tuple[str, ...]
    shards: Mapping[str, list[str]] = {}
    metadata: dict[str, str]

    @abc.abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, without reading it."""

    @abc.abstractmethod
    def dtype(self, name: str) -> np.dtype:
        """Dtype of an array, without reading it; `ValueError` for one unknown here."""

    @abc.abstractmethod
    def read(self, name: str) -> np.ndarray:
        """An array."""


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a checkpoint: safetensors, .npz, GGUF, or a folder that Orbax wrote.

    Args:
      path: A safetensors file, the index of its shards or their folder; an .npz or GGUF
        file; an Orbax checkpoint, or the folder of its only item.

    Raises:
      OSError: A file that is missing or cannot be read.
      FormatError: None of these, or a damaged one.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        items = [x for x in (path, *sorted(path.iterdir())) if (x / _ORBAX).is_file()]
        if len(items) > 1:
            found = ", ".join(str(item) for item in items[:5])
            raise FormatError(f"several Orbax checkpoints: name one of {found}")
        if items:
            return _Orbax(items[0])
    if path.is_file():
        if path.suffix == ".npz":
            return _Archive(path)
        with open(path, "rb") as file:
            if file.read(4) == b"GGUF":
                return _Gguf(path)
    return _Tensors(path)


class _Tensors(Source):
    """A safetensors file, or shards."""

    layout: ClassVar[Layout] = "torch"

    def __init__(self, path: pathlib.Path):
        path = shards.find(path)
        index = shards.read_index(path)
        if index is not None and index.packed is not None:
            self.files, self.metadata = (os.fspath(path),), {KEY: "an index"}
            self.names = []  # another reads what is packed
            return
        listed = {path: None} if index is None else index.files
        self.files = tuple(map(os.fspath, listed))
        opened = [*map(_opened, self.files, listed.values())]
        if index is not None:
            self.files += (os.fspath(path),)
            self.shards = {x.name: sorted(names or ()) for x, names in listed.items()}
        self.metadata = opened[0].metadata() or {}
        self._places = {}
        for file, place in zip(opened, map(os.fspath, listed), strict=True):
            start, header = _header(place)
            for name in file.keys():  # noqa: SIM118 (no mapping)
                self._places[name] = place, start, header[name]
        self.names = sorted(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        *_, known = self._places[name]
        return tuple(known["shape"])

    def dtype(self, name: str) -> np.dtype:
        *_, known = self._places[name]
        if known["dtype"] not in DTYPES:
            raise FormatError(f"dtype {known['dtype']} is not supported")
        return jnp.dtype(DTYPES[known["dtype"]])

    def read(self, name: str) -> np.ndarray:
        path, start, known = self._places[name]
        tensor = Tensor(NAMES[self.dtype(name).name], self.shape(name))
        first, end = known["data_offsets"]
        # Not by the library: it has no float8 and float4, and what it has read stays in
        # memory, as pages of its map.
        with naming(_NO_TENSORS):
            data = np.fromfile(path, np.uint8, end - first, offset=start + first)
            return from_bytes(tensor, data)


def _opened(path: str, listed: set[str] | None) -> Any:
    """A safetensors file, with the tensors that an index lists for it."""
    with naming(path):
        require_safetensors(path)
    with naming(path, _NO_TENSORS):
        file = safe_open(path, "np")
        differing = [] if listed is None else sorted(listed ^ set(file.keys()))
    if differing:
        raise FormatError(
            f"{path}: its tensors are not those of the index: "
            f"{', '.join(differing[:5])}"
        )
    return file


def _header(path: str) -> tuple[int, dict[str, Any]]:
    """Where the data of a checked file start, and its header."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length, json.loads(file.read(length))


class _Archive(Source):
    """Arrays as `numpy.savez` writes them."""

    def __init__(self, path: pathlib.Path):
        self.files, self.metadata = (os.fspath(path),), {}
        self._kinds: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    self._add(archive, member)
        except _DAMAGED as error:
            raise FormatError(f"no .npz file: {error}") from error
        self.names = sorted(self._kinds)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._kinds[name][0]

    def dtype(self, name: str) -> np.dtype:
        return _supported(self._kinds[name][1])

    def read(self, name: str) -> np.ndarray:
        dtype = self.dtype(name)
        try:
            with np.load(self.files[0], allow_pickle=False) as archive:
                return archive[f"{name}.npy"].astype(dtype, copy=False)
        except _DAMAGED as error:
            raise FormatError(f"no .npz file: {error}") from error

    def _add(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        name, suffix = os.path.splitext(member.filename)
        if suffix != ".npy" or name in self._kinds:
            raise FormatError(f"no .npz file: expected arrays, got {member.filename!r}")
        stored = min(member.compress_size, os.path.getsize(self.files[0]))
        most = _MOST_DEFLATED * stored
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                header = np.lib.format.read_array_header_1_0(file)
            else:
                header = np.lib.format.read_array_header_2_0(file)
            left = min(member.file_size, most) - file.tell()
        shape, _, dtype = header
        # What is read is allocated first: it has to be there.
        if min(shape, default=0) < 0:
            raise FormatError(f"{name}: a negative axis")
        if math.prod(shape) * dtype.itemsize > left and not dtype.hasobject:
            raise FormatError(f"{name}: more numbers than bytes")
        self._kinds[name] = shape, dtype


class _Orbax(Source):
    """A tree of arrays as Orbax writes it; names are its keys, joined by `/`."""

    def __init__(self, path: pathlib.Path):
        ocp = _extra("orbax.checkpoint", "an Orbax checkpoint")
        self._ocp, self._path = ocp, path.absolute()
        self.files = tuple(str(x) for x in sorted(path.rglob("*")) if x.is_file())
        self.metadata = {}
        with ocp.PyTreeCheckpointer() as checkpointer, naming("no Orbax checkpoint"):
            item: Any = checkpointer.metadata(self._path).item_metadata
            if item is None:
                raise FormatError("its metadata cannot be read")
            found, self._treedef = flatten(item.tree)
        self._leaves = {name: leaf for name, leaf in found.items() if _is_array(leaf)}
        self._order = list(found)
        self.names = sorted(self._leaves)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._leaves[name].shape)

    def dtype(self, name: str) -> np.dtype:
        return _supported(np.dtype(self._leaves[name].dtype))

    def read(self, name: str) -> np.ndarray:
        ocp, leaf = self._ocp, self._leaves[name]
        wanted = jax.ShapeDtypeStruct(leaf.shape, self.dtype(name))
        item = [wanted if x == name else ocp.PLACEHOLDER for x in self._order]
        how = [ocp.RestoreArgs(restore_type=np.ndarray)] * len(self._order)
        tree, how = (jax.tree.unflatten(self._treedef, x) for x in (item, how))
        args = ocp.args.PyTreeRestore(item=tree, restore_args=how)
        with ocp.PyTreeCheckpointer() as checkpointer, naming("no Orbax checkpoint"):
            restored = checkpointer.restore(self._path, args=args)
        return np.asarray(flatten(restored, lambda x: x is ocp.PLACEHOLDER)[0][name])


class _Gguf(Source):
    """A file of llama.cpp: what is quantized comes as float32."""

    layout: ClassVar[Layout] = "torch"

    def __init__(self, path: pathlib.Path):
        self._gguf = _extra("gguf", "a GGUF file")
        self.files, self.metadata = (os.fspath(path),), {}
        with naming("no GGUF file"):
            reader = _whole(self._gguf)(path)
            if reader.byte_order == "S":
                raise FormatError("big-endian ones are not supported")
            tensors = reader.tensors
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self.names = sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(map(int, self._tensors[name].shape[::-1]))

    def dtype(self, name: str) -> np.dtype:
        kind = self._tensors[name].tensor_type
        if kind.name in DTYPES:
            return jnp.dtype(DTYPES[kind.name])
        block = np.zeros((1, self._gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
        try:
            self._gguf.dequantize(block, kind)
        except NotImplementedError as error:
            raise FormatError(f"dtype {kind.name} is not supported") from error
        return np.dtype(np.float32)

    def read(self, name: str) -> np.ndarray:
        tensor, dtype = self._tensors[name], self.dtype(name)
        values = np.ascontiguousarray(tensor.data)
        if tensor.tensor_type.name in DTYPES:
            return values.view(dtype).reshape(self.shape(name))
        with naming(tensor.tensor_type.name):
            values = self._gguf.dequantize(values, tensor.tensor_type)
        return values.reshape(self.shape(name))


def _whole(gguf: Any) -> Any:
    """A reader that notices where a file ends, and does not go on for ever."""

    class Reader(gguf.GGUFReader):
        def _get(self, offset, dtype, count=1, override_order=None):
            found = super()._get(offset, dtype, count, override_order)
            if len(found) < count:
                raise ValueError("truncated")
            return found

    return Reader


def _extra(module: str, kind: str) -> Any:
    """A module that not all need."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        reason = f"{kind}: {error}: pip install 'ssvq_jax[checkpoints]'"
        raise FormatError(reason) from error


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and leaf.dtype is not None


def _supported(dtype: np.dtype) -> np.dtype:
    if dtype.name not in NAMES:
        advice = ""
        if dtype.kind == "V":  # as NumPy reads what it does not know
            advice = ", as bfloat16 in .npz; write it as float32, or as safetensors"
        raise FormatError(f"dtype {dtype} is not supported{advice}")
    return dtype.newbyteorder("=")
