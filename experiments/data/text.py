"""Text as windows of tokens: of files, or of tensorflow-datasets by name."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.data.batches import Example, Split
from experiments.data.images import explained, open_source, preparing
from experiments.data.tokens import Tokenizer

_PARTS = {"train": (0.0, 0.95), "validation": (0.95, 0.975), "test": (0.975, 1.0)}
"""Lines of a file that belong to a split, where it has no file of its own."""


@dataclasses.dataclass(frozen=True)
class Windows(Sequence[Example]):
    """`tokens`, int32 `(size,)`, one window after the other; a rest is left out.

    Beside them `bytes`, int32: those of all tokens but the first.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.tokens) // self.size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = range(len(self))[index] * self.size
        tokens = self.tokens[start : start + self.size]
        return {"tokens": tokens, "bytes": self.lengths[tokens[1:]].sum(dtype=np.int32)}


def open_windows(
    name: str,
    split: str | None,
    data_dir: pathlib.Path | None,
    *,
    tokenizer: Tokenizer,
    size: int,
) -> Split:
    """Open a split; its text is read and cut into tokens at once.

    Args:
      name: As of `read`.
      split: As of `read`, and windows of it: "test[:16]", "train[1000:2000]".
      data_dir: As of `read`.
      tokenizer: Of the text; its vocabulary is the split's number of classes.
      size: Tokens of a window.

    Raises:
      NotPreparedError, SystemExit: As of `read`; a text shorter than a window.
    """
    split = split or "validation"
    matched = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", split)
    if matched is None:
        raise SystemExit(
            f"{name} {split}: expected a split, or windows of it such as test[:16]"
        )
    base, *ends = matched.groups()
    tokens = tokenizer.encode(read(name, base, data_dir))
    start, stop = (int(end) if end else None for end in ends)
    tokens = tokens[slice(*(None if n is None else n * size for n in (start, stop)))]
    if len(tokens) < size:
        raise SystemExit(
            f"{name} {split}: expected a window of {size:,} tokens or more, got "
            f"{len(tokens):,} tokens"
        )
    windows = Windows(tokens, tokenizer.lengths, size)
    return Split(f"{name} {split}", windows, len(tokenizer.lengths))


def read(name: str, split: str, data_dir: pathlib.Path | None) -> str:
    """The text of a split.

    Args:
      name: A file, or a folder of *.txt, in `data_dir` or where the program runs; else
        a set of tensorflow-datasets with a feature `text`, prepared as array_record.
        Of a folder, SPLIT.txt is a split ("valid.txt" as "validation", too); where
        there are none, and of a file, the first 95 % of every file's lines are
        "train", the next 2.5 % "validation", the last 2.5 % "test".
      split: "train", "validation" or "test"; of tensorflow-datasets any split.
      data_dir: Where to look; `None` for here.

    Raises:
      NotPreparedError: A set that is not there, with what to do.
      SystemExit: A set or split that is unknown, a file that is no UTF-8.
    """
    path = (data_dir or pathlib.Path()) / name
    if path.is_file():
        return _part(path, split)
    files = sorted(path.glob("*.txt"))
    if not files:  # tensorflow-datasets keeps prepared sets in such folders, too
        return _of_tfds(name, split, data_dir)
    own = {"validation" if x.stem == "valid" else x.stem: x for x in files}
    if own.keys() & _PARTS:
        if split not in own:
            raise SystemExit(f"{path}: no {split}; there are {', '.join(own)}")
        return _text(own[split])
    return "".join(_part(file, split) for file in files)


def _part(path: pathlib.Path, split: str) -> str:
    """The lines of a file that belong to a split."""
    if split not in _PARTS:
        raise SystemExit(f"{path}: no {split}; there are {', '.join(_PARTS)}")
    lines = _text(path).splitlines(keepends=True)
    start, stop = (round(share * len(lines)) for share in _PARTS[split])
    return "".join(lines[start:stop])


def _text(path: pathlib.Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SystemExit(
            f"{path}: expected UTF-8, got byte {data[error.start]:#04x} at "
            f"{error.start:,}"
        ) from error


def _of_tfds(name: str, split: str, data_dir: pathlib.Path | None) -> str:
    """All texts of a split, a line break after each."""
    where = (
        f"\nThere is no text of that name in {data_dir or 'this folder'}, either, "
        "and no folder with *.txt."
    )
    with explained(name, preparing(name) + where):
        builder: Any = tfds.builder(name, data_dir=data_dir)
        features = builder.info.features
    if "text" not in features:
        raise SystemExit(f"{name}: expected a feature text, got {', '.join(features)}")
    source, _ = open_source(builder, name, split)
    with explained(f"{name} {split}", preparing(name)):
        return "".join(f"{x['text'].decode()}\n" for x in source)
