"""What the experiments on CIFAR-100 share: data, float network, chosen options."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.configs.cifar10 import _cifar10
from experiments.configs.cifar10.starts import from_calibrated
from experiments.models.network import Network
from experiments.models.zoo import NETWORKS
from experiments.training.config import Data, Experiment, Freezing

CIFAR100 = Data(name="cifar100", train="train[:45000]", validation="train[45000:]")
RATES = {
    "float": (1e-3, 1e-3),
    "uniform": (3e-3, 1e-2),
    "vq": (3e-3, 3e-3),
    "mvq": (3e-3, 3e-3),
    "fixed": (3e-3, 3e-3),
    "learned": (1e-3, 1e-3),
    "coded": (3e-3, 1e-3),
}
"""The best of `rates.py`, for `experiments.configs.cifar10._cifar10.rates`."""
FREEZING = _cifar10.FREEZING


def network(width: int) -> Network:
    """The DeiT of so many features."""
    return NETWORKS[f"deit_{width}_cifar10"].with_classes(100)


def tuned(method: str) -> dict[str, Any]:
    """The learning rates chosen for a method."""
    return _cifar10.tuned(method, RATES)


def fine_tuning(
    method: str,
    bits: float,
    *,
    epochs: float,
    rates: dict[str, Any],
    seed: int = 0,
    freezing: Freezing = FREEZING,
    data: Data = CIFAR100,
    width: int = 96,
) -> Experiment:
    """As that of CIFAR-10, from codes that are calibrated.

    Args:
      method: One of `experiments.configs._methods.TITLES`.
      bits: As of `experiments.configs._methods.compression`.
      epochs: Passes over the images.
      rates: Learning rates, options of `Optimization`.
      seed: Of clustering and batches.
      freezing: For "frozen".
      data: Images.
      width: Of the network from `floats.py`.
    """
    run = dataclasses.replace(
        _cifar10.fine_tuning(
            method,
            bits,
            epochs=epochs,
            seed=seed,
            freezing=freezing,
            rates=rates,
            data=data,
        ),
        network=network(width),
        weights=f"runs/cifar100/floats/{width}/model.safetensors",
    )
    return run if run.compression is None else from_calibrated(run)


def three_epochs(
    chosen: Mapping[float, Iterable[str]], width: int = 96
) -> dict[str, Experiment]:
    """Methods by bits, as METHOD-BITS, and the float network, tuned alike.

    Args:
      chosen: Methods by bits.
      width: As of `fine_tuning`.
    """
    names = {"float": ("float", 32.0)}
    names |= {f"{m}-{bits:g}": (m, bits) for bits, own in chosen.items() for m in own}
    return {
        name: fine_tuning(method, bits, epochs=3, rates=tuned(method), width=width)
        for name, (method, bits) in names.items()
    }
