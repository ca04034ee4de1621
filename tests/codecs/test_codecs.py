import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (names of float8 for NumPy)
import numpy as np
import pytest
from flax import serialization

import ssvq_jax as ssvq
from ssvq_jax import codecs
from tests.codecs.weights import SHAPES, encoded, normal

CODECS = [
    ssvq.SSVQ(4, 8),
    ssvq.SSVQ(5, 3, codebook_dtype="float32"),
    ssvq.SSVQ(4, 4, learn_signs=False, codebook_dtype="bfloat16"),
    ssvq.SSVQ(2, 1, codebook_dtype="int8"),
    ssvq.SSVQ(2, 16),
    ssvq.VQ(4, 4),
    ssvq.VQ(3, 5, codebook_dtype="int8"),
    ssvq.Uniform(2),
    ssvq.Uniform(8, scale_dtype="float32"),
    ssvq.MVQ(4, 8, (2, 4)),
    ssvq.MVQ(3, 6, (1, 3), codebook_dtype="float16"),
    ssvq.SSVQ(4, 3, channel_scale="float16"),
    ssvq.VQ(3, 5, codebook_dtype="int8", channel_scale="bfloat16"),
    ssvq.MVQ(3, 6, (1, 3), channel_scale="float32"),
    ssvq.SSVQ(4, 8, sign_code="hamming"),
    ssvq.SSVQ(5, 3, learn_signs=False, sign_code="parity"),
]
# Every codec on a plain and an awkward shape, every shape with every kind of codec.
PAIRS = [(codec, *SHAPES[i]) for codec in CODECS for i in (0, 1)] + [
    (CODECS[j], *shape) for j in (0, 2, 7, 10, 12) for shape in SHAPES[2:]
]


def test_every_codec_of_the_list_is_here_under_its_name():
    assert codecs.CODECS == {type(codec).__name__: type(codec) for codec in CODECS}


@pytest.mark.parametrize(("codec", "shape", "axis"), PAIRS)
def test_protocol(codec, shape, axis):
    weight = normal(shape)
    node = ssvq.encode(codec, weight, key=jax.random.key(0), axis=axis)
    assert (node.codec, node.shape, node.dtype) == (codec, shape, jnp.float32)
    decoded = ssvq.decode(node)
    chex.assert_equal_shape([decoded, weight])
    chex.assert_trees_all_equal(jax.jit(ssvq.decode)(node), decoded)
    assert float(jnp.sum((decoded - weight) ** 2)) < float(jnp.sum(weight**2))

    final = ssvq.finalize(node)
    chex.assert_trees_all_equal(ssvq.finalize(final), final)
    assert final.bits == node.bits
    stored, fields = final.stored(), codec.fields(shape, node.axis)
    assert list(stored) == [field.name for field in fields]
    for field in fields:
        assert stored[field.name].shape == (field.count,)
    restored = codec.restore(shape, node.dtype, node.axis, stored)
    chex.assert_trees_all_equal_dtypes(restored, final)
    chex.assert_trees_all_equal(ssvq.decode(restored), ssvq.decode(final))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
