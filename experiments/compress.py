r"""Compress trained networks and fine-tune them, as a config file says.

    python -m experiments.compress experiments/configs/cifar10/headline.py \
        --data-dir ../shared/tfds

The float network fine-tuned alike is one of the runs, where a config has it. Every run
exports its network, reads it back, and compares it bit for bit.

A run that was interrupted, killed even, goes on from its last checkpoint when it is
started again, and ends in the same parameters, on CPUs bit for bit. A run that is
finished is left alone. Logs are for TensorBoard: `tensorboard --logdir runs`.
"""

from experiments.training.command import Options, execute
from experiments.training.terminal import parse

if __name__ == "__main__":
    execute(
        parse(Options, __doc__),
        compressing=True,
    )
