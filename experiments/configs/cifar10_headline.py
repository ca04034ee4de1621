"""The headline: all methods at their fewest bits, the paper's 10 epochs, 3 seeds.

python -m experiments.compress experiments/configs/cifar10_headline.py \
    --data-dir DIR --results experiments/results

1.5 bits; 2 for uniform quantization, which cannot go lower. Needs the results of
cifar10_rates.py and cifar10_thresholds.py. 21 runs of nine minutes on 2 CPU cores,
those of the first seed first.
"""

from experiments.config import Experiment
from experiments.methods import TITLES, fine_tuning, tuned_freezing


def runs() -> dict[str, Experiment]:
    """Every method with every seed."""
    return {
        f"{method}-{seed}": fine_tuning(
            method,
            2 if method == "uniform" else 1.5,
            epochs=10,
            seed=seed,
            freezing=tuned_freezing(),
        )
        for seed in range(3)
        for method in TITLES
    }
