"""The files of a checkpoint: one, or shards with an index as Hugging Face writes it."""

import json
import os
import pathlib

from ssvq_jax.export.error import FormatError

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_WRONG = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def files(path: str | os.PathLike[str]) -> dict[pathlib.Path, set[str] | None]:
    """The files of a checkpoint, with the tensors that an index says each has.

    Args:
      path: A safetensors file; an index of shards, *.json; or a folder with
        `model.safetensors` or `model.safetensors.index.json` in it.

    Raises:
      OSError: An index or shard that is missing or cannot be read.
      FormatError: A folder without either; an index that is none, or names files
        outside of its folder.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        found = [path / x for x in (_WHOLE, _INDEX) if (path / x).exists()]
        if not found:
            raise FormatError(f"a folder without {_WHOLE} or {_INDEX}; name a file")
        path = found[0]
    if path.suffix != ".json":
        return {path: None}
    tensors: dict[str, set[str]] = {}
    for name, file in _places(path).items():
        tensors.setdefault(file, set()).add(name)
    missing = [file for file in tensors if not (path.parent / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(tensors)} shards are missing: "
            f"{', '.join(sorted(missing)[:5])}"
        )
    return {path.parent / file: tensors[file] for file in sorted(tensors)}


def _places(path: pathlib.Path) -> dict[str, str]:
    """The shard of every tensor."""
    try:
        places = json.loads(path.read_bytes())["weight_map"]
        texts = all(isinstance(x, str) for pair in places.items() for x in pair)
    except _WRONG as error:
        raise FormatError(f"no index of shards: {error!r}") from error
    if not texts or not places:
        raise FormatError("no index of shards: expected names of tensors and files")
    outside = [
        file
        for file in places.values()
        if pathlib.Path(file).name != file or file in ("", "..")
    ]
    if outside:
        raise FormatError(f"a shard that is no file beside the index: {outside[0]!r}")
    return places
