"""What `ssvq compress` has finished when it is cut off, and goes on from."""

import contextlib
import hashlib
import pathlib
from collections.abc import Sequence
from typing import ClassVar

from ssvq_jax.codecs import Compressed, is_compressed
from ssvq_jax.export import FormatError, load, save


class Finished:
    """Compressed tensors, each a packed file in a folder beside the output's place.

    Their names are hashes of all that they depend on: a run with other options, or of
    another checkpoint, finds none of them.

    Args:
      out: The output's place.

    Attributes:
      folder: The folder.
      found: How many tensors were found in it.
    """

    least: ClassVar = 1 << 18
    """Weights of the smallest tensors that are worth a file: some 50 ms of work."""

    def __init__(self, out: pathlib.Path):
        self.folder = out.absolute().with_name(f"{out.name}.partial")
        self.found = 0

    def read(self, causes: Sequence[bytes]) -> Compressed | None:
        """What was made of these causes; `None` where it is not there, or damaged."""
        try:
            node = load(self._path(causes))
        except (OSError, FormatError):
            return None
        if not is_compressed(node):
            return None
        self.found += 1
        return node

    def write(self, causes: Sequence[bytes], node: Compressed) -> None:
        """Keep a tensor until `remove`."""
        self.folder.mkdir(exist_ok=True)
        save(self._path(causes), node)

    def remove(self) -> None:
        """Forget all of it: the output is there."""
        if self.folder.is_dir() and not self.folder.is_symlink():
            for file in self.folder.glob("*.ssvq.safetensors"):
                file.unlink()
            for file in self.folder.glob(".*.tmp"):  # of a run that was killed
                file.unlink()
            with contextlib.suppress(OSError):  # somebody's files are in it
                self.folder.rmdir()

    def _path(self, causes: Sequence[bytes]) -> pathlib.Path:
        digests = (hashlib.blake2b(cause).digest() for cause in causes)
        name = hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()
        return self.folder / f"{name}.ssvq.safetensors"
