"""Runs that start from calibrated codes."""

import dataclasses

import numpy as np
import pytest

import ssvq_jax as ssvq
from experiments.data.images import open_split
from experiments.tasks import Classification
from experiments.training import calibration
from experiments.training.calibration import Calibrated
from experiments.training.config import Calibration, Compression, Data, Optimization
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion", "unchecked_types")

CANDIDATES = tuple(
    ssvq.Rule(".*/kernel", codec)
    for codec in (ssvq.SSVQ(4, 8), ssvq.VQ(4, 2), ssvq.Uniform(4), ssvq.Uniform(8))
)


def calibrated(folder, **changes):
    data = Data(name="digits", train="train[:96]", validation="train[1200:]")
    return dataclasses.replace(
        tiny.compressed(folder, network=tiny.NORMED),
        data=data,
        optimization=Optimization(epochs=0, batch=48),
        compression=Compression(
            rules=CANDIDATES, calibration=Calibration(**{"probe": 32, **changes})
        ),
    )


def test_bits_are_spread_and_statistics_taken_anew_without_training(tmp_path):
    experiment = calibrated(tmp_path, bits=4.5)
    result = tiny.execute(experiment, tmp_path / "run")
    assert result["steps"] == 0 and result["before"] == result["test"]
    assert 3 < result["bits_per_weight"] <= 4.5
    stored = tiny.tensors(tmp_path / "run" / "model.ssvq.safetensors")
    before = tiny.tensors(tmp_path / "weights.safetensors")
    assert not np.array_equal(stored["norm.mean"], before["norm.mean"])
    rows = {path: codec for path, codec, *_ in result["layers"]}
    assert set(rows) == {"hidden/kernel", "classifier/kernel"}
    again = tiny.execute(experiment, tmp_path / "again")
    assert again["layers"] == result["layers"] and again["each"] == result["each"]


def test_without_a_probe_errors_are_predicted(tmp_path, monkeypatch):
    def measured(self, batches):
        raise AssertionError("outputs were compared")

    monkeypatch.setattr(Calibrated, "_divergence", measured)
    result = tiny.execute(calibrated(tmp_path, bits=4.5, probe=0), tmp_path / "run")
    assert 3 < result["bits_per_weight"] <= 4.5


@pytest.mark.parametrize(("spread", "step"), [(False, 1), (True, 10)])
def test_examples_are_the_first_or_from_all_of_the_split(
    spread, step, tmp_path, monkeypatch
):
    seen, batches = [], calibration.evaluation_batches

    def spied(split, **options):
        seen.append([split[i]["label"] for i in range(96)])
        return batches(split, **options)

    monkeypatch.setattr(calibration, "evaluation_batches", spied)
    experiment = dataclasses.replace(
        calibrated(tmp_path, batch_norm=False, examples=96, spread=spread),
        data=tiny.DIGITS,
    )
    tiny.execute(experiment, tmp_path / "run")
    split = open_split("digits", "train[:960]")
    assert seen == [[split[i * step]["label"] for i in range(96)]]


def test_training_goes_on_from_calibrated_codes(tmp_path):
    experiment = dataclasses.replace(
        calibrated(tmp_path, bits=4.5),
        optimization=Optimization(epochs=2, batch=48, sign_rate=0.01),
        distill=True,
    )
    result = tiny.execute(experiment, tmp_path / "run", devices=4)
    assert result["steps"] == 4 and np.isfinite(tiny.losses(tmp_path / "run")).all()


def test_rules_are_rules_without_a_budget(tmp_path):
    experiment = calibrated(tmp_path, batch_norm=False)
    result = tiny.execute(experiment, tmp_path / "run")
    assert {codec for _, codec, *_ in result["layers"]} == {"SSVQ(4, 8)"}
    assert result["validation"].keys() == result["test"].keys()
    stored = tiny.tensors(tmp_path / "run" / "model.ssvq.safetensors")
    before = tiny.tensors(tmp_path / "weights.safetensors")
    assert np.array_equal(stored["norm.mean"], before["norm.mean"])


def test_codes_by_the_fisher_information(tmp_path, monkeypatch):
    first, *others = (
        tiny.execute(
            calibrated(tmp_path, metric=metric, batch_norm=False), tmp_path / metric
        )["test"]["loss"]
        for metric in ("inputs", "fisher", "kronecker")
    )
    assert len({first, *others}) == 3 and max(others) < 1.1 * first
    monkeypatch.setattr(Classification, "logits", False)
    with pytest.raises(SystemExit, match="outputs of Classification are no logits"):
        tiny.execute(calibrated(tmp_path, metric="fisher", examples=48), tmp_path / "x")


def test_a_budget_that_cannot_be_met_says_what_can(tmp_path):
    with pytest.raises(SystemExit, match="bits: expected at least"):
        tiny.execute(calibrated(tmp_path, bits=0.5), tmp_path / "run")
