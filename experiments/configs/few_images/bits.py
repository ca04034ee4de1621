"""Few-image compression of ImageNet networks: 700 images without labels, 300 to test.

python -m experiments.unfold ../shared/models/mobilenet_v2_100.safetensors \
    runs/mobilenet_v2_100_unfolded.safetensors --data-dir ../shared/tfds
python -m experiments.compress experiments/configs/few_images/bits.py \
    --data-dir ../shared/tfds --results experiments/results

The float network's outputs are matched on the first 700 images of `imagenet_sample`;
the last 300 test, by labels and by agreement with the float network. There is one image
per class: none of the test images' classes is among the 700. The networks may have seen
all of them in training. MobileNet-V2's weights are 8-bit already: an 8-bit baseline, no
float one. Its batch norms were folded; without any, VQ, MVQ and SSVQ end at chance at
1.5 bits, so it gets them back first. Depthwise kernels and the stem, 2 to 4 % of the
weights, are quantised uniformly to 8 bits everywhere.

28 runs of three to five minutes on 2 CPU cores. Top-1 there at 1.5, 2, 3 and 4 bits:
EfficientNet-Lite0 VQ 33, 56, 78 and 83 %, SSVQ 21, 55, 75 and 84; MobileNet-V2 VQ 18,
42, 72 and 77, SSVQ 7, 37, 72 and 84. UQ gets 14, 74 and 82 % and 4, 66 and 81 from 2
bits on, MVQ 10, 56, 71 and 2, 40, 59 up to 3.
"""

from experiments.configs.few_images._few_images import CODECS, NETS, matching
from experiments.training.config import Experiment

RATES = {
    "efficientnet_lite0": {
        "vq-1.5": (1e-3, 1e-3),
        "mvq-1.5": (1e-3, 3e-3),
        "ssvq-1.5": (1e-3, 1e-4),
        "uniform-2": (1e-4, 1e-3),
        "uniform-3": (1e-4, 3e-4),
        "mvq-3": (1e-3, 1e-3),
    },
    "mobilenet_v2_100_unfolded": {
        "vq-1.5": (1e-3, 1e-3),
        "mvq-1.5": (3e-4, 3e-4),
        "ssvq-1.5": (1e-3, 1e-4),
        "uniform-2": (1e-3, 1e-3),
        "uniform-3": (1e-4, 1e-3),
        "mvq-3": (1e-3, 1e-3),
    },
}
"""The best of `rates.py`, by what they were tuned at."""
# Whose rates are taken; those of 1.5 bits elsewhere. At their fewest bits UQ and MVQ
# are near chance, which tells little of their rates at more.
_TUNED = {
    "uniform-2": "uniform-2",
    "uniform-3": "uniform-3",
    "uniform-4": "uniform-3",
    "mvq-2": "mvq-3",
    "mvq-3": "mvq-3",
}


def runs() -> dict[str, Experiment]:
    """NETWORK-METHOD-BITS, fewest bits first."""
    found = {}
    for name in CODECS:
        tuned = _TUNED.get(name, f"{name.split('-')[0]}-1.5")
        for network in NETS:
            rates = RATES[network][tuned]
            found[f"{network}-{name}"] = matching(network, name, rates)
    return found
