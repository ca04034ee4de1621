"""`save`: a tree into a packed file, or into shards. FORMAT.md describes both."""

import collections
import contextlib
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from ssvq_jax.codecs import CODECS, Compressed, is_compressed
from ssvq_jax.export import shards
from ssvq_jax.export.container import (
    HASH_BYTES,
    LARGEST_HEADER,
    MOST_AXES,
    NAMES,
    Tensor,
    bits_of,
    bytes_of,
    hash_of,
    header_bytes,
    parse_json,
    replacing,
)
from ssvq_jax.export.description import (
    HASHES,
    KEY,
    LARGEST_ALIGNMENT,
    MOST_WEIGHTS_PER_BYTE,
    Description,
    Entry,
)
from ssvq_jax.export.error import FormatError
from ssvq_jax.export.names import name_leaves
from ssvq_jax.export.packing import pack_integers
from ssvq_jax.tree import finalize

_OTHERS = {".json": "the index of shards", ".npz": "NumPy's arrays", ".gguf": "GGUF"}


def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
    alignment: int = 1,
    max_shard_size: int | None = None,
) -> pathlib.Path:
    """Write the packed file of `finalize(tree)`, or shards of it.

    One parameter at a time is finalized, packed and written, beside the file's place;
    when all of it, with all shards, is on disk it is renamed. A crash leaves the old
    file, or none. A parameter, but no stack, that is the same object under several
    names is stored once.

    Args:
      path: Name of the file; `*.ssvq.safetensors` by convention. Its directory exists.
      tree: Pytree of arrays and `Compressed` nodes. Dicts, lists, tuples and `None`
        come back from `load` as they are, other containers as dicts. NumPy memory maps
        are read one by one.
      metadata: JSON-serialisable values to keep with the file.
      alignment: Every compressed parameter starts at a multiple of this many bytes, a
        power of two: the burst of a device's memory, for example.
      max_shard_size: Bytes of parameters in a file, beside its header and hashes, in
        the order of the tree; one that is larger has a file of its own. Where all do
        not fit in one, instead of `model.safetensors` there are
        `model-00001-of-00002.safetensors` and so on, packed files each, and their
        index, `model.safetensors.index.json`.

    Returns:
      What to `load`: `path`, or the index.

    Raises:
      OSError: A directory that is missing or cannot be written.
      TypeError: A leaf that is no array of numbers; metadata that is not JSON.
      ValueError: What `finalize` raises; a key that is empty or has control
        characters; more than 256 weights per stored byte; an alignment that is no
        power of two below 2^20; shards of no bytes.

    Examples:
      >>> import jax, pathlib, tempfile, ssvq_jax as ssvq
      >>> params = {"kernel": jax.random.normal(jax.random.key(0), (64, 64))}
      >>> rules = [ssvq.Rule("kernel", ssvq.SSVQ())]
      >>> compressed = ssvq.compress(params, rules, key=jax.random.key(1))
      >>> file = pathlib.Path(tempfile.mkdtemp(), "model.ssvq.safetensors")
      >>> ssvq.save(file, compressed).name
      'model.ssvq.safetensors'
      >>> bool((ssvq.decode(ssvq.load(file))["kernel"]
      ...     == ssvq.decode(ssvq.finalize(compressed))["kernel"]).all())
      True
    """
    path = pathlib.Path(path)
    leaves, containers = name_leaves(tree)
    check_savable(path, leaves, alignment, max_shard_size)
    stored, ties = _stored_once(leaves)
    entries = [x for x in stored.values() if isinstance(x, Entry)]
    whole = Description(entries, containers, dict(metadata or {}), alignment, ties)
    text = _checked_json(whole)
    if max_shard_size is None:
        groups = [list(stored)]
    else:
        sizes = {n: _filled(x, alignment) for n, x in stored.items()}
        groups = shards.split(sizes, max_shard_size)
    if len(groups) <= 1:
        with replacing(path) as file:
            _write(file, leaves, stored, text, alignment)
        _forget_index(shards.index_of(path))
        return path
    index = shards.index_of(path)
    files = [shards.shard_of(path, i, len(groups)) for i in range(len(groups))]
    shards.require_no_links((index, *files))
    places, hashes, total = {}, {}, 0
    with contextlib.ExitStack() as stack:
        for file, names in zip(files, groups, strict=True):
            part = {name: stored[name] for name in names}
            tied = {name: to for name, to in ties.items() if to in part}
            entries = [x for x in part.values() if isinstance(x, Entry)]
            text = Description(entries, {}, {}, alignment, tied).to_json()
            target = stack.enter_context(replacing(file))
            hashes[file.name], size = _write(target, leaves, part, text, alignment)
            places.update(dict.fromkeys((*part, *tied), file.name))
            total += size
        in_order = {name: places[name] for name in leaves}
        ours = {"containers": containers, "metadata": whole.metadata, "shards": hashes}
        content = shards.index_bytes(in_order, total, ours)
        # Before its shards take their places: it is there for them, or not at all. A
        # whole file under the name would be read in place of the index.
        for old in (index, path):
            old.unlink(missing_ok=True)
    with replacing(index) as file:
        file.write(content)
    return index


def _forget_index(index: pathlib.Path) -> None:
    """Remove that of shards which `save` wrote: the file is in their place now."""
    with contextlib.suppress(OSError, FormatError):
        found = shards.read_index(index)
        if found is not None and found.packed is not None:
            index.unlink()


def _filled(x: Entry | Tensor, alignment: int) -> int:
    """Bytes of a parameter in a file, with what fills them up."""
    return x.nbytes + (-x.nbytes % alignment if isinstance(x, Entry) else 0)


