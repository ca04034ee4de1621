"""DeepLab against what is known of its checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from flax import nnx
from PIL import Image

from experiments.models import deeplab
from experiments.models.checkpoint import load_network
from experiments.models.zoo import NETWORKS
from tests.shared import shared

pytestmark = pytest.mark.usefixtures("standard_promotion")

NETWORK = NETWORKS["deeplabv3_mnv2_050"]
# Classes of Pascal VOC and their shares of the pixels.
_PHOTOS = {
    "astronaut": {15: 0.469, 0: 0.531},
    "chelsea": {8: 0.96},
    "coffee": {11: 1.00},
    "flower": {16: 0.399},
    "rocket": {0: 0.997},
}


def _centre(image, size):
    height, width = image.shape[:2]
    scale = size / min(height, width)
    picture = Image.fromarray(image).resize(
        (round(scale * width), round(scale * height)), Image.Resampling.BICUBIC
    )
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def test_shares_of_the_pixels_of_photos():
    model = load_network(NETWORK, shared("models/deeplabv3_mnv2_050.safetensors"))
    photos = [
        sklearn.datasets.load_sample_image("flower.jpg")
        if name == "flower"
        else getattr(skimage.data, name)()
        for name in _PHOTOS
    ]
    images = np.stack([_centre(photo, NETWORK.size) for photo in photos])
    logits = nnx.jit(lambda m, x: m(NETWORK.inputs({"image": x})))(model, images)
    classes = np.asarray(jnp.argmax(logits, -1))
    for (name, shares), found in zip(_PHOTOS.items(), classes, strict=True):
        for label, share in shares.items():
            assert np.mean(found == label) == pytest.approx(share, abs=0.01), name


def test_strides_beyond_the_output_stride_are_dilations():
    expected = {8: (33, {1: 7, 2: 7, 4: 3}), 16: (17, {1: 14, 2: 3}), 32: (9, {1: 17})}
    for stride, (side, counts) in expected.items():
        config = deeplab.DeepLabConfig(width=0.25, output_stride=stride)
        model = nnx.eval_shape(
            lambda config=config: deeplab.DeepLab(config, 3, rngs=nnx.Rngs(0))
        )
        dilations = [b.conv_dw.dilation for stage in model.blocks for b in stage]
        found = {d: dilations.count(d) for d in set(dilations)}
        assert found == counts
        image = jax.ShapeDtypeStruct((2, 257, 257, 3), jnp.float32)
        features = nnx.eval_shape(lambda m, x: m.features(x), model, image)
        assert features[-1].shape == (2, side, side, 256)
        assert nnx.eval_shape(lambda m, x: m(x), model, image).shape == (2, 257, 257, 3)


@pytest.mark.parametrize(("side", "size"), [(1, 5), (3, 3), (3, 7), (4, 2)])
def test_resizing_is_linear_between_the_corners(side, size, rng):
    image = rng.normal(size=(2, side, side, 3)).astype("f4")
    places = np.linspace(0, side - 1, size)
    rows = np.apply_along_axis(lambda x: np.interp(places, range(side), x), 1, image)
    both = np.apply_along_axis(lambda x: np.interp(places, range(side), x), 2, rows)
    np.testing.assert_allclose(deeplab.resize(image, size), both, atol=1e-5)
