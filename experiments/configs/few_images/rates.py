"""Learning rates of bits.py, at 1.5 bits (UQ at 2); UQ and MVQ at 3, too.

python -m experiments.compress experiments/configs/few_images/rates.py \
    --data-dir ../shared/tfds --results experiments/results

Of the 700 images without labels, 500 to match the float network on and 200 to choose
by, by agreement with it. Four to seven pairs of rates for each method: of all that is
not compressed, and of codebooks, steps or signs (whose codebooks have the first). 66
runs of two to four minutes on 2 CPU cores. Expect of EfficientNet-Lite0 VQ to agree on
a third of the images, SSVQ on a quarter, UQ and MVQ on a tenth; of MobileNet-V2 VQ on a
sixth, SSVQ on a tenth, UQ and MVQ on a few. UQ and MVQ at 3 bits agree on more than
half.
"""

import dataclasses

import numpy as np

from experiments.configs.few_images._few_images import DATA, NETS, matching
from experiments.training.config import Experiment

_DATA = dataclasses.replace(
    DATA, train="validation[:500]", validation="validation[500:700]", test=None
)
_ALIKE = ((3e-4, 3e-4), (1e-3, 1e-3), (3e-3, 3e-3))
_THREE_BITS = ((1e-4, 1e-3), (3e-4, 1e-3), (1e-3, 1e-3))
# Beside those alike, some around the best of them. Signs whose rate is 0 are fixed.
_PAIRS = {
    "vq-1.5": (*_ALIKE, (3e-4, 1e-3), (1e-3, 3e-3)),
    "mvq-1.5": (*_ALIKE, (3e-4, 1e-3), (1e-3, 3e-3), (1e-3, 1e-2)),
    "ssvq-1.5": (*_ALIKE, (1e-3, 1e-4), (1e-3, 3e-4), (1e-3, 3e-5), (1e-3, 0.0)),
    "uniform-2": (*_ALIKE, (1e-4, 1e-3), (3e-4, 3e-3), (3e-5, 1e-3)),
    "uniform-3": (*_THREE_BITS, (3e-5, 1e-3), (1e-4, 3e-4)),
    "mvq-3": (*_THREE_BITS, (3e-4, 3e-4)),
}


def runs() -> dict[str, Experiment]:
    """NETWORK-METHOD-BITS-RATE-RATE."""
    found = {}
    for network in NETS:
        for name, pairs in _PAIRS.items():
            for pair in pairs:
                shown = (np.format_float_positional(x, trim="-") for x in pair)
                run = matching(network, name, pair, _DATA)
                found["-".join((network, name, *shown))] = run
    return found
