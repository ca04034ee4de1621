"""`ssvq compress --statistics`: moments of a checkpoint's tensors."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import ssvq_jax as ssvq

pytestmark = pytest.mark.usefixtures("standard_promotion")

DENSE, CONV = "layers.0.linear.weight", "conv.weight"
OPTIONS = "--codewords", 4, "--min-weights", 512


@pytest.fixture
def tensors(rng):
    """Kernels in torch's layout."""
    return {
        DENSE: rng.normal(size=(48, 32)).astype("f4"),
        CONV: rng.normal(size=(16, 12, 3, 3)).astype("f4"),
        "other.weight": rng.normal(size=(32, 32)).astype("f4"),
        "norm.weight": np.ones(48, "f4"),
    }


@pytest.fixture
def checkpoint(tensors, tmp_path):
    path = tmp_path / "in.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture
def moments(tensors, rng):
    """Of two of the kernels, one with outputs, in the layout that they have."""

    def apply(params, x):
        numbers = ("NCHW", "OIHW", "NCHW")
        y = jax.lax.conv_general_dilated(
            x[1], params[CONV], (1, 1), "SAME", dimension_numbers=numbers
        )
        return x[0] @ params[DENSE].T, y

    x = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 32))
    images = rng.normal(size=(2, 12, 5, 5))
    inputs = jnp.asarray(x, jnp.float32), jnp.asarray(images, jnp.float32)
    found = ssvq.calibrate(apply, tensors, [inputs])
    factors = ssvq.fisher_factors(found, [tensors], outputs=True)
    return ssvq.Moments({CONV: found[CONV], DENSE: factors[DENSE]})


def test_the_same_as_the_library(checkpoint, tensors, moments, tmp_path, ssvq_command):
    file, packed = tmp_path / "moments", tmp_path / "out"
    # Of nested parameters, paths have slashes; the exact name wins.
    slashed = {"layers/0/linear/weight": moments[DENSE], CONV: moments[CONV]}
    for i, saved in enumerate((moments, ssvq.Moments(slashed))):
        ssvq.save(file, saved)
        arguments = "compress", checkpoint, packed, *OPTIONS, "--statistics", file
        if i:
            status, output, _ = ssvq_command(*arguments)
            assert "2 compressed with statistics, 1 without; 0 unused." in output
        else:
            status, output, _ = ssvq_command(*arguments, "--json")
            contents = json.loads(output)
            assert contents["statistics"] == {
                "used": [CONV, DENSE],
                "missing": ["other.weight"],
                "unused": [],
            }
        assert status == 0
        loaded = ssvq.load(packed, lazy=True)
        assert set(loaded.entries) == {DENSE, CONV, "other.weight"}
        for name in loaded.entries:
            expected = ssvq.compress(
                {name: tensors[name]},
                [ssvq.Rule(name, ssvq.SSVQ(4), axis=1)],
                key=jax.random.key(0),
                moments=moments if name in moments else None,
            )
            np.testing.assert_array_equal(
                ssvq.decode(loaded[name]), ssvq.decode(ssvq.finalize(expected))[name]
            )


def test_the_exact_name_wins_and_the_rest_is_counted(
    checkpoint, moments, tmp_path, ssvq_command
):
    wrong = ssvq.Moments(
        {
            DENSE: moments[DENSE],
            DENSE.replace(".", "/"): moments[CONV],
            "no": moments[CONV],
        }
    )
    ssvq.save(tmp_path / "moments", wrong)
    arguments = "compress", checkpoint, tmp_path / "out", *OPTIONS
    arguments += "--statistics", tmp_path / "moments", "--exclude", "conv.*"
    status, output, error = ssvq_command(*arguments)
    assert status == 0, error
    assert "1 compressed with statistics, 1 without; 2 unused." in output


def test_files_that_do_not_fit(checkpoint, tensors, moments, tmp_path, ssvq_command):
    file = tmp_path / "moments"

    def refused(tree):
        if tree is not None:
            ssvq.save(file, tree)
        arguments = "compress", checkpoint, tmp_path / "out", *OPTIONS
        status, _, error = ssvq_command(*arguments, "--statistics", file)
        assert status == 2 and not (tmp_path / "out").exists()
        return " ".join(error.split())

    assert "moments" in refused(None)  # there is none
    error = refused(ssvq.Moments({"layers/1/linear/weight": moments[DENSE]}))
    assert f"such as 'layers/1/linear/weight'; near it: {DENSE}" in error
    error = refused(ssvq.Moments({DENSE: moments[CONV]}))
    assert f"{DENSE}: expected a weight of 4 axes, got (48, 32)" in error
    assert "calibrate with tensors in the checkpoint's own layout" in error
    flax = ssvq.calibrate(
        lambda p, x: x @ p["w"], {"w": tensors[DENSE].T}, [jnp.ones((2, 32))]
    )
    error = refused(ssvq.Moments({DENSE: flax["w"]}))
    assert f"{DENSE}: expected groups and inputs (32,), got (48,)" in error
    wrong = dataclasses.replace(moments[DENSE], outputs=jnp.ones((40, 40)))
    error = refused(ssvq.Moments({DENSE: wrong}))
    assert f"{DENSE}: expected outputs (48, 48), got (40, 40)" in error
    assert f"writes, got {CONV}" in refused({CONV: tensors[CONV]})
    assert f"writes, got {DENSE}/second" in refused({DENSE: {"second": jnp.ones(3)}})
    save_file(tensors, file)
    assert "not written by ssvq_jax" in refused(None)


def test_statistics_that_are_not_finite(checkpoint, moments, tmp_path, ssvq_command):
    broken = moments[DENSE]
    broken = type(broken)(
        second=broken.second.at[1, 1].set(jnp.nan),
        mean=broken.mean,
        count=broken.count,
        roles=broken.roles,
    )
    ssvq.save(tmp_path / "moments", ssvq.Moments({DENSE: broken}))
    arguments = "compress", checkpoint, tmp_path / "out", *OPTIONS, "--json"
    status, output, _ = ssvq_command(*arguments, "--statistics", tmp_path / "moments")
    assert status == 0
    [(name, reason)] = json.loads(output)["kept"].items()
    assert name == DENSE and "finite" in reason