def test_bfloat16_weights(codec):
    node = encoded(codec, (32, 12), dtype=jnp.bfloat16)
    decoded = ssvq.decode(node)
    assert decoded.dtype == jnp.bfloat16
    trained, _ = ssvq.partition(node)
    chex.assert_type(jax.tree.leaves(trained), jnp.float32)
    weight = normal((32, 12))
    exact = jnp.linalg.norm(ssvq.decode(encoded(codec, (32, 12))) - weight)
    error = jnp.linalg.norm(decoded.astype(jnp.float32) - weight)
    np.testing.assert_allclose(error, exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("codec", [CODECS[i] for i in (0, 6, 8, 10, 11, 15)])
@pytest.mark.parametrize(
    ("shape", "axis"), [((27, 13), 0), ((13, 27), 1), ((11, 2, 9), 2)]
)
def test_slabs_decode_to_their_part(codec, shape, axis, monkeypatch):
    monkeypatch.setattr(codecs.codec, "_SLAB", 100)
    training = ssvq.encode(codec, normal(shape), key=jax.random.key(0), axis=axis)
    for node in (training, ssvq.finalize(training)):
        decoded = np.full(shape, np.nan, np.float32)
        for place, part in node.slabs():
            assert part.size <= 127 and np.all(np.isnan(decoded[place]))
            decoded[place] = ssvq.decode(part)
        np.testing.assert_array_equal(decoded, ssvq.decode(node))


@pytest.mark.parametrize(
    ("shape", "weights", "parts"),
    [((64,), 1, 1), ((1, 64), 1, 1), ((4, 16), 64, 1), ((4, 17), 1, 8)],
)
def test_as_many_slabs_as_there_is_room_for(shape, weights, parts, monkeypatch):
    monkeypatch.setattr(codecs.codec, "_SLAB", weights)
    node = ssvq.encode(ssvq.VQ(2, 4), normal(shape), key=jax.random.key(0))
    assert len(list(node.slabs())) == parts
    with pytest.raises(ValueError, match="codes: expected shape"):
        next(node.replace(codes=node.codes[:0]).slabs())


@pytest.mark.parametrize("codec", [ssvq.VQ(4, 4), ssvq.SSVQ(4, 8, sign_code="hamming")])
@pytest.mark.parametrize("counted", [False, True])
def test_bfloat16_clusters_as_float32(codec, counted):
    weight = normal((27, 13), jnp.bfloat16)
    importance = jnp.abs(normal((27, 13)))[::-1] if counted else None

    @jax.jit
    def encode(weight):
        node = ssvq.encode(codec, weight, key=jax.random.key(0), importance=importance)
        return node.codebook, node.codes

    wide = weight.astype(jnp.float32)
    chex.assert_trees_all_equal(encode(weight), encode(wide))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
def test_vmap_over_a_stack_of_layers(codec):
    stack = normal((3, 24, 10))
    keys = jax.random.split(jax.random.key(0), 3)
    nodes = jax.vmap(lambda w, key: ssvq.encode(codec, w, key=key))(stack, keys)
    decoded = jax.vmap(ssvq.decode)(jax.vmap(ssvq.finalize)(nodes))
    for weight, key, one in zip(stack, keys, decoded, strict=True):
        alone = ssvq.decode(ssvq.finalize(ssvq.encode(codec, weight, key=key)))
        np.testing.assert_allclose(one, alone, rtol=1e-5, atol=1e-6)
    whole = ssvq.decode(ssvq.finalize({"a": nodes}))["a"]
    np.testing.assert_allclose(whole, decoded, rtol=1e-6)
    (row,) = ssvq.report({"a": nodes}).rows
    assert row.shape == stack.shape and row.bits == 3 * nodes.slices()[0].bits


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
def test_codec_is_hashable_and_json(codec):
    options = json.loads(json.dumps(dataclasses.asdict(codec)))
    assert type(codec)(**options) == codec
    assert hash(type(codec)(**options)) == hash(codec)


@pytest.mark.parametrize("codewords", [2, 255, 256, 257])
def test_codes_have_the_smallest_type(codewords):
    node = ssvq.finalize(encoded(ssvq.VQ(codewords, 1), (30, 20)))
    assert node.codes.dtype == (jnp.uint8 if codewords <= 256 else jnp.uint16)


def test_int8_codebook_is_within_half_a_step():
    node = encoded(ssvq.VQ(8, 4, codebook_dtype="int8"), (64, 32))
    final = ssvq.finalize(node)
    assert final.codebook.dtype == jnp.int8
    step = float(jnp.max(jnp.abs(node.codebook))) / 127
    error = np.abs(np.asarray(final.codebook) * float(final.scale) - node.codebook)
    assert error.max() <= 0.5001 * step


def test_importance_moves_the_codebook_towards_what_matters(rng):
    weight = normal((64, 64))
    important = np.zeros((64, 64), np.float32)
    important[:, :8] = 1.0
    importance = important + np.float32(1e-3)
    for codec in (ssvq.SSVQ(4, 4), ssvq.VQ(4, 4), ssvq.MVQ(4, 4, (2, 4))):
        key = jax.random.key(0)
        plain = ssvq.decode(ssvq.encode(codec, weight, key=key))
        node = ssvq.encode(codec, weight, key=key, importance=importance)
        error = np.sum(important * np.square(ssvq.decode(node) - weight))
        assert error < np.sum(important * np.square(plain - weight))


# Sizes


@pytest.mark.parametrize(
    ("codec", "shape", "bits"),
    [
        (ssvq.SSVQ(16, 8), (64, 32), 256 * 4 + 2048 + 16 * 8 * 16),
        (ssvq.SSVQ(16, 8, codebook_dtype="float32"), (64, 32), 1024 + 2048 + 4096),
        (ssvq.VQ(17, 4, codebook_dtype="int8"), (64, 32), 512 * 5 + 17 * 4 * 8 + 32),
        (ssvq.Uniform(3), (64, 32), 2048 * 3 + 32 * 16),
        (ssvq.MVQ(16, 8, (2, 4)), (64, 32), 1024 + 512 * 3 + 16 * 8 * 8 + 32),
        # 27 inputs: 4 blocks of 8, but signs and masks of the 27 weights alone.
        (ssvq.SSVQ(4, 8), (27, 16), 64 * 2 + 27 * 16 + 4 * 8 * 16),
        (ssvq.VQ(4, 8, channel_scale="float16"), (27, 16), 128 + 32 * 16 + 16 * 16),
        (ssvq.MVQ(4, 8, (2, 4)), (27, 16), 64 * 2 + 7 * 16 * 3 + 4 * 8 * 8 + 32),
    ],
)
def test_bits_are_those_of_the_method(codec, shape, bits):
    assert encoded(codec, shape).bits == bits


# Bad input


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (np.ones((16, 4), np.int32), TypeError, "weight.*floating.*int32"),
        (np.ones((16, 4), "float8_e4m3fn"), TypeError, "weight.*float8_e4m3fn"),
        (np.ones((0, 4), np.float32), ValueError, r"non-empty.*\(0, 4\)"),
        (np.float32(1.0), ValueError, r"scalar.*\(\)"),
        (np.full((16, 4), np.inf, np.float32), ValueError, "weight.*64 NaN or inf"),
        (np.array([[1.0], [np.nan]], np.float32), ValueError, "1 NaN.*of 2"),
        (np.ones((8, 2), np.float32), ValueError, "codewords.*at most 2.*got 4"),
    ],
)
@pytest.mark.parametrize("codec", [ssvq.SSVQ(4, 8), ssvq.VQ(4, 8)])
def test_bad_weights(codec, weight, error, message, key):
    with pytest.raises(error, match=message):
        ssvq.encode(codec, weight, key=key)


