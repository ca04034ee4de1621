"""One experiment from its start, or where it was left, to its results."""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from rich.progress import Progress, TaskID

import ssvq_jax as ssvq
from experiments import data
from experiments.augmentation import Augment, mixing
from experiments.config import Experiment
from experiments.models import checkpoint
from experiments.training import evaluation, optimizer
from experiments.training.devices import Devices
from experiments.training.log import Log, read, write_text
from experiments.training.program import Program, State
from ssvq_jax.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How experiments are executed; results do not depend on it.

    But for images that are mixed: every process mixes its own.

    Attributes:
      devices: The devices.
      data_dir: Folder of tensorflow-datasets; `None` for its default.
      workers: Processes that read images; 0 for threads.
      log_every: Steps between lines of the log.
      checkpoint_every: Steps between checkpoints, a multiple of `log_every`.
    """

    devices: Devices
    data_dir: pathlib.Path | None = None
    workers: int = 0
    log_every: int = 50
    checkpoint_every: int = 500

    def __post_init__(self):
        if min(self.log_every, self.checkpoint_every) < 1:
            raise SystemExit("--log-every, --checkpoint-every: expected at least 1")
        if self.checkpoint_every % self.log_every:
            raise SystemExit(
                f"--checkpoint-every: expected a multiple of {self.log_every} "
                f"(--log-every), got {self.checkpoint_every}"
            )


def run(
    experiment: Experiment,
    folder: pathlib.Path,
    execution: Execution,
    progress: Progress,
) -> dict[str, Any]:
    """Run an experiment; one that is finished already is only read.

    Args:
      experiment: The experiment.
      folder: Where checkpoints, logs, the exported model and results go.
      execution: How.
      progress: Where to show how far it is.

    Returns:
      Its results, as in `result.json`. Of a run whose loss or parameters are not
      finite, the experiment and `diverged`, the step where that was seen.

    Raises:
      SystemExit: A folder of another experiment.
    """
    description = _described(experiment, folder)
    finished = folder / "result.json"
    if finished.exists():
        return json.loads(finished.read_text())
    try:
        return _Run(experiment, folder, execution, progress).results(description)
    except _DivergedError as error:
        result = {"experiment": description, "diverged": error.args[0]}
        if jax.process_index() == 0:
            progress.console.print(f"{folder.name}: diverged by step {error.args[0]}")
            write_text(finished, json.dumps(result, indent=1))
        return result


class _DivergedError(ArithmeticError):
    """A loss or parameters that are not finite, and the step."""


def _described(experiment: Experiment, folder: pathlib.Path) -> dict[str, Any]:
    """What the experiment is; the folder's has to be the same."""
    description = experiment.describe()
    if experiment.weights is not None:
        path = pathlib.Path(experiment.weights)
        if not path.exists():
            raise SystemExit(
                f"{path}: no such checkpoint. Give one with --weights, or run the "
                "config that trains it first."
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        description["weights"] = {"sha256": digest}
    known = folder / "experiment.json"
    if known.exists() and json.loads(known.read_text()) != description:
        raise SystemExit(
            f"{folder}: holds another experiment, or weights have changed since. "
            "Delete the folder, or give another one: --output DIR"
        )
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(known, json.dumps(description, indent=1))
    return description


class _Run:
    def __init__(
        self,
        experiment: Experiment,
        folder: pathlib.Path,
        execution: Execution,
        progress: Progress,
    ):
        self.experiment, self.folder = experiment, folder
        self.execution, self.progress = execution, progress
        self.devices = execution.devices
        self.writes = jax.process_index() == 0
        options, source = experiment.optimization, experiment.data
        devices, parts = self.devices.mesh.size, options.accumulate
        if options.batch % (devices * parts):
            raise SystemExit(
                f"batch: expected a multiple of {devices * parts} ({devices} devices, "
                f"accumulate={parts}), got {options.batch}"
            )
        self.train = self._split(source.train)
        experiment.network.require_classes(source.name, self.train.classes)
        self.epoch = max(1, round(len(self.train) / options.batch))
        self.steps = options.steps(len(self.train))
        model = experiment.network.build(nnx.Rngs(experiment.seed))
        if experiment.weights is not None:
            checkpoint.load(model, experiment.weights)
        self.program = Program(experiment, model, self.steps)
        replicated = self.devices.replicated
        self._predict = jax.jit(self.program.predict, out_shardings=replicated)

    def results(self, description: dict[str, Any]) -> dict[str, Any]:
        """Train and export."""
        start = time.perf_counter()
        params = self.program.compressed()
        initial_signs = optimizer.signs(params)
        state = self.devices.place(self.program.initial(params))
        with contextlib.ExitStack() as stack:
            checkpoints = stack.enter_context(self._checkpoints())
            step = checkpoints.latest_step()
            if step is not None:
                shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
                restore: Any = ocp.args.StandardRestore(shapes)
                state = checkpoints.restore(step, args=restore)
            log = None
            if self.writes:
                log = Log(self.folder, -1 if step is None else step)
                stack.callback(log.close)
                start -= log.seconds
            if step is None and self.experiment.weights is not None:
                before = self._judged(self._final(state), state, "test")
                counts = self._counts(before, "test")  # by all processes together
                if log is not None:
                    log.write(0, 0.0, **counts)
            done = step or 0
            bar = self.progress.add_task(
                self.folder.name, total=self.steps, completed=done, note="compiling"
            )
            stack.callback(self.progress.remove_task, bar)
            state = self._train(
                state, done, checkpoints, log, bar, start, initial_signs
            )
        final = self._final(state)
        return self._export(final, state, description, time.perf_counter() - start)

    def _train(
        self,
        state: State,
        done: int,
        checkpoints: ocp.CheckpointManager,
        log: Log | None,
        bar: TaskID,
        start: float,
        initial_signs: list[jax.Array],
    ) -> State:
        """All steps that are left."""
        experiment = self.experiment
        shardings = self.devices.sharding(state)
        update = jax.jit(
            self.program.step,
            donate_argnums=0,
            out_shardings=(shardings, self.devices.replicated),
        )
        teacher = None
        if experiment.distill:
            own = (self.program.params, self.program.statistics)
            teacher = self.devices.place(own)
        augmentation = experiment.data.augmentation
        batches = data.training_batches(
            self.train,
            batch=experiment.optimization.batch,
            seed=experiment.seed,
            augment=Augment(augmentation, experiment.network.size),
            mix=mixing(augmentation, self.train.classes),
            repeats=augmentation.repeats,
            start=done,
            process=self.devices.process,
            workers=self.execution.workers,
        )
        losses, since = [], time.perf_counter()
        for step, arrays in zip(range(done + 1, self.steps + 1), batches, strict=False):
            state, loss = update(state, self.devices.batch(arrays), teacher)
            losses.append(loss)
            epoch_ends = step % self.epoch == 0 or step == self.steps
            if step % self.execution.log_every == 0 or epoch_ends:
                values = self._progress(bar, step, losses, since)
                if epoch_ends:
                    values |= optimizer.shares(
                        initial_signs, state.params, state.optimizer
                    )
                    final = self._final(state)
                    held_out = self._judged(final, state, "validation")
                    values |= self._counts(held_out, "validation")
                    self._tell(step, values)
                if log is not None:
                    log.write(step, time.perf_counter() - start, **values)
                losses, since = [], time.perf_counter()
            if step % self.execution.checkpoint_every == 0:
                save: Any = ocp.args.StandardSave(state)
                checkpoints.save(step, args=save)
                if jax.default_backend() == "cpu":
                    # Arrays may lie where the next step writes.
                    checkpoints.wait_until_finished()
        return state

    def _progress(
        self, bar: TaskID, step: int, losses: list[jax.Array], since: float
    ) -> dict[str, float]:
        """Mean loss and speed of some steps, shown and returned."""
        mean = float(np.mean(jax.device_get(losses)))
        seconds = time.perf_counter() - since
        if not math.isfinite(mean):
            raise _DivergedError(step)
        speed = len(losses) * self.experiment.optimization.batch / seconds
        note = f"loss {mean:.3f}, {speed:.0f} images/s"
        self.progress.update(bar, completed=step, note=note)
        return {"loss": mean, "images_per_second": round(speed, 1)}

    def _tell(self, step: int, values: dict[str, float]) -> None:
        """A line per epoch where there is no terminal to show a bar in."""
        if self.writes and not self.progress.console.is_terminal:
            text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            print(f"{self.folder.name}: {step}/{self.steps}: {text}", flush=True)

    def _final(self, state: State) -> Any:
        """The parameters in the form that is exported, in memory."""
        step = int(state.step)
        try:
            final = ssvq.finalize(self.devices.gather(state.params))
        except ValueError as error:  # what is not finite, or too large to be stored
            raise _DivergedError(step) from error
        leaves = [
            x for x in jax.tree.leaves(final) if jnp.issubdtype(x.dtype, jnp.inexact)
        ]
        if not all(np.all(np.isfinite(x)) for x in leaves):
            raise _DivergedError(step)
        return final

    def _judged(
        self, final: Any, state: State, which: str
    ) -> evaluation.Prediction | None:
        """Predictions on the validation or test split; `None` where there is none."""
        split = getattr(self.experiment.data, which)
        if split is None:
            return None
        return self._predictions(ssvq.decode(final), state.statistics, split)

    def _counts(
        self, prediction: evaluation.Prediction | None, which: str
    ) -> dict[str, float]:
        """Counts by name; agreement with the float network too, where there is one."""
        if prediction is None:
            return {}
        counts = prediction.counts()
        if self.experiment.weights is not None:
            same = prediction.predicted == self._float_classes[which]
            counts["agreement"] = int(np.sum(same))
        return {f"{which}_{name}": value for name, value in counts.items()}

    @functools.cached_property
    def _float_classes(self) -> dict[str, np.ndarray]:
        """The classes that the network finds with float weights, of either split."""
        program, source = self.program, self.experiment.data
        splits = {"validation": source.validation, "test": source.test}
        return {
            which: self._predictions(
                program.params, program.statistics, split
            ).predicted
            for which, split in splits.items()
            if split is not None
        }

    def _predictions(
        self, params: Any, statistics: Any, split: str
    ) -> evaluation.Prediction:
        placed = self.devices.place((params, statistics))
        return evaluation.evaluate(
            functools.partial(self._predict, *placed),
            self._split(split),
            size=self.experiment.network.size,
            batch=self.experiment.optimization.batch,
            devices=self.devices,
        )

    def _export(
        self, final: Any, state: State, description: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Write the model, read it back, and write the results."""
        compressed = self.experiment.compression is not None
        name = "model.ssvq.safetensors" if compressed else "model.safetensors"
        statistics = self.devices.gather(state.statistics)
        test = self._judged(final, state, "test")
        lines = read(self.folder / "metrics.jsonl")
        result = {
            "experiment": description,
            "steps": self.steps,
            "minutes": round(seconds / 60, 2),
            "before": _named(lines[0], "test") if lines else {},
            "test": _named(self._counts(test, "test"), "test"),
            "validation": _named(lines[-1], "validation") if lines else {},
            "versions": {
                package: importlib.metadata.version(package)
                for package in ("jax", "flax", "optax")
            },
            "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
            "command": "python -m " + " ".join(sys.orig_argv[2:]),
        }
        if test is not None:  # a bit per image, for comparisons image by image
            right = np.packbits(test.rank < 1).tobytes()
            result["right"] = base64.b64encode(right).decode()
        if compressed:
            report = ssvq.report((final, statistics))
            result["bits_per_weight"] = report.compressed.bits_per_weight
            result["ratio"] = report.compressed.ratio
            result["model_ratio"] = report.model.ratio
            result |= {k: lines[-1][k] for k in ("flipped", "frozen") if k in lines[-1]}
        if self.writes:
            file = self.folder / name
            checkpoint.save(file, final, statistics)
            _require_same(file, ssvq.decode(final))
            result["bytes"] = file.stat().st_size
            write_text(self.folder / "result.json", json.dumps(result, indent=1))
        return result

    def _checkpoints(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, cleanup_tmp_directories=True
        )
        folder = (self.folder / "checkpoints").absolute()
        return ocp.CheckpointManager(folder, options=options)

    def _split(self, split: str) -> data.Split:
        source = self.experiment.data
        return _opened(source.name, split, self.execution.data_dir, source.in_memory)


@functools.lru_cache(maxsize=8)
def _opened(
    name: str, split: str, data_dir: pathlib.Path | None, in_memory: bool
) -> data.Split:
    """A split, kept for the runs that follow."""
    opened = data.open_split(name, split, data_dir)
    return opened.decoded() if in_memory else opened


def _named(line: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The values of a line whose names start with a prefix, without it."""
    start = f"{prefix}_"
    return {k.removeprefix(start): v for k, v in line.items() if k.startswith(start)}


def _require_same(file: pathlib.Path, params: Any) -> None:
    """Raise unless a file gives back the parameters bit for bit."""
    stored = Checkpoint(file)
    for keys, value in nnx.traversals.flatten_mapping(params).items():
        name = checkpoint.flax_name(keys)
        if not np.array_equal(stored[name], value):
            raise RuntimeError(f"{file}: {name} differs after reading it back")
