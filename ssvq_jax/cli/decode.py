"""`ssvq decode`: a packed file back into the checkpoint that it came from."""

import contextlib
import errno
import json as json_text
import pathlib
from collections.abc import Iterable, Mapping
from typing import BinaryIO

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.text import Text
from tyro.conf import Positional

from ssvq_jax.checkpoint import Checkpoint
from ssvq_jax.cli.terminal import Flag, check_target, progress
from ssvq_jax.export import FormatError, shards
from ssvq_jax.export.container import (
    NAMES,
    Tensor,
    bits_of,
    bytes_of,
    header_bytes,
    replacing,
)


def decode(
    file: Positional[pathlib.Path],
    out: Positional[pathlib.Path],
    *,
    json: Flag = False,
) -> int:
    """Write the decoded weights as a checkpoint, tensor by tensor.

    Names, layout, dtypes and metadata are those of the original; of shards all have the
    metadata of the first.

    Args:
      file: Packed file, or the index of its shards.
      out: Checkpoint to write, *.safetensors; or a folder that is there, without a
        checkpoint in it, for the shards that the original had and their index, or
        model.safetensors.
      json: Print JSON.
    """
    checkpoint = Checkpoint(file)
    if checkpoint.packed is None:
        raise FormatError(f"{file}: not written by ssvq_jax")
    index = None
    files: dict[pathlib.Path, Iterable[str]] = {out: checkpoint}
    if out.is_dir():
        files = {out / shards.WHOLE: checkpoint}
        if parts := _parts(checkpoint):
            files = {out / name: names for name, names in parts.items()}
            index = shards.index_of(out / shards.WHOLE)
        _require_room(out, files)
    for target in files:
        check_target(checkpoint.files, target)
    total = 0
    with progress(json) as bar, contextlib.ExitStack() as stack:
        task = bar.add_task("Decoding", total=len(checkpoint))
        for path, names in files.items():
            target = stack.enter_context(replacing(path))
            total += _write(target, checkpoint, names, bar, task)
    if index is not None:
        places = {n: path.name for path, names in files.items() for n in names}
        with replacing(index) as target:
            target.write(shards.index_bytes(dict(sorted(places.items())), total))
    size, packed = sum(path.stat().st_size for path in files), checkpoint.nbytes
    if json:
        sizes = {"bytes": size, "tensors": len(checkpoint), "packed_bytes": packed}
        print(json_text.dumps({"file": str(index or next(iter(files))), **sizes}))
        return 0
    text = (
        f"{index or next(iter(files))}: {size:,} bytes, {len(checkpoint)} tensors, "
        f"from {packed:,} bytes."
    )
    Console().print(Text(text))
    return 0


def _require_room(folder: pathlib.Path, files: Iterable[pathlib.Path]) -> None:
    """Raise `OSError` for files that are there: the user has not named them."""
    whole = folder / shards.WHOLE
    for file in (*files, whole, shards.index_of(whole)):
        if file.exists() or file.is_symlink():
            raise FileExistsError(errno.EEXIST, "name an empty folder", str(file))


def _write(
    target: BinaryIO,
    checkpoint: Checkpoint,
    names: Iterable[str],
    bar: Progress,
    task: TaskID,
) -> int:
    """Write a file; the bytes of its tensors."""
    tensors = {
        name: Tensor(NAMES[checkpoint.dtype(name).name], checkpoint.shape(name))
        for name in names
    }
    # Wider dtypes first: so every tensor is aligned to its own.
    tensors = dict(sorted(tensors.items(), key=lambda item: -bits_of(item[1].dtype)))
    target.write(header_bytes(tensors, checkpoint.metadata))
    for name in tensors:
        target.write(bytes_of(checkpoint[name]).data)
        bar.advance(task)
    return sum(tensor.nbytes for tensor in tensors.values())


def _parts(checkpoint: Checkpoint) -> Mapping[str, list[str]]:
    """The shards of the original: names of tensors by file. They come from a file."""
    try:
        parts = checkpoint.shards
        shards.require_names(parts)
        listed = sorted(name for names in parts.values() for name in names)
        if parts and listed != sorted(checkpoint):
            raise ValueError("they do not have its tensors")
        if not all(name.endswith(".safetensors") for name in parts):
            raise ValueError("they are no safetensors files")
        return parts
    except (AttributeError, TypeError, ValueError) as error:
        reason = f"the shards of its original: {error}"
        raise FormatError(f"{checkpoint.path}: {reason}") from error
