"""Segmentation: scenes, their augmentation, losses and scores."""

import dataclasses
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
import tensorflow_datasets as tfds
from flax import nnx
from PIL import Image

import ssvq_jax as ssvq
from experiments import evaluate
from experiments.data import scenes
from experiments.data.augmentation import SceneAugmentation
from experiments.data.batches import NotPreparedError, Split
from experiments.models.checkpoint import load_network
from experiments.models.network import ImageNetwork
from experiments.models.zoo import NETWORKS
from experiments.tasks import Segmentation, pictures
from experiments.tasks.task import half_width
from experiments.training.config import (
    Calibration,
    Compression,
    Data,
    Experiment,
    Optimization,
)
from tests.experiments import tiny
from tests.shared import shared

pytestmark = pytest.mark.usefixtures("standard_promotion")

TASK = Segmentation()
_judge = jax.jit(TASK.judge)


def _rows(logits, labels):
    return np.asarray(_judge(logits, {"labels": labels}))


# Scikit-learn warns of images that have one class, or none.
@pytest.mark.filterwarnings("ignore:::sklearn")
@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(
    st.integers(0, 2**32 - 1), st.sampled_from([1, 5]), st.sampled_from([1, 3])
)
def test_scores_are_those_of_a_confusion_matrix_of_scikit_learn(seed, classes, side):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, side, side, classes)).astype("f4")
    labels = rng.integers(0, classes, (3, side, side)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = scenes.UNLABELLED
    labels[0, 0, 0] = 0
    rows = _rows(logits, labels)
    taken, valid = logits.argmax(-1), labels != scenes.UNLABELLED

    def expected(truth, guess):
        matrix = sklearn.metrics.confusion_matrix(
            truth, guess, labels=np.arange(classes)
        )
        found = [
            matrix[i, i] / (matrix[i].sum() + matrix[:, i].sum() - matrix[i, i])
            for i in range(classes)
            if matrix[i].any()
        ]
        return matrix, np.mean(found)

    matrix, miou = expected(labels[valid], taken[valid])
    np.testing.assert_array_equal(rows.sum(0), matrix)
    score = TASK.score(rows)
    assert score["miou"] == pytest.approx(miou, abs=1e-6)
    right = np.mean(labels[valid] == taken[valid])
    assert score["pixels"] == pytest.approx(right, abs=1e-6)
    shares = sklearn.metrics.jaccard_score(
        labels[valid], taken[valid], labels=np.arange(classes), average=None
    )
    for i in range(classes):
        share = shares[i] if matrix[i].any() else None
        assert score.get(f"iou_{i}") == pytest.approx(share, abs=1e-6)
    for i, value in enumerate(TASK.each(rows)):
        rest = valid.copy()
        rest[i] = False
        left = expected(labels[rest], taken[rest])[1] if rest.any() else 0.0
        assert value == pytest.approx(3 * miou - 2 * left, abs=1e-6)


@pytest.mark.parametrize("images", [60, 233])
def test_intervals_are_those_of_a_bootstrap(images, rng):
    """Over images that are unlike: some have a class hardly, some much of it."""
    pixels = rng.gamma(0.5, 400, (images, 5, 1))
    shares = rng.dirichlet(np.full(5, 0.4), (images, 5))
    rows = (pixels * (0.6 * np.eye(5) + 0.4 * shares)).astype(np.int32)
    drawn = rng.integers(0, images, (2000, images))
    scores = [TASK.score(rows[index])["miou"] for index in drawn]
    low, high = np.percentile(scores, [2.5, 97.5])
    found = half_width(TASK.each(rows))
    assert found == pytest.approx((high - low) / 2, rel=0.15)
    assert np.mean(TASK.each(rows)) == pytest.approx((high + low) / 2, abs=found / 4)


def test_losses_against_plain_numpy(rng):
    logits, other = rng.normal(size=(2, 2, 3, 5, 4)).astype("f4")
    labels = rng.integers(0, 4, (2, 3, 5)).astype(np.uint8)
    labels[0, 1:] = scenes.UNLABELLED
    log, valid = scipy.special.log_softmax(logits, -1), labels != scenes.UNLABELLED
    expected = -np.mean(log[valid][np.arange(valid.sum()), labels[valid]])
    loss = TASK.loss(logits, {"labels": labels})
    assert loss == pytest.approx(expected, rel=1e-5)
    expected = -np.mean(np.sum(scipy.special.softmax(other, -1) * log, -1))
    assert TASK.match(logits, other) == pytest.approx(expected, rel=1e-5)
    none = np.full_like(labels, scenes.UNLABELLED)
    assert TASK.loss(logits, {"labels": none}) == 0
    assert TASK.score(_rows(logits, none)) == {"miou": 0.0, "pixels": 0.0}


def test_nan_is_never_right():
    logits = np.full((1, 2, 2, 3), np.nan, np.float32)
    labels = np.array([[[0, 1], [2, scenes.UNLABELLED]]], np.uint8)
    rows = _rows(logits, labels)
    assert np.trace(rows[0]) == 0 and rows.sum() == 3


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.3, 0.9), (1.1, 2.0)])
def test_image_and_labels_move_together(scale, rng):
    labels = np.repeat(np.repeat(np.arange(1, 10).reshape(3, 3), 32, 0), 32, 1)
    labels = labels.astype(np.uint8)
    image = np.stack([25 * labels] * 3, -1)
    augmentation = SceneAugmentation(scale=scale, flip=True)
    task, seen = Segmentation(augmentation=augmentation), set()
    for _ in range(20):
        found = task.prepare({"image": image, "labels": labels}, rng, size=96)
        inside = found["labels"] != scenes.UNLABELLED
        assert found["image"].shape == (96, 96, 3) and found["labels"].shape == (96, 96)
        assert np.all(found["image"][~inside] == 127)
        near = np.abs(found["image"][..., 0] - 25.0 * found["labels"])[inside]
        assert np.mean(near > 12) < 0.2  # at edges alone, where bicubic is between
        seen.add(found["labels"].tobytes())
        assert inside.all() == (scale[0] >= 1)
    assert len(seen) > 1


