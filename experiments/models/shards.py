"""Checkpoints in one file or in several, with an index as Hugging Face writes it."""

import collections
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from ssvq_jax.checkpoint import Checkpoint

INDEX = "model.safetensors.index.json"
"""Name of the file that says which tensor is in which shard."""


def tensors(path: str | pathlib.Path) -> Mapping[str, np.ndarray]:
    """The arrays of a checkpoint by name, read when asked for.

    Args:
      path: A file, packed or not; an index of shards, *.json; or a folder with
        `model.safetensors` or an index in it.

    Raises:
      OSError: A file or shard that is missing.
      ValueError: An index that is none, or that tells of tensors otherwise than the
        shards; a file that cannot be read.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        whole = path / "model.safetensors"
        path = whole if whole.exists() else path / INDEX
    if path.suffix != ".json":
        return Checkpoint(path)
    places = _places(path)
    files = {name: path.parent / name for name in sorted(set(places.values()))}
    missing = [name for name, file in files.items() if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(files)} shards are missing: "
            f"{', '.join(missing[:5])}"
        )
    shards = {name: Checkpoint(file) for name, file in files.items()}
    for name, shard in shards.items():
        listed = {tensor for tensor, place in places.items() if place == name}
        differing = sorted(listed.symmetric_difference(shard))
        if differing:
            raise ValueError(
                f"{files[name]}: its tensors are not those of {path.name}: "
                f"{', '.join(differing[:5])}"
            )
    return collections.ChainMap(*shards.values())  # pyright: ignore[reportArgumentType]


def _places(path: pathlib.Path) -> dict[str, str]:
    """Shard of every tensor."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        places = json.loads(path.read_text())["weight_map"]
        named = [name for pair in places.items() for name in pair]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no index of shards: {error}") from error
    wrong = [x for x in named if not isinstance(x, str)]
    wrong += [x for x in places.values() if pathlib.Path(str(x)).name != x]
    if wrong or not places:
        raise ValueError(f"{path}: expected names of tensors and files, got {wrong}")
    return places
