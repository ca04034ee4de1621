"""What an experiment is: the dataclasses that files in `configs/` fill in."""

import dataclasses
import pathlib
import re
import runpy
from collections.abc import Mapping
from typing import Any, Literal

import ssvq_jax as ssvq
from experiments.models.network import Network
from experiments.tasks import Task

_LATER: dict[str, Any] = {"later": True}
"""Of options that came after the first results: described where they are used."""
CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Examples to train on and to test with.

    Attributes:
      name: A data set that the task can open.
      train: Split to train on, such as "train[:45000]".
      validation: Split looked at while training; `None` for none.
      test: Split looked at before and after; `None` for none.
      in_memory: Whether examples are decoded once and kept; for small sets.
    """

    name: str
    train: str = "train"
    validation: str | None = None
    test: str | None = "test"
    in_memory: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimization:
    """AdamW with a warm-up and a cosine to 0.

    Attributes:
      epochs: Passes over the examples; 0 for no training.
      batch: Examples per step, of all devices together.
      rate: Peak learning rate of everything but signs and codebooks.
      sign_rate: That of the signs' latents.
      codebook_rate: That of codebooks; for the step sizes of uniform quantization, in
        units of the step.
      warmup: Share of the steps in which rates rise.
      weight_decay: Of everything that has two axes or more.
      beta2: Decay of the second moment.
      clip_norm: Largest norm of the whole gradient.
      dtype: Of activations and of the weights where they are multiplied, in training;
        what is judged is computed in float32.
      held: Regular expression for whole paths of parameters that are not trained.
      held_statistics: Whether batch norms keep the means and variances they start with:
        they use these in training, too, not those of the batch.
      features: In distillation, weight of the features' relative squared error beside
        the outputs' loss; the module has `features` and `outputs`.
    """

    epochs: float
    batch: int = 128
    rate: float = 1e-3
    sign_rate: float = 1e-3
    codebook_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    beta2: float = 0.999
    clip_norm: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    held: str | None = dataclasses.field(default=None, metadata=_LATER)
    held_statistics: bool = dataclasses.field(default=False, metadata=_LATER)
    features: float = dataclasses.field(default=0.0, metadata=_LATER)

    def steps(self, examples: int) -> int:
        """Updates in all, for so many examples in an epoch."""
        least = 1 if self.epochs else 0
        return max(least, round(self.epochs * examples / self.batch))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Freezing:
    """Progressive freezing of the signs; times as shares of the run.

    Attributes:
      checks: How often signs are frozen in the run: the interval is its reciprocal.
        The paper's 500 steps in 10 epochs of ImageNet are 25 (batch 1,024).
      threshold: Flip frequency above which a sign freezes, first and last; a cosine
        leads from one to the other.
      momentum: Of the flip frequency.
      decide: What a sign freezes at, see `ssvq_jax.freeze_signs`.
    """

    checks: int = 25
    threshold: tuple[float, float] = (0.1, 0.01)
    momentum: float = 0.01
    decide: Literal["majority", "average"] = "majority"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reassignment:
    """Codes that move: chosen anew, now and then, for weights trained beside them.

    These weights get the gradients of the decoded ones (straight-through), and serve
    nothing else. Learned signs stay what their latents say.

    Attributes:
      checks: How often codes are chosen anew in the run, about: the interval is its
        reciprocal, and at the end of the run they stay.
      rate: Peak learning rate of the weights.
    """

    checks: int = 10
    rate: float = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """How codes are found by what the layers see, on the examples of `Data.train`.

    Attributes:
      bits: Stored bits a weight of all parameters that several rules match, spread by
        `ssvq_jax.allocate`: these rules are its candidates. `None`: the first wins.
      examples: How many there are at most, the first ones.
      spread: Whether they are taken evenly from the whole split instead: of text, where
        neighbours are alike.
      probe: Examples, the last ones, on which the divergence of the outputs is measured
        when one parameter alone is compressed; 0 for predicted errors.
      refine: Whether codes are found by the outputs' error.
      form: Of the second moments, see `ssvq_jax.calibrate`.
      metric: What errors of the weights are measured by. "inputs": what they do to the
        layer's outputs. "fisher": what they do to the network's, by the factor of the
        layer's inputs; "kronecker": by those of its inputs and outputs, which spread
        bits, too; layers of more than 8,192 outputs keep the moments of their inputs,
        and no bits can be spread over them. See `ssvq_jax.fisher_factors`: it takes as
        long as training on the examples, without those of `probe`.
      batch_norm: Whether means and variances of batch norms are taken anew.
    """

    bits: float | None = None
    examples: int = 1000
    spread: bool = dataclasses.field(default=False, metadata=_LATER)
    probe: int = 100
    refine: bool = True
    form: Literal["full", "diagonal"] = "full"
    metric: Literal["inputs", "fisher", "kronecker"] = dataclasses.field(
        default="inputs", metadata=_LATER
    )
    batch_norm: bool = True

    def __post_init__(self):
        if self.metric != "inputs" and not self.refine:
            raise ValueError("metric: of codes that are refined")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compression:
    """What is compressed, and how it is fine-tuned.

    Attributes:
      rules: Paths are those of Flax, such as `blocks/0/attn/qkv/kernel`.
      freezing: Of the signs; `None` for none.
      calibration: `None` for codes found by the weights alone.
      reassignment: Of codes, while tuning; `None` for codes that stay.
    """

    rules: tuple[ssvq.Rule, ...]
    freezing: Freezing | None = None
    calibration: Calibration | None = dataclasses.field(default=None, metadata=_LATER)
    reassignment: Reassignment | None = dataclasses.field(default=None, metadata=_LATER)

    def __post_init__(self):
        learned = (getattr(rule.codec, "learn_signs", False) for rule in self.rules)
        if self.freezing is not None and not any(learned):
            raise ValueError("freezing: expected a rule with a codec that learns signs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: training from scratch, or fine-tuning with or without compression.

    Attributes:
      task: What is learned.
      network: The network.
      data: Its examples.
      optimization: Its training.
      weights: Checkpoint to start from; `None` to train from scratch.
      compression: `None` for float weights.
      distill: Whether to match the outputs that the network has with `weights`
        instead of the labels.
      seed: Of initialisation, clustering and batches.
      fresh: Regular expression for whole paths of parameters that start at random, not
        with `weights`: a prediction layer for other classes.
    """

    task: Task
    network: Network
    data: Data
    optimization: Optimization
    weights: str | None = None
    compression: Compression | None = None
    distill: bool = False
    seed: int = 0
    fresh: str | None = dataclasses.field(default=None, metadata=_LATER)

    def __post_init__(self):
        if self.fresh is not None:
            if self.weights is None or self.distill:
                raise ValueError("fresh: expected weights for all else, and own labels")
            try:
                re.compile(self.fresh)
            except re.error as error:
                raise ValueError(f"fresh: {self.fresh!r}: {error}") from error
        if self.weights is None and (self.compression or self.distill):
            raise ValueError("weights: expected a checkpoint to compress or distil")
        if self.optimization.features and not self.distill:
            raise ValueError("features: they are matched in distillation alone")

    def describe(self) -> dict[str, Any]:
        """As JSON, to tell whether two experiments are the same; networks by name."""
        kind = type(self.task).__name__
        return _plain(self) | {"task": {"kind": kind, **_plain(self.task)}}