def _scenes(image, labels, classes=3):
    return scenes.Scenes("set", [{"image": image}], lambda _: labels, classes)


def test_wrong_scenes_say_why():
    image, labels = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    with pytest.raises(ValueError, match=r"set: example 0: .*\(4, 6\), got \(6, 4\)"):
        _scenes(image, labels.T)[0]
    with pytest.raises(ValueError, match="labels below 3, or 255 for none, got 7"):
        _scenes(image, labels + np.uint8(7))[0]
    with pytest.raises(ValueError, match="one or three channels, got"):
        _scenes(np.zeros((4, 6, 2), np.uint8), labels)[0]
    with pytest.raises(ValueError, match="uint8 or uint16, got float32"):
        _scenes(image.astype("f4"), labels)[0]
    with pytest.raises(SystemExit, match="none: expected a set with classes of pixels"):
        TASK.open("none", None, None)


@pytest.mark.parametrize(
    ("mask", "label", "why"),
    [((6, 4), 0, r"shape \(4, 6\), got \(6, 4\)"), ((4, 6), 80, "0 to 79, got 80")],
)
def test_wrong_instances_say_why(mask, label, why):
    objects = {"mask": [np.ones((*mask, 1), np.uint8)], "label": [label]}
    example = {"image": np.zeros((4, 6, 3), np.uint8), "objects": objects}
    split = scenes.Scenes("set", [example], scenes._instances, 21)
    with pytest.raises(ValueError, match=f"set: example 0: expected .*{why}"):
        split[0]


def test_a_panoptic_label_that_there_is_not():
    image = np.zeros((4, 6, 3), np.uint8)
    objects = {"id": [0], "label": [133]}
    example = {"image": image, "panoptic_image": image, "panoptic_objects": objects}
    split = scenes.Scenes("set", [example], scenes._panoptic, 21)
    with pytest.raises(ValueError, match="expected labels of 0 to 132, got 133"):
        split[0]


