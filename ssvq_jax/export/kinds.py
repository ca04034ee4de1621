"""What is no safetensors file by its kind or its first bytes, named before it is read.

A library of safetensors takes the first bytes of any file for the length of a header,
and waits for a pipe for ever.
"""

import os
import stat

from ssvq_jax.export.error import FormatError

_STARTS = {
    b"version https://git-lfs": "a Git LFS pointer; `git lfs pull` gets the file",
    b"<": "an HTML or XML page; download the file itself",
    b"GGUF": "a GGUF file; `ssvq compress` makes a packed one of it",
    b"PK\x03\x04": "a ZIP archive; save PyTorch's as safetensors, name NumPy's *.npz",
    b"\x89HDF": "an HDF5 file; save it as safetensors",
    b"\x80": "a pickle; save it as safetensors",
}


def require_safetensors(path: str | os.PathLike[str]) -> None:
    """Raise before a library reads what is no safetensors file.

    Raises:
      OSError: A file that is missing or cannot be read.
      FormatError: A directory, pipe or device; a file of another known kind.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise FormatError(
            "no safetensors file: not a regular file but a directory; name a file in it"
        )
    if not stat.S_ISREG(mode):
        raise FormatError(
            "no safetensors file: not a regular file; save a pipe's output as a file"
        )
    with open(path, "rb") as file:
        start = file.read(32)
    if start[8:9] == b"{":  # opens the header, whatever its length
        return
    for magic, kind in _STARTS.items():
        if start.startswith(magic):
            raise FormatError(f"no safetensors file: {kind}")
