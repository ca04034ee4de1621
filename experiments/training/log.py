"""What a run writes down: lines of JSON, TensorBoard's events, its results."""

import json
import os
import pathlib
from typing import Any

import tensorboardX


class Log:
    """Numbers by step, in `metrics.jsonl` and for TensorBoard.

    Args:
      folder: The run's.
      step: Where the run goes on; what was written beyond it is dropped.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read(self._path) if line["step"] <= step]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self.seconds: float = max((line["seconds"] for line in kept), default=0.0)
        self._file = self._path.open("a")
        self._events = tensorboardX.SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1
        )

    def write(self, step: int, seconds: float, **values: float) -> None:
        """A line.

        Args:
          step: Updates so far.
          seconds: Time spent so far.
          **values: Numbers by name.
        """
        line = {"step": step, "seconds": round(seconds, 2), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
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


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(text)
    os.replace(partial, path)
