"""`ssvq compress`: presets, rules of a file, budgets, dry runs."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import ssvq_jax as ssvq
from ssvq_jax.cli.choices import PRESETS, codec_of

pytestmark = pytest.mark.usefixtures("standard_promotion")

RULES = """
[[rule]]
pattern = "head.*"
method = "uniform"
bits = 8

[[rule]]
pattern = ".*norm.*"
method = "none"

[[rule]]
pattern = "layer.0.*"
method = "mvq"
codewords = 4
block = 4
keep = [1, 4]
"""


@pytest.fixture
def checkpoint(rng, tmp_path):
    shapes = {"layer.0.w": (64, 96), "layer.1.w": (64, 96), "head.w": (80, 64)}
    tensors = {name: rng.normal(size=x).astype("f4") for name, x in shapes.items()}
    tensors["norm.w"] = rng.normal(size=(64, 64)).astype("f4")
    path = tmp_path / "in.safetensors"
    save_file(tensors, path)
    return path, tensors


def codecs(path):
    return {name: x.codec for name, x in ssvq.load(path, lazy=True).entries.items()}


@pytest.mark.parametrize(
    ("arguments", "codec"),
    [
        (["--bits", 1.25], ssvq.SSVQ(4, 8)),
        (["--bits", 3, "--sign-code", "parity"], ssvq.SSVQ(32, 2, sign_code="parity")),
        (
            ["--bits", 1, "--sign-code", "hamming"],
            ssvq.SSVQ(16, 8, sign_code="hamming"),
        ),
        (["--bits", 2, "--method", "vq"], ssvq.VQ(256, 4)),
        (["--bits", 1.5, "--method", "mvq"], ssvq.MVQ(32, 6, (4, 6))),
        (["--bits", 5, "--method", "uniform"], ssvq.Uniform(5)),
        (["--codewords", 8], ssvq.SSVQ(8, 8)),
        (["--method", "vq", "--block", 8], ssvq.VQ(64, 8)),
        ([], ssvq.SSVQ(16, 8)),
    ],
)
def test_presets(arguments, codec, checkpoint, tmp_path, ssvq_command):
    path, tensors = checkpoint
    assert ssvq_command("compress", path, tmp_path / "x", *arguments)[0] == 0
    assert codecs(tmp_path / "x") == dict.fromkeys(tensors, codec)


def test_rules_of_a_file(checkpoint, tmp_path, ssvq_command):
    path, _ = checkpoint
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    arguments = "compress", path, tmp_path / "x", "--rules", rules, "--bits", 2
    assert ssvq_command(*arguments)[0] == 0
    assert codecs(tmp_path / "x") == {
        "head.w": ssvq.Uniform(8),
        "layer.0.w": ssvq.MVQ(4, 4, (1, 4)),
        "layer.1.w": ssvq.SSVQ(16, 4),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[rule", "rules.toml: "),
        ("[rule]", r"rules.toml: expected tables \[\[rule\]\]"),
        ("x = 1\n" + RULES, r"rules.toml: expected tables \[\[rule\]\]"),
        ("rule = [1]", "a rule: expected pattern and method, got 1"),
        ('[[rule]]\npattern = "a"', "a rule: expected pattern and method"),
        ('[[rule]]\npattern = "("\nmethod = "vq"', "'\\(': pattern: "),
        ('[[rule]]\npattern = "a"\nmethod = "pq"', "'a': method: expected ssvq, "),
        (
            '[[rule]]\npattern = "a"\nmethod = "vq"\nkeep = [1, 2]',
            "'a': vq has no keep",
        ),
        ('[[rule]]\npattern = "a"\nmethod = "vq"', "a rule: 'a' matches no whole name"),
        ('[[rule]]\npattern = 1\nmethod = "vq"', "rules.toml: 1: "),
    ],
)
def test_rules_that_cannot_be(text, message, checkpoint, tmp_path, ssvq_command):
    rules = tmp_path / "rules.toml"
    rules.write_text(text)
    arguments = "compress", checkpoint[0], tmp_path / "x", "--rules", rules
    status, _, error = ssvq_command(*arguments)
    assert status == 2 and re.search(message, " ".join(error.split())), error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", 7], "bits: expected 1.25, 1.5, 2, 3, 4 for ssvq, got 7"),
        (
            ["--bits", 2, "--sign-code", "hamming"],
            "1, 1.25, 1.5 for ssvq hamming, got 2",
        ),
        (["--bits", 2, "--block", 4], "bits chooses block, codewords: give either"),
        (["--keep", 1, 2], "ssvq has no keep"),
        (["--rules", "missing"], "missing"),
    ],
)
def test_options_that_cannot_be(arguments, message, checkpoint, tmp_path, ssvq_command):
    path, _ = checkpoint
    status, _, error = ssvq_command("compress", path, tmp_path / "x", *arguments)
    assert status == 2 and message in " ".join(error.split())


def test_a_dry_run_writes_nothing(checkpoint, tmp_path, ssvq_command):
    path, _ = checkpoint
    arguments = "compress", path, tmp_path / "x", "--bits", 2
    status, output, error = ssvq_command(*arguments, "--dry-run")
    assert status == 0 and not error and not (tmp_path / "x").exists()
    assert "SSVQ(16, 4)" in output and "nothing is written" in output
    expected = json.loads(ssvq_command(*arguments, "--dry-run", "--json")[1])
    found = json.loads(ssvq_command(*arguments, "--json")[1])
    for row, other in zip(found["parameters"], expected["parameters"], strict=True):
        assert {**row, "error": None} == other
    assert found["model"] == expected["model"]


def test_quiet(checkpoint, tmp_path, ssvq_command):
    path, _ = checkpoint
    arguments = "compress", path, tmp_path / "x", "--quiet"
    assert ssvq_command(*arguments, "--dry-run") == (0, "", "")
    assert ssvq_command(*arguments) == (0, "", "")
    assert (tmp_path / "x").exists()


def test_a_budget_is_spread_by_what_layers_see(checkpoint, rng, tmp_path, ssvq_command):
    path, tensors = checkpoint
    x = jnp.asarray(rng.normal(size=(200, 96)), jnp.float32)

    def apply(params, x):
        return (x * 100) @ params["layer.0.w"].T, x @ params["layer.1.w"].T

    moments = ssvq.calibrate(apply, tensors, [x])
    ssvq.save(tmp_path / "moments", moments)
    (tmp_path / "rules.toml").write_text('[[rule]]\npattern="head.w"\nmethod="vq"')
    options = "--statistics", tmp_path / "moments", "--rules", tmp_path / "rules.toml"
    arguments = "compress", path, tmp_path / "x", "--bits", 2.3, *options
    assert ssvq_command(*arguments, "--exclude", "norm.*", "--quiet")[0] == 0
    found = codecs(tmp_path / "x")
    assert found.pop("head.w") == ssvq.VQ(64, 4)
    spread = {name: tensors[name] for name in found}
    node = ssvq.load(tmp_path / "x", lazy=True)
    bits = sum(node[name].bits for name in spread)
    assert 2 < bits / sum(map(np.size, spread.values())) <= 2.3
    rules = [ssvq.Rule(name, codec, axis=1) for name, codec in found.items()]
    key = jax.random.key(0)
    expected = ssvq.compress(spread, rules, key=key, moments=moments)
    for name, weight in ssvq.decode(ssvq.finalize(expected)).items():
        np.testing.assert_array_equal(ssvq.decode(node[name]), weight)
    status, _, error = ssvq_command(*arguments[:4], 0.1, *options)
    assert status == 2 and "bits: expected at least" in error
    status, _, error = ssvq_command(*arguments, "--block", 4)
    assert status == 2 and "leave out block" in error


def test_bits_are_those_of_codes_signs_and_masks():
    shape = (64, 5 * 96)
    for kind, presets in PRESETS.items():
        method, *code = kind.split()
        for bits in presets:
            codec = codec_of(method, bits, sign_code=code[0] if code else None)
            counted = [x for x in codec.fields(shape, 1) if x.kind != "codebooks"]
            stored = sum(field.count * field.bits for field in counted)
            assert stored == pytest.approx(bits * math.prod(shape), rel=0.01), codec
