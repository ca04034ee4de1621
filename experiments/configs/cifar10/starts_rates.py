"""Learning rates from calibrated starts and of coded signs, by the validation split.

python -m experiments.compress experiments/configs/cifar10/starts_rates.py \
    --data-dir DIR --results experiments/results

As rates.py, with its nine pairs of rates for every method: 1.5 bits, one epoch each.
Needs the float network of deit_96.py.
"""

import itertools

from experiments.configs.cifar10.rates import SECOND, TRIED, trial
from experiments.configs.cifar10.starts import STARTS, from_calibrated
from experiments.training.config import Experiment

_SECOND = {"vq": SECOND["vq"], "learned": SECOND["learned"], "coded": SECOND["learned"]}

# Beyond those, as the best were at the edge.
_WIDER = {
    ("vq", "calibrated"): ((1e-4, 1e-3), (3e-4, 3e-4), (1e-3, 3e-4)),
    ("learned", "calibrated"): ((1e-4, 1e-3),),
    ("coded", "plain"): ((1e-4, 1e-3),),
}


def runs() -> dict[str, Experiment]:
    """METHOD-START-RATE-RATE; what rates.py has is left out."""
    found = {}
    for start in STARTS:
        for method, seconds in _SECOND.items():
            if start == "plain" and method != "coded":
                continue
            wider = _WIDER.get((method, start), ())
            for rate, second in (*itertools.product(TRIED, seconds), *wider):
                run = trial(method, 1.5, rate, second)
                if start == "calibrated":
                    run = from_calibrated(run)
                found[f"{method}-{start}-{rate:g}-{second:g}"] = run
    return found
