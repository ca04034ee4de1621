"""What `ssvq compress` has finished when it is cut off, and goes on from."""

import contextlib
import errno
import hashlib
import os
import pathlib
import re
from collections.abc import Sequence
from typing import ClassVar

from ssvq_jax.codecs import Compressed, is_compressed
from ssvq_jax.export import FormatError, PackedFile, save

# Tensors, and what `save` was writing when it was killed.
_OURS = re.compile(r"[0-9a-f]{32}\.ssvq\.safetensors|\.[0-9a-f]{16}\.tmp")


class Finished:
    """Compressed tensors, each a packed file in a folder beside the output's place.

    Their names are hashes of all that they depend on: a run with other options, or of
    another checkpoint, finds none of them.

    Args:
      out: The output's place.

    Attributes:
      folder: The folder.
      found: How many tensors were found in it.

    Raises:
      FileExistsError: Something of the folder's name that is none.
    """

    least: ClassVar = 1 << 18
    """Weights of the smallest tensors that are worth a file: some 50 ms of work."""

    def __init__(self, out: pathlib.Path):
        self.folder = out.absolute().with_name(f"{out.name}.partial")
        if os.path.lexists(self.folder) and (
            self.folder.is_symlink() or not self.folder.is_dir()
        ):
            raise FileExistsError(
                errno.EEXIST, "finished tensors go there: move it", str(self.folder)
            )
        self.found = 0

    def read(self, causes: Sequence[bytes]) -> Compressed | None:
        """What was made of these causes; `None` where it is not there, or damaged."""
        try:
            file = PackedFile(self._path(causes))
            node = file[""] if file.metadata == {"causes": _hash(causes)} else None
        except (OSError, KeyError, FormatError):
            return None
        if not is_compressed(node):
            return None
        self.found += 1
        return node

    def write(self, causes: Sequence[bytes], node: Compressed) -> None:
        """Keep a tensor until `remove`."""
        self.folder.mkdir(exist_ok=True)
        save(self._path(causes), node, metadata={"causes": _hash(causes)})

    def remove(self) -> None:
        """Forget all of it: the output is there."""
        if self.folder.is_dir():
            for file in self.folder.iterdir():
                if _OURS.fullmatch(file.name):
                    file.unlink()
            with contextlib.suppress(OSError):  # somebody's files are in it
                self.folder.rmdir()

    def _path(self, causes: Sequence[bytes]) -> pathlib.Path:
        return self.folder / f"{_hash(causes)}.ssvq.safetensors"


def _hash(causes: Sequence[bytes]) -> str:
    digests = (hashlib.blake2b(cause).digest() for cause in causes)
    return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()
