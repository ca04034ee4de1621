"""Networks by name, and how their images are prepared."""

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.models import deeplab, deit, llama, mobile, yolact, yolox
from experiments.models.network import ImageNetwork, Network, TextNetwork

_IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
_CIFAR10 = {
    "mean": 255 * np.array([0.4914, 0.4822, 0.4465]),
    "std": 255 * np.array([0.2470, 0.2435, 0.2616]),
    "classes": 10,
}
_LITE = {"mean": 127.0, "std": 128.0}


def _deit(name: str) -> ImageNetwork:
    config = deit.CONFIGS[name]
    values: dict[str, Any] = _CIFAR10 if name.endswith("cifar10") else _IMAGENET
    make = functools.partial(deit.DeiT, config)
    return ImageNetwork(name=name, make=make, size=config.size, **values)


def _mobile(name: str) -> ImageNetwork:
    architecture = mobile.ARCHITECTURES[name]
    values: dict[str, Any] = _LITE if name.startswith("efficientnet") else {}
    if architecture.padding == "symmetric":  # trained in PyTorch
        values = _IMAGENET
    make = functools.partial(mobile.InvertedResidualNet, architecture)
    return ImageNetwork(name=name, make=make, size=architecture.size, **values)


def _deeplab(name: str) -> ImageNetwork:
    config = deeplab.CONFIGS[name]
    make = functools.partial(deeplab.DeepLab, config)
    return ImageNetwork(name=name, make=make, size=config.size, classes=21)


def _yolox(name: str) -> ImageNetwork:
    architecture = yolox.ARCHITECTURES[name]
    make = functools.partial(yolox.YOLOX, architecture)
    return ImageNetwork(
        name=name, make=make, size=architecture.size, classes=80, mean=0.0, std=1.0
    )


def _yolact(name: str, detector: str) -> ImageNetwork:
    make = functools.partial(yolact.YOLACT, yolox.ARCHITECTURES[detector])
    return dataclasses.replace(_yolox(detector), name=name, make=make)


def _llama(
    name: str, vocabulary: int, window: int, end: int | None = None
) -> TextNetwork:
    config = llama.CONFIGS[name]
    make = functools.partial(llama.Llama, config)
    return TextNetwork(name=name, make=make, size=window, classes=vocabulary, end=end)


_NETWORKS: tuple[Network, ...] = (
    *map(_deit, deit.CONFIGS),
    *map(_mobile, mobile.ARCHITECTURES),
    *map(_deeplab, deeplab.CONFIGS),
    ImageNetwork(name="mobilenet_v1_025", make=mobile.MobileNetV1, size=224),
    *map(_yolox, yolox.ARCHITECTURES),
    _yolact("yolox_nano_masks", "yolox_nano"),
    _yolact("yolox_nano_masks_unfolded", "yolox_nano_unfolded"),
    _llama("smollm2_135m", 49_152, 512, end=2),
    _llama("llama_books", 2048, 256),
)
NETWORKS = {network.name: network for network in _NETWORKS}
"""Networks by name.

Checkpoints of timm's `deit_SIZE_patch16_224` are those of `deit_SIZE` here (at 384
pixels `deit_SIZE_384`), of `tf_efficientnet_liteN` those of `efficientnet_liteN`.
`efficientnet_lite0.ra_in1k` and `mobilenetv2_*` were trained in PyTorch and pad, shift
and scale otherwise, under the same names of parameters: which one a checkpoint is
cannot be told from the file. Images are cut by `crop` for all of them; timm crops
less where networks are large, so its accuracies differ a little. Those of DeepLab,
on Pascal VOC's 21 classes, have the names of TensorFlow's scopes, joined by dots;
torchvision has no DeepLab-V3 on MobileNet-V2.
"""
