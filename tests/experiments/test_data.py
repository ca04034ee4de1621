"""Data sets and batches."""

import functools

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.data.augmentation import Augmentation
from experiments.data.batches import (
    NotPreparedError,
    Split,
    evaluation_batches,
    training_batches,
)
from experiments.data.images import open_split
from experiments.data.pixels import crop
from experiments.tasks import Classification
from tests.shared import shared


def _split(count=10, size=4, channels=1):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, channels), np.uint8)
    examples = [{"image": images[i], "label": i} for i in range(count)]
    return Split("test", examples, count)


def _same(example, rng):
    return example


def _prepare(pad, size):
    task = Classification(augmentation=Augmentation(pad=pad))
    return functools.partial(task.prepare, size=size)


def _labels(count, **options):
    options = {"seed": 0, "prepare": _same, "batch": 4, **options}
    source = iter(training_batches(_split(), **options))
    return [next(source)["label"] for _ in range(count)]


def test_a_missing_data_set_says_what_to_do(tmp_path):
    with pytest.raises(
        NotPreparedError, match="cifar10 train(.|\n)*tfds build(.|\n)*--data"
    ):
        open_split("cifar10", "train", tmp_path)
    with pytest.raises(SystemExit, match="none: (.|\n)*--data-dir"):
        open_split("none", None, tmp_path)
    with pytest.raises(SystemExit, match="--data-dir: there is no folder .*missing"):
        open_split("cifar10", "train", tmp_path / "missing")


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_a_wrong_split_says_why(name):
    folder = None if name == "digits" else shared("tfds")
    for split, why in (
        ("none", r"Unknown split 'none'. Should be one of \['train', 'test'\]"),
        ("train[:10][:5]", "Unrecognized split format"),
        ("train[:0]", "no examples"),
    ):
        with pytest.raises(SystemExit, match=why) as raised:
            open_split(name, split, folder)
        assert "tfds build" not in str(raised.value)


def test_a_set_without_labels_says_so():
    with (
        tfds.testing.mock_data(num_examples=5),
        pytest.raises(SystemExit, match="expected images with a label each, got"),
    ):
        open_split("downsampled_imagenet", "train")


def test_reads_tensorflow_datasets_without_tensorflow():
    folder = shared("tfds")
    split = open_split("cifar10", "test[10:60]", folder)
    source = tfds.data_source("cifar10", split="test[10:60]", data_dir=folder)
    examples = split.decoded().examples
    assert all(x["image"].shape == (32, 32, 3) for x in examples)
    assert all(x["image"].dtype == np.uint8 for x in examples)
    np.testing.assert_array_equal(
        [x["label"] for x in examples], [x["label"] for x in source]
    )
    np.testing.assert_array_equal(examples[7]["image"], source[7]["image"])
    assert split.classes == 10 and len(open_split("cifar10", None, folder)) == 10_000


def test_any_set_of_tensorflow_datasets_by_name():
    with tfds.testing.mock_data(num_examples=5):
        for name, classes in (("imagenet2012", 1000), ("cifar100", 100)):
            split = open_split(name, "train")
            assert len(split) == 5 and split.classes == classes
            assert split[0]["image"].ndim == 3 and 0 <= split[0]["label"] < classes


def test_images_of_one_channel_are_cropped_like_others():
    grey = np.arange(28 * 30, dtype=np.uint8).reshape(28, 30, 1)
    colour = np.repeat(grey, 3, axis=2)
    scaled = Augmentation(scale=(0.3, 1.0))
    for cut in (
        lambda image: crop(image, 16),
        lambda image: scaled.apply(image, 16, np.random.default_rng(0)),
    ):
        assert cut(grey).shape == (16, 16, 1)
        np.testing.assert_array_equal(cut(grey)[..., 0], cut(colour)[..., 0])


def test_digits_are_cut_like_other_sets():
    whole = open_split("digits", "train")
    assert len(whole) + len(open_split("digits", "test")) == 1797
    part = open_split("digits", "train[100:200]")
    assert len(part) == 100
    np.testing.assert_array_equal(part[3]["image"], whole[103]["image"])


def test_batches_are_epochs_of_permutations():
    labels = np.concatenate(_labels(10))
    epochs = labels.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_batches_go_on_where_they_were(batch):
    first = _labels(9, batch=batch)
    np.testing.assert_array_equal(first[5:], _labels(4, batch=batch, start=5))
    assert not np.array_equal(first, _labels(9, batch=batch, seed=1))


def test_augmentation_is_drawn_anew_but_by_the_index_only():
    options = {"seed": 0, "prepare": _prepare(pad=3, size=4), "batch": 10}
    split = _split()
    batches = iter(training_batches(split, **options))
    first, second = next(batches), next(batches)
    again = next(iter(training_batches(split, start=1, **options)))
    np.testing.assert_array_equal(second["image"], again["image"])
    by_label = dict(zip(first["label"], first["image"], strict=True))
    changed = [
        not np.array_equal(by_label[label], image)
        for label, image in zip(second["label"], second["image"], strict=True)
    ]
    assert sum(changed) > 5


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_same_batches(count):
    whole = _labels(6)
    shares = [_labels(6, process=(i, count)) for i in range(count)]
    for i, batch in enumerate(whole):
        parts = np.stack([share[i] for share in shares], axis=1)
        np.testing.assert_array_equal(parts.reshape(-1), batch)


def test_processes_need_equal_shares():
    with pytest.raises(ValueError, match="multiple of 3 processes"):
        _labels(1, process=(0, 3))


def test_processes_that_read_give_the_same_batches():
    digits = open_split("digits", "train[:40]")
    options = {"seed": 0, "batch": 8, "prepare": _prepare(pad=1, size=8)}
    here = iter(training_batches(digits, **options))
    there = iter(training_batches(digits, workers=1, **options))
    for _ in range(3):
        np.testing.assert_array_equal(next(here)["image"], next(there)["image"])


@pytest.mark.parametrize("count", [1, 7, 10])
def test_evaluation_passes_once_and_fills_the_last_batch_up(count):
    batches = evaluation_batches(_split(count), batch=4, prepare=lambda x: x)
    labels = [batch["label"] for batch in batches]
    assert all(len(x) == 4 for x in labels)
    np.testing.assert_array_equal(np.concatenate(labels)[:count], np.arange(count))
