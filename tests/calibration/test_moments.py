"""`calibrate` over batches, networks and devices; what is missing; files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ssvq_jax as ssvq
import ssvq_jax.linen
import ssvq_jax.nnx
from experiments.models import deit, mobile
from ssvq_jax.tree.paths import flatten

promoting = pytest.mark.usefixtures("standard_promotion")


def floats(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def assert_second(found, rows):
    rows = np.asarray(rows, np.float64)
    rows = rows.reshape(-1, rows.shape[-1])
    expected = rows.T @ rows
    np.testing.assert_allclose(
        found.second, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    assert float(found.count) == len(rows)


def two_layers(params, x):
    x = jnp.maximum(x @ params["first"]["kernel"] + params["first"]["bias"][None], 0)
    return x @ params["second"]["kernel"]


@pytest.fixture
def params(rng):
    return {
        "first": {"kernel": floats(rng, 6, 5), "bias": floats(rng, 5)},
        "second": {"kernel": floats(rng, 5, 4)},
        "other": floats(rng, 3, 3),
        "steps": np.int32(7),
    }


KERNELS = [ssvq.Rule("second/kernel", None), ssvq.Rule(".*/kernel", ssvq.SSVQ())]


def test_sums_of_batches(params, rng):
    batches = [floats(rng, 7, 6), floats(rng, 1, 6), floats(rng, 7, 6)]
    moments = ssvq.calibrate(two_layers, params, iter(batches))
    assert list(moments) == ["first/kernel", "second/kernel"] and len(moments) == 2
    x = np.concatenate(batches)
    assert_second(moments["first/kernel"], x)
    first = params["first"]
    assert_second(
        moments["second/kernel"], np.maximum(x @ first["kernel"] + first["bias"], 0)
    )
    jitted = ssvq.calibrate(jax.jit(two_layers), params, batches)
    jax.tree.map(np.testing.assert_array_equal, moments, jitted)
    with jax.disable_jit():
        eager = ssvq.calibrate(two_layers, params, batches)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moments, eager
    )


def test_what_is_missing_is_named(params, rng):
    x = [floats(rng, 7, 6)]
    moments = ssvq.calibrate(two_layers, params, x)
    assert moments.missing == {
        "first/bias": "used by `add`, no product that is followed",
        "other": "not used by the function",
    }
    with pytest.raises(KeyError, match="first/bias: used by `add`"):
        moments["first/bias"]
    with pytest.raises(KeyError, match="'nothing'"):
        moments["nothing"]
    moments = ssvq.calibrate(two_layers, params, x, rules=KERNELS)
    assert list(moments) == ["first/kernel"] and not moments.missing
    moments = ssvq.calibrate(
        two_layers, params, x, rules=[ssvq.Rule("st.*", ssvq.SSVQ())]
    )
    assert moments.missing == {"steps": "no floating values: int32[]"}


@pytest.mark.parametrize(
    "apply, reason",
    [
        (lambda w, x: (x @ w, w * 2), "used by `mul`"),
        (lambda w, x: x @ (w * 2), "used by `mul`"),
        (lambda w, x: x[:, :2] @ w[:2], "2 of the 4 inputs of axis 0"),
        (lambda w, x: x @ w[:, 1:], "3 of the 4 outputs of axis 1"),
        (lambda w, x: x @ w @ w.T, "are not counted"),
        (lambda w, x: x @ (w.T @ w), "multiplied with itself"),
        (lambda w, x: x @ w[::-1], "used by `rev`"),
        (lambda w, x: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x + w[:1]), "`add`"),
        (
            lambda w, x: lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x),
            "used by `while`",
        ),
        (
            lambda w, x: lax.scan(lambda w, x: (w + 1, x @ w), w, x[None]),
            "carried from step to step",
        ),
        (
            lambda w, x: lax.scan(lambda c, w: (w, x @ w), w, w[None]),
            "carried from step to step",
        ),
        (
            lambda w, x: x @ lax.cond(x[0, 0] > 0, lambda: w, lambda: w * 0),
            "a result of a branch",
        ),
        (lambda w, x: w[x.astype(int)[:, 0], 1], "gather of anything but whole rows"),
        (
            lambda w, x: (
                w.reshape(2, 2, 4).swapaxes(0, 1).reshape(4, 4)[x.astype(int)[:, 0]]
            ),
            "rows in another order",
        ),
    ],
)
def test_uses_that_tell_nothing(apply, reason, rng):
    w, x = floats(rng, 4, 4), floats(rng, 4, 4)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        moments = ssvq.calibrate(apply, w, [x])
    assert list(moments.missing) == [""] and reason in moments.missing[""]


def test_a_lookup_of_columns_counts_them(rng):
    w, ids = floats(rng, 4, 3), np.array([2, 0, 2])
    moments = ssvq.calibrate(lambda w, ids: w.T[ids], w, [ids])
    np.testing.assert_array_equal(moments[""].second, [1, 0, 2])  # of axis 1
    assert not moments.missing


def test_uses_of_later_batches_that_tell_nothing(rng):
    w, traces = floats(rng, 4, 4), []

    def apply(w, x):
        traces.append(x.shape)
        return x @ w, w * 2 if len(x) == 3 else x

    batches = [floats(rng, n, 4) for n in (2, 3, 2, 3, 2)]
    moments = ssvq.calibrate(apply, w, batches)
    assert moments.missing == {"": "used by `mul`, no product that is followed"}
    assert_second(moments[""], np.concatenate(batches))
    assert traces == [(2, 4), (3, 4)]


def test_a_tied_embedding_has_the_moments_of_its_product(rng):
    w, ids = floats(rng, 6, 3), np.array([[0, 5, 5]])
    moments = ssvq.calibrate(lambda w, ids: jnp.tanh(w[ids]) @ w.T, w, [ids])
    assert_second(moments[""], np.tanh(w[ids]))
    assert moments.missing == {"": "its lookups along axes 0 are not counted"}


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_inputs_that_are_not_finite(bad, params, rng):
    batches = [floats(rng, 7, 6), floats(rng, 7, 6)]
    batches[1][3, 2] = bad
    with pytest.raises(ValueError, match="^first/kernel: expected finite.*batch 1"):
        ssvq.calibrate(two_layers, params, batches)


def test_errors(params, rng):
    x = [floats(rng, 7, 6)]
    with pytest.raises(ValueError, match="batches: expected at least one"):
        ssvq.calibrate(two_layers, params, [])
    for form in (0, True):
        with pytest.raises(ValueError, match="form: expected"):
            ssvq.calibrate(two_layers, params, x, form=form)
    with pytest.raises(ValueError, match="same products for every batch"):
        batches = [floats(rng, 2, 6), floats(rng, 3, 6)]
        ssvq.calibrate(lambda w, x: len(x) == 2 or x @ w, batches[0].T, batches)
    with pytest.raises(ValueError, match="'kernel' matches no parameter"):
        ssvq.calibrate(two_layers, params, x, rules=[ssvq.Rule("kernel", ssvq.SSVQ())])


@pytest.mark.usefixtures("unchecked_types")
def test_rules_that_are_none(params):
    with pytest.raises(TypeError, match="sequence of Rule"):
        ssvq.calibrate(two_layers, params, [], rules=KERNELS[1])


def test_factors_of_outputs_add_up_and_are_cut_with_their_weights(rng):
    w = floats(rng, 3, 4, 5)  # three layers, once of the same inputs, once of their own
    own, same = (
        ssvq.calibrate(function, w, [floats(rng, *shape)])
        for function, shape in (
            (lambda w, x: jnp.einsum("lni,lio->lno", x, w), (3, 7, 4)),
            (lambda w, x: jnp.einsum("ni,lio->lno", x, w), (7, 4)),
        )
    )
    for moments in (own, same):
        one = ssvq.fisher_factors(moments, [w], outputs=True)[""]
        two = ssvq.fisher_factors(moments, [w, w], outputs=True)[""]
        np.testing.assert_allclose((one + one).outputs, two.outputs, rtol=1e-6)
        with pytest.raises(ValueError, match="outputs in both moments, or in none"):
            one + moments[""]
        with pytest.raises(ValueError, match=r"expected outputs \(.*\), got"):
            one.importance((3, 4, 6))
        for i, layer in enumerate(w):
            cut = one.slice(i, 3)
            np.testing.assert_allclose(
                cut.outputs, layer.T @ layer, rtol=1e-5, atol=1e-6
            )
            both = np.sum(layer**2, axis=0) * np.asarray(cut.diagonal())[:, None]
            both = both / np.sum(cut.diagonal())
            np.testing.assert_allclose(cut.importance((4, 5)), both, rtol=1e-5)


@pytest.mark.parametrize("outputs", [False, True])
def test_save_and_load(outputs, params, rng, tmp_path):
    moments = ssvq.calibrate(two_layers, params, [floats(rng, 7, 6)])
    if outputs:
        moments = ssvq.fisher_factors(moments, [params], outputs=True)
    file = tmp_path / "moments.safetensors"
    ssvq.save(file, moments, metadata={"missing": moments.missing})
    missing = ssvq.load(file, lazy=True).metadata["missing"]
    loaded = type(moments).from_tree(ssvq.load(file), missing)
    assert loaded.missing == moments.missing
    jax.tree.map(np.testing.assert_array_equal, dict(moments), dict(loaded))
    assert jax.tree.structure(jax.tree.map(lambda x: x, moments)) == jax.tree.structure(
        moments
    )
    assert "first/kernel" in repr(loaded)
    with pytest.raises(ValueError, match="first: expected second, mean, count, roles"):
        ssvq.Moments.from_tree(params)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_batches(kind, rng, monkeypatch):
    monkeypatch.setattr("ssvq_jax.calibration.products._PATCH_BYTES", 7200)  # 4 images
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    params = {"conv": floats(rng, 3, 3, 2, 4), "dense": floats(rng, 4, 3)}

    def apply(params, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x, params["conv"], (1, 1), "SAME", dimension_numbers=numbers
        )
        return y.reshape(-1, 4) @ params["dense"]

    batches = [floats(rng, 8, 5, 5, 2) for _ in range(3)]
    one = ssvq.calibrate(apply, params, batches)
    sharded = [jax.device_put(x, NamedSharding(mesh, P("x"))) for x in batches]
    four = ssvq.calibrate(apply, params, sharded)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, four
    )


def kernels_of(model):
    paths = flatten(nnx.state(model))[0]
    return {path for path in paths if path.endswith("/kernel")}


@promoting
def test_deit(rng):
    config = deit.DeiTConfig(width=16, depth=2, heads=2, size=16, patch=4)
    model = deit.DeiT(config, 5, rngs=nnx.Rngs(0))
    images = floats(rng, 3, 16, 16, 3)
    moments = ssvq_jax.nnx.calibrate(model, [images])
    kernels = kernels_of(model)
    assert set(moments) == kernels and len(kernels) == 2 * 4 + 2

    patches = images.reshape(3, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(-1, 48)
    assert_second(moments["patch_embed/proj/kernel"], patches)
    tokens = np.asarray(model.patch_embed(images))
    first = np.broadcast_to(model.cls_token[...], (3, 1, 16))
    x = np.concatenate([first, tokens], 1) + model.pos_embed[...]
    x = jnp.asarray(x).reshape(-1, 16)
    block = model.blocks[0]
    assert_second(moments["blocks/0/attn/qkv/kernel"], block.norm1(x))
    x = x + block.attn(block.norm1(x), 3)
    assert_second(moments["blocks/0/mlp/fc1/kernel"], block.norm2(x))
    hidden = nnx.gelu(block.mlp.fc1(block.norm2(x)), approximate=False)
    assert_second(moments["blocks/0/mlp/fc2/kernel"], hidden)


@promoting
def test_inverted_residuals_with_their_depthwise_kernels(rng):
    stages = (mobile.Stage(1, 3, 1, 1, 8), mobile.Stage(1, 5, 2, 2, 8))
    model = mobile.InvertedResidualNet(
        mobile.Architecture(stages, stem=8, head=16), 5, rngs=nnx.Rngs(0)
    )
    model.eval()
    images = floats(rng, 2, 16, 16, 3)
    moments = ssvq_jax.nnx.calibrate(model, [images])
    kernels = kernels_of(model)
    assert set(moments) == kernels and len(kernels) == 8
    x = nnx.relu6(model.bn1(model.conv_stem(images)))
    found = moments["blocks/0/0/conv_dw/kernel"]
    assert found.second.shape == (8, 9, 9)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    rows = np.stack(taps, -1).reshape(-1, 8, 9)
    np.testing.assert_allclose(
        found.second, np.einsum("nci,ncj->cij", rows, rows), rtol=1e-4
    )
    hidden = nnx.relu6(model.blocks[0][0].bn1(model.blocks[0][0].conv_dw(x)))
    assert_second(moments["blocks/0/0/conv_pw/kernel"], hidden)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + jnp.tanh(nn.Dense(6)(nn.LayerNorm()(x))), None


class Stack(nn.Module):
    remat: bool = False

    @nn.compact
    def __call__(self, ids, scale=1.0):
        x = nn.Embed(9, 6, name="token")(ids) * scale
        x = nn.MultiHeadDotProductAttention(2, name="attention")(x, x)
        layer = nn.remat(Layer) if self.remat else Layer
        scan = nn.scan(
            layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = scan(name="layers")(x, None)
        return nn.Dense(9, name="head")(x)


@promoting
@pytest.mark.parametrize("remat", [False, True])
def test_linen_with_scan(remat, rng, key):
    ids = rng.integers(9, size=(2, 5))
    model = Stack(remat)
    variables = model.init(key, ids)
    moments = ssvq_jax.linen.calibrate(model, variables, [ids], scale=2.0)
    inner = "layers/Dense_0/kernel"
    attention = {f"attention/{n}/kernel" for n in ("query", "key", "value", "out")}
    assert set(moments) == {"token/embedding", inner, "head/kernel", *attention}
    params = variables["params"]
    counts = np.bincount(ids.ravel(), minlength=9)
    np.testing.assert_array_equal(moments["token/embedding"].second, counts)
    x = np.asarray(params["token"]["embedding"])[ids] * 2
    assert_second(moments["attention/query/kernel"], x)
    assert moments["attention/out/kernel"].second.shape == (6, 6)
    own = nn.MultiHeadDotProductAttention(2)
    x = own.apply({"params": params["attention"]}, x, x)
    for i in range(3):
        layer = jax.tree.map(lambda a, i=i: a[i], params["layers"])
        normed = nn.LayerNorm().apply({"params": layer["LayerNorm_0"]}, x)
        assert_second(jax.tree.map(lambda a, i=i: a[i], moments[inner]), normed)
        x, _ = Layer().apply({"params": layer}, x, None)
    assert_second(moments["head/kernel"], x)


@promoting
def test_nnx_with_scan(rng):
    @nnx.vmap(in_axes=0, out_axes=0)
    def stack(key):
        return nnx.Linear(4, 4, rngs=nnx.Rngs(key))

    class Network(nnx.Module):
        def __init__(self):
            self.layers = stack(jax.random.split(jax.random.key(0), 3))

        def __call__(self, x):
            @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            def run(layer, x):
                return jnp.tanh(layer(x))

            return run(self.layers, x)

    model, x = Network(), floats(rng, 5, 4)
    found = ssvq_jax.nnx.calibrate(model, [x])["layers/kernel"]
    for i in range(3):
        assert_second(jax.tree.map(lambda a, i=i: a[i], found), x)
        x = jnp.tanh(x @ model.layers.kernel[i] + model.layers.bias[i])
