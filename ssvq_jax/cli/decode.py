"""`ssvq decode`: a packed file back into the checkpoint that it came from."""

import json as json_text
import pathlib

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional

from ssvq_jax.checkpoint import Checkpoint, bytes_of
from ssvq_jax.cli.terminal import Flag, check_target, progress
from ssvq_jax.export import FormatError
from ssvq_jax.export.container import NAMES, Tensor, header_bytes, replacing


def decode(
    file: Positional[pathlib.Path],
    out: Positional[pathlib.Path],
    *,
    json: Flag = False,
) -> int:
    """Write the decoded weights as a checkpoint, tensor by tensor.

    Names, layout, dtypes and metadata are those of the original.

    Args:
      file: Packed file.
      out: Checkpoint to write, *.safetensors.
      json: Print JSON.
    """
    checkpoint = Checkpoint(file)
    check_target(checkpoint.files, out)
    if checkpoint.packed is None:
        raise FormatError(f"{file}: not written by ssvq_jax")
    # Wider dtypes first: so every tensor is aligned to its own.
    names = sorted(checkpoint, key=lambda name: -checkpoint.dtype(name).itemsize)
    tensors = {
        name: Tensor(NAMES[checkpoint.dtype(name).name], checkpoint.shape(name))
        for name in names
    }
    with replacing(out) as target, progress(json) as bar:
        target.write(header_bytes(tensors, checkpoint.metadata))
        for name in bar.track(names, description="Decoding"):
            target.write(bytes_of(checkpoint[name]).data)
    size, packed = out.stat().st_size, checkpoint.nbytes
    if json:
        sizes = {"bytes": size, "tensors": len(names), "packed_bytes": packed}
        print(json_text.dumps({"file": str(out), **sizes}))
        return 0
    text = f"{out}: {size:,} bytes, {len(names)} tensors, from {packed:,} bytes."
    Console().print(Text(text))
    return 0
