"""What calibrated starts add to the headline: 1.5 bits, ten epochs, three seeds.

python -m experiments.compress experiments/configs/cifar10/starts_seeds.py \
    --data-dir DIR --results experiments/results

All twelve runs start from the same float network, of deit_96.py, with the rates of
starts.py; those of the first seed first. Seven minutes each on 2 CPU cores.
"""

from experiments.configs.cifar10.starts import STARTS, started
from experiments.training.config import Experiment


def runs() -> dict[str, Experiment]:
    """METHOD-START-SEED."""
    return {
        f"{method}-{start}-{seed}": started(method, start, 1.5, epochs=10, seed=seed)
        for seed in range(3)
        for method in ("vq", "learned")
        for start in STARTS
    }
