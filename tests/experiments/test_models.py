"""The networks against what is known of their checkpoints."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from flax import nnx
from safetensors.numpy import load_file, save_file

from experiments import evaluate, unfold
from experiments.data.pixels import crop
from experiments.models import depthwise, mobile
from experiments.models.checkpoint import load, load_network, save
from experiments.models.deit import DeiT, DeiTConfig
from experiments.models.zoo import NETWORKS
from tests.shared import shared

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (3, 1), (5, 1), (3, 2)])
@pytest.mark.parametrize("side", [1, 7, 8])
@pytest.mark.parametrize("padding", ["SAME", "symmetric"])
def test_shifted_products_are_the_grouped_convolution(
    stride, size, side, padding, dilation, rng
):
    x = jnp.asarray(rng.normal(size=(2, side, side + 1, 6)), "f4")
    kernel = jnp.asarray(rng.normal(size=(size, size, 1, 6)), "f4")
    steps = depthwise.Steps(stride, dilation)
    pads = depthwise.pads_of((side, side + 1), size, steps, padding)
    grouped, of_grouped = jax.vjp(
        lambda *args: depthwise._grouped(*args, steps, pads), x, kernel
    )
    shifted, of_shifted = jax.vjp(
        lambda *args: depthwise._shifted_products(*args, steps, pads), x, kernel
    )
    np.testing.assert_allclose(shifted, grouped, atol=1e-5)
    gradient = jnp.asarray(rng.normal(size=grouped.shape), "f4")
    for ours, theirs in zip(of_shifted(gradient), of_grouped(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def _photo(name):
    if name in ("china", "flower"):
        return sklearn.datasets.load_sample_image(f"{name}.jpg")
    return getattr(skimage.data, name)()


# Class and probability, as they came with the checkpoints.
_PHOTOS = {
    "efficientnet_lite0": {
        **{"astronaut": (560, 0.162), "coffee": (967, 0.951), "chelsea": (282, 0.386)},
        **{"rocket": (657, 0.296), "china": (698, 0.315), "flower": (985, 0.364)},
    },
    "mobilenet_v2_100": {
        **{"astronaut": (560, 0.158), "coffee": (967, 0.976), "chelsea": (282, 0.516)},
        **{"rocket": (657, 0.629), "china": (698, 0.518), "flower": (599, 0.951)},
    },
    "mobilenet_v1_025": {
        **{"coffee": (967, 0.430), "chelsea": (285, 0.735), "rocket": (668, 0.562)},
        "china": (449, 0.306),
    },
}


@pytest.mark.parametrize("name", _PHOTOS)
def test_probabilities_of_photos(name):
    network, photos = NETWORKS[name], _PHOTOS[name]
    model = load_network(network, shared(f"models/{name}.safetensors"))
    images = np.stack([crop(_photo(photo), network.size) for photo in photos])
    logits = nnx.jit(lambda m, x: m(network.inputs({"image": x})))(model, images)
    found = np.asarray(jax.nn.softmax(logits))
    for row, (photo, (label, probability)) in zip(found, photos.items(), strict=True):
        assert np.argmax(row) == label, photo
        assert row[label] == pytest.approx(probability, abs=0.02), photo
    if name == "efficientnet_lite0":  # Egyptian and tabby cat come next
        cats = found[list(photos).index("chelsea"), [285, 281]]
        np.testing.assert_allclose(cats, [0.356, 0.169], atol=0.02)


@pytest.mark.parametrize(
    ("name", "top1", "top5", "loss"),
    [
        ("efficientnet_lite0", 868, 968, 0.658),
        ("mobilenet_v2_100", 865, 973, 0.528),
        ("mobilenet_v1_025", 548, 796, 1.861),
    ],
)
def test_accuracy_on_images_of_imagenet(name, top1, top5, loss, capsys):
    options = evaluate.Options(
        name,
        shared(f"models/{name}.safetensors"),
        data_dir=shared("tfds"),
        json=True,
    )
    assert evaluate.main(options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 1000
    assert abs(1000 * found["top1"] - top1) <= 3.01
    assert abs(1000 * found["top5"] - top5) <= 3.01
    assert found["loss"] == pytest.approx(loss, abs=0.01)


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
    assert "1,010 images of cifar10" in output
    share, spread = map(float, re.findall(r"top1 (\S+) ± (\S+),", output)[0])
    assert abs(share - 0.64) < 0.045  # three standard deviations of 1,010 images
    assert spread == pytest.approx(0.03, abs=0.002)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("efficientnet_lite0", 4_652_008),
        ("efficientnet_lite1", 5_416_680),
        ("efficientnet_lite2", 6_092_072),
        ("efficientnet_lite3", 8_197_096),
        ("efficientnet_lite4", 13_006_568),
        ("efficientnet_lite0.ra_in1k", 4_652_008),
        ("mobilenet_v2_100", 3_487_816),
        ("mobilenetv2_050", 1_968_680),
        ("mobilenetv2_100", 3_504_872),
        ("mobilenetv2_110d", 4_516_520),
        ("mobilenetv2_120d", 5_831_144),
        ("mobilenetv2_140", 6_108_776),
        ("mobilenet_v1_025", 467_336),
        ("deeplabv3_mnv2_050", 688_357),
        ("yolox_nano", 904_463),
        ("yolox_nano_unfolded", 912_159),
        ("yolox_tiny", 5_055_855),
        ("yolox_s", 8_968_255),
        ("yolox_x", 99_071_455),
        ("deit_tiny_cifar10", 5_381_194),
        ("deit_tiny", 5_717_416),
        ("deit_small", 22_050_664),
        ("deit_base", 86_567_656),
        ("deit_base_384", 86_859_496),
        ("deit_tiny_distilled", 5_910_800),
        ("deit_small_distilled", 22_436_432),
        ("deit_base_distilled", 87_338_192),
        ("deit_base_distilled_384", 87_630_032),
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
    with pytest.raises(SystemExit, match="Conv2d_3_depthwise.bias is missing.*unknown"):
        load(model, path)
    tensors["classifier.weight"] = np.ascontiguousarray(tensors["classifier.weight"].T)
    save_file(tensors, path)
    with pytest.raises(SystemExit, match="classifier.weight: expected shape"):
        load(model, path)
    path.write_text("no checkpoint")
    with pytest.raises(SystemExit, match="x.safetensors"):
        load(model, path)
    with pytest.raises(SystemExit, match="none.safetensors"):
        load(model, tmp_path / "none.safetensors")


def test_a_fresh_head_for_other_classes(tmp_path):
    config = DeiTConfig(width=8, depth=1, heads=2, size=8, patch=4)
    model, other = (DeiT(config, n, rngs=nnx.Rngs(n)) for n in (3, 5))
    path = tmp_path / "weights.safetensors"
    save(path, nnx.to_pure_dict(nnx.state(model)), {})
    head = np.array(other.head.kernel)
    load(other, path, fresh="head/.*")
    np.testing.assert_array_equal(other.head.kernel, head)
    np.testing.assert_array_equal(other.norm.scale, model.norm.scale)
    fc1 = model.blocks[0].mlp.fc1.kernel
    np.testing.assert_array_equal(other.blocks[0].mlp.fc1.kernel, fc1)
    with pytest.raises(SystemExit, match="head.bias: expected shape"):
        load(other, path)
    with pytest.raises(SystemExit, match="fresh: 'tail' matches no parameter"):
        load(other, path, fresh="tail")


def test_patches_tokens_and_heads():
    config = DeiTConfig(width=12, depth=2, heads=3, size=8, patch=4)
    model = DeiT(config, 5, rngs=nnx.Rngs(0))
    assert model.pos_embed.shape == (1, 5, 12)
    assert model(jnp.ones((2, 8, 8, 3))).shape == (2, 5)


def test_a_distillation_token_has_a_head_of_its_own(rng):
    config = DeiTConfig(width=12, depth=1, heads=3, size=8, patch=4, distilled=True)
    model = DeiT(config, 5, rngs=nnx.Rngs(0))
    images = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), "f4")
    both = model(images)
    # With one head doubled and the other zero, one token speaks alone.
    alone = []
    for silent, loud in (("head_dist", "head"), ("head", "head_dist")):
        own = nnx.clone(model)
        getattr(own, silent).kernel[...] *= 0
        getattr(own, loud).kernel[...] *= 2
        alone.append(own(images))
    np.testing.assert_allclose(sum(alone) / 2, both, atol=1e-6)
    assert not np.allclose(alone[0], alone[1])


def test_classes_of_a_data_set_have_to_be_the_networks():
    deit = NETWORKS["deit_96_cifar10"]
    with pytest.raises(SystemExit, match=r"cifar100 has 100.*\.with_classes.100"):
        deit.require_classes("cifar100", 100)
    wider = deit.with_classes(100)
    wider.require_classes("cifar100", 100)
    model = nnx.eval_shape(lambda: wider.build(nnx.Rngs(0)))
    assert model.head.kernel.shape == (96, 100)
    assert deit.with_classes(10) is deit
    assert wider.name != deit.name  # so that runs of one are not taken for the other's


def test_gray_images_are_repeated():
    network = NETWORKS["mobilenet_v1_025"]
    gray = np.arange(48, dtype=np.uint8).reshape(1, 6, 8, 1)
    expected = network.inputs({"image": np.repeat(gray, 3, axis=-1)})
    np.testing.assert_array_equal(network.inputs({"image": gray}), expected)


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


@pytest.mark.parametrize(
    ("name", "size"), [("yolox_nano", 64), ("deeplabv3_mnv2_050", 33)]
)
def test_detectors_and_segmenters_unfold_too(name, size, tmp_path, rng):
    folded, unfolded = (
        NETWORKS[x].with_classes(3).build(nnx.Rngs(0))
        for x in (name, f"{name}_unfolded")
    )
    images = jnp.asarray(rng.uniform(-1, 1, size=(4, size, size, 3)), "f4")
    path = tmp_path / "unfolded.safetensors"
    save(path, *unfold.unfold(folded, [images], unfold.EPSILON))
    load(unfolded, path)
    unfolded.eval()
    run = nnx.jit(lambda model, images: model(images))
    np.testing.assert_allclose(run(unfolded, images), run(folded, images), atol=1e-3)
