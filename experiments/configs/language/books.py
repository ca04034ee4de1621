"""A Llama that three books fill: 5.2 M parameters, 2,048 byte pairs, from scratch.

python -m experiments.train experiments/configs/language/books.py \
    --data-dir ../shared/text --results experiments/results

The vocabulary is found in the training text and kept beside the runs. Windows of 256
tokens, 16 a step. Not trained to its end yet: about an hour on 2 CPU cores.
"""

from experiments.models.zoo import NETWORKS
from experiments.tasks import Language
from experiments.training.config import Data, Experiment, Optimization

TASK = Language(
    tokenizer="runs/language/books/tokenizer.json", vocabulary=2048, window=256
)
BOOKS = Data(name="books", validation="validation")


def runs() -> dict[str, Experiment]:
    """The float network."""
    return {
        "float": Experiment(
            task=TASK,
            network=NETWORKS["llama_books"],
            data=BOOKS,
            optimization=Optimization(epochs=2, batch=16, weight_decay=0.1, beta2=0.95),
        )
    }
