"""Small image-classification sets, decoded once into memory."""

import dataclasses
import pathlib
from typing import Any

import grain
import numpy as np
import sklearn.datasets
import sklearn.model_selection
import tensorflow_datasets as tfds
from rich.progress import track


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images and labels of two splits.

    Attributes:
      train_images: uint8 `(n, size, size, channels)`.
      train_labels: int32 `(n,)`.
      test_images: As `train_images`.
      test_labels: As `train_labels`.
      classes: Number of classes.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int


def load(name: str, data_dir: pathlib.Path | None = None) -> Dataset:
    """Load a set into memory.

    Args:
      name: "digits" (1,797 images of 8x8, comes with scikit-learn), or the name of an
        image-classification set of tensorflow-datasets with splits train and test
        (or validation) of square images, prepared as array_record.
      data_dir: The folder of tensorflow-datasets; `None` for its default.

    Raises:
      SystemExit: A set that is not there, with what to do.
    """
    if name == "digits":
        digits: Any = sklearn.datasets.load_digits()
        images = (digits.images * 255 / 16).astype(np.uint8)[..., None]
        labels = digits.target.astype(np.int32)
        train, test = sklearn.model_selection.train_test_split(
            np.arange(len(labels)), test_size=0.25, random_state=0, stratify=labels
        )
        return Dataset(images[train], labels[train], images[test], labels[test], 10)

    try:
        builder: Any = tfds.builder(name, data_dir=data_dir)
        splits = builder.info.splits
        test = "test" if "test" in splits else "validation"
        classes = builder.info.features["label"].num_classes
        train_set = _read(builder.as_data_source(split="train"), f"{name} train")
        test_set = _read(builder.as_data_source(split=test), f"{name} {test}")
    except Exception as error:
        raise SystemExit(
            f"cannot read the data set {name!r}: {error}\n"
            f"Prepare it once as array_record where TensorFlow is installed:\n"
            f"  tfds build {name} --file_format=array_record [--data_dir=DIR]\n"
            f"and name that folder: --data-dir DIR"
        ) from error
    return Dataset(*train_set, *test_set, classes)


def _read(source: Any, title: str) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a data source, decoded by Grain's threads."""
    dataset = grain.MapDataset.source(source).to_iter_dataset()
    images, labels = [], []
    for example in track(dataset, f"reading {title}", total=len(source)):
        images.append(example["image"])
        labels.append(example["label"])
    return np.stack(images), np.array(labels, np.int32)


def batch_indices(count: int, batch: int, steps: int, seed: int) -> np.ndarray:
    """Indices `(steps, batch)` of the batches: every epoch is a new permutation."""
    rng = np.random.default_rng(seed)
    epochs = -(-steps * batch // count)
    order = np.concatenate([rng.permutation(count) for _ in range(epochs)])
    return order[: steps * batch].reshape(steps, batch)
