"""`ssvq decode`: a packed file back into the checkpoint that it came from."""

import pathlib

from rich.console import Console
from tyro.conf import Positional

from ssvq_jax.cli.checkpoint import Checkpoint, Flag, progress
from ssvq_jax.export import FormatError
from ssvq_jax.export.container import NAMES, Tensor, header_bytes, replacing


def decode(
    file: Positional[pathlib.Path],
    out: Positional[pathlib.Path],
    *,
    quiet: Flag = False,
) -> int:
    """Write the decoded weights as a checkpoint, tensor by tensor.

    Names, layout, dtypes and metadata are those of the original.

    Args:
      file: Packed file.
      out: Checkpoint to write, *.safetensors.
      quiet: Print nothing.
    """
    checkpoint = Checkpoint(file)
    if checkpoint.packed is None:
        raise FormatError(f"{file}: not written by ssvq_jax")
    # Wider dtypes first: so every tensor is aligned to its own.
    names = sorted(checkpoint, key=lambda name: -checkpoint.dtype(name).itemsize)
    tensors = {
        name: Tensor(NAMES[checkpoint.dtype(name).name], checkpoint.shape(name))
        for name in names
    }
    with replacing(out) as target, progress(quiet) as bar:
        target.write(header_bytes(tensors, checkpoint.metadata))
        for name in bar.track(names, description="Decoding"):
            target.write(checkpoint[name].tobytes())
    if not quiet:
        console = Console()
        size, packed = out.stat().st_size, file.stat().st_size
        console.print(
            f"{out}: {size:,} bytes, {len(names)} tensors, from {packed:,} bytes.",
            highlight=False,
            markup=False,
        )
    return 0
