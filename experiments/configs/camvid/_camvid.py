"""What the experiments on CamVid share: data, network, how it is trained."""

import dataclasses

from experiments.configs.coco._coco import calibrated, tested
from experiments.data.augmentation import SceneAugmentation
from experiments.models.zoo import NETWORKS
from experiments.tasks import Segmentation
from experiments.training.config import Data, Experiment, Optimization

TASK = Segmentation(augmentation=SceneAugmentation(scale=(0.75, 2.0), flip=True))
TRAINED = "deeplabv3_mnv2_050"
"""Whose rules these are: the network before it saw CamVid."""
NETWORK = NETWORKS[f"{TRAINED}_unfolded"].with_classes(11)
DATA = Data(name="camvid", validation="validation")
WEIGHTS = "runs/camvid/float/float/model.safetensors"


def on_camvid(run: Experiment) -> Experiment:
    """A run of the network on COCO, of the one that learned CamVid instead."""
    return dataclasses.replace(run, network=NETWORK, data=DATA, weights=WEIGHTS)


def tuned(
    method: str, bits: float, rate: float, *, epochs: float, data: Data = DATA
) -> Experiment:
    """With labels, from calibrated codes, those of bits.py.

    Args:
      method: As of `experiments.configs.coco._coco.calibrated`; or "float", whatever
        the bits.
      bits: As there.
      rate: Of everything: weights, codebooks, steps, signs.
      epochs: Passes over the images.
      data: These.
    """
    start = tested(TRAINED, None)
    if method != "float":
        start = calibrated(TRAINED, method, bits)
    return dataclasses.replace(
        on_camvid(start),
        task=TASK,
        data=data,
        distill=False,
        optimization=Optimization(
            epochs=epochs, batch=20, rate=rate, codebook_rate=rate, sign_rate=rate
        ),
    )
