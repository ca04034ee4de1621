"""CamVid's DeepLab-V3 compressed and fine-tuned with labels, as the paper does.

python -m experiments.compress experiments/configs/camvid/tuning.py \
    --data-dir ../shared/tfds --results experiments/results

Three epochs of 367 images, augmented as in float.py, from the calibrated codes of
bits.py, whose scores are "before"; the float network is tuned alike. "plain" starts
from k-means of the weights alone, as the paper does, and freezes SSVQ's signs. UQ at 2
bits has one codec for all kernels. Rates are the best of tuning_rates.py.

19 runs of three minutes on 2 CPU cores, four more for the first calibrated one of a
method. Expect of VQ and SSVQ 53 to 54 of 54 points of mean IoU at 3 bits, 52 at 2 and
50 to 52 at 1.5.
"""

from experiments.configs.camvid._camvid import BITS, plain_starts, starts, tuned
from experiments.training.config import Experiment

RATES = {"float": 1e-4, "vq": 3e-4, "coded": 3e-4, "mvq": 3e-4, "uniform": 3e-4}
PLAIN_RATES = {"vq": 1e-3, "ssvq": 3e-4, "mvq": 1e-3, "uniform": 3e-4}
EPOCHS = 3


def runs() -> dict[str, Experiment]:
    """The float network, METHOD-BITS and plain-METHOD-BITS."""
    found = {}
    for kind, rates, own in (
        ("", RATES, starts(tuple(RATES), BITS)),
        ("plain-", PLAIN_RATES, plain_starts(tuple(PLAIN_RATES), (1.5, 2))),
    ):
        for name, start in own.items():
            rate = rates[name.split("-")[0]]
            found[kind + name] = tuned(start, rate, epochs=EPOCHS)
    return found
