"""The networks against what is known of their checkpoints."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from flax import nnx
from safetensors.numpy import load_file, save_file

from experiments import data, evaluate, unfold
from experiments.models import depthwise, mobile
from experiments.models.checkpoint import load, save
from experiments.models.deit import DeiT, DeiTConfig
from experiments.models.zoo import NETWORKS, crop
from tests.shared import shared

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_every_network_can_be_evaluated():
    assert set(typing.get_args(evaluate.Name)) == set(NETWORKS)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("side", [1, 7, 8])
@pytest.mark.parametrize("padding", ["SAME", "symmetric"])
def test_shifted_products_are_the_grouped_convolution(stride, size, side, padding, rng):
    x = jnp.asarray(rng.normal(size=(2, side, side + 1, 6)), "f4")
    kernel = jnp.asarray(rng.normal(size=(size, size, 1, 6)), "f4")
    pads = depthwise.pads_of((side, side + 1), size, stride, padding)
    grouped, of_grouped = jax.vjp(
        lambda *args: depthwise._grouped(*args, stride, pads), x, kernel
    )
    shifted, of_shifted = jax.vjp(
        lambda *args: depthwise._shifted_products(*args, stride, pads), x, kernel
    )
    np.testing.assert_allclose(shifted, grouped, atol=1e-5)
    gradient = jnp.asarray(rng.normal(size=grouped.shape), "f4")
    for ours, theirs in zip(of_shifted(gradient), of_grouped(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def _probabilities(name, image):
    network = NETWORKS[name]
    model = evaluate.load(network, shared(f"models/{name}.safetensors"))
    images = network.normalize(jnp.asarray(crop(image, network.size)[None]))
    return np.asarray(jax.nn.softmax(nnx.jit(lambda m, x: m(x))(model, images))[0])


@pytest.mark.parametrize(
    ("name", "china", "flower"),
    [
        ("efficientnet_lite0", (698, 0.315), (985, 0.364)),
        ("mobilenet_v2_100", (698, 0.518), (599, 0.951)),
        ("mobilenet_v1_025", (449, 0.306), None),
    ],
)
def test_probabilities_of_photos(name, china, flower):
    for file, expected in (("china.jpg", china), ("flower.jpg", flower)):
        if expected is None:
            continue
        label, probability = expected
        found = _probabilities(name, sklearn.datasets.load_sample_image(file))
        assert np.argmax(found) == label
        assert found[label] == pytest.approx(probability, abs=0.02)


def test_accuracy_of_the_smallest_network():
    """The other two are run by hand: experiments/evaluate.py."""
    options = evaluate.Options(
        "mobilenet_v1_025",
        shared("models/mobilenet_v1_025.safetensors"),
        data_dir=shared("tfds"),
    )
    network = NETWORKS[options.network]
    model = evaluate.load(network, options.weights)
    split = data.open_split(options.dataset, "validation", options.data_dir)
    found = evaluate.evaluate(model, network, split, options.batch, quiet=True)
    counts = found.counts()
    assert abs(counts["top1"] - 548) <= 3 and abs(counts["top5"] - 796) <= 3
    assert counts["loss"] == pytest.approx(1.861, abs=0.01)


def test_deit_on_some_of_cifar10(capsys):
    options = evaluate.Options(
        "deit_tiny_cifar10",
        shared("models/deit_tiny_cifar10.safetensors"),
        dataset="cifar10",
        split="test[:1010]",
        data_dir=shared("tfds"),
        batch=100,
    )
    assert evaluate.main(options) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "1010 images of cifar10" in output
    share = float(output.split("(")[1].split("%")[0])
    assert abs(share - 64.0) < 4.5  # three standard deviations of 1,010 images


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("efficientnet_lite0", 4_652_008),
        ("efficientnet_lite1", 5_416_680),
        ("efficientnet_lite2", 6_092_072),
        ("mobilenet_v2_100", 3_487_816),
        ("mobilenetv2_100", 3_504_872),
        ("mobilenet_v1_025", 467_336),
        ("deit_tiny_cifar10", 5_381_194),
        ("deit_tiny", 5_717_416),
        ("deit_small", 22_050_664),
        ("deit_base", 86_567_656),
    ],
)
def test_number_of_parameters(name, count):
    model = nnx.eval_shape(lambda: NETWORKS[name].build(nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == count


def test_checkpoints_of_other_networks_are_refused(tmp_path):
    tensors = load_file(shared("models/mobilenet_v1_025.safetensors"))
    model = NETWORKS["mobilenet_v1_025"].build(nnx.Rngs(0))
    path = tmp_path / "x.safetensors"
    renamed = {n.replace("Conv2d_3", "conv_3"): x for n, x in tensors.items()}
    save_file(renamed, path)
    with pytest.raises(ValueError, match="Conv2d_3_depthwise.bias is missing.*unknown"):
        load(model, path)
    tensors["classifier.weight"] = np.ascontiguousarray(tensors["classifier.weight"].T)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="classifier.weight: expected shape"):
        load(model, path)


def test_patches_tokens_and_heads():
    config = DeiTConfig(width=12, depth=2, heads=3, size=8, patch=4, classes=5)
    model = DeiT(config, rngs=nnx.Rngs(0))
    assert model.pos_embed.shape == (1, 5, 12)
    assert model(jnp.ones((2, 8, 8, 3))).shape == (2, 5)


def test_unfolded_batch_norms_change_nothing(tmp_path, rng):
    stages = (mobile.Stage(1, 3, 1, 1, 8), mobile.Stage(1, 3, 2, 6, 12))
    architecture = mobile.Architecture(stages, 16, batch_norm=None)
    folded = mobile.InvertedResidualNet(architecture, 5, rngs=nnx.Rngs(0))
    for path, value in nnx.to_flat_state(nnx.state(folded, nnx.Param)):
        if path[-1] == "bias":
            value[...] = jnp.asarray(rng.normal(size=value.shape), "f4")
    assert jnp.all(folded.conv_stem.bias[...] != 0)
    folded.conv_stem.kernel[..., 3] = 0
    images = jnp.asarray(rng.normal(size=(8, 16, 16, 3)), "f4")
    save(
        tmp_path / "unfolded.safetensors",
        *unfold.unfold(folded, [images[:4], images[4:]], epsilon=1e-2),
    )
    architecture = dataclasses.replace(architecture, batch_norm=1e-2)
    unfolded = mobile.InvertedResidualNet(architecture, 5, rngs=nnx.Rngs(1))
    load(unfolded, tmp_path / "unfolded.safetensors")

    stem = np.asarray(folded.conv_stem(images))
    np.testing.assert_allclose(
        unfolded.bn1.bias[...], stem.mean(axis=(0, 1, 2)), atol=1e-5
    )
    kernel = np.asarray(unfolded.blocks[1][0].conv_pw.kernel)
    norms = np.sqrt(np.sum(kernel**2, axis=(0, 1, 2)))
    np.testing.assert_allclose(norms, norms.mean(), rtol=1e-5)
    expected = folded(images)
    unfolded.eval()
    np.testing.assert_allclose(unfolded(images), expected, atol=1e-4)
    unfolded.train()  # by moments of the same images
    np.testing.assert_allclose(unfolded(images), expected, atol=1e-4)
