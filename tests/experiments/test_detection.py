"""Detection: losses, scores, and what cannot be learned."""

import contextlib
import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import ssvq_jax as ssvq
from experiments.data.batches import Split
from experiments.models.checkpoint import load_network
from experiments.models.zoo import NETWORKS
from experiments.tasks import Detection, boxes
from experiments.tasks.detection import Detections
from experiments.training import evaluation
from experiments.training.config import Compression, Data, Experiment, Optimization
from tests.experiments import tiny
from tests.experiments.test_boxes import plain_assign, plain_overlap
from tests.shared import shared

pytestmark = pytest.mark.usefixtures("standard_promotion", "unchecked_types")


def _example(objects=2, *, size=(48, 64), seed=0, **changes):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 24, (objects, 2))
    ends = corner + rng.uniform(8, 24, (objects, 2))
    return {
        "image": rng.integers(0, 256, (*size, 3), np.uint8),
        "id": 7,
        "boxes": np.concatenate([corner, ends], 1).astype("f4"),
        "labels": rng.integers(0, 3, objects).astype("i4"),
        "crowd": np.zeros(objects, bool),
        "area": rng.uniform(50, 400, objects).astype("f4"),
        **changes,
    }


def _batch(task, *examples, size=64, rng=None):
    prepared = [task.prepare(x, rng, size=size) for x in examples]
    return {name: np.stack([x[name] for x in prepared]) for name in prepared[0]}


def _outputs(rng, images, classes=3, size=64):
    n = len(boxes.locations(size))
    return rng.normal(size=(images, n, 5 + classes)).astype("f4")


def _entropy(logits, wanted):
    return np.logaddexp(0, logits) - wanted * logits


@pytest.mark.parametrize("exact", [False, True])
def test_loss_is_that_of_plain_numpy(exact, rng):
    task = Detection(targets=5, exact=exact)
    examples = [_example(2), _example(0), _example(3, seed=1)]
    examples[2]["crowd"][1] = True
    batch, outputs = _batch(task, *examples), _outputs(rng, 3)
    places, total, count = boxes.locations(64), 0.0, 0
    found = np.asarray(boxes.decode(outputs, places))
    for i, x in enumerate(examples):
        own = ~x["crowd"]
        total += _entropy(outputs[i, :, 4], 0).sum()
        if not own.any():
            continue
        wanted, labels = x["boxes"][own], x["labels"][own]
        taken = plain_assign(
            found[i], outputs[i, :, 4], outputs[i, :, 5:], wanted, labels, places
        )
        count += len(taken)
        for place, (target, quality) in taken.items():
            box, row = wanted[target], outputs[i, place]
            total += 5 * (1 - plain_overlap(found[i, place], box) ** 2) - row[4]
            goal = quality * (np.arange(3) == labels[target])
            total += _entropy(row[5:], goal).sum()
            if exact:
                column, line, stride = places[place]
                centre = (box[:2] + box[2:]) / 2 / stride - [column, line]
                sides = np.log((box[2:] - box[:2]) / stride)
                total += np.abs(row[:4] - [*centre, *sides]).sum()
    loss = jax.jit(task.loss)(outputs, batch)
    assert loss == pytest.approx(total / count, rel=1e-4)
    gradient = jax.jit(jax.grad(task.loss))(jnp.asarray(1e3 * outputs), batch)
    assert np.all(np.isfinite(gradient))


def test_another_network_is_matched_best_by_itself(rng):
    task = Detection()
    target, other = _outputs(rng, 2), _outputs(rng, 2)
    match = jax.jit(task.match)
    assert match(target, target) < match(0.9 * target + 0.1 * other, target)
    places, total, mass = boxes.locations(64), 0.0, 0.0
    found, wanted = (np.asarray(boxes.decode(x, places)) for x in (other, target))
    chance = 1 / (1 + np.exp(-target))
    for i, j in np.ndindex(target.shape[:2]):
        weight = chance[i, j, 4]
        losses = 5 * (1 - plain_overlap(found[i, j], wanted[i, j]) ** 2)
        losses += _entropy(other[i, j, 5:], chance[i, j, 5:]).sum()
        total += weight * losses + _entropy(other[i, j, 4], weight)
        mass += weight
    assert match(other, target) == pytest.approx(total / mass, rel=1e-4)
    gradient = jax.grad(task.match)(jnp.asarray(target), target)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def _rows(seed, images=6, found=20, objects=5):
    """Detections near objects and elsewhere, some of them in crowds."""
    rng = np.random.default_rng(seed)
    truth = np.stack([_example(objects, seed=seed + i)["boxes"] for i in range(images)])
    owner = rng.integers(0, objects, (images, found))
    near = np.take_along_axis(truth, owner[..., None], 1)
    labels = rng.integers(-1, 4, (images, objects))
    return Detections(
        boxes=(near + rng.normal(0, 2, near.shape)).astype("f4"),
        scores=rng.random((images, found)).astype("f4"),
        classes=np.where(
            rng.random((images, found)) < 0.3,
            rng.integers(-1, 4, (images, found)),
            np.take_along_axis(labels, owner, 1),
        ),
        truth=truth,
        labels=labels,
        crowd=rng.random((images, objects)) < 0.1,
        area=rng.uniform(0, 12_000, (images, objects)).astype("f4"),
    )