def test_bad_importance_and_axis(key):
    weight = np.ones((16, 4), np.float32)
    with pytest.raises(ValueError, match=r"importance.*\(16, 4\), got \(4,\)"):
        ssvq.encode(ssvq.SSVQ(2, 8), weight, key=key, importance=weight[0])
    with pytest.raises(ValueError, match="importance.*>= 0, got -1"):
        ssvq.encode(ssvq.SSVQ(2, 8), weight, key=key, importance=-weight)
    with pytest.raises(ValueError, match="axis.*got 2"):
        ssvq.encode(ssvq.SSVQ(2, 8), weight, key=key, axis=2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ssvq.SSVQ(1, 8), ValueError, "codewords.*at least 2, got 1"),
        (lambda: ssvq.SSVQ(16, 0), ValueError, "block.*at least 1, got 0"),
        (lambda: ssvq.SSVQ(16.0, 8), TypeError, "codewords.*integer.*16.0"),
        (lambda: ssvq.SSVQ(codebook_dtype="int4"), ValueError, "float16.*'int4'"),
        (lambda: ssvq.SSVQ(latent_scale=0.0), ValueError, "latent_scale.*0.0"),
        (lambda: ssvq.SSVQ(latent_scale="a"), TypeError, "latent_scale.*'a'"),
        (lambda: ssvq.SSVQ(learn_signs="no"), TypeError, "learn_signs.*'no'"),
        (lambda: ssvq.SSVQ(channel_scale="int8"), ValueError, "channel_scale.*'int8'"),
        (lambda: ssvq.VQ(4, 8, channel_scale=True), ValueError, "channel_scale.*True"),
        (lambda: ssvq.VQ(True, 8), TypeError, "codewords.*True"),
        (lambda: ssvq.VQ(4, -1), ValueError, "block.*-1"),
        (lambda: ssvq.Uniform(1), ValueError, "bits.*2 to 8, got 1"),
        (lambda: ssvq.Uniform(2, scale_dtype="int8"), ValueError, "scale_dtype"),
        (lambda: ssvq.MVQ(4, 8, (3, 2)), ValueError, "keep: N.*1 to 2, got 3"),
        (lambda: ssvq.MVQ(4, 8, (1, 3)), ValueError, "block.*multiple of M = 3"),
        (lambda: ssvq.MVQ(4, 8, 2), TypeError, "keep.*pair"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "codec",
    [
        ssvq.SSVQ(4, 8),
        ssvq.VQ(4, 8, channel_scale="float16"),
        ssvq.MVQ(4, 8, (4, 8), codebook_dtype="float16"),
        ssvq.Uniform(3),
    ],
    ids=str,
)
@pytest.mark.parametrize("factor", [2.0**20, 2.0**-40])
def test_what_float16_cannot_hold_gets_bfloat16(codec, factor, key):
    weight = normal((32, 8))
    node = ssvq.encode(codec, factor * weight, key=key)
    plain = ssvq.encode(codec, weight, key=key)
    assert "bfloat16" in node.codec.describe() and node.bits == plain.bits
    found = ssvq.decode(ssvq.finalize(node)) / factor
    expected = ssvq.decode(ssvq.finalize(plain))
    np.testing.assert_allclose(found, expected, rtol=2**-6, atol=2**-6)
    assert ssvq.encode(codec, 0 * weight, key=key).codec == codec


