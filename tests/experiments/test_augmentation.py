"""Augmentation of images."""

import collections

import numpy as np
import pytest

from experiments.data.augmentation import Augmentation


def test_shifts_fill_with_zeros(rng):
    image = np.full((4, 4, 1), 9, np.uint8)
    seen = collections.Counter()
    for _ in range(200):
        shifted = Augmentation(pad=1).apply(image, 4, rng)
        rows, columns = (shifted.any(axis=i).sum() for i in (1, 0))
        assert shifted.shape == image.shape and shifted.sum() == 9 * rows * columns
        seen[rows, columns] += 1
    assert set(seen) == {(4, 4), (4, 3), (3, 4), (3, 3)}


def test_flips_half_of_the_images(rng):
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    augmentation = Augmentation(flip=True)
    results = [augmentation.apply(image, 4, rng) for _ in range(200)]
    flipped = sum(np.array_equal(x, image[:, ::-1]) for x in results)
    same = sum(np.array_equal(x, image) for x in results)
    assert flipped + same == 200 and 70 < flipped < 130


@pytest.mark.parametrize("shape", [(40, 60, 3), (224, 224, 3), (7, 300, 3)])
def test_random_crops_have_the_size(shape, rng):
    image = rng.integers(0, 256, shape, np.uint8)
    augmentation = Augmentation(scale=(0.08, 1.0), flip=True)
    for _ in range(50):
        result = augmentation.apply(image, 32, rng)
        assert result.shape == (32, 32, 3) and result.dtype == np.uint8
