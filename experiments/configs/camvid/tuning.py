"""CamVid's DeepLab-V3 compressed and fine-tuned with labels, as the paper does.

python -m experiments.compress experiments/configs/camvid/tuning.py \
    --data-dir ../shared/tfds --results experiments/results

Three epochs of 367 images, augmented as in float.py, from the calibrated codes of
bits.py, whose scores are "before"; the float network is tuned alike. UQ at 2 bits has
one codec for all kernels. Rates are the best of tuning_rates.py.
"""

from experiments.configs.camvid._camvid import tuned
from experiments.configs.coco._coco import reached
from experiments.training.config import Experiment

RATES = {"float": 1e-4, "vq": 3e-4, "coded": 3e-4, "mvq": 3e-4, "uniform": 3e-4}
BITS = (1.5, 2)
EPOCHS = 3


def runs() -> dict[str, Experiment]:
    """The float network and METHOD-BITS."""
    found = {"float": tuned("float", 2, RATES["float"], epochs=EPOCHS)}
    for method, bits in reached([x for x in RATES if x != "float"], BITS):
        found[f"{method}-{bits:g}"] = tuned(method, bits, RATES[method], epochs=EPOCHS)
    return found
