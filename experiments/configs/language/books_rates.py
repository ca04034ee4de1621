"""Learning rates of every method on the books, by the validation text.

python -m experiments.compress experiments/configs/language/books_rates.py \
    --data-dir ../shared/text --results experiments/results

A tenth of an epoch each from calibrated codes, at 1.25 bits (UQ at 2, its least). Needs
the float network of books.py. Not run here yet.
"""

import dataclasses
import itertools

from experiments.configs.language._books import BOOKS, fine_tuning
from experiments.training.config import Experiment

METHODS = ("uniform", "vq", "mvq", "fixed", "learned")
"""What rates are sought for; frozen signs take those of learned ones."""
_TRIED = (3e-4, 1e-3)
_SECOND = (1e-3, 3e-3)


def runs() -> dict[str, Experiment]:
    """METHOD-RATE-RATE: the second is that of codebooks and steps, or of signs."""
    return {
        f"{method}-{rate:g}-{second:g}": fine_tuning(
            method,
            2 if method == "uniform" else 1.25,
            epochs=0.1,
            rates=(rate, second),
            data=dataclasses.replace(BOOKS, test=None),
        )
        for method in METHODS
        for rate, second in itertools.product(_TRIED, _SECOND)
    }
