"""Data sets, batches and augmentation."""

import collections
import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments import augmentation, data
from experiments.augmentation import DEIT, Augment, Augmentation, Mix, mixing
from experiments.models.zoo import crop, from_pillow, to_pillow
from tests.shared import shared


def _split(count=10, size=4, channels=1):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, channels), np.uint8)
    examples = [{"image": images[i], "label": i} for i in range(count)]
    return data.Split("test", examples, count)


def _same(example, rng):
    return example


def _labels(count, **options):
    options = {"seed": 0, "augment": _same, "batch": 4, **options}
    source = iter(data.training_batches(_split(), **options))
    return [next(source)["label"] for _ in range(count)]


def test_a_missing_data_set_says_what_to_do(tmp_path):
    with pytest.raises(SystemExit, match="cifar10 train(.|\n)*tfds build(.|\n)*--data"):
        data.open_split("cifar10", "train", tmp_path)
    with pytest.raises(SystemExit, match="none: (.|\n)*--data-dir"):
        data.splits("none", tmp_path)


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_a_wrong_split_says_why(name):
    folder = None if name == "digits" else shared("tfds")
    for split, why in (
        ("none", r"Unknown split 'none'. Should be one of \['train', 'test'\]"),
        ("train[:10][:5]", "Unrecognized split format"),
        ("train[:0]", "no images"),
    ):
        with pytest.raises(SystemExit, match=why) as raised:
            data.open_split(name, split, folder)
        assert "tfds build" not in str(raised.value)


def test_a_set_without_labels_says_so():
    with (
        tfds.testing.mock_data(num_examples=5),
        pytest.raises(SystemExit, match="expected images with a label each, got"),
    ):
        data.open_split("downsampled_imagenet", "train")


