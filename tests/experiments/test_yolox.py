"""YOLOX against what is known of its checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from flax import nnx

from experiments.data.pixels import letterbox
from experiments.models.checkpoint import load_network
from experiments.models.zoo import NETWORKS
from experiments.tasks.boxes import decode, locations
from tests.shared import shared

pytestmark = pytest.mark.usefixtures("standard_promotion")

# Photo, class, score and box, as they came with the checkpoint.
_FOUND = (
    ("astronaut", 0, 0.93, (11, 19, 368, 507)),
    ("coffee", 41, 0.90, (162, 15, 422, 293)),
    ("coffee", 60, 0.73, None),
    ("chelsea", 15, 0.62, None),
)


def test_boxes_and_scores_of_photos():
    network = NETWORKS["yolox_nano"]
    model = load_network(network, shared("models/yolox_nano.safetensors"))
    photos = {
        name: getattr(skimage.data, name)()
        for name in ("astronaut", "coffee", "chelsea", "rocket")
    }
    photos["china"] = sklearn.datasets.load_sample_image("china.jpg")
    squares, scales = zip(
        *(letterbox(photo, network.size) for photo in photos.values()), strict=True
    )
    images = {"image": np.stack(squares)}
    outputs = nnx.jit(lambda m, x: m(network.inputs(x)))(model, images)
    assert outputs.shape == (5, 3549, 85)
    boxes = np.asarray(decode(outputs, locations(network.size)))
    shares = np.asarray(jax.nn.sigmoid(outputs[..., 4:]))
    scores = shares[..., :1] * shares[..., 1:]
    for name, label, score, box in _FOUND:
        i = list(photos).index(name)
        best = np.argmax(scores[i, :, label])
        assert scores[i, best, label] == pytest.approx(score, abs=0.01), name
        if box is not None:
            np.testing.assert_allclose(boxes[i, best] / scales[i], box, atol=2)
    assert scores[3:].max() < 0.3


def test_features_lead_to_outputs():
    model = NETWORKS["yolox_nano_unfolded"].with_classes(3).build(nnx.Rngs(0))
    images = jnp.full((1, 64, 64, 3), 114.0)
    *_, last = features = model.features(images)
    assert [x.shape[1] for x in features[:-1]] == [16, 8, 4, 2]
    assert [x.shape for x in last] == [(1, 8, 8, 64), (1, 4, 4, 128), (1, 2, 2, 256)]
    assert model.outputs(last).shape == (1, 84, 8)