def _write(
    file: BinaryIO,
    leaves: Mapping[str, Any],
    stored: Mapping[str, Entry | Tensor],
    text: str,
    alignment: int,
) -> tuple[str, int]:
    """Write a file; a hash of all of it, and the bytes of its parameters."""
    plain = {name: x for name, x in stored.items() if isinstance(x, Tensor)}
    # Wider dtypes first: so every tensor is aligned to its own.
    plain = dict(sorted(plain.items(), key=lambda item: -bits_of(item[1].dtype)))
    sizes = {
        n: _filled(x, alignment) for n, x in stored.items() if isinstance(x, Entry)
    }
    hashes = HASH_BYTES * (1 + len(stored))
    before = sum(tensor.nbytes for tensor in plain.values())
    # The header ends at a multiple of it; payloads have to begin at one, too.
    hashes += -(before + hashes) % alignment
    tensors = {
        **plain,
        HASHES: Tensor("U8", (hashes,)),
        **{name: Tensor("U8", (size,)) for name, size in sizes.items()},
    }
    header = header_bytes(tensors, {KEY: text}, max(8, alignment))
    if len(header) > LARGEST_HEADER:
        raise ValueError(
            f"the header has {len(header)} bytes; expected at most {LARGEST_HEADER}: "
            "keep less metadata"
        )
    digests = [hash_of(header)]

    def write(data: UInt8[np.ndarray, " bytes"]) -> None:
        file.write(data.data)
        digests.append(hash_of(data))

    file.write(header)
    for name in plain:
        write(bytes_of(np.asarray(leaves[name])))
    place = file.tell()
    file.write(bytes(hashes))
    for name in sizes:
        packed = _pack(name, leaves[name])
        fill = tensors[name].nbytes - packed.size
        write(np.pad(packed, (0, fill)) if fill else packed)
    file.seek(place)
    file.write(b"".join(digests))
    fill = bytes(hashes - HASH_BYTES * len(digests))
    size = sum(tensor.nbytes for tensor in tensors.values()) - hashes
    return hash_of(b"".join(digests) + fill).hex(), size


def _stored_once(
    leaves: Mapping[str, Any],
) -> tuple[dict[str, Entry | Tensor], dict[str, str]]:
    """What is stored, and names of what is the same object as an earlier parameter.

    A reader takes so many ties only of what is stored: more are stored again.
    """
    first: dict[int, str] = {}
    stored: dict[str, Entry | Tensor] = {}
    ties: dict[str, str] = {}
    tied: collections.Counter[str] = collections.Counter()
    for name, leaf in leaves.items():
        # Numbers of Python may be one object by chance.
        if is_compressed(leaf) or hasattr(leaf, "dtype"):
            to = first.setdefault(id(leaf), name)
            weights = math.prod(stored[to].shape) if to != name else 0
            if to != name and (
                tied[to] + weights <= MOST_WEIGHTS_PER_BYTE * stored[to].nbytes
            ):
                tied[to] += weights
                ties[name] = to
                continue
        stored[name] = _stored(name, leaf)
    return stored, ties


def _stored(name: str, leaf: Any) -> Entry | Tensor:
    return _entry(name, leaf) if is_compressed(leaf) else _plain_tensor(name, leaf)


def check_savable(
    path: pathlib.Path,
    names: Iterable[str],
    alignment: int,
    max_shard_size: int | None = None,
) -> None:
    """Raise `TypeError` or `ValueError` for what `save` would not accept, early."""
    if path.suffix in _OTHERS:
        raise ValueError(
            f"{path}: *{path.suffix} is for {_OTHERS[path.suffix]}; packed files are "
            "*.ssvq.safetensors"
        )
    for name in ("__metadata__", HASHES):
        if name in names:
            raise ValueError(f"{name}: the file keeps this name for itself")
    if isinstance(alignment, bool) or not isinstance(alignment, int):
        raise TypeError(f"alignment: expected an integer, got {alignment!r}")
    if alignment.bit_count() != 1 or not 0 < alignment < LARGEST_ALIGNMENT:
        raise ValueError(
            f"alignment: expected a power of two below {LARGEST_ALIGNMENT}, "
            f"got {alignment}"
        )
    if max_shard_size is not None:
        if isinstance(max_shard_size, bool) or not isinstance(max_shard_size, int):
            raise TypeError(f"max_shard_size: expected bytes, got {max_shard_size!r}")
        if max_shard_size < 1:
            raise ValueError(f"max_shard_size: expected bytes, got {max_shard_size}")


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
        codec = type(node.codec)
        if CODECS.get(codec.__name__) is not codec:
            raise ValueError(
                f"{codec.__name__}: no file could be read with it: the format has "
                f"{', '.join(CODECS)}; add it to ssvq_jax.codecs.CODECS, where it is "
                "read, too"
            )
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


def _plain_tensor(name: str, leaf: Any) -> Tensor:
    """Dtype and shape of a leaf that is stored as it is."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if is_key or array.dtype.name not in NAMES:
        found = type(leaf).__name__ if is_key else array.dtype
        raise TypeError(f"{name}: expected an array of numbers, got {found}")
    axes = len(array.shape)
    if axes > MOST_AXES:
        raise ValueError(f"{name}: expected at most {MOST_AXES} axes, got {axes}")
    tensor = Tensor(NAMES[array.dtype.name], tuple(array.shape))
    if math.prod(tensor.shape) * bits_of(tensor.dtype) % 8:
        raise ValueError(f"{name}: shape {array.shape} of float4: not whole bytes")
    return tensor
