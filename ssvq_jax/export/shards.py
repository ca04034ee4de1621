"""Shards: several files of one checkpoint and their index, as Hugging Face has them."""

import dataclasses
import errno
import json
import os
import pathlib
import re
import stat
from collections.abc import Iterable, Mapping
from typing import Any

from ssvq_jax.export.container import LARGEST_HEADER, parse_json
from ssvq_jax.export.description import KEY, VERSION, check_version
from ssvq_jax.export.error import FormatError
from ssvq_jax.tree.paths import is_printable

WHOLE = "model.safetensors"
_SUFFIX = ".index.json"
_SUFFIXES = (".ssvq.safetensors", ".safetensors")
_WRONG = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
_OURS = ("version", "containers", "metadata", "shards")


@dataclasses.dataclass(frozen=True)
class Index:
    """What an index says.

    Attributes:
      path: Its file.
      places: Name of the file of every tensor.
      total_size: Bytes of all tensors, as far as it says so.
      packed: Of packed files: containers, metadata, and hashes of the shards.
    """

    path: pathlib.Path
    places: dict[str, str]
    total_size: Any
    packed: dict[str, Any] | None

    @property
    def files(self) -> dict[pathlib.Path, set[str]]:
        """The shards, each with the names that it has.

        Raises:
          FileNotFoundError: Some are missing.
        """
        names: dict[str, set[str]] = {}
        for name, file in self.places.items():
            names.setdefault(file, set()).add(name)
        folder = self.path.parent
        missing = [file for file in sorted(names) if not (folder / file).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{self.path}: {len(missing)} of {len(names)} shards are missing: "
                f"{', '.join(missing[:5])}"
            )
        return {folder / file: names[file] for file in sorted(names)}


def find(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file or index that a path means: it itself, or what is in the folder.

    Raises:
      FormatError: A folder without either.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return path
    names = (WHOLE, WHOLE + _SUFFIX)
    found = [path / name for name in names if (path / name).exists()]
    if not found:
        raise FormatError(f"a folder without {' or '.join(names)}; name a file")
    return found[0]


def read_index(path: pathlib.Path) -> Index | None:
    """An index of shards, where the path is of one: *.json.

    Raises:
      OSError: One that is missing or cannot be read.
      FormatError: What is none, or names files outside of its folder.
    """
    if path.suffix != ".json":
        return None
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise FormatError("no index of shards: not a regular file")
    if status.st_size > LARGEST_HEADER:
        raise FormatError(f"no index of shards: more than {LARGEST_HEADER} bytes")
    try:
        with open(path, "rb") as file:
            content = parse_json(file.read().decode())
        places = content["weight_map"]
        texts = all(isinstance(x, str) for pair in places.items() for x in pair)
        total = (content.get("metadata") or {}).get("total_size")
    except _WRONG as error:
        raise FormatError(f"no index of shards: {error!r}") from error
    if not texts or not places:
        raise FormatError("no index of shards: expected names of tensors and files")
    require_names(places.values())
    packed = content.get(KEY)
    if packed is not None:
        _check(packed, set(places.values()))
    return Index(path, places, total, packed)


def _check(packed: Any, files: set[str]) -> None:
    if not isinstance(packed, dict):
        raise FormatError(f"{KEY}: expected a mapping")
    check_version(packed)
    if set(packed) != set(_OURS):
        raise FormatError(f"expected {', '.join(_OURS)}, got {', '.join(packed)}")
    if not all(isinstance(packed[name], dict) for name in _OURS[1:]):
        raise FormatError(f"expected mappings: {', '.join(_OURS[1:])}")
    if set(packed["shards"]) != files:
        raise FormatError("shards: expected a hash of each")


def require_names(files: Iterable[str]) -> None:
    """Raise `FormatError` for a name that leads out of its folder."""
    for file in files:
        inside = pathlib.Path(file).name == file and is_printable(file)
        if not inside or file.startswith(".") or not 0 < len(os.fsencode(file)) < 256:
            raise FormatError(f"a shard that is no file beside the index: {file!r}")


def require_no_links(paths: Iterable[pathlib.Path]) -> None:
    """Raise `OSError` for a link: a file of another folder would change."""
    for path in paths:
        if path.is_symlink():
            raise OSError(errno.EEXIST, "a link, no file of this folder", str(path))


def index_of(path: pathlib.Path) -> pathlib.Path:
    """Where the index lies: `model.safetensors.index.json`."""
    return path.with_name(path.name + _SUFFIX)


def shard_of(path: pathlib.Path, number: int, count: int) -> pathlib.Path:
    """Where a shard lies: `model-00001-of-00002.safetensors`, counted from 0 here."""
    suffix = next((x for x in _SUFFIXES if path.name.endswith(x)), path.suffix)
    stem = path.name.removesuffix(suffix)
    return path.with_name(f"{stem}-{number + 1:05}-of-{count:05}{suffix}")


def split(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in groups of at most so many bytes, in their order; or alone."""
    groups: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if size > left or not groups:
            groups.append([])
            left = most
        groups[-1].append(name)
        left -= size
    return groups


def is_shard(name: str, path: pathlib.Path) -> bool:
    """Whether a file's name is one that a shard of `path` could have."""
    start, end = shard_of(path, 0, 1).name.split("-00001-of-00001")
    pattern = rf"{re.escape(start)}-\d+-of-\d+{re.escape(end)}"
    return re.fullmatch(pattern, name) is not None


def index_bytes(
    places: Mapping[str, str],
    total_size: int,
    packed: Mapping[str, Any] | None = None,
) -> bytes:
    """An index; `packed` is what `Index.packed` has, without the version."""
    content: dict[str, Any] = {"metadata": {"total_size": total_size}}
    if packed is not None:
        content[KEY] = {"version": VERSION, **packed}
    content["weight_map"] = dict(places)
    text = json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"
    if len(text) > LARGEST_HEADER:
        raise ValueError(
            f"the index has {len(text)} bytes; expected at most {LARGEST_HEADER}: keep "
            "less metadata"
        )
    return text
