"""What the experiments on CamVid share: data, network, how it is trained."""

import dataclasses
from collections.abc import Sequence

from experiments.configs._methods import recompressed
from experiments.configs.coco._coco import calibrated, plain, reached, tested
from experiments.data.augmentation import SceneAugmentation
from experiments.models.zoo import NETWORKS
from experiments.tasks import Segmentation
from experiments.training.config import Data, Experiment, Freezing, Optimization

TASK = Segmentation(augmentation=SceneAugmentation(scale=(0.75, 2.0), flip=True))
TRAINED = "deeplabv3_mnv2_050"
"""Whose rules these are: the network before it saw CamVid."""
NETWORK = NETWORKS[f"{TRAINED}_unfolded"].with_classes(11)
DATA = Data(name="camvid", validation="validation")
WEIGHTS = "runs/camvid/float/float/model.safetensors"
PLAIN = ("uniform", "mvq", "vq", "ssvq")
CALIBRATED = ("uniform", "mvq", "vq", "coded")
BITS = (1.5, 2, 3)


def on_camvid(run: Experiment) -> Experiment:
    """A run of the network on COCO, of the one that learned CamVid instead."""
    return dataclasses.replace(run, network=NETWORK, data=DATA, weights=WEIGHTS)


def starts(methods: Sequence[str], bits: Sequence[float]) -> dict[str, Experiment]:
    """METHOD-BITS of calibrated codes, those of bits.py.

    Args:
      methods: Of `CALIBRATED`, and "float", which has no bits.
      bits: Those there are.
    """
    found = {"float": tested(TRAINED, None)} if "float" in methods else {}
    for method, x in reached([name for name in methods if name != "float"], bits):
        found[f"{method}-{x:g}"] = calibrated(TRAINED, method, x)
    return {name: on_camvid(run) for name, run in found.items()}


def plain_starts(
    methods: Sequence[str], bits: Sequence[float]
) -> dict[str, Experiment]:
    """METHOD-BITS by k-means of the weights alone; SSVQ's signs freeze step by step.

    Args:
      methods: Of `PLAIN`.
      bits: Those there are.
    """
    return {
        name: recompressed(on_camvid(run), freezing=Freezing(checks=10))
        if name.startswith("ssvq")
        else on_camvid(run)
        for name, run in plain(TRAINED, methods, bits).items()
    }


def tuned(
    start: Experiment, rate: float, *, epochs: float, data: Data = DATA
) -> Experiment:
    """With labels, as the paper tunes.

    Args:
      start: One of `starts` or `plain_starts`.
      rate: Of everything: weights, codebooks, steps, signs.
      epochs: Passes over the images.
      data: These.
    """
    return dataclasses.replace(
        start,
        task=TASK,
        data=data,
        distill=False,
        optimization=Optimization(
            epochs=epochs, batch=20, rate=rate, codebook_rate=rate, sign_rate=rate
        ),
    )
