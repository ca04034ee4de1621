"""CamVid's DeepLab-V3 compressed and fine-tuned with labels, as the paper does.

python -m experiments.compress experiments/configs/camvid/tuning.py \
    --data-dir ../shared/tfds --results experiments/results

Five epochs of 367 images, augmented as in float.py, from the calibrated codes of
bits.py, whose scores are "before"; the float network is tuned alike. UQ at 2 bits has
one codec for all kernels. Not run here yet, no more than tuning_rates.py: these rates
are guesses.
"""

from experiments.configs.camvid._camvid import tuned
from experiments.configs.camvid.bits import BITS, METHODS
from experiments.configs.coco._coco import reached
from experiments.training.config import Experiment

RATES = {"float": 3e-4, "uniform": 3e-4, "mvq": 3e-4, "vq": 3e-4, "coded": 3e-4}
EPOCHS = 5


def runs() -> dict[str, Experiment]:
    """The float network and METHOD-BITS."""
    return {"float": tuned("float", 2, RATES["float"], epochs=EPOCHS)} | {
        f"{method}-{bits:g}": tuned(method, bits, RATES[method], epochs=EPOCHS)
        for method, bits in reached(METHODS, BITS)
    }
