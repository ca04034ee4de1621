"""Which masks MVQ takes at 1.5 bits: one epoch each, by the validation split.

python -m experiments.compress experiments/configs/cifar10/masks.py \
    --data-dir DIR --results experiments/results

Needs the float network of deit_96.py. Three runs of a minute on 2 CPU cores.
4 of 6 is best, by a point (70.8 %): what `_methods.py` has.
"""

import dataclasses

import ssvq_jax as ssvq
from experiments.configs.cifar10._cifar10 import CIFAR10, fine_tuning
from experiments.training.config import Compression, Experiment

_TRIED = (
    ssvq.MVQ(32, 8, (4, 8)),  # 1.575 bits
    ssvq.MVQ(32, 6, (4, 6)),  # 1.557
    ssvq.MVQ(16, 4, (3, 4)),  # 1.519
)


def runs() -> dict[str, Experiment]:
    """A run for each of the masks."""
    data, found = dataclasses.replace(CIFAR10, test=None), {}
    rates = {"rate": 3e-3, "codebook_rate": 3e-3}
    for codec in _TRIED:
        run = fine_tuning("mvq", 1.5, epochs=1, rates=rates, data=data)
        kept, group = codec.keep
        rules = (ssvq.Rule("blocks/.*/kernel", codec),)
        compression = Compression(rules=rules)
        found[f"mvq-{kept}of{group}"] = dataclasses.replace(
            run, compression=compression
        )
    return found
