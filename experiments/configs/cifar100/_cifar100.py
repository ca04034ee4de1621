"""What the experiments on CIFAR-100 share: data, float networks, fine-tuning."""

import dataclasses
from typing import Any

from experiments.configs.cifar10._cifar10 import fine_tuning
from experiments.models.zoo import NETWORKS
from experiments.training.config import Data, Experiment

CIFAR100 = Data(name="cifar100", train="train[:45000]", validation="train[45000:]")
NETS = {
    name: NETWORKS[f"deit_{name}_cifar10"].with_classes(100) for name in ("96", "64")
}
"""DeiTs of 6 blocks, by their width."""


def weights(name: str) -> str:
    """Checkpoint of a float network, from `floats.py`."""
    return f"runs/cifar100/floats/{name}/model.safetensors"


def tuning(name: str, method: str, bits: float, **options: Any) -> Experiment:
    """Compression and fine-tuning of a float network.

    Args:
      name: One of `NETS`.
      method: One of `experiments.configs._methods.TITLES`.
      bits: One of `experiments.configs._methods.BITS`.
      **options: As of `experiments.configs.cifar10._cifar10.fine_tuning`.
    """
    run = fine_tuning(method, bits, **{"data": CIFAR100, **options})
    return dataclasses.replace(run, network=NETS[name], weights=weights(name))
