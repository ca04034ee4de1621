"""Instance masks: what is learned, drawn and scored, against plain NumPy."""

import contextlib
import dataclasses
import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as run_length
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import ssvq_jax as ssvq
from experiments.data import coco
from experiments.data.batches import Split
from experiments.measurements import masks as unlearned
from experiments.models import checkpoint, yolact
from experiments.models.yolact import Masked
from experiments.models.zoo import NETWORKS
from experiments.tasks import Detection, InstanceSegmentation, boxes
from experiments.tasks.detection import Detections
from experiments.tasks.instances import Instances
from experiments.training.config import Compression, Data, Experiment, Optimization
from tests.experiments import tiny
from tests.experiments.test_detection import _batch, _entropy, _example
from tests.experiments.test_detection import _rows as found_boxes
from tests.shared import shared

pytestmark = pytest.mark.usefixtures("standard_promotion", "unchecked_types")

TASK = InstanceSegmentation(targets=4, canvas=96)


def _drawn(objects=2, *, size=(48, 64), seed=0, **changes):
    """Objects that fill an ellipse in their boxes."""
    example = _example(objects, size=size, seed=seed)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    masks = [
        ((x - (b[0] + b[2]) / 2) / (b[2] - b[0])) ** 2
        + ((y - (b[1] + b[3]) / 2) / (b[3] - b[1])) ** 2
        < 0.25
        for b in example["boxes"]
    ]
    masks = np.array(masks, bool).reshape(-1, *size)
    return {**example, "masks": masks, **changes}


def _outputs(rng, images, size=64, classes=3):
    n, cells = len(boxes.locations(size)), size // 4
    return Masked(
        rng.normal(size=(images, n, 5 + classes)).astype("f4"),
        rng.uniform(-1, 1, (images, n, 16)).astype("f4"),
        np.maximum(rng.normal(size=(images, cells, cells, 16)), 0).astype("f4"),
    )


def test_loss_is_that_of_plain_numpy(rng):
    batch = _batch(TASK, _drawn(2), _drawn(0), _drawn(3, seed=1))
    outputs = _outputs(rng, 3)
    _, _, assigned = TASK._assigned(outputs.found, batch)
    masks = np.unpackbits(batch["masks"], axis=-1)
    total, count = 0.0, 0
    for i in range(3):
        for place in np.nonzero(np.asarray(assigned.taken[i]))[0]:
            target = int(assigned.target[i, place])
            cells = masks[i, target, :64, :64].reshape(16, 4, 16, 4).mean((1, 3))
            logits = outputs.prototypes[i] @ outputs.coefficients[i, place]
            left, top, right, bottom = batch["boxes"][i, target]
            inside = np.zeros((16, 16), bool)
            for y in range(16):
                for x in range(16):
                    inside[y, x] = 4 * y + 4 > top and 4 * y < bottom
                    inside[y, x] &= 4 * x + 4 > left and 4 * x < right
            share = 1 / (1 + np.exp(-logits[inside]))
            wanted = cells[inside]
            dice = (2 * (share * wanted).sum() + 1) / (share.sum() + wanted.sum() + 1)
            total += _entropy(logits[inside], wanted).mean() + 1 - dice
            count += 1
    assert count > 3
    own = jax.jit(TASK.loss)(outputs, batch)
    plain = super(InstanceSegmentation, TASK).loss(outputs.found, batch)
    np.testing.assert_allclose(own - plain, total / count, rtol=1e-4)


def test_another_network_is_matched_best_by_itself(rng):
    target, other = _outputs(rng, 2), _outputs(rng, 2)
    match = jax.jit(TASK.match)
    mixed = jax.tree.map(lambda x, y: 0.9 * x + 0.1 * y, target, other)
    nothing = target._replace(found=target.found - 200)
    assert match(target, nothing) < 1000 and match(nothing, nothing) < 1e-6
    assert match(target, target) < match(mixed, target)
    total, mass = 0.0, 0.0
    for i, scores in enumerate(target.found[..., 4]):
        for place in np.argsort(-scores)[:50]:
            logits, wanted = (
                x.prototypes[i] @ x.coefficients[i, place] for x in (other, target)
            )
            weight = 1 / (1 + np.exp(-scores[place]))
            total += weight * _entropy(logits, 1 / (1 + np.exp(-wanted))).mean()
            mass += weight
    plain = super(InstanceSegmentation, TASK).match(other.found, target.found)
    np.testing.assert_allclose(match(other, target) - plain, total / mass, rtol=1e-4)
    gradient = jax.grad(TASK.match)(jax.tree.map(jnp.asarray, target), target)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 64), (90, 40), (64, 64), (1, 96)])
