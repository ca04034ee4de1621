"""What a task has to say; all else of training is the same for every task."""

import math
import pathlib
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
import scipy.stats

from experiments.data.batches import Example, Split


class Task(Protocol):
    """What an example is, what is minimised, and how it is judged.

    A task is a frozen dataclass of its options: they describe it, as JSON, in results.
    "Outputs" are what a network gives for a batch, an array or a tree of arrays,
    float32; "rows" are a tree of arrays with a row for every example.

    A task whose outputs are to be looked at also has `draw(outputs, example)`: of one
    prepared example, a picture uint8 `(height, width, 3)`; and `blank(image)`: the
    example, not prepared, that an image uint8 `(height, width, 3)` is without labels.
    One whose outputs are logits, classes last, has `logits = True`: labels can be drawn
    from them, for `Calibration.metric`.

    Attributes:
      metric: The one of `score` by which runs are compared; larger is better.
      unit: What an example is called, in the plural, such as "images".
    """

    metric: ClassVar[str]
    unit: ClassVar[str]

    def open(
        self, name: str, split: str | None, data_dir: pathlib.Path | None
    ) -> Split:
        """Examples of a data set.

        Args:
          name: The data set.
          split: Part of it, such as "train[:90%]"; `None` for the one held out.
          data_dir: Folder of the data sets; `None` for its default.

        Raises:
          NotPreparedError: A set that is not there, with what to do.
          SystemExit: A set or split that is unknown or of another kind.
        """
        ...

    def prepare(
        self, example: Example, rng: np.random.Generator | None = None, *, size: int
    ) -> Example:
        """An example in the shape that batches are made of.

        Args:
          example: Of a split.
          rng: Where augmentation is drawn from, in training; `None` for none.
          size: The network's.
        """
        ...

    def shapes(self, network: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a prepared example, known without data."""
        ...

    def loss(self, outputs: Any, batch: Example) -> jax.Array:
        """Mean loss of a batch, a scalar."""
        ...

    def match(self, outputs: Any, target: Any) -> jax.Array:
        """Mean loss against the outputs of another network, for distillation."""
        ...

    def judge(self, outputs: Any, batch: Example) -> Any:
        """Rows from which a split is scored; jitted, `(batch, ...)` each."""
        ...

    def score(self, rows: Any, reference: Any = None) -> dict[str, float]:
        """The metrics of a whole split, by name.

        Args:
          rows: Of `judge`, NumPy arrays.
          reference: Those of the float network for the same examples, if there is one.
        """
        ...

    def each(self, rows: Any) -> np.ndarray:
        """What `metric` is the mean of, `(examples,)`: for intervals and differences.

        Where the metric is no mean over examples, its jackknife's pseudo-values,
        `n * metric(all) - (n - 1) * metric(all but one)`; where these take long, of
        groups of examples, `(groups,)`.
        """
        ...


def half_width(values: np.ndarray) -> float:
    """Half of the 95 % interval of a mean, by Student's t; infinite for one value.

    Args:
      values: `(n,)`, such as `Task.each`, or differences of two of them.
    """
    count = len(values)
    if count < 2:
        return math.inf
    error = scipy.stats.sem(np.asarray(values, np.float64))
    return float(scipy.stats.t.ppf(0.975, count - 1) * error)
