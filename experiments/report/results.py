"""Results as pages read them: what is missing or has diverged is an error."""

import functools
import pathlib
import re
from typing import Any

import numpy as np

from experiments.configs._methods import TITLES
from experiments.tasks import TASKS
from experiments.training import config, records

NETWORKS = {
    "efficientnet_lite0": "EfficientNet-Lite0",
    "mobilenet_v2_100_unfolded": "MobileNet-V2",
}
"""Networks of the few images, and what tables call them."""

_MEASUREMENTS = {
    "cifar10/dominance": "python -m experiments.measurements.dominance --data-dir DIR",
    "accelerator": "python -m experiments.measurements.accelerator",
    "sizes": "python -m experiments.measurements.sizes",
    "tokens": "python -m experiments.measurements.tokens CHECKPOINT",
    "codebooks": "python -m experiments.measurements.codebooks",
    "masks": "python -m experiments.measurements.masks CHECKPOINT --data-dir DIR",
    "benchmarks": "python -m experiments.benchmarks",
}
_METRICS = {task.__name__: task.metric for task in TASKS.values()}


class Missing(ValueError):
    """What a page tells and no result has."""


class Absent(Missing):
    """No results at all: what asks for them is left out."""


def command(source: str) -> str:
    """What makes a file of results, of `cifar10/bits`, say, again."""
    if source in _MEASUREMENTS:
        return _MEASUREMENTS[source]
    path = config.CONFIGS / f"{source}.py"
    runs = config.load(path).values() if path.exists() else ()
    script = "train" if any(run.weights is None for run in runs) else "compress"
    return (
        f"python -m experiments.{script} experiments/configs/{source}.py "
        "--data-dir DIR --results experiments/results"
    )


class Numbers(dict[str, Any]):
    """Numbers by name, those inside as well; one that is missing is an error."""

    def __init__(self, name: str, values: dict[str, Any], source: str = ""):
        place = f"{source}.jsonl: {name}" if source else name
        super().__init__(
            (key, Numbers(f"{place}: {key}", x) if isinstance(x, dict) else x)
            for key, x in values.items()
        )
        self.name, self.place = name, place

    def __missing__(self, key: str) -> Any:
        raise Missing(f"{self.place} has no {key}")


class Run(Numbers):
    """What a training run gave. One that has diverged has no numbers."""

    def __missing__(self, key: str) -> Any:
        if self.diverged is not None:
            raise Missing(f"{self.place} has diverged by step {self.diverged}")
        return super().__missing__(key)

    @property
    def diverged(self) -> int | None:
        """The step by which it had, if it has."""
        return self.get("diverged")

    @property
    def parts(self) -> list[str]:
        """Of its name, such as METHOD, BITS, SEED."""
        return re.split(r"(?<!\de)-", self.name)  # not at the exponent of 1e-05

    @property
    def method(self) -> str:
        """The one of `TITLES` in its name."""
        found = [x for x in self.parts if x in TITLES or x == "ssvq"]
        if not found:
            raise Missing(f"{self.place} names none of {', '.join(TITLES)}")
        return found[0].replace("ssvq", "free" if self.get("steps") == 0 else "frozen")

    @property
    def title(self) -> str:
        """What tables call its method."""
        return TITLES[self.method]

    @property
    def codec(self) -> str:
        """The numbers of the first rule's codec: `(64, 4, int8)`."""
        text = self["experiment"]["compression"]["rules"][0]["codec"]
        return re.sub(r"^\w+|, learn_signs=False|\w+=|'", "", text)

    @property
    def bits(self) -> float:
        """Per compressed weight."""
        return self["bits_per_weight"] if self["experiment"]["compression"] else 32.0

    @property
    def ratio(self) -> float:
        """Of 32 bits to `bits`."""
        return self["ratio"] if self["experiment"]["compression"] else 1.0

    @property
    def accuracy(self) -> float:
        """The metric of its task, on the test split: of images the share of "top1"."""
        return self["test"][_METRICS[self["experiment"]["task"]["kind"]]]

    @functools.cached_property
    def each(self) -> np.ndarray:
        """Numbers whose spread gives the accuracy's interval: see `Task.each`."""
        return records.unpack(self["each"])


class Results(dict[str, Any]):
    """The lines of a file by their names; one that is missing is an error.

    Those of training are `Run`s, those of measurements `Numbers`.
    """

    def __init__(self, folder: pathlib.Path, source: str):
        self.source, self.command = source, command(source)
        found = records.read(folder / f"{source}.jsonl")
        if not found:
            raise Absent(f"{source}.jsonl is missing; {self.command} makes it")
        for name, values in found.items():
            kind = Run if "experiment" in values else Numbers
            self[name] = kind(name, values, source)

    def __missing__(self, name: str) -> Any:
        raise Missing(f"{self.source}.jsonl has no {name}")

    def like(self, start: str) -> list[Any]:
        """The lines whose names start with `START-`."""
        return [run for name, run in self.items() if name.startswith(f"{start}-")]

    def of(self, method: str, bits: float) -> list[Run]:
        """The runs METHOD-BITS of all seeds; the float network has 32 bits, or none."""
        found = self.any_of(method, bits)
        if not found:
            raise Missing(f"{self.source}.jsonl has no {method}-{bits:g}")
        return found

    def any_of(self, method: str, bits: float) -> list[Run]:
        """The same, if there are some."""
        name = f"{method}-{32 if method == 'float' else bits:g}"
        names = (name, "float") if method == "float" else (name,)
        return [self[x] for x in names if x in self] + self.like(name)

    @property
    def minutes(self) -> float:
        """Of all runs that have not diverged."""
        return sum(run["minutes"] for run in self.values() if run.diverged is None)

    @property
    def place(self) -> str:
        """Versions and device of the runs."""
        places = [
            f"{', '.join(map(' '.join, run['versions'].items()))}; {run['device']}"
            for run in self.values()
            if run.diverged is None
        ]
        return " / ".join(dict.fromkeys(places))
