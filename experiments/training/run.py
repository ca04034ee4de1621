"""One experiment from its start, or where it was left, to its record."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from rich.progress import Progress, TaskID

import ssvq_jax as ssvq
from experiments.data import batches
from experiments.data.batches import Split
from experiments.models import checkpoint
from experiments.tasks import Task
from experiments.training import export
from experiments.training.calibration import Calibrated
from experiments.training.changes import Changes, signs
from experiments.training.config import Data, Experiment
from experiments.training.devices import Devices
from experiments.training.evaluation import Judge
from experiments.training.log import Log, read
from experiments.training.program import Program, State
from experiments.training.records import Record, write_text
from ssvq_jax.tree.report import NOT_COMPRESSED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How experiments are executed; results do not depend on it.

    Attributes:
      devices: The devices.
      data_dir: Folder of the data sets; `None` for its default.
      workers: Processes that read examples; 0 for threads.
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
) -> Record:
    """Run an experiment; one that is finished already is only read.

    Args:
      experiment: The experiment.
      folder: Where checkpoints, logs, the exported model and its record go.
      execution: How.
      progress: Where to show how far it is.

    Returns:
      Its record, as in `result.json`. Of a run whose loss or parameters are not
      finite, the experiment and `diverged`, the step where that was seen.

    Raises:
      SystemExit: A folder of another experiment.
    """
    description = _described(experiment, folder)
    finished = folder / "result.json"
    if finished.exists():
        return json.loads(finished.read_text())
    begun = _Run(experiment, folder, execution, progress)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "experiment.json", json.dumps(description, indent=1))
    try:
        found = begun.record()
    except export.DivergedError as error:
        found = {"diverged": error.args[0]}
    found = {"experiment": description, **found}
    if jax.process_index() == 0:
        if "diverged" in found:
            text = f"{folder.name}: diverged by step {found['diverged']}"
            progress.console.print(text)
        write_text(finished, json.dumps(found, indent=1))
    return found


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
    if known.exists():
        found = json.loads(known.read_text())
        if found != description:
            changed = [key for key in description if found.get(key) != description[key]]
            reason = f"holds another experiment: {', '.join(changed)} differ"
            if found.keys() != description.keys():
                reason = "was begun by an earlier version, and cannot be continued"
            raise SystemExit(
                f"{folder}: {reason}. Delete the folder, or give another one: "
                "--output DIR"
            )
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
        count = self.devices.mesh.size
        if options.batch % count:
            raise SystemExit(
                f"batch: expected a multiple of {count} (devices), got {options.batch}"
            )
        # All splits now: a name that is wrong must not be found after the training.
        for split in filter(None, (source.train, source.validation, source.test)):
            opened = self._split(split)
            experiment.network.require_classes(source.name, opened.classes)
        self.train = self._split(source.train)
        self.epoch = max(1, round(len(self.train) / options.batch))
        self.steps = options.steps(len(self.train))
        model = experiment.network.build(nnx.Rngs(experiment.seed))
        if experiment.weights is not None:
            checkpoint.load(model, experiment.weights, experiment.fresh)
        self.program = Program(experiment, model, self.steps)
        self.judge = Judge(experiment, self.program, self.devices, self._split)

    def record(self) -> Record:
        """Train and export."""
        start = time.perf_counter()
        params, statistics = self._start()
        changes = Changes(params)
        state = self.program.initial(params)._replace(statistics=statistics)
        state = self.devices.place(state)
        with contextlib.ExitStack() as stack:
            checkpoints = stack.enter_context(self._checkpoints())
            done = checkpoints.latest_step()
            if done is not None:
                shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
                restore: Any = ocp.args.StandardRestore(shapes)
                state = checkpoints.restore(done, args=restore)
            log = Log(self.folder, done, writes=self.writes)
            stack.callback(log.close)
            start -= log.seconds
            before = None
            if done is None and self.experiment.weights is not None:
                before = self._rows(state, "test")
                scores = self.judge.score(before, "test")
                if not self.steps:
                    held_out = self._rows(state, "validation")
                    scores |= self.judge.score(held_out, "validation")
                log.write(0, 0.0, **scores)
            bar = self.progress.add_task(
                self.folder.name,
                total=self.steps,
                completed=done or 0,
                note="compiling",
            )
            stack.callback(self.progress.remove_task, bar)
            state = self._train(state, done or 0, checkpoints, log, bar, start, changes)
        known = None if self.steps else before
        return self._record(state, time.perf_counter() - start, known)

    def _start(self) -> tuple[Any, Any]:
        """Parameters and statistics before the first step."""
        compression = self.experiment.compression
        if compression is None or compression.calibration is None:
            return self.program.compressed(), self.program.statistics
        bar = self.progress.add_task(self.folder.name, total=None, note="calibrating")
        try:
            return Calibrated(
                self.experiment, self.program, self.train, self.devices
            ).start()
        except ValueError as error:
            network = self.experiment.network.name
            raise SystemExit(f"calibration of {network}: {error}") from error
        finally:
            self.progress.remove_task(bar)

    def _train(
        self,
        state: State,
        done: int,
        checkpoints: ocp.CheckpointManager,
        log: Log,
        bar: TaskID,
        start: float,
        changes: Changes,
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
        source = batches.training_batches(
            self.train,
            batch=experiment.optimization.batch,
            seed=experiment.seed,
            prepare=functools.partial(
                experiment.task.prepare, size=experiment.network.size
            ),
            start=done,
            process=self.devices.process,
            workers=self.execution.workers,
        )
        compression = experiment.compression
        moving = compression.reassignment if compression else None
        every = max(1, self.steps // moving.checks) if moving else self.steps
        losses, since = [], time.perf_counter()
        for step, arrays in zip(range(done + 1, self.steps + 1), source, strict=False):
            epoch_ends = step % self.epoch == 0 or step == self.steps
            before = signs(state.params) if epoch_ends else []
            state, loss = update(state, self.devices.batch(arrays), teacher)
            losses.append(loss)
            if step % every == 0 and step < self.steps:
                state = self.program.reassigned(state)
            if step % self.execution.log_every == 0 or epoch_ends:
                values = self._progress(bar, step, losses, since)
                if epoch_ends:
                    values |= changes.shares(state, before)
                    held_out = self._rows(state, "validation")
                    values |= self.judge.score(held_out, "validation")
                    self._tell(step, values)
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
            raise export.DivergedError(step)
        speed = len(losses) * self.experiment.optimization.batch / seconds
        unit = self.experiment.task.unit
        note = f"loss {mean:.3f}, {speed:.0f} {unit}/s"
        self.progress.update(bar, completed=step, note=note)
        return {"loss": mean, f"{unit}_per_second": round(speed, 1)}

    def _tell(self, step: int, values: dict[str, float]) -> None:
        """A line per epoch where there is no terminal to show a bar in."""
        if self.writes and not self.progress.console.is_terminal:
            text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            print(f"{self.folder.name}: {step}/{self.steps}: {text}", flush=True)

    def _final(self, state: State) -> Any:
        """The parameters in the form that is exported, in memory."""
        return export.finalize(self.devices.gather(state.params), int(state.step))

    def _rows(self, state: State, which: str) -> Any:
        """The task's rows for a split, of the parameters as they would be exported."""
        statistics = self.devices.gather(state.statistics)
        return self.judge.rows(self._final(state), statistics, which)

    def _record(self, state: State, seconds: float, test: Any) -> Record:
        """Judge, unless rows are known, and export the last parameters."""
        final, statistics = self._final(state), self.devices.gather(state.statistics)
        if test is None:
            test = self.judge.rows(final, statistics, "test")
        found = {"steps": self.steps, "minutes": round(seconds / 60, 2)}
        found |= export.record(
            self.experiment.task,
            final,
            statistics,
            read(self.folder / "metrics.jsonl"),
            test,
            self.judge.score(test, "test"),
        )
        compression = self.experiment.compression
        if compression is not None and compression.calibration is not None:
            rows = ssvq.report(final).rows
            found["layers"] = [
                [row.path, row.rule, row.weights, row.bits]
                for row in rows
                if row.rule != NOT_COMPRESSED
            ]
        if self.writes:
            found["bytes"] = export.export(self.folder, final, statistics)
        return found

    def _checkpoints(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, cleanup_tmp_directories=True
        )
        folder = (self.folder / "checkpoints").absolute()
        return ocp.CheckpointManager(folder, options=options)

    def _split(self, split: str) -> Split:
        experiment, folder = self.experiment, self.execution.data_dir
        return _opened(experiment.task, experiment.data, split, folder)


@functools.lru_cache(maxsize=8)
def _opened(task: Task, data: Data, split: str, data_dir: pathlib.Path | None) -> Split:
    """A split, kept for the runs that follow."""
    opened = task.open(data.name, split, data_dir)
    return opened.decoded() if data.in_memory else opened
