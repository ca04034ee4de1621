import dataclasses

import numpy as np
import pytest

import ssvq_jax as ssvq
from experiments import quickstart

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def options(tmp_path):
    return quickstart.Options(
        output=tmp_path / "out", width=64, depth=1, float_steps=20, steps=5, batch=16
    )


def test_runs_and_writes_what_it_promises(options, capsys):
    assert quickstart.main(options) == 0
    printed = capsys.readouterr().out
    for name in ("float32", "UQ", "VQ", "fixed", "learned", "frozen", "Checks passed"):
        assert name in printed
    names = {path.name for path in options.output.iterdir()}
    assert "quickstart.png" in names
    assert "ssvq__learned___frozen.ssvq.safetensors" in names
    sizes = {path.stat().st_size for path in options.output.glob("*vq_*.safetensors")}
    assert max(sizes) - min(sizes) < 200  # the same bits; only descriptions differ


def test_a_failed_check_is_the_exit_status(options, monkeypatch, capsys):
    right = ssvq.load

    def wrong(path):
        tree = right(path)
        tree["head"]["bias"] = tree["head"]["bias"] + 1
        return tree

    monkeypatch.setattr(ssvq, "load", wrong)
    monkeypatch.setattr(quickstart, "METHODS", quickstart.METHODS[-2:])
    options = dataclasses.replace(options, float_steps=1, steps=1)
    assert quickstart.main(options) == 1
    assert "differ after loading" in capsys.readouterr().out


def test_batches_are_epochs_of_permutations():
    batches = quickstart.batch_indices(10, 4, 5, seed=0)
    assert batches.shape == (5, 4)
    first, second = batches.ravel()[:10], batches.ravel()[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    np.testing.assert_array_equal(batches, quickstart.batch_indices(10, 4, 5, seed=0))
