"""Few-image compression of ImageNet networks: 700 images without labels, 300 to test.

python -m experiments.unfold ../shared/models/mobilenet_v2_100.safetensors \
    runs/mobilenet_v2_100_unfolded.safetensors --data-dir ../shared/tfds
python -m experiments.compress experiments/configs/few_images.py \
    --data-dir ../shared/tfds --results experiments/results

The float network's outputs are matched on the first 700 images of `imagenet_sample`;
the last 300 test, by labels and by agreement with the float network. There is one image
per class: none of the test images' classes is among the 700. The networks may have seen
all of them in training. MobileNet-V2's weights are 8-bit already: an 8-bit baseline, no
float one. Its batch norms were folded; without any, VQ, MVQ and SSVQ end at chance at
1.5 bits, so it gets them back first. Depthwise kernels and the stem, 2 to 4 % of the
weights, are quantised uniformly to 8 bits everywhere. Needs the results of
few_images_rates.py. 28 runs of three to five minutes on 2 CPU cores. Top-1 there at
1.5, 2, 3 and 4 bits: EfficientNet-Lite0 VQ 38, 56, 76 and 83 %, SSVQ 22, 55, 74 and 83;
MobileNet-V2 VQ 14, 45, 69 and 76, SSVQ 12, 39, 74 and 84. UQ gets 9, 66 and 79 % and 3,
53 and 76 from 2 bits on, MVQ 10, 55, 70 and 2, 38, 58 up to 3.
"""

from typing import Any

import ssvq_jax as ssvq
from experiments.augmentation import Augmentation
from experiments.config import Compression, Data, Experiment, Freezing, Optimization
from experiments.methods import convolutional, tuned_rates
from experiments.models.zoo import NETWORKS

DATA = Data(
    name="imagenet_sample",
    train="validation[:700]",
    test="validation[700:]",
    augmentation=Augmentation(scale=(0.35, 1.0), flip=True),
)
NETS = {
    "efficientnet_lite0": "../shared/models/efficientnet_lite0.safetensors",
    "mobilenet_v2_100_unfolded": "runs/mobilenet_v2_100_unfolded.safetensors",
}
CODECS = {
    "vq-1.5": ssvq.VQ(64, 4, codebook_dtype="int8"),
    "mvq-1.5": ssvq.MVQ(32, 6, (4, 6)),
    "ssvq-1.5": ssvq.SSVQ(16, 8),
    "uniform-2": ssvq.Uniform(2),
    "vq-2": ssvq.VQ(64, 3, codebook_dtype="int8"),
    "mvq-2": ssvq.MVQ(64, 4, (3, 4)),
    "ssvq-2": ssvq.SSVQ(16, 4),
    "uniform-3": ssvq.Uniform(3),
    "vq-3": ssvq.VQ(64, 2, codebook_dtype="int8"),
    "mvq-3": ssvq.MVQ(128, 3, (2, 3)),
    "ssvq-3": ssvq.SSVQ(16, 2),
    "uniform-4": ssvq.Uniform(4),
    "vq-4": ssvq.VQ(256, 2, codebook_dtype="int8"),
    "ssvq-4": ssvq.SSVQ(64, 2),
}
# Whose rates are taken; those of 1.5 bits elsewhere. At their fewest bits UQ and MVQ
# are near chance, which tells little of their rates at more.
_TUNED = {
    "uniform-2": "uniform-2",
    "uniform-3": "uniform-3",
    "uniform-4": "uniform-3",
    "mvq-2": "mvq-3",
    "mvq-3": "mvq-3",
}


def matching(
    network: str, name: str, rates: dict[str, Any], data: Data = DATA
) -> Experiment:
    """Five epochs of matching a float network's outputs.

    Args:
      network: One of `NETS`.
      name: One of `CODECS`.
      rates: Learning rates.
      data: Its images.
    """
    freezing = Freezing(checks=10) if name.startswith("ssvq") else None
    return Experiment(
        network=NETWORKS[network],
        data=data,
        optimization=Optimization(epochs=5, batch=50, **rates),
        weights=NETS[network],
        compression=Compression(rules=convolutional(CODECS[name]), freezing=freezing),
        distill=True,
    )


def runs() -> dict[str, Experiment]:
    """NETWORK-METHOD-BITS, fewest bits first."""
    found = {}
    for name in CODECS:
        for network in NETS:
            tuned = _TUNED.get(name, f"{name.split('-')[0]}-1.5")
            rates = tuned_rates(f"{network}-{tuned}", "few_images_rates")
            found[f"{network}-{name}"] = matching(network, name, rates)
    return found
