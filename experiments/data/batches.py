"""Batches of examples of any kind, read with Grain."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import absl.flags
import grain
import numpy as np
from rich.progress import track

Example = dict[str, Any]
"""Arrays and numbers by name, such as `image` and `label`."""

_READING = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)


class NotPreparedError(SystemExit):
    """A data set that is known but not on the disk; says how to get it."""


@dataclasses.dataclass(frozen=True)
class Split(Sequence[Example]):
    """A split of a data set: a sequence of examples.

    Attributes:
      name: For progress bars and errors, such as "cifar10 train".
      examples: Random access to the examples.
      classes: How many classes there are to tell apart: what a network has to put out.
    """

    name: str
    examples: Sequence[Example]
    classes: int

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        return self.examples[index]

    def decoded(self) -> "Split":
        """The same split with all its examples decoded, in memory."""
        dataset = grain.MapDataset.source(self).to_iter_dataset()
        bar = track(dataset, f"reading {self.name}", total=len(self))
        return dataclasses.replace(self, examples=list(bar))


@dataclasses.dataclass(frozen=True)
class Mapped(Sequence[Example]):
    """Examples made of what a source has, when they are asked for.

    Attributes:
      source: Random access to a data set's own examples.
      read: Makes one of ours.
    """

    source: Sequence[Any]
    read: Callable[[Any], Example]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> Any:
        return self.read(self.source[index])


def joined(open_split: Callable[..., Split], names: str, *where: Any) -> Split:
    """Splits of one name of several sets, one behind the other.

    Args:
      open_split: Opens that of one set.
      names: Of sets with the same classes, joined by "+".
      *where: The other arguments of `open_split`.
    """
    splits = [open_split(name, *where) for name in names.split("+")]
    title = " + ".join(split.name for split in splits)
    found = {split.classes for split in splits}
    if len(found) > 1:
        raise SystemExit(f"{title}: expected sets of the same classes, got {found}")
    return Split(title, _Chain(splits), splits[0].classes)


@dataclasses.dataclass(frozen=True)
class _Chain(Sequence[Example]):
    parts: Sequence[Sequence[Example]]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: Any) -> Any:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def training_batches(
    split: Split,
    *,
    batch: int,
    seed: int,
    prepare: Callable[[Example, np.random.Generator], Example],
    start: int = 0,
    process: tuple[int, int] = (0, 1),
    workers: int = 0,
) -> grain.IterDataset:
    """Endless shuffled batches; the i-th depends on the seed and i only.

    So a run goes on where it was with `start`, and any number of processes share the
    same batches.

    Args:
      split: Examples.
      batch: Examples per batch, of all processes together.
      seed: Of order and augmentation.
      prepare: Makes all examples of one shape, augmented anew every epoch.
      start: First batch.
      process: Index and count of the processes; each gets its share of every batch.
      workers: Processes that read; 0 for threads of this one.

    Raises:
      ValueError: A batch that the processes cannot share.
    """
    index, count = process
    if batch % count:
        raise ValueError(
            f"batch: expected a multiple of {count} processes, got {batch}"
        )
    examples = grain.MapDataset.source(split).seed(seed).shuffle().repeat()
    examples = examples.random_map(prepare)[index::count]
    # There is no rest; if one is not dropped, Grain rounds the number of endless
    # batches of one up, beyond what a length may be.
    batches = examples.batch(batch // count, drop_remainder=True)[start:]
    batches = batches.to_iter_dataset(_READING)
    if workers:
        absl.flags.FLAGS.mark_as_parsed()  # Grain reads options of its own there
        options = grain.MultiprocessingOptions(num_workers=workers)
        batches = batches.mp_prefetch(options)
    return batches


def evaluation_batches(
    split: Split,
    *,
    batch: int,
    prepare: Callable[[Example], Example],
    process: tuple[int, int] = (0, 1),
) -> grain.IterDataset:
    """Batches of one pass in order, the last one filled up from the start.

    Args:
      split: Examples.
      batch: Examples per batch, of all processes together.
      prepare: Makes all examples of one shape.
      process: Index and count of the processes; process `p` of `n` gets the examples
        `p, p + n, ...` of every batch.
    """
    index, count = process
    total = -(-len(split) // batch) * batch
    examples = grain.MapDataset.source(split).repeat()[:total][index::count]
    return examples.map(prepare).batch(batch // count).to_iter_dataset(_READING)
