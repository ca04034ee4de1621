"""What fine-tuning adds to calibrated codes: YOLOX-Nano with masks, without labels.

python -m experiments.compress experiments/configs/coco/instances_tuning.py \
    --data-dir ../shared/tfds --results experiments/results

Five epochs of 180 training images from the codes of instances_bits.py, to match the
float network's boxes and masks. "before" is the score of the codes. Rates are those of
tuning.py, sought for boxes. Not run here yet.
"""

from experiments.configs.coco._coco import reached, tuned
from experiments.configs.coco.instances_bits import METHODS, NETWORK
from experiments.configs.coco.tuning import BITS, RATES
from experiments.training.config import Experiment


def runs() -> dict[str, Experiment]:
    """METHOD-BITS."""
    return {
        f"{method}-{bits:g}": tuned(NETWORK, method, bits, RATES[method])
        for method, bits in reached(METHODS, BITS)
    }
