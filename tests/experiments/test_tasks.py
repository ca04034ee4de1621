"""Tasks: classification, and a toy one that shows what a task has to say."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx
from rich.console import Console

import ssvq_jax as ssvq
from experiments.data.batches import Split
from experiments.models.network import Network
from experiments.tasks import Classification
from experiments.tasks.task import half_width
from experiments.training import dry_run
from experiments.training.config import Compression, Data, Experiment, Optimization
from experiments.training.devices import Devices
from experiments.training.log import read
from experiments.training.records import unpack
from experiments.training.run import Execution
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion", "unchecked_types")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression:
    """A line through noise. Its metric, the share of variance explained, is no mean."""

    noise: float = 0.1

    metric: ClassVar[str] = "explained"
    unit: ClassVar[str] = "points"

    def open(self, name, split, data_dir):
        del data_dir
        start, stop = {"train": (0, 256), "test": (256, 320)}[split]
        rng = np.random.default_rng(0)
        x = rng.normal(size=(320, 8)).astype("f4")
        y = x @ np.arange(8, dtype="f4") + self.noise * rng.normal(size=320)
        examples = [{"x": x[i], "y": y[i].astype("f4")} for i in range(start, stop)]
        return Split(f"{name} {split}", examples, 1)

    def prepare(self, example, rng=None, *, size):
        assert example["x"].shape == (size,)
        if rng is None:
            return example
        return {**example, "x": example["x"] + rng.normal(0, 0.01, size).astype("f4")}

    def shapes(self, network):
        return {
            "x": jax.ShapeDtypeStruct((network.size,), jnp.float32),
            "y": jax.ShapeDtypeStruct((), jnp.float32),
        }

    def loss(self, outputs, batch):
        return jnp.mean((outputs["mean"] - batch["y"]) ** 2)

    def match(self, outputs, target):
        return jnp.mean((outputs["mean"] - target["mean"]) ** 2)

    def judge(self, outputs, batch):
        return {"error": outputs["mean"] - batch["y"], "y": batch["y"]}

    def score(self, rows, reference=None):
        found = {"explained": _explained(rows["error"], rows["y"])}
        if reference is not None:
            moved = rows["error"] - reference["error"]
            found["moved"] = float(np.sqrt(np.mean(moved**2)))
        return found

    def each(self, rows):
        error, y = rows["error"], rows["y"]
        n = len(y)
        rest = [_explained(np.delete(error, i), np.delete(y, i)) for i in range(n)]
        return n * _explained(error, y) - (n - 1) * np.array(rest)


def _explained(error, y):
    return 1 - float(np.mean(error**2) / np.var(y))


class _Points(Network):
    def inputs(self, batch):
        return batch["x"]


class _Perceptron(nnx.Module):
    def __init__(self, classes, rngs):
        self.hidden = nnx.Linear(8, 32, rngs=rngs)
        self.out = nnx.Linear(32, classes, rngs=rngs)

    def __call__(self, x):
        return {"mean": self.out(nnx.relu(self.hidden(x)))[:, 0]}


_TOY = Experiment(
    task=Regression(),
    network=_Points(name="points", make=_Perceptron, size=8, classes=1),
    data=Data(name="line", validation="test"),
    optimization=Optimization(epochs=20, batch=32, rate=0.02),
)


def test_a_task_of_another_kind_goes_through_everything(tmp_path):
    float_result = tiny.execute(_TOY, tmp_path / "float")
    assert float_result["test"]["explained"] > 0.9
    rules = (ssvq.Rule("hidden/kernel", ssvq.SSVQ(4, 4)),)
    experiment = dataclasses.replace(
        _TOY,
        weights=str(tmp_path / "float" / "model.safetensors"),
        compression=Compression(rules=rules),
        distill=True,
    )
    result = tiny.execute(experiment, tmp_path / "compressed", devices=4)
    assert result["before"]["explained"] < result["test"]["explained"]
    assert 0 < result["test"]["moved"] < result["before"]["moved"]
    assert result["experiment"]["task"] == {"kind": "Regression", "noise": 0.1}
    # The mean of the pseudo-values is the metric, up to its bias; so for intervals.
    each = unpack(result["each"])
    assert each.shape == (64,)
    spread = half_width(each)
    assert abs(np.mean(each) - result["test"]["explained"]) < spread < 0.2
    lines = read(tmp_path / "compressed" / "metrics.jsonl")
    assert lines[-1].keys() > {"validation/explained", "validation/moved", "flipped"}
    execution = Execution(devices=Devices.all("data"))
    console = Console(width=200, record=True)
    console.print(dry_run.table("toy", experiment, execution))
    assert "line train, 256" in (text := console.export_text())
    assert "160, 32 points each" in text


def test_ties_go_to_the_first_class_and_nan_is_never_right():
    logits = np.array([[1, 2, 2], [1, 2, 2], [np.nan, 1, 0], [0, 0, 0]], np.float32)
    found = Classification().judge(logits, {"label": np.array([1, 2, 0, 2])})
    np.testing.assert_array_equal(found.rank, [0, 1, 3, 2])


def _logits(rng):
    return rng.normal(size=(40, 7)).astype("f4"), rng.integers(0, 7, 40)


def test_losses_against_plain_numpy(rng):
    logits, label = _logits(rng)
    target = rng.normal(size=logits.shape).astype("f4")
    smoothed = 0.8 * np.eye(7)[label] + 0.2 / 7
    log = scipy.special.log_softmax(logits, axis=1)
    task = Classification(label_smoothing=0.2)
    expected = -np.mean(np.sum(smoothed * log, axis=1))
    assert task.loss(logits, {"label": label}) == pytest.approx(expected, rel=1e-5)
    shares = scipy.special.softmax(target, axis=1)
    expected = -np.mean(np.sum(shares * log, axis=1))
    assert task.match(logits, target) == pytest.approx(expected, rel=1e-5)


def test_scores_of_classification_against_plain_numpy(rng):
    task, (logits, label) = Classification(), _logits(rng)
    rows = jax.tree.map(np.asarray, task.judge(logits, {"label": label}))
    other = rows._replace(predicted=np.where(np.arange(40) < 10, -1, rows.predicted))
    order = np.argsort(-logits, axis=1)
    assert task.score(rows, other) == pytest.approx(
        {
            "top1": np.mean(order[:, 0] == label),
            "top5": np.mean(np.any(order[:, :5] == label[:, None], axis=1)),
            "loss": -np.mean(scipy.special.log_softmax(logits, 1)[range(40), label]),
            "agreement": 0.75,
        }
    )
    np.testing.assert_array_equal(task.each(rows), order[:, 0] == label)


def test_half_of_an_interval_is_that_of_a_share():
    right = np.arange(1000) < 730
    expected = 1.96 * np.sqrt(0.73 * 0.27 / 1000)
    assert half_width(right) == pytest.approx(expected, rel=2e-3)
    # Of few values Student's t: 2.093 for 19 degrees of freedom.
    few = np.arange(20.0)
    expected = 2.093 * few.std(ddof=1) / 20**0.5
    assert half_width(few) == pytest.approx(expected, rel=1e-4)
    assert half_width(few[:1]) == np.inf
