r"""Train networks from scratch, as a config file says.

    python -m experiments.train experiments/configs/cifar10/deit_96.py \
        --data-dir ../shared/tfds

A run that was interrupted, killed even, goes on from its last checkpoint when it is
started again, and ends in the same parameters, on CPUs bit for bit. A run that is
finished is left alone. Logs are for TensorBoard: `tensorboard --logdir runs`.
"""

from experiments.training.command import Options, execute
from experiments.training.terminal import parse

if __name__ == "__main__":
    execute(
        parse(Options, __doc__),
        compressing=False,
    )
