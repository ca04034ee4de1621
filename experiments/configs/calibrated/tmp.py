from experiments.configs.calibrated._calibrated import CHOOSING, calibrated
from experiments.training.config import Calibration


def runs():
    return {
        f"{m}-{b:g}": calibrated(
            "efficientnet_lite0", m, Calibration(bits=b), data=CHOOSING
        )
        for b in (1.5, 2, 3)
        for m in ("ssvq", "vq")
    }