def load(path: pathlib.Path) -> Mapping[str, Experiment]:
    """The experiments of a config file, by the names of their runs.

    The file is Python and is executed; it defines `runs()`, which gives them.

    Raises:
      SystemExit: A file that is missing, or defines something else.
    """
    if not path.is_file():
        names = "\n  ".join(str(file) for file in files())
        raise SystemExit(f"{path}: no such config. There are:\n  {names}")
    runs = runpy.run_path(str(path)).get("runs")
    found = runs() if callable(runs) else None
    if not isinstance(found, Mapping) or not found:
        raise SystemExit(
            f"{path}: expected a function runs() that gives experiments by name, see "
            "experiments/configs"
        )
    return found


def files() -> list[pathlib.Path]:
    """The config files there are."""
    return sorted(x for x in CONFIGS.rglob("*.py") if not x.stem.startswith("_"))


def name_of(path: pathlib.Path) -> str:
    """What a config is called: its path below `configs/`, elsewhere its file's name."""
    path = path.resolve().with_suffix("")
    inside = path.is_relative_to(CONFIGS)
    return path.relative_to(CONFIGS).as_posix() if inside else path.name


def _plain(value: Any) -> Any:
    if isinstance(value, ssvq.Rule):
        codec = value.codec.describe() if value.codec is not None else None
        axis = {} if value.axis is None else {"axis": value.axis}
        stack = {} if value.stack == 0 else {"stack": value.stack}
        return {"pattern": value.pattern, "codec": codec, **axis, **stack}
    if isinstance(value, Network):
        return value.name
    if dataclasses.is_dataclass(value):
        found = {x: getattr(value, x.name) for x in dataclasses.fields(value)}
        return {
            field.name: _plain(option)
            for field, option in found.items()
            if not (field.metadata.get("later") and option == field.default)
        }
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return value
