"""What the experiments on CIFAR-10 share: data, float network, chosen options."""

from typing import Any

from experiments.configs._methods import compression
from experiments.data.augmentation import Augmentation
from experiments.models.zoo import NETWORKS
from experiments.tasks import Classification
from experiments.training.config import Data, Experiment, Freezing, Optimization

CIFAR10 = Data(name="cifar10", train="train[:45000]", validation="train[45000:]")
TASK = Classification(augmentation=Augmentation(pad=4, flip=True), label_smoothing=0.1)
WEIGHTS = "runs/cifar10/deit_96/float/model.safetensors"
"""Of the float network, from `deit_96.py`."""

RATES = {
    "float": (1e-4, 1e-4),
    "uniform": (1e-3, 3e-3),
    "vq": (3e-3, 1e-3),
    "mvq": (3e-3, 3e-3),
    "fixed": (1e-3, 1e-3),
    "learned": (1e-3, 1e-3),
}
"""The best of `rates.py`, for `rates`."""
FREEZING = Freezing(threshold=(0.1, 0.01))
"""The best of `thresholds.py`."""


def rates(method: str, rate: float, second: float) -> dict[str, Any]:
    """The learning rates of a method, as options of `Optimization`.

    Args:
      method: One of `experiments.configs._methods.TITLES`.
      rate: Of all that is not compressed; with learned signs of codebooks, too.
      second: Of learned signs, where a method has them; else of codebooks or steps.
    """
    if method in ("learned", "frozen", "coded"):
        return {"rate": rate, "codebook_rate": rate, "sign_rate": second}
    return {"rate": rate, "codebook_rate": second, "sign_rate": 0.0}


def tuned(
    method: str, chosen: dict[str, tuple[float, float]] = RATES
) -> dict[str, Any]:
    """The learning rates chosen for a method; frozen signs take those of learned."""
    return rates(method, *chosen["learned" if method == "frozen" else method])


def fine_tuning(
    method: str,
    bits: float,
    *,
    epochs: float,
    seed: int = 0,
    freezing: Freezing = FREEZING,
    rates: dict[str, Any] | None = None,
    data: Data = CIFAR10,
    **codec: Any,
) -> Experiment:
    """Compression and fine-tuning of the float `deit_96_cifar10`.

    Args:
      method: One of `experiments.configs._methods.TITLES`.
      bits: As of `experiments.configs._methods.compression`.
      epochs: Passes over the images.
      seed: Of clustering and batches.
      freezing: For "frozen".
      rates: Learning rates; `None` for those that are `tuned`.
      data: Images.
      **codec: Options of the codec that differ.
    """
    return Experiment(
        task=TASK,
        network=NETWORKS["deit_96_cifar10"],
        data=data,
        optimization=Optimization(
            epochs=epochs, **(tuned(method) if rates is None else rates)
        ),
        weights=WEIGHTS,
        compression=compression(method, bits, freezing, **codec),
        seed=seed,
    )
