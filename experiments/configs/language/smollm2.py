"""SmolLM2-135M compressed without training, perplexity on WikiText-2.

python -m experiments.models.smollm2 runs/smollm2
python -m experiments.compress experiments/configs/language/smollm2.py \
    --data-dir ../shared/text --results experiments/results

All 210 linear kernels; the embedding, which is the head, too, has 8 bits. From the
weights alone, and calibrated on 64 windows of the validation text: error feedback with
one codec for all kernels, by the moments of their inputs or by Fisher factors, or with
bits spread by predicted errors. Fisher factors took up to 24 GB of memory. The first 16
windows of 512 tokens test. The weights come from 4 bits: that is what "float" is here.
44 runs; not run here yet.
"""

import ssvq_jax as ssvq
from experiments.configs.calibrated._calibrated import CANDIDATES
from experiments.models.zoo import NETWORKS
from experiments.tasks import Language
from experiments.training.config import (
    Calibration,
    Compression,
    Data,
    Experiment,
    Optimization,
)

TASK = Language(tokenizer="runs/smollm2/tokenizer.json")
DATA = Data(name="wikitext-2", train="validation[:64]", test="test[:16]")
KERNELS = "model/layers/.*/kernel"
CODECS = {
    "vq": {1.5: (64, 4), 2: (256, 4), 3: (64, 2), 4: (256, 2)},
    "ssvq": {1.5: (16, 8), 2: (16, 4), 3: (16, 2), 4: (64, 2)},
}
"""Codewords and block by bits."""
ALLOCATED = {"vq": "vq", "ssvq": "coded", "uniform": "uniform"}
"""Whose candidates are tried where bits are spread."""


def _codec(method: str, bits: float, scale: str | None) -> ssvq.Codec:
    if method == "uniform":
        return ssvq.Uniform(int(bits))
    kind = ssvq.VQ if method == "vq" else ssvq.SSVQ
    return kind(*CODECS[method][bits], codebook_dtype="int8", channel_scale=scale)


def _compression(
    codecs: list[ssvq.Codec], calibration: Calibration | None
) -> Compression:
    rules = tuple(ssvq.Rule(KERNELS, codec) for codec in codecs)
    embedding = ssvq.Rule("model/embed_tokens/embedding", ssvq.Uniform(8))
    return Compression(rules=(*rules, embedding), calibration=calibration)


def _run(compression: Compression | None) -> Experiment:
    return Experiment(
        task=TASK,
        network=NETWORKS["smollm2_135m"],
        data=DATA,
        optimization=Optimization(epochs=0, batch=4),
        weights="runs/smollm2/model.safetensors",
        compression=compression,
        distill=True,
    )


def runs() -> dict[str, Experiment]:
    """METHOD-HOW-BITS, and float; UQ has no 1.5, and none spread below 3."""
    found = {"float": _run(None)}
    for method in ("uniform", "vq", "ssvq"):
        for bits in (1.5, 2, 3, 4):
            if method == "uniform" and bits < 2:
                continue
            for how in ("plain", "calibrated", "fisher", "allocated"):
                if how == "allocated" and method == "uniform" and bits < 3:
                    continue
                scale = None if how == "plain" else "float16"
                codecs = [_codec(method, bits, scale)]
                if how == "allocated":
                    codecs = list(CANDIDATES[ALLOCATED[method]])
                calibration = {
                    "plain": None,
                    "calibrated": Calibration(probe=0),
                    "fisher": Calibration(probe=0, metric="fisher"),
                    "allocated": Calibration(probe=0, bits=bits),
                }[how]
                name = f"{method}-{how}-{bits:g}"
                found[name] = _run(_compression(codecs, calibration))
    return found
