"""Images with boxes."""

import numpy as np
import pytest

from experiments.data.batches import NotPreparedError
from experiments.data.coco import _objects, open_split
from experiments.data.pixels import letterbox
from tests.shared import shared


@pytest.mark.parametrize(
    ("name", "count", "objects", "crowds"),
    [("2017_panoptic", 100, 712, 5), ("2017_instances", 77, 602, 5)],
)
def test_reads_coco_without_tensorflow(name, count, objects, crowds):
    split = open_split(f"coco/{name}", None, shared("tfds"))
    examples = [split[i] for i in range(len(split))]
    assert len(split) == count and split.classes == 80
    assert sum(len(x["labels"]) for x in examples) == objects
    assert sum(int(x["crowd"].sum()) for x in examples) == crowds
    for x in examples:
        width, height = x["image"].shape[1::-1]
        left, top, right, bottom = x["boxes"].T
        assert np.all((left >= 0) & (top >= 0) & (right > left) & (bottom > top))
        assert np.all((right <= width) & (bottom <= height))
        # A mask fills its box at most, but for the pixels at its rim.
        rim = 2 * (right - left + bottom - top) + 4
        assert np.all(x["area"] <= (right - left) * (bottom - top) + rim)
        assert x["labels"].max(initial=0) < 80 and x["id"] > 0


@pytest.mark.parametrize("name", ["2017_panoptic", "2017_instances"])
def test_masks_are_those_of_the_areas(name):
    split = open_split(f"coco/{name}", "train[:20]", shared("tfds"), masks=True)
    for i in range(len(split)):
        x = split[i]
        assert x["masks"].shape == (len(x["boxes"]), *x["image"].shape[:2])
        np.testing.assert_array_equal(x["masks"].sum((1, 2)), x["area"])
        for mask, box in zip(x["masks"], x["boxes"], strict=True):
            rows, columns = np.nonzero(mask)
            low, high = (columns.min(), rows.min()), (columns.max(), rows.max())
            assert np.all(np.array(low) > box[:2] - 2) and np.all(high < box[2:] + 2)
    with pytest.raises(SystemExit, match="expected images with objects, got"):
        open_split("cifar10", "test", shared("tfds"), masks=True)


def test_objects_of_the_plain_form_and_images_without_any():
    image = np.zeros((10, 20, 3), np.uint8)
    objects = {
        "bbox": [[0.1, 0.2, 0.5, 1.0]],
        "label": [7],
        "is_crowd": [True],
        "area": [33],
    }
    empty = {name: [] for name in objects}
    source = [{"image": image, "image/id": 5, "objects": x} for x in (objects, empty)]
    one, none = map(_objects, source)
    np.testing.assert_allclose(one["boxes"], [[4, 1, 20, 5]])
    assert one["labels"] == [7] and one["crowd"] == [True] and one["area"] == [33]
    assert none["boxes"].shape == (0, 4) and none["labels"].shape == (0,)
    other = {"image": image, "image/id": 5, "objects": {**objects, "label": [80]}}
    with pytest.raises(ValueError, match="image 5: label: expected 0 to 79, got 80"):
        _objects(other)


def test_panoptic_objects_leave_stuff_out_and_are_checked():
    numbers = np.zeros((10, 20, 3), np.uint8)
    numbers[2:4, :5, 0] = 9  # the first of little-endian bytes
    objects = {
        "id": [9, 300],
        "bbox": [[0.2, 0.0, 0.4, 0.25], [0.0, 0.0, 1.0, 1.0]],
        "label": [7, 132],
        "is_crowd": [False, False],
    }
    example = {
        "image": np.zeros((10, 20, 3), np.uint8),
        "image/id": 5,
        "panoptic_image": numbers,
        "panoptic_objects": objects,
    }
    found = _objects(example, masks=True)
    assert found["labels"] == [7] and found["area"] == [10]
    assert found["masks"].shape == (1, 10, 20) and found["masks"].sum() == 10
    other = {**example, "panoptic_objects": {**objects, "label": [7, 133]}}
    with pytest.raises(ValueError, match="image 5: label: expected 0 to 132, got 133"):
        _objects(other)
    with pytest.raises(ValueError, match=r"image 5: panoptic image: .*\(10, 20\)"):
        _objects({**example, "panoptic_image": numbers[:, :-1]})


def test_what_cannot_be_read_says_why(tmp_path):
    with pytest.raises(NotPreparedError, match="2017: cannot be read(.|\n)*--data"):
        open_split("coco/2017", None, tmp_path)
    folder = shared("tfds")
    with pytest.raises(SystemExit, match="Unknown split 'none'"):
        open_split("coco/2017_panoptic", "none", folder)
    with pytest.raises(SystemExit, match="expected images with objects, got"):
        open_split("cifar10", "test", folder)


def test_a_letterbox_holds_the_whole_image_at_the_top_left():
    image = np.full((30, 60, 1), 200, np.uint8)
    square, scale = letterbox(image, 32)
    assert square.shape == (32, 32, 3) and scale == 32 / 60
    assert np.all(square[:16] == 200) and np.all(square[16:] == 114)
    assert letterbox(np.zeros((1, 900, 3), np.uint8), 32)[0].shape == (32, 32, 3)
    for wrong in (image.astype("u2"), np.zeros((4, 4, 4), np.uint8), image[..., 0]):
        with pytest.raises(ValueError, match="image: expected uint8"):
            letterbox(wrong, 32)