def test_a_missing_set_says_what_to_do(tmp_path):
    with pytest.raises(NotPreparedError, match="camvid(.|\n)*tfds build"):
        TASK.open("camvid", "train", tmp_path)
    with pytest.raises(SystemExit, match="--data-dir: there is no folder"):
        TASK.open("camvid", "train", tmp_path / "missing")


def test_gray_and_deep_images_are_made_colour_of_eight_bits():
    labels = np.full((4, 6), 2, np.uint8)
    gray = np.arange(24, dtype=np.uint8).reshape(4, 6)
    for image in (gray, gray[..., None], gray.astype(np.uint16) * 257):
        example = _scenes(image, labels)[0]
        np.testing.assert_array_equal(example["image"], np.stack([gray] * 3, -1))
        prepared = TASK.prepare(example, size=8)
        shapes = TASK.shapes(NETWORKS["deeplabv3_mnv2_050"])
        assert {k: (x.ndim, x.dtype) for k, x in prepared.items()} == {
            k: (len(x.shape), x.dtype) for k, x in shapes.items()
        }


@pytest.mark.parametrize(
    ("name", "counts", "classes"),
    [("camvid", (367, 101), 11), ("coco/2017_panoptic", (100, 100), 21)],
)
def test_reads_scenes_without_tensorflow(name, counts, classes):
    folder = shared("tfds")
    splits = [TASK.open(name, split, folder) for split in ("train", None)]
    assert tuple(map(len, splits)) == counts
    assert {split.classes for split in splits} == {classes}
    labels = np.concatenate([splits[1][i]["labels"].reshape(-1) for i in range(10)])
    assert np.mean(labels == scenes.UNLABELLED) < 0.2
    assert len(np.unique(labels)) > 5


def test_pictures_have_the_colours_of_pascal_voc():
    image = np.full((1, 2, 3), 100, np.uint8)
    logits = np.zeros((1, 2, 21), np.float32)
    logits[0, 1, 15] = 1
    picture = TASK.draw(logits, {"image": image})
    np.testing.assert_array_equal(picture, [[[100, 100, 100], [146, 114, 114]]])


def test_scores_of_coco():
    network = NETWORKS["deeplabv3_mnv2_050"]
    model = load_network(network, shared("models/deeplabv3_mnv2_050.safetensors"))
    split = TASK.open("coco/2017_panoptic", None, shared("tfds"))
    predict = nnx.jit(lambda m, x: m(network.inputs({"image": x})))
    rows, matrix = [], np.zeros((21, 21), np.int64)
    for start in range(0, 100, 20):
        examples = [
            TASK.prepare(split[start + i], size=network.size) for i in range(20)
        ]
        logits = predict(model, np.stack([x["image"] for x in examples]))
        labels = np.stack([x["labels"] for x in examples])
        rows.append(_rows(logits, labels))
        valid = labels != scenes.UNLABELLED
        matrix += sklearn.metrics.confusion_matrix(
            labels[valid], np.argmax(logits, -1)[valid], labels=np.arange(21)
        )
    found = TASK.score(np.concatenate(rows))
    assert len(split) == 100
    assert found["miou"] == pytest.approx(0.360, abs=0.001)
    assert found["pixels"] == pytest.approx(0.8416, abs=0.001)
    both = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    there = matrix.any(1)
    plain = np.mean(np.diag(matrix)[there] / both[there])
    assert found["miou"] == pytest.approx(plain, abs=1e-6)
    assert found["pixels"] == pytest.approx(np.trace(matrix) / matrix.sum(), abs=1e-6)