def test_reads_tensorflow_datasets_without_tensorflow():
    folder = shared("tfds")
    split = data.open_split("cifar10", "test[10:60]", folder)
    source = tfds.data_source("cifar10", split="test[10:60]", data_dir=folder)
    images, labels = split.arrays()
    assert (images.shape, images.dtype) == ((50, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(labels, [source[i]["label"] for i in range(50)])
    np.testing.assert_array_equal(images[7], source[7]["image"])
    assert split.classes == 10 and data.splits("cifar10", folder) == ["train", "test"]


def test_any_set_of_tensorflow_datasets_by_name():
    with tfds.testing.mock_data(num_examples=5):
        for name, classes in (("imagenet2012", 1000), ("cifar100", 100)):
            split = data.open_split(name, "train")
            assert len(split) == 5 and split.classes == classes
            assert split[0]["image"].ndim == 3 and 0 <= split[0]["label"] < classes


def test_images_of_one_channel_are_cropped_like_others():
    grey = np.arange(28 * 30, dtype=np.uint8).reshape(28, 30, 1)
    colour = np.repeat(grey, 3, axis=2)
    scaled = Augment(Augmentation(scale=(0.3, 1.0)), 16)
    for cut in (
        lambda image: crop(image, 16),
        lambda image: scaled({"image": image}, np.random.default_rng(0))["image"],
    ):
        assert cut(grey).shape == (16, 16, 1)
        np.testing.assert_array_equal(cut(grey)[..., 0], cut(colour)[..., 0])


def test_digits_are_cut_like_other_sets():
    whole = data.open_split("digits", "train")
    assert len(whole) + len(data.open_split("digits", "test")) == 1797
    part = data.open_split("digits", "train[100:200]")
    assert len(part) == 100
    np.testing.assert_array_equal(part[3]["image"], whole[103]["image"])


def test_batches_are_epochs_of_permutations():
    labels = np.concatenate(_labels(10))
    epochs = labels.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_go_on_where_they_were():
    first = _labels(9)
    np.testing.assert_array_equal(first[5:], _labels(4, start=5))
    assert not np.array_equal(first, _labels(9, seed=1))


def test_augmentation_is_drawn_anew_but_by_the_index_only():
    split, pad = _split(), Augment(Augmentation(pad=3), 4)
    options = {"seed": 0, "augment": pad, "batch": 10}
    batches = iter(data.training_batches(split, **options))
    first, second = next(batches), next(batches)
    again = next(iter(data.training_batches(split, start=1, **options)))
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
    digits = data.open_split("digits", "train[:40]")
    options = {"seed": 0, "batch": 8, "augment": Augment(Augmentation(pad=1), 8)}
    here = iter(data.training_batches(digits, **options))
    there = iter(data.training_batches(digits, workers=1, **options))
    for _ in range(3):
        np.testing.assert_array_equal(next(here)["image"], next(there)["image"])


def test_repeats_come_one_after_the_other():
    labels = np.concatenate(_labels(15, repeats=3))
    assert not np.ptp(labels.reshape(-1, 3), axis=1).any()
    assert sorted(labels[:30:3]) == list(range(10))


@pytest.mark.parametrize("count", [1, 7, 10])
def test_evaluation_passes_once_and_fills_the_last_batch_up(count):
    batches = data.evaluation_batches(_split(count), batch=4, prepare=lambda x: x + 1)
    labels = [batch["label"] for batch in batches]
    assert all(len(x) == 4 for x in labels)
    np.testing.assert_array_equal(np.concatenate(labels)[:count], np.arange(count))


def test_shifts_fill_with_zeros(rng):
    image = np.full((4, 4, 1), 9, np.uint8)
    seen = collections.Counter()
    for _ in range(200):
        shifted = augmentation._shifted(image, 1, rng)
        rows, columns = (shifted.any(axis=i).sum() for i in (1, 0))
        assert shifted.shape == image.shape and shifted.sum() == 9 * rows * columns
        seen[rows, columns] += 1
    assert set(seen) == {(4, 4), (4, 3), (3, 4), (3, 3)}


def test_flips_half_of_the_images(rng):
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    augment = Augment(Augmentation(flip=True), 4)
    results = [augment({"image": image}, rng)["image"] for _ in range(200)]
    flipped = sum(np.array_equal(x, image[:, ::-1]) for x in results)
    same = sum(np.array_equal(x, image) for x in results)
    assert flipped + same == 200 and 70 < flipped < 130


@pytest.mark.parametrize("shape", [(40, 60, 3), (224, 224, 3), (7, 300, 3)])
def test_random_crops_have_the_size(shape, rng):
    image = rng.integers(0, 256, shape, np.uint8)
    augment = Augment(dataclasses.replace(DEIT, erase=1.0), 32)
    for _ in range(50):
        result = augment({"image": image, "label": 3}, rng)
        assert result["image"].shape == (32, 32, 3)
        assert result["image"].dtype == np.uint8 and result["label"] == 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", augmentation._OPERATIONS)
def test_every_operation_changes_an_image_and_keeps_its_form(name, channels, rng):
    image = rng.integers(40, 200, (32, 32, channels), np.uint8)
    result = augmentation._operate(to_pillow(image), name, 0.9, -1)
    result = from_pillow(result)
    assert result.shape == image.shape and result.dtype == np.uint8
    gray_alone = channels == 1 and name == "color"
    assert np.array_equal(result, image) == gray_alone


def test_erasing_replaces_one_rectangle(rng):
    image = np.zeros((32, 32, 3), np.uint8)
    erased = augmentation._erased(image, rng)
    rows, columns = (np.flatnonzero(erased.any(axis=(i, 2))) for i in (1, 0))
    assert 0.01 < len(rows) * len(columns) / 1024 < 0.4
    assert not image.any()


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_labels_are_mixed_as_the_images_are(options, rng):
    images = np.zeros((2, 16, 16, 1), np.uint8)
    images[0] = 200
    batch = {"image": images, "label": np.array([0, 1])}
    for _ in range(20):
        mixed = Mix(Augmentation(**options), 3)(batch, rng)
        share = mixed["image"].astype(np.float64).mean(axis=(1, 2, 3)) / 200
        np.testing.assert_allclose(mixed["label"][:, 0], share, atol=1e-3)
        np.testing.assert_allclose(mixed["label"].sum(axis=1), 1, atol=1e-6)
    assert images.max() == 200 and not images[1].any()


def test_nothing_is_mixed_unless_asked_for():
    assert mixing(Augmentation(flip=True), 10) is None
    assert mixing(DEIT, 10) == Mix(DEIT, 10)
