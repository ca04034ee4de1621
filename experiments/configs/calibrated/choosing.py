"""Which recipe: calibrated on 500 images, judged on 200 others; 1.5 bits."""

from experiments.configs.calibrated._calibrated import CHOOSING, calibrated
from experiments.training.config import Calibration, Experiment


def runs() -> dict[str, Experiment]:
    """METHOD-RECIPE."""
    recipes = {
        "plain": Calibration(bits=1.5),
        "centered": Calibration(bits=1.5, centered=True),
        "predicted": Calibration(bits=1.5, probe=0),
    }
    return {
        f"{method}-{name}": calibrated(
            "efficientnet_lite0", method, recipe, data=CHOOSING
        )
        for name, recipe in recipes.items()
        for method in ("ssvq", "vq")
    }