def test_codebook_that_leaves_its_dtype_in_training_is_refused(key):
    node = ssvq.encode(ssvq.SSVQ(4, 8), normal((32, 8)), key=key)
    for factor, problem in ((1e6, "overflow"), (1e-6, "underflow")):
        with pytest.raises(ValueError, match=f"{problem}.*'float16'.*'bfloat16'"):
            ssvq.finalize(node.replace(codebook=factor * node.codebook))
    zero = ssvq.encode(ssvq.SSVQ(4, 8), jnp.zeros((32, 8)), key=key)
    assert not ssvq.decode(ssvq.finalize(zero)).any()
    broken = node.replace(codebook=node.codebook.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="a/b: codebook.*1 NaN"):
        ssvq.finalize({"a": {"b": broken}})


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
def test_one_half_of_a_partition_is_no_weight(codec):
    node = encoded(codec, (32, 8))
    for half in ssvq.partition({"a": node}):
        if len(jax.tree.leaves(half)) < len(jax.tree.leaves(node)):
            for function in (ssvq.decode, ssvq.finalize):
                with pytest.raises(ValueError, match="a: .*missing; combine"):
                    function(half)


def test_x64_changes_nothing():
    weight = np.asarray(normal((32, 16)))
    scaled = ssvq.VQ(4, 4, channel_scale="float32")
    for codec in (ssvq.SSVQ(4, 4), ssvq.Uniform(2), ssvq.MVQ(4, 4, (2, 4)), scaled):
        plain = ssvq.finalize(ssvq.encode(codec, weight, key=jax.random.key(0)))
        with jax.enable_x64(True):
            wide = ssvq.finalize(ssvq.encode(codec, weight, key=jax.random.key(0)))
            error = ssvq.report(wide, weight).rows[0].error
        chex.assert_trees_all_equal_dtypes(plain, wide)
        assert error == pytest.approx(ssvq.report(plain, weight).rows[0].error)


def test_x64_changes_little_of_what_is_calibrated(rng):
    weight, x = np.asarray(normal((32, 16))), rng.normal(size=(64, 32)).astype("f4")
    moments = ssvq.calibrate(lambda w, x: x @ w, weight, [x])
    rules, found = [ssvq.Rule("", ssvq.SSVQ(4, 4))], []
    for wide in (False, True):
        with jax.enable_x64(wide):
            key = jax.random.key(0)
            node = ssvq.compress(weight, rules, key=key, moments=moments)
            found.append(ssvq.finalize(node))
    chex.assert_trees_all_equal_dtypes(*found)
    errors = [np.linalg.norm(x @ (weight - ssvq.decode(node))) for node in found]
    np.testing.assert_allclose(*errors, rtol=0.05)  # sums are rounded otherwise