def test_masks_are_drawn_in_pixels_of_the_image(size, rng):
    example = _drawn(1, size=size, boxes=np.float32([[3, 0, size[1], size[0] - 0.6]]))
    batch = _batch(TASK, example)
    outputs = _outputs(rng, 1)
    rows = jax.jit(TASK.judge)(outputs, batch)
    kept, found = TASK._best(outputs.found, batch)
    drawn = np.unpackbits(rows.masks[0], axis=-1).astype(bool)
    np.testing.assert_array_equal(
        np.unpackbits(rows.truth[0, 0], axis=-1)[: size[0], : size[1]],
        example["masks"][0],
    )
    scale = 64 / max(size)
    for index in range(0, 100, 23):
        low = outputs.prototypes[0] @ outputs.coefficients[0, max(kept[0, index], 0)]
        left, top, right, bottom = np.asarray(found.boxes[0, index])
        expected = np.zeros((96, 96))
        for y in range(96):
            for x in range(96):
                if not (left < x + 0.5 < right and top < y + 0.5 < bottom):
                    continue
                at = [np.clip((v + 0.5) * scale / 4 - 0.5, 0, 15) for v in (y, x)]
                (i, p), (j, q) = ((int(v), v - int(v)) for v in at)
                expected[y, x] = sum(
                    w * low[min(i + a, 15), min(j + b, 15)]
                    for a, b, w in (
                        (0, 0, (1 - p) * (1 - q)),
                        (0, 1, (1 - p) * q),
                        (1, 0, p * (1 - q)),
                        (1, 1, p * q),
                    )
                )
        sure = np.abs(expected) > 1e-4
        np.testing.assert_array_equal(drawn[index][sure], expected[sure] > 0)
        assert not drawn[index][expected == 0].any()


def _rows(seed, images=5):
    """Masks of rectangles: as detections, and as objects, beside them."""
    found: Detections = found_boxes(seed, images=images)

    def masks(all_boxes):
        y, x = np.mgrid[:96, :96] + 0.5
        left, top, right, bottom = np.moveaxis(all_boxes, -1, 0)[..., None, None]
        filled = (x > left) & (x < right) & (y > top) & (y < bottom)
        return np.packbits(filled & ((x + y) % 7 > 1), axis=-1)

    return Instances(found, masks(found.boxes), masks(found.truth))


