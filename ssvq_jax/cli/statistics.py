"""`--statistics`: moments of inputs by the names of a checkpoint's tensors."""

import difflib
import os
from collections.abc import Iterator, Mapping

import numpy as np

from ssvq_jax.calibration import Moment
from ssvq_jax.calibration.moments import is_moment
from ssvq_jax.checkpoint import Checkpoint
from ssvq_jax.export import PackedFile
from ssvq_jax.export.names import original_name


class Statistics(Mapping[str, Moment]):
    """Moments in a file of `ssvq.save(file, moments)`, each read when it is asked for.

    A tensor's are those at its name, or else at its name with `/` for every dot.

    Attributes:
      path: The file's name, as text.
      unmatched: Paths in the file that are of no tensor.

    Raises:
      OSError: A file that is missing or cannot be read.
      FormatError: A damaged file.
      ValueError: A file of something else, or of no tensor of the checkpoint; moments
        of other axes or sizes than their tensor's.
    """

    def __init__(self, path: str | os.PathLike[str], checkpoint: Checkpoint):
        self.path = os.fspath(path)
        self._file = PackedFile(path)
        leaves: dict[str, dict[str, str]] = {}
        for name in self._file:
            parent, _, leaf = name.rpartition("/")
            leaves.setdefault(original_name(parent), {})[leaf] = name
        for found in leaves.values():
            if not is_moment(found):
                raise ValueError(
                    f"{self.path}: expected what `ssvq.save(file, moments)` writes, "
                    f"got {', '.join(found.values())}"
                )
        places = {
            name: name if name in leaves else name.replace(".", "/")
            for name in checkpoint
            if name in leaves or name.replace(".", "/") in leaves
        }
        if not places:
            some = next(iter(leaves), "")
            near = difflib.get_close_matches(some, checkpoint, n=5, cutoff=0.0)
            raise ValueError(
                f"{self.path}: expected paths that are names of tensors, got none of "
                f"them but such as {some!r}; near it: {', '.join(near) or 'none'}"
            )
        self._leaves = {name: leaves[place] for name, place in places.items()}
        self.unmatched = [path for path in leaves if path not in places.values()]
        for name in self:
            self._check(name, checkpoint.shape(name))

    def __getitem__(self, name: str) -> Moment:
        leaves = self._leaves[name]
        return Moment(**{leaf: self._file[place] for leaf, place in leaves.items()})

    def __contains__(self, name: object) -> bool:
        return name in self._leaves  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        """Of all that is in the file, roles are read, and sizes from the header."""
        leaves = self._leaves[name]
        nothing = {
            leaf: np.broadcast_to(np.float32(0), self._file.tensors[place].shape)
            for leaf, place in leaves.items()
        }
        moment = Moment(**{**nothing, "roles": self._file[leaves["roles"]]})
        try:
            moment.check(shape)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: {name}: {error}; calibrate with tensors in the "
                "checkpoint's own layout"
            ) from error
