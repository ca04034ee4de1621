"""A Llama that three books fill: 5.2 M parameters, 2,048 byte pairs, from scratch.

python -m experiments.train experiments/configs/language/books.py \
    --data-dir ../shared/text --results experiments/results

The vocabulary is found in the training text and kept beside the runs. Windows of 256
tokens, 16 a step. Not trained to its end yet: about an hour on 2 CPU cores.
"""

from experiments.configs.language._books import FLOAT
from experiments.training.config import Experiment


def runs() -> dict[str, Experiment]:
    """The float network."""
    return {"float": FLOAT}
