"""Labelled images of tensorflow-datasets, read with Grain, without TensorFlow."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import absl.flags
import grain
import numpy as np
import sklearn.datasets
import sklearn.model_selection
import tensorflow_datasets as tfds
from rich.progress import track

Example = dict[str, Any]
"""`image`, uint8 `(height, width, channels)`, and `label`, an integer."""

_READING = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)


@dataclasses.dataclass(frozen=True)
class Split(Sequence[Example]):
    """A split of a data set: a sequence of examples.

    Attributes:
      name: For progress bars and errors, such as "cifar10 train".
      examples: Random access to the examples.
      classes: Number of classes.
    """

    name: str
    examples: Sequence[Example]
    classes: int

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        example = self.examples[index]
        return {"image": example["image"], "label": np.int32(example["label"])}

    def decoded(self) -> "Split":
        """The same split with all its images decoded, in memory."""
        dataset = grain.MapDataset.source(self).to_iter_dataset()
        bar = track(dataset, f"reading {self.name}", total=len(self))
        return dataclasses.replace(self, examples=list(bar))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All images, uint8 `(n, height, width, channels)`, and labels, int32 `(n,)`.

        Raises:
          ValueError: Images of different sizes.
        """
        examples = self.decoded().examples
        images = np.stack([example["image"] for example in examples])
        return images, np.array([example["label"] for example in examples], np.int32)


def open_split(name: str, split: str, data_dir: pathlib.Path | None = None) -> Split:
    """Open a split; images are decoded when they are asked for.

    Args:
      name: "digits" (1,797 images of 8x8 in one channel, comes with scikit-learn;
        splits "train" and "test"), or the name of an image-classification set of
        tensorflow-datasets, prepared as array_record.
      split: As in tensorflow-datasets: "test", "train[:45000]", "validation[:1%]".
      data_dir: The folder of tensorflow-datasets; `None` for its default.

    Raises:
      SystemExit: A set or split that is not there, with what to do.
    """
    if name == "digits":
        return _digits(split)
    builder = _builder(name, data_dir)
    known = builder.info.splits
    with _explained(f"{name} {split}", "" if known else _preparing(name)):
        if known and not known[split].num_examples:
            raise ValueError("it has no images")
        source = builder.as_data_source(split=split)
    return Split(f"{name} {split}", source, builder.info.features["label"].num_classes)


def splits(name: str, data_dir: pathlib.Path | None = None) -> list[str]:
    """The names of a set's splits, if it is prepared; arguments as of `open_split`."""
    if name == "digits":
        return ["train", "test"]
    return list(_builder(name, data_dir).info.splits)


def sizes(
    name: str, split: str, data_dir: pathlib.Path | None = None
) -> tuple[int | None, int, int]:
    """Numbers of a split's images, or `None` where it is not there, classes, channels.

    Arguments as of `open_split`.
    """
    if name == "digits":
        return len(_digits(split)), 10, 1
    info = _builder(name, data_dir).info
    with _explained(f"{name} {split}"):
        images = info.splits[split].num_examples if info.splits else None
    features = info.features
    return images, features["label"].num_classes, features["image"].shape[-1]


def _builder(name: str, data_dir: pathlib.Path | None) -> Any:
    """A set of labelled images, prepared or not; arguments as of `open_split`."""
    with _explained(name, _preparing(name)):
        builder: Any = tfds.builder(name, data_dir=data_dir)
        features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise SystemExit(
            f"{name}: expected images with a label each, got {', '.join(features)}"
        )
    return builder


def _preparing(name: str) -> str:
    """How to prepare a set."""
    return (
        "\nPrepare it once as array_record where TensorFlow is installed:\n"
        f"  tfds build {name} --file_format=array_record [--data_dir=DIR]\n"
        "and name that folder: --data-dir DIR"
    )


@contextlib.contextmanager
def _explained(name: str, advice: str = "") -> Iterator[None]:
    """Errors of a set or split that cannot be read, with what to do."""
    try:
        yield
    except (ValueError, LookupError, OSError, RuntimeError, ImportError) as error:
        raise SystemExit(f"{name}: cannot be read: {error}{advice}") from error


def _digits(split: str) -> Split:
    digits: Any = sklearn.datasets.load_digits()
    images = (digits.images * 255 / 16).astype(np.uint8)[..., None]
    parts: Any = sklearn.model_selection.train_test_split(
        np.arange(len(images)), test_size=0.25, random_state=0, stratify=digits.target
    )
    parts = dict(zip(("train", "test"), parts, strict=True))
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[len(part)], num_bytes=0)
        for name, part in parts.items()
    }
    with _explained(f"digits {split}"):
        instruction = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        chosen = [
            i
            for piece in instruction
            for i in parts[piece.splitname][piece.from_ : piece.to]
        ]
        if not chosen:
            raise ValueError("it has no images")
    examples = [{"image": images[i], "label": digits.target[i]} for i in chosen]
    return Split(f"digits {split}", examples, 10)


def training_batches(
    split: Split,
    *,
    batch: int,
    seed: int,
    augment: Callable[[Example, np.random.Generator], Example],
    mix: Callable[[Example, np.random.Generator], Example] | None = None,
    repeats: int = 1,
    start: int = 0,
    process: tuple[int, int] = (0, 1),
    workers: int = 0,
) -> grain.IterDataset:
    """Endless shuffled batches; the i-th depends on the seed and i only.

    So a run goes on where it was with `start`, and any number of processes share the
    same batches, before `mix`.

    Args:
      split: Examples.
      batch: Images per batch, of all processes together.
      seed: Of order and augmentation.
      augment: Of an example, drawn anew every epoch.
      mix: Of a batch of one process.
      repeats: How often an image comes within an epoch, one after the other, each time
        augmented anew; an epoch then has `1 / repeats` of the images.
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
    if repeats > 1:
        examples = _Repeated(examples, repeats)
    examples = examples.random_map(augment)[index::count]
    batches = examples.batch(batch // count)
    if mix is not None:
        batches = batches.random_map(mix)
    batches = batches[start:].to_iter_dataset(_READING)
    if workers:
        absl.flags.FLAGS.mark_as_parsed()  # Grain reads options of its own there
        options = grain.MultiprocessingOptions(num_workers=workers)
        batches = batches.mp_prefetch(options)
    return batches


class _Repeated(grain.MapDataset):
    """Every element several times, one after the other."""

    def __init__(self, parent: grain.MapDataset, repeats: int):
        super().__init__(parent)
        self._repeats = repeats

    def __len__(self) -> int:
        return len(self._parent)  # endless as it is

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        return self._parent[index // self._repeats]


def evaluation_batches(
    split: Split,
    *,
    batch: int,
    prepare: Callable[[np.ndarray], np.ndarray],
    process: tuple[int, int] = (0, 1),
) -> grain.IterDataset:
    """Batches of one pass in order, the last one filled up from the start.

    Args:
      split: Examples.
      batch: Images per batch, of all processes together.
      prepare: Makes an image of the network's size.
      process: Index and count of the processes; process `p` of `n` gets the images
        `p, p + n, ...` of every batch.
    """
    index, count = process
    total = -(-len(split) // batch) * batch
    examples = grain.MapDataset.source(split).repeat()[:total][index::count]
    examples = examples.map(lambda x: {**x, "image": prepare(x["image"])})
    return examples.batch(batch // count).to_iter_dataset(_READING)