class _Pixels(nnx.Module):
    def __init__(self, classes, rngs):
        self.hidden = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.logits = nnx.Conv(16, classes, (1, 1), rngs=rngs)

    def __call__(self, images):
        return self.logits(nnx.relu(self.hidden(images)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Halves(Segmentation):
    def open(self, name, split, data_dir):
        del data_dir
        rng = np.random.default_rng(0)
        examples = []
        for _ in range(8):
            labels = np.repeat(rng.integers(0, 2, (1, 8)), 8, 0).astype(np.uint8)
            image = 200 * np.stack([labels] * 3, -1)
            labels[0] = scenes.UNLABELLED
            examples.append({"image": image, "labels": labels})
        return Split(f"{name} {split}", examples, 2)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("distill", [False, True], ids=["labels", "distilled"])
def test_a_compressed_network_is_tuned_and_scored(distill, tmp_path):
    network = ImageNetwork(name="pixels", make=_Pixels, size=8, classes=2)
    augmentation = SceneAugmentation(scale=(0.8, 1.5), flip=True)
    experiment = Experiment(
        task=_Halves(augmentation=augmentation),
        network=network,
        data=Data(name="halves", validation="validation"),
        optimization=Optimization(epochs=40, batch=4, rate=0.03, codebook_rate=0.03),
        weights=tiny.weights(tmp_path, network),
        compression=Compression(
            rules=(ssvq.Rule("hidden/kernel", ssvq.SSVQ(4, 3)),),
            calibration=Calibration(),
        ),
        distill=distill,
    )
    result = tiny.execute(experiment, tmp_path / "run", devices=2)
    losses = tiny.losses(tmp_path / "run")
    assert result["steps"] == 80 and np.mean(losses[-8:]) < np.mean(losses[:8])
    if not distill:  # a random network has nothing to teach
        assert result["test"]["miou"] > max(0.9, result["before"]["miou"])
        assert result["validation"]["pixels"] > 0.9
    assert (tmp_path / "run" / "model.ssvq.safetensors").exists()


def test_pictures_of_image_files(tmp_path):
    gray = np.arange(48, dtype=np.uint8).reshape(6, 8)
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    whole = Image.fromarray(gray.astype(np.int32) * 257)
    whole.save(tmp_path / "whole.tiff")
    read = pictures.read(tmp_path / "whole.tiff")
    np.testing.assert_array_equal(read, np.repeat(gray[..., None], 3, 2))
    Image.fromarray(gray.astype(np.int32) * 65_537).save(tmp_path / "wide.tiff")
    with pytest.raises(SystemExit, match="expected 8 or 16 bits"):
        pictures.read(tmp_path / "wide.tiff")
    Image.fromarray(gray.astype(np.float32) / 48).save(tmp_path / "shares.tiff")
    with pytest.raises(SystemExit, match="got floats"):
        pictures.read(tmp_path / "shares.tiff")
    files = tuple(tmp_path / f"{name}.png" for name in ("gray", "deep", "clear"))
    Image.fromarray(gray).save(files[0])
    deep.save(files[1])
    Image.fromarray(gray).convert("RGBA").save(files[2])
    name = "deeplabv3_mnv2_050"
    network = NETWORKS[name].with_classes(11)
    weights = pathlib.Path(tiny.weights(tmp_path, network))
    options = evaluate.Options(
        name,
        weights,
        task="segmentation",
        show=tmp_path / "pictures",
        beside=weights,
        images=files,
        classes=11,
    )
    assert evaluate.main(options) == 0
    found = [pictures.read(tmp_path / f"pictures/{index}.png") for index in range(3)]
    assert found[0].shape == (257, 3 * 257, 3)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[0][:, 257:514], found[0][:, 514:])
    for changes, why in (
        ({"task": "classification"}, "classification draws no pictures"),
        ({"images": (weights,)}, "--images: .*cannot identify"),
        ({"show": None}, "expected --show DIR"),
        ({"images": (), "beside": None}, "--classes: expected a number above 0, and"),
        ({"classes": 0}, "--classes: expected a number above 0"),
        ({"classes": None}, "expected shape"),
    ):
        with pytest.raises(SystemExit, match=why):
            evaluate.main(dataclasses.replace(options, **changes))


def test_cityscapes_has_the_classes_that_are_evaluated():
    with tfds.testing.mock_data(num_examples=2):
        split = scenes.open_split("cityscapes/semantic_segmentation", "train")
        labels = split[0]["labels"]
    assert split.classes == 19 and split[1]["image"].shape == (1024, 2048, 3)
    assert set(np.unique(labels)) == {*range(19), scenes.UNLABELLED}
    ids = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    (found,) = scenes._cityscapes({"segmentation_label": ids})
    assert found[[7, 8, 33]].tolist() == [0, 1, 18] and found[34] == found[0] == 255