def plain_scores(rows, folder):
    """Files as users export them, read and scored as pycocotools' page says."""

    def listed(boxes, labels, **values):
        kept = zip(*np.nonzero(labels >= 0), strict=True)
        return [
            {
                "image_id": int(i) + 1,
                "category_id": int(labels[i, j]) + 1,
                "bbox": [*map(float, b[:2]), float(b[2]) - float(b[0])]
                + [float(b[3]) - float(b[1])],
                **{name: x[i, j].item() for name, x in values.items()},
            }
            for i, j in kept
            for b in [boxes[i, j]]
        ]

    truth = listed(rows.truth, rows.labels, iscrowd=1 * rows.crowd, area=rows.area)
    whole = {
        "info": {},
        "images": [{"id": i + 1} for i in range(len(rows.labels))],
        "categories": [{"id": i + 1} for i in range(80)],
        "annotations": [{**x, "id": i + 1} for i, x in enumerate(truth)],
    }
    found = listed(rows.boxes, rows.classes, score=rows.scores)
    (folder / "truth.json").write_text(json.dumps(whole))
    (folder / "found.json").write_text(json.dumps(found))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        own = coco.loadRes(str(folder / "found.json"))
        judge = COCOeval(coco, own, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats[:6]


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_scores_are_those_of_exported_files(tmp_path_factory, seed):
    rows = _rows(seed)
    expected = plain_scores(rows, tmp_path_factory.mktemp("coco"))
    found = Detection().score(rows)
    assert [*found] == ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
    np.testing.assert_allclose([*found.values()], expected, atol=1e-6)


@pytest.mark.parametrize(("groups", "count"), [(3, 3), (20, 7)])
def test_pseudo_values_are_those_of_images_left_out(groups, count):
    task, rows = Detection(groups=groups), _rows(0, images=7)
    whole, of = task.score(rows)["ap"], np.arange(7) % count
    rest = [
        task.score(jax.tree.map(lambda x, g=g: x[of != g], rows))["ap"]
        for g in range(count)
    ]
    expected = count * whole - (count - 1) * np.array(rest)
    np.testing.assert_allclose(task.each(rows), expected, atol=1e-9)


def test_nothing_found_and_nothing_there():
    rows = _rows(0)
    none = rows._replace(classes=np.full_like(rows.classes, -1))
    assert Detection().score(none)["ap"] == 0
    empty = rows._replace(labels=np.full_like(rows.labels, -1))
    assert Detection().score(empty)["ap"] == -1  # as pycocotools says it
    assert Detection().each(jax.tree.map(lambda x: x[:1], rows)).shape == (1,)


def test_what_is_found_comes_back_in_pixels_of_the_image():
    task, places = Detection(targets=4), boxes.locations(64)
    example = _example(1, size=(96, 128), boxes=np.float32([[40, 30, 120, 110]]))
    batch = _batch(task, example, _example(0))
    outputs = np.full((2, len(places), 8), -20, "f4")
    box = np.broadcast_to(batch["boxes"][0, :1], (len(places), 4))
    outputs[:, :, :4] = boxes.encode(jnp.asarray(box), places)
    outputs[0, [5, 9], 4:6] = [[20, 3], [20, 2]]
    rows = jax.jit(task.judge)(outputs, batch)
    np.testing.assert_allclose(rows.truth[0, 0], [40, 30, 120, 110], rtol=1e-6)
    # One of two goes; what is left ends where the image ends.
    np.testing.assert_allclose(rows.boxes[0, 0], [40, 30, 120, 96], rtol=1e-4)
    assert rows.scores[0, 0] == pytest.approx(1 / (1 + np.exp(-3)), rel=1e-4)
    assert np.all(rows.classes[0, 1:] == -1) and np.all(rows.classes[1] == -1)
    assert rows.scores.shape == (2, 100)


def test_bad_boxes_are_cut_or_not_learned_or_refused():
    task = Detection(targets=4)
    outside = np.float32([[-9, 5, 20, 30], [70, 5, 90, 30], [5, 5, 5, 30]])
    example = _example(3, boxes=outside)
    drawn = _batch(task, example, rng=np.random.default_rng(0))
    np.testing.assert_allclose(drawn["boxes"][0, 0], [0, 5, 20, 30])
    scored = _batch(task, example)
    np.testing.assert_allclose(scored["boxes"][0, :3], outside)
    # Only the first is learned, alone or not.
    alone = dict(drawn, labels=np.where(np.arange(4) < 1, drawn["labels"], -1))
    outputs = _outputs(np.random.default_rng(1), 1)
    assert task.loss(outputs, drawn) == task.loss(outputs, alone)
    for changes, message in (
        ({"boxes": outside * np.nan}, "image 7: boxes: expected finite"),
        ({"image": np.zeros((9, 9, 3), "u2")}, "image 7: image: expected uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            task.prepare({**example, **changes}, size=64)
    with pytest.raises(ValueError, match="image 7: 5 objects, expected at most 4"):
        task.prepare(_example(5), size=64)


def test_gray_images_are_like_those_of_equal_colours():
    gray = np.random.default_rng(0).integers(0, 256, (48, 64, 1), np.uint8)
    one, three = (
        Detection().prepare(_example(image=image), size=32)["image"]
        for image in (gray, np.repeat(gray, 3, 2))
    )
    np.testing.assert_array_equal(one, three)


def test_augmented_boxes_stay_on_their_objects():
    task = Detection(targets=2, flip=True, zoom=(0.5, 1.5))
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:40, 10:50] = 255
    example = _example(1, image=image, boxes=np.float32([[10, 20, 50, 40]]))
    rng, sides = np.random.default_rng(0), set()
    for _ in range(20):
        x = task.prepare(example, rng, size=64)
        assert x["image"].shape == (64, 64, 3)
        rows, columns = np.nonzero(np.all(x["image"] > 180, axis=-1))
        if len(rows):
            edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_allclose(x["boxes"][0], edges, atol=1.1)
            sides.add(len(rows))
    assert len(sides) > 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Squares(Detection):
    def open(self, name, split, data_dir):
        del data_dir
        return Split(f"{name} {split}", [_example(seed=i) for i in range(4)], 80)


def test_a_compressed_network_is_tuned_and_scored(tmp_path):
    network = dataclasses.replace(NETWORKS["yolox_nano"], size=64)
    experiment = Experiment(
        task=_Squares(targets=3, flip=True),
        network=network,
        data=Data(name="squares", test="test"),
        optimization=Optimization(epochs=1, batch=2, features=1.0),
        weights=tiny.weights(tmp_path, network),
        compression=Compression(
            rules=(ssvq.Rule("backbone/C3_.*/kernel", ssvq.SSVQ(4, 8)),)
        ),
        distill=True,
    )
    result = tiny.execute(experiment, tmp_path / "run", devices=2)
    assert result["steps"] == 2 and np.isfinite(tiny.losses(tmp_path / "run")).all()
    assert result["test"].keys() >= {"ap", "ap50", "ap75"}
    tiny.pictures_beside(experiment, tmp_path / "run", _example())


@pytest.mark.parametrize(
    ("name", "images", "ap", "ap50"),
    [("2017_panoptic", 100, 0.364, 0.533), ("2017_instances", 77, 0.306, 0.474)],
)
def test_average_precision_on_coco(name, images, ap, ap50, tmp_path):
    task, network = Detection(), NETWORKS["yolox_nano"]
    split = task.open(f"coco/{name}", None, shared("tfds"))
    model = load_network(network, shared("models/yolox_nano.safetensors"))
    rows = evaluation.judged(model, network, task, split, batch=25, quiet=True)
    found = task.score(rows)
    assert len(split) == images
    assert found["ap"] == pytest.approx(ap, abs=0.001)
    assert found["ap50"] == pytest.approx(ap50, abs=0.002)
    expected = plain_scores(rows, tmp_path)
    np.testing.assert_allclose([*found.values()], expected, atol=1e-6)
