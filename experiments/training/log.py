"""What a run writes down while it goes on: lines of JSON, TensorBoard's events."""

import json
import pathlib
from typing import Any

import tensorboardX

from experiments.training.records import write_text


class Log:
    """Numbers by step, in `metrics.jsonl` and for TensorBoard.

    Args:
      folder: The run's.
      step: Where the run goes on, `None` for its start; lines beyond are dropped.
      writes: Whether this process writes; one of several does.

    Attributes:
      seconds: Time spent until `step`.
    """

    def __init__(self, folder: pathlib.Path, step: int | None, writes: bool = True):
        self.seconds = 0.0
        self._file = self._events = None
        if not writes:
            return
        path, last = folder / "metrics.jsonl", -1 if step is None else step
        kept = [line for line in read(path) if line["step"] <= last]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.seconds = max((line["seconds"] for line in kept), default=0.0)
        self._file = path.open("a")
        self._events = tensorboardX.SummaryWriter(
            str(folder / "tensorboard"), purge_step=last + 1
        )

    def write(self, step: int, seconds: float, **values: float) -> None:
        """A line.

        Args:
          step: Updates so far.
          seconds: Time spent so far.
          **values: Numbers by name.
        """
        if self._file is None or self._events is None:
            return
        line = {"step": step, "seconds": round(seconds, 2), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._file is not None and self._events is not None:
            self._file.close()
            self._events.close()


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines of a file that may be missing, or cut off by a kill."""
    lines = []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines
