"""Labelled images of tensorflow-datasets, read without TensorFlow."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import sklearn.datasets
import sklearn.model_selection
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from experiments.data.batches import Example, Mapped, NotPreparedError, Split


def open_split(
    name: str, split: str | None, data_dir: pathlib.Path | None = None
) -> Split:
    """Open a split; images are decoded when they are asked for.

    Args:
      name: "digits" (1,797 images of 8x8 in one channel, comes with scikit-learn;
        splits "train" and "test"), or the name of an image-classification set of
        tensorflow-datasets, prepared as array_record.
      split: As in tensorflow-datasets: "test", "train[:45000]", "validation[:1%]";
        `None` for "validation", or "test" where there is none.
      data_dir: The folder of tensorflow-datasets; `None` for its default.

    Returns:
      Examples of `image`, uint8 `(height, width, channels)`, and `label`, int32.

    Raises:
      NotPreparedError: A set that is not there, with what to do.
      SystemExit: A set or split that is unknown or of another kind.
    """
    if name == "digits":
        return _digits(split or "test")
    builder = _builder(name, data_dir)
    classes = builder.info.features["label"].num_classes
    source, split = open_source(builder, name, split)
    return Split(f"{name} {split}", Mapped(source, _labelled), classes)


def _labelled(example: Any) -> Example:
    return {"image": example["image"], "label": np.int32(example["label"])}


def open_source(builder: Any, name: str, split: str | None) -> tuple[Any, str]:
    """Random access to the examples of a builder's split, and the split's name.

    Arguments and errors as of `open_split`.
    """
    known = builder.info.splits
    if split is None:
        split = "validation" if "validation" in known else "test"
    kind, advice = SystemExit, ""
    if not known:
        kind, advice = NotPreparedError, preparing(name)
    with explained(f"{name} {split}", advice, kind):
        if known and not known[split].num_examples:
            raise ValueError("it has no examples")
        return builder.as_data_source(split=split), split


def _builder(name: str, data_dir: pathlib.Path | None) -> Any:
    """A set of labelled images, prepared or not; arguments as of `open_split`."""
    require_folder(data_dir)
    with explained(name, preparing(name)):
        builder: Any = tfds.builder(name, data_dir=data_dir)
        features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise SystemExit(
            f"{name}: expected images with a label each, got {', '.join(features)}"
        )
    return builder


def builder_of_files(name: str, data_dir: pathlib.Path | None) -> Any:
    """A set by its files, where it is prepared: COCO's own code needs TensorFlow.

    Arguments and errors as of `open_split`.
    """
    require_folder(data_dir)
    with explained(name, preparing(name), NotPreparedError):
        try:
            return read_only_builder.builder_from_files(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError:
            return tfds.builder(name, data_dir=data_dir)


def require_folder(data_dir: pathlib.Path | None) -> None:
    """Raise `SystemExit` unless a folder of data sets is there, or the default one."""
    if data_dir is not None and not data_dir.is_dir():
        raise SystemExit(f"--data-dir: there is no folder {data_dir}")


def preparing(name: str) -> str:
    """How to prepare a set."""
    return (
        "\nPrepare it once as array_record where TensorFlow is installed:\n"
        f"  tfds build {name} --file_format=array_record [--data_dir=DIR]\n"
        "and name that folder: --data-dir DIR"
    )


@contextlib.contextmanager
def explained(
    name: str, advice: str = "", kind: type[SystemExit] = SystemExit
) -> Iterator[None]:
    """Errors of a set or split that cannot be read, with what to do."""
    try:
        yield
    except (ValueError, LookupError, OSError, RuntimeError, ImportError) as error:
        raise kind(f"{name}: cannot be read: {error}{advice}") from error


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
    with explained(f"digits {split}"):
        instruction = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        chosen = [
            i
            for piece in instruction
            for i in parts[piece.splitname][piece.from_ : piece.to]
        ]
        if not chosen:
            raise ValueError("it has no examples")
    examples = [{"image": images[i], "label": digits.target[i]} for i in chosen]
    return Split(f"digits {split}", Mapped(examples, _labelled), 10)
