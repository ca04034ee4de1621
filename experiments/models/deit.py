"""DeiT (Touvron et al., 2021); attributes as in timm."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class DeiTConfig:
    """Sizes of a DeiT.

    Attributes:
      width: Features of a token.
      depth: Blocks.
      heads: Heads of attention.
      size: Height and width of the images.
      patch: Height and width of a patch.
      channels: Of the images.
      distilled: Whether there is a distillation token with a head of its own; the mean
        of both heads' logits is taken, in training, too.
    """

    width: int = 192
    depth: int = 12
    heads: int = 3
    size: int = 224
    patch: int = 16
    channels: int = 3
    distilled: bool = False


_SIZES = {
    "tiny": DeiTConfig(),
    "small": DeiTConfig(width=384, heads=6),
    "base": DeiTConfig(width=768, heads=12),
}
CONFIGS = {
    **{f"deit_{name}": config for name, config in _SIZES.items()},
    **{
        f"deit_{name}_distilled": dataclasses.replace(config, distilled=True)
        for name, config in _SIZES.items()
    },
    "deit_base_384": dataclasses.replace(_SIZES["base"], size=384),
    "deit_base_distilled_384": dataclasses.replace(
        _SIZES["base"], size=384, distilled=True
    ),
    "deit_tiny_cifar10": DeiTConfig(size=32, patch=8),
    "deit_96_cifar10": DeiTConfig(width=96, depth=6, size=32, patch=8),
    "deit_64_cifar10": DeiTConfig(width=64, depth=6, heads=2, size=32, patch=8),
}
"""By the names of the networks."""
_EPSILON = 1e-6


class PatchEmbed(nnx.Module):
    """Patches to tokens."""

    def __init__(self, config: DeiTConfig, rngs: nnx.Rngs):
        patch = (config.patch, config.patch)
        self.proj = nnx.Conv(
            config.channels,
            config.width,
            patch,
            strides=patch,
            padding="VALID",
            rngs=rngs,
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images to tokens `(batch, patches, width)`."""
        x = self.proj(images)
        return x.reshape(x.shape[0], -1, x.shape[-1])


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: DeiTConfig, rngs: nnx.Rngs):
        self.heads = config.heads
        self.qkv = nnx.Linear(config.width, 3 * config.width, rngs=rngs)
        self.proj = nnx.Linear(config.width, config.width, rngs=rngs)

    def __call__(self, x: jax.Array, batch: int) -> jax.Array:
        """Tokens `(batch * tokens, width)` to tokens."""
        qkv = self.qkv(x).reshape(batch, -1, 3, self.heads, x.shape[-1] // self.heads)
        query, key, value = (qkv[:, :, i] for i in range(3))
        mixed = jax.nn.dot_product_attention(query, key, value)
        return self.proj(mixed.reshape(x.shape))


class MLP(nnx.Module):
    """Perceptron four times as wide."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(width, 4 * width, rngs=rngs)
        self.fc2 = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens to tokens."""
        return self.fc2(nnx.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: DeiTConfig, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(config.width, epsilon=_EPSILON, rngs=rngs)
        self.attn = Attention(config, rngs)
        self.norm2 = nnx.LayerNorm(config.width, epsilon=_EPSILON, rngs=rngs)
        self.mlp = MLP(config.width, rngs)

    def __call__(self, x: jax.Array, batch: int) -> jax.Array:
        """Tokens `(batch * tokens, width)` to tokens."""
        x = x + self.attn(self.norm1(x), batch)
        return x + self.mlp(self.norm2(x))


class DeiT(nnx.Module):
    """Images to logits, by a class token, and a distillation token if there is one."""

    def __init__(self, config: DeiTConfig, classes: int, *, rngs: nnx.Rngs):
        initial = nnx.initializers.truncated_normal(0.02)

        def tokens(count):
            return nnx.Param(initial(rngs.params(), (1, count, config.width)))

        self.patch_embed = PatchEmbed(config, rngs)
        self.cls_token = tokens(1)
        self.dist_token = tokens(1) if config.distilled else None
        patches = (config.size // config.patch) ** 2
        self.pos_embed = tokens(patches + 1 + config.distilled)
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.depth)])
        self.norm = nnx.LayerNorm(config.width, epsilon=_EPSILON, rngs=rngs)
        self.head = nnx.Linear(config.width, classes, rngs=rngs)
        self.head_dist = (
            nnx.Linear(config.width, classes, rngs=rngs) if config.distilled else None
        )

    def features(self, images: jax.Array) -> list[jax.Array]:
        """What every block gives, `(batch, tokens, width)`."""
        x = self.patch_embed(images)
        batch, _, width = x.shape
        first = [
            jnp.broadcast_to(token[...], (batch, 1, width))
            for token in (self.cls_token, self.dist_token)
            if token is not None
        ]
        x = jnp.concatenate([*first, x], axis=1) + self.pos_embed[...]
        shape = x.shape
        x = x.reshape(-1, width)  # products of two axes are a fifth faster on CPUs
        found = []
        for block in self.blocks:
            x = block(x, batch)
            found.append(x.reshape(shape))
        return found

    def outputs(self, feature: jax.Array) -> jax.Array:
        """The last of `features` to logits `(batch, classes)`."""
        logits = self.head(self.norm(feature[:, 0]))
        if self.head_dist is not None:
            logits = (logits + self.head_dist(self.norm(feature[:, 1]))) / 2
        return logits

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images `(batch, size, size, channels)` to logits `(batch, classes)`."""
        return self.outputs(self.features(images)[-1])
