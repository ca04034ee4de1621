"""What each part of SSVQ gives, at 1.5 bits: three epochs where nothing else is said.

python -m experiments.compress experiments/configs/cifar10_ablation.py \
    --data-dir DIR --results experiments/results

Needs the results of cifar10_rates.py and cifar10_thresholds.py. 17 runs of one to three
minutes on 2 CPU cores. The unchanged runs are those of cifar10_bits.py, and those of
ten epochs in cifar10_headline.py. Expect 73 % whatever the freezing; 72 and 70 % at a
tenth and ten times the signs' learning rate.
"""

from experiments.config import Experiment
from experiments.methods import SIGNED, fine_tuning, tuned_freezing, tuned_rates

# The paper's intervals of 100, 200, 500 and 1,000 steps of the 12,500 of 10 epochs.
CHECKS = (125, 62, 25, 12)


def runs() -> dict[str, Experiment]:
    """Runs by what is changed."""
    freezing, found = tuned_freezing(), {}

    def add(name, method, *, epochs=3.0, changes=None, factor=1.0, **codec):
        rates = tuned_rates(method)
        rates["sign_rate"] *= factor
        found[name] = fine_tuning(
            method,
            1.5,
            epochs=epochs,
            freezing=tuned_freezing(**changes) if changes else freezing,
            rates=rates,
            **codec,
        )

    for method in ("vq", *SIGNED):
        add(f"epochs-1-{method}", method, epochs=1)
    for checks in CHECKS:
        for decide in ("majority", "average"):
            changes = {"checks": checks, "decide": decide}
            if tuned_freezing(**changes) != freezing:
                add(f"interval-{checks}-{decide}", "frozen", changes=changes)
    # Freezing should pay where signs oscillate: at higher rates.
    for factor in (0.1, 10.0):
        for method in ("learned", "frozen"):
            add(f"sign_rate-{factor:g}-{method}", method, factor=factor)
    # Of the rate over the scale, only the ratio should count.
    for scale in (0.1, 10.0):
        add(f"latent_scale-{scale:g}-learned", "learned", latent_scale=scale)
    return found