def _plain(rows):
    """As pycocotools' page says, one mask after the other."""

    def listed(masks, labels, **values):
        return [
            {
                "image_id": int(i) + 1,
                "category_id": int(labels[i, j]) + 1,
                "segmentation": run_length.encode(
                    np.asfortranarray(np.unpackbits(masks[i, j], axis=-1))
                ),
                **{name: x[i, j].item() for name, x in values.items()},
            }
            for i, j in zip(*np.nonzero(labels >= 0), strict=True)
        ]

    boxes = rows.boxes
    truth = listed(rows.truth, boxes.labels, iscrowd=1 * boxes.crowd, area=boxes.area)
    truth = [{**x, "id": i + 1} for i, x in enumerate(truth)]
    with contextlib.redirect_stdout(io.StringIO()):
        whole = COCO()
        images = range(1, len(boxes.labels) + 1)
        whole.dataset = {
            "info": {},
            "images": [{"id": i, "height": 96, "width": 96} for i in images],
            "categories": [{"id": i + 1} for i in range(80)],
            "annotations": truth,
        }
        whole.createIndex()
        own = whole.loadRes(listed(rows.masks, boxes.classes, score=boxes.scores))
        judge = COCOeval(whole, own, "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats[:6]


@settings(max_examples=5)
@given(st.integers(0, 10**6))
def test_scores_are_those_of_pycocotools(seed):
    rows = _rows(seed)
    scores = TASK.score(rows)
    assert [*scores][-1] == "box_ap" and TASK.each(rows).shape == (5,)
    np.testing.assert_allclose([*scores.values()][:6], _plain(rows), atol=1e-6)


def test_nothing_found():
    rows = _rows(0)
    classes = np.full_like(rows.boxes.classes, -1)
    assert (
        TASK.score(rows._replace(boxes=rows.boxes._replace(classes=classes)))["ap"] == 0
    )


@pytest.mark.parametrize("name", unlearned.SHAPES)
def test_shapes_that_nothing_has_to_learn(name):
    found = np.float32([[[3, 4, 20, 9.6], [0, 0, 0, 0], [-4, 2, 40, 40]]])
    packed = unlearned.drawn(found, unlearned.SHAPES[name], 32)
    assert packed.shape == (1, 3, 32, 4)
    for box, mask in zip(found[0], np.unpackbits(packed[0], axis=-1), strict=True):
        left, top, right, bottom = box
        for y in range(32):
            for x in range(32):
                inside = left < x + 0.5 < right and top < y + 0.5 < bottom
                if inside and name == "ellipses":
                    across = (x + 0.5 - (left + right) / 2) / (right - left)
                    down = (y + 0.5 - (top + bottom) / 2) / (bottom - top)
                    inside = across**2 + down**2 < 0.25
                assert mask[y, x] == inside


def test_augmented_masks_stay_in_their_boxes():
    task = dataclasses.replace(TASK, flip=True, zoom=(0.5, 1.4))
    example = _drawn(2, size=(60, 80), seed=3)
    rng, sides = np.random.default_rng(0), set()
    for _ in range(20):
        x = task.prepare(example, rng, size=64)
        masks = np.unpackbits(x["masks"], axis=-1)
        assert x["image"].shape == (64, 64, 3) and masks.shape == (4, 96, 96)
        for mask, box in zip(masks[:2], x["boxes"], strict=False):
            rows, columns = np.nonzero(mask)
            if len(rows):
                edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                inner = np.array([*box[:2] - 1.6, *-box[2:] - 1.6])
                assert np.all(np.array([*edges[:2], *(-x for x in edges[2:])]) > inner)
                sides.add(len(rows))
        assert not masks[2:].any()
    assert len(sides) > 5


def test_what_cannot_be_learned_says_why():
    expected = r"masks: expected bool \(2, 48, 64\), got"
    for changes, message in (
        ({"masks": np.zeros((2, 48, 63), bool)}, expected),
        ({"masks": np.zeros((1, 48, 64), bool)}, expected),
        ({"masks": np.zeros((2, 48, 64), np.uint8)}, expected),
        ({"image": np.zeros((48, 97, 3), np.uint8)}, "97 pixels, expected at most 96"),
    ):
        with pytest.raises(ValueError, match=f"image 7: {message}"):
            TASK.prepare(_drawn(2, **changes), size=64)
    with pytest.raises(SystemExit, match="canvas: expected at least .* 128 pixels"):
        TASK.prepare(_drawn(2), size=128)
    with pytest.raises(SystemExit, match="a network with masks"):
        TASK.judge(np.zeros((1, 84, 8)), {})
    for canvas in (0, -8, 100):
        with pytest.raises(ValueError, match="canvas: expected a multiple of 8"):
            InstanceSegmentation(canvas=canvas)
    wrong = np.zeros((5, 4, 1), np.uint8)
    source = {
        "image": np.zeros((4, 4, 3), np.uint8),
        "image/id": 3,
        "objects": {"bbox": [[0, 0, 1, 1]], "label": [1], "is_crowd": [False]}
        | {"mask": [wrong]},
    }
    expected = r"image 3: mask: expected the image's \(4, 4\)"
    for masks in (True, False):  # areas are those of the masks
        with pytest.raises(ValueError, match=expected):
            coco._objects(source, masks=masks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ellipses(InstanceSegmentation):
    def open(self, name, split, data_dir):
        del data_dir
        return Split(f"{name} {split}", [_drawn(seed=i) for i in range(4)], 80)


def test_a_compressed_network_is_tuned_and_scored(tmp_path):
    network = dataclasses.replace(NETWORKS["yolox_nano_masks"], size=64)
    experiment = Experiment(
        task=_Ellipses(targets=3, canvas=64, flip=True),
        network=network,
        data=Data(name="ellipses", test="test"),
        # What is held takes no time to compile.
        optimization=Optimization(epochs=1, batch=2, held="(backbone|head)/.*"),
        weights=tiny.weights(tmp_path, network),
        compression=Compression(
            rules=(ssvq.Rule("mask_head/.*_convs.*/kernel", ssvq.SSVQ(2, 2)),)
        ),
    )
    result = tiny.execute(experiment, tmp_path / "run")
    assert result["steps"] == 2 and np.isfinite(tiny.losses(tmp_path / "run")).all()
    assert result["test"].keys() >= {"ap", "box_ap"}
    tiny.pictures_beside(experiment, tmp_path / "run", _drawn())


def test_masks_leave_detections_as_they_are(tmp_path):
    weights = shared("models/yolox_nano.safetensors")
    masked = tmp_path / "masked.safetensors"
    yolact.main(yolact.Options(pathlib.Path(weights), masked))
    found, outputs = [], None
    for name, path in (("yolox_nano", weights), ("yolox_nano_masks", masked)):
        model = NETWORKS[name].build(nnx.Rngs(0))
        checkpoint.load(model, path)
        model.eval()
        outputs = nnx.jit(lambda model, x: model(x))(
            model, jnp.full((1, 64, 64, 3), 9.0)
        )
        found.append(getattr(outputs, "found", outputs))
    np.testing.assert_allclose(*found, atol=1e-5)
    assert (
        outputs.prototypes.shape == (1, 16, 16, 16) and (outputs.prototypes >= 0).all()
    )
    one = jax.tree.map(lambda x: np.array(x)[0], outputs)
    one.found[:3, 4:8] = 9  # something to see
    drawn = TASK.draw(one, TASK.prepare(_drawn(2), size=64))
    assert drawn.shape == (64, 64, 3) and drawn.dtype == np.uint8
    # An image of a user's, larger than the canvas.
    image = np.random.default_rng(0).integers(0, 256, (90, 200, 3), np.uint8)
    prepared = TASK.prepare(TASK.blank(image), size=64)
    assert prepared["sides"].tolist() == [96, 43]
    assert not np.array_equal(TASK.draw(one, prepared), prepared["image"])
    plain = Detection()
    prepared = plain.prepare(plain.blank(image), size=64)
    assert not np.array_equal(plain.draw(one.found, prepared), prepared["image"])