@pytest.mark.parametrize(
    "codec",
    [ssvq.SSVQ(4, 4), ssvq.VQ(4, 4), ssvq.MVQ(4, 4, (2, 4)), ssvq.Uniform(2)],
    ids=str,
)
def test_importance_of_zero_everywhere_is_that_of_one(codec, key):
    weight = normal((16, 12))
    zero, one = (
        ssvq.decode(ssvq.encode(codec, weight, key=key, importance=importance))
        for importance in (jnp.zeros_like(weight), jnp.ones_like(weight))
    )
    chex.assert_trees_all_equal(zero, one)


@pytest.mark.parametrize("codec", [ssvq.SSVQ(4, 4), ssvq.Uniform(2)], ids=str)
def test_big_endian_arrays_are_those_of_the_machine(codec, key):
    weight = np.asarray(normal((16, 12)))
    big, own = (
        ssvq.encode(codec, x, key=key, importance=abs(x))
        for x in (weight.astype(">f4"), weight)
    )
    chex.assert_trees_all_equal(big, own)
    reports = [
        ssvq.report({"k": own}, {"k": x}) for x in (weight.astype(">f4"), weight)
    ]
    assert reports[0] == reports[1]


def test_denormal_weights_are_refused(key):
    weight = np.asarray(normal((16, 12))) * np.float32(1e-40)
    with pytest.raises(ValueError, match="weight: its largest magnitude, .*e-40, is"):
        ssvq.encode(ssvq.SSVQ(4, 4), weight, key=key)


@pytest.mark.parametrize("codec", [ssvq.SSVQ(4, 4), ssvq.Uniform(2)], ids=str)
def test_weights_beyond_float32_are_refused(codec):
    with jax.enable_x64(True):
        weight = np.full((16, 12), 1e39)
        with pytest.raises(ValueError, match="weight: .*1e.39, is beyond float32"):
            ssvq.encode(codec, weight, key=jax.random.key(0))


@pytest.mark.parametrize("codec", [ssvq.SSVQ(4, 4), ssvq.Uniform(2)], ids=str)
def test_flax_serialization(codec, key):
    tree = {"k": ssvq.encode(codec, normal((16, 12)), key=key)}
    for part in (tree, *ssvq.partition(tree), ssvq.finalize(tree)):
        blank = jax.tree.map(jnp.zeros_like, part)
        data = serialization.to_bytes(part)
        chex.assert_trees_all_equal(serialization.from_bytes(blank, data), part)
    with pytest.raises(ValueError, match="expected .*codes"):
        serialization.from_state_dict(ssvq.finalize(tree), {"k": {}})


def test_a_codec_of_one_s_own_needs_no_choosing(tmp_path):
    """It compresses and decodes; what it lacks is named."""

    class Kept(ssvq.Codec):
        def encode(self, weight, *, key, importance, axis):
            own = {"shape": weight.shape, "dtype": weight.dtype, "axis": axis}
            return KeptWeight(codec=self, **own, weight=weight)

        def fields(self, shape, axis):
            return ()

        def restore(self, shape, dtype, axis, stored):
            raise AssertionError

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
    class KeptWeight(ssvq.Compressed):
        weight: jax.Array

        @property
        def grid_leaf(self):
            return self.weight

        def shapes(self):
            return {"weight": self.shape}

        def values(self, dtype):
            return self.weight

        def finalize(self):
            return self

        def stored(self):
            return {}

    weight = jnp.ones((8, 4))
    node = ssvq.encode(Kept(), weight, key=jax.random.key(0))
    assert (ssvq.decode({"w": node})["w"] == weight).all()
    moments = ssvq.calibrate(lambda p, x: x @ p["w"], {"w": weight}, [weight.T])
    for choosing in (
        lambda: node.choose(weight),
        lambda: node.assign(weight),
        lambda: ssvq.refine({"w": node}, {"w": weight}, moments),
    ):
        with pytest.raises(NotImplementedError, match="Kept chooses no codes"):
            choosing()
    with pytest.raises(ValueError, match="w: Kept: no file could be read with it"):
        ssvq.save(tmp_path / "x", {"w": node})
    del ssvq.Compressed.classes["KeptWeight"]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_steps_may_donate_what_is_compressed(codec, key):
    weight = jax.random.normal(key, (48, 32))
    trainable, _ = ssvq.partition(ssvq.encode(codec, weight, key=key))
    jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)(trainable)
    assert jnp.isfinite(weight).all()
