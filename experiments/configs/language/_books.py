"""What the experiments on three books share: data, float network, recipe."""

import dataclasses
from typing import Any

from experiments.configs._methods import compression, recompressed
from experiments.configs.cifar10 import _cifar10
from experiments.models.zoo import NETWORKS
from experiments.tasks import Language
from experiments.training.config import (
    Calibration,
    Data,
    Experiment,
    Freezing,
    Optimization,
)

TASK = Language(
    tokenizer="runs/language/books/tokenizer.json", vocabulary=2048, window=256
)
BOOKS = Data(name="books", validation="validation")
FLOAT = Experiment(
    task=TASK,
    network=NETWORKS["llama_books"],
    data=BOOKS,
    optimization=Optimization(epochs=2, batch=16, weight_decay=0.1, beta2=0.95),
)
"""From scratch."""


def fine_tuning(
    method: str,
    bits: float,
    *,
    epochs: float,
    rates: tuple[float, float],
    seed: int = 0,
    data: Data = BOOKS,
) -> Experiment:
    """The float network compressed, by calibrated codes, and tuned on its own text.

    Args:
      method: One of `experiments.configs._methods.TITLES`.
      bits: As of `experiments.configs._methods.compression`.
      epochs: Passes over the text.
      rates: As of `experiments.configs.cifar10._cifar10.rates`.
      seed: Of clustering and batches.
      data: Text.
    """
    own: dict[str, Any] = _cifar10.rates(method, *rates)
    run = dataclasses.replace(
        FLOAT,
        data=data,
        optimization=dataclasses.replace(FLOAT.optimization, epochs=epochs, **own),
        weights="runs/language/books/float/model.safetensors",
        compression=compression(
            method, bits, Freezing(), kernels="model/layers/.*/kernel"
        ),
        seed=seed,
    )
    if run.compression is None:
        return run
    return recompressed(
        run, calibration=Calibration(examples=256, spread=True, probe=0)
    )
