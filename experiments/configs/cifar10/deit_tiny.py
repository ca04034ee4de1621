"""DeiT-Tiny's exact shape, a real checkpoint: VQ and SSVQ at 1.5 bits, one epoch.

python -m experiments.compress experiments/configs/cifar10/deit_tiny.py \
    --data-dir ../shared/tfds --results experiments/results

The checkpoint has timm's names and 64.0 % top-1. Three runs of four minutes on 2 CPU
cores: float 64.1 %, VQ 63.4 %, SSVQ 63.8 %. A proof that it goes through, no
comparison: the network is far too large for its task. Its validation images were very
probably among those it was trained on.
"""

import ssvq_jax as ssvq
from experiments.configs.cifar10._cifar10 import CIFAR10, TASK
from experiments.models.zoo import NETWORKS
from experiments.training.config import Compression, Experiment, Freezing, Optimization

_CODECS = {
    "float": None,
    "vq": ssvq.VQ(64, 4, codebook_dtype="int8"),
    "ssvq": ssvq.SSVQ(16, 8),
}


def runs() -> dict[str, Experiment]:
    """The float network fine-tuned alike, VQ and SSVQ."""
    found = {}
    for name, codec in _CODECS.items():
        compression = None
        if codec is not None:
            rules = (ssvq.Rule("blocks/.*/kernel", codec),)
            freezing = Freezing() if name == "ssvq" else None
            compression = Compression(rules=rules, freezing=freezing)
        found[name] = Experiment(
            task=TASK,
            network=NETWORKS["deit_tiny_cifar10"],
            data=CIFAR10,
            optimization=Optimization(epochs=1, rate=1e-4, sign_rate=1e-3),
            weights="../shared/models/deit_tiny_cifar10.safetensors",
            compression=compression,
        )
    return found
