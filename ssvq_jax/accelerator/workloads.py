"""Models as lists of matrix products, one after the other.

Convolutions are products by im2col: `m` output pixels, `k` weights of a filter, `n`
filters. A depthwise convolution is one product of a single column per channel. Names
of parameters are timm's, those of the checkpoints that are compressed.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from ssvq_jax.core.checks import require_integer


@dataclasses.dataclass(frozen=True)
class MatMul:
    """`count` products of `m x k` activations and a `k x n` operand.

    Attributes:
      name: What it is called in reports.
      m: Rows of activations: tokens or output pixels.
      k: Length of the sums.
      n: Outputs.
      count: Products of this size, each with an operand of its own: heads, channels.
      weights: Name of the operand in the packed file, which holds all `count` of
        them; `None` for an operand that is an activation too, as in attention.
      elementwise: Elements that softmax, a norm or an activation function goes
        through afterwards.
      inputs: Activations that the product reads, where im2col repeats them: fewer
        than `count * m * k`, which `None` stands for.
      cached: Bytes of the operand that always come from main memory: keys and values
        of earlier tokens.

    Raises:
      TypeError, ValueError: A size that is no integer above 0.
    """

    name: str
    m: int
    k: int
    n: int
    count: int = 1
    weights: str | None = None
    elementwise: int = 0
    inputs: int | None = None
    cached: int = 0

    def __post_init__(self):
        for field in ("m", "k", "n", "count", "elementwise", "inputs", "cached"):
            value, least = getattr(self, field), field in ("m", "k", "n", "count")
            if field == "inputs" and value is None:
                continue
            require_integer(f"{self.name}: {field}", value, int(least))

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return self.count * self.m * self.k * self.n

    @property
    def input_bytes(self) -> int:
        """Bytes of int8 activations that are read: both operands of attention."""
        inputs = self.count * self.m * self.k if self.inputs is None else self.inputs
        if self.weights is None:
            inputs += self.count * self.k * self.n - self.cached
        return inputs

    @property
    def output_bytes(self) -> int:
        """Bytes of int8 activations that are written."""
        return self.count * self.m * self.n

    @property
    def weight_count(self) -> int:
        """Weights of the operands; 0 where they are activations."""
        return 0 if self.weights is None else self.count * self.k * self.n


def deit_tiny(image: int = 224, patch: int = 16, classes: int = 1000) -> list[MatMul]:
    """DeiT-Tiny: 192 wide, 12 blocks, 3 heads; see `vit`."""
    return vit(192, 12, 3, image=image, patch=patch, classes=classes)


def vit(
    width: int,
    depth: int,
    heads: int,
    *,
    image: int = 224,
    patch: int = 16,
    classes: int = 1000,
) -> list[MatMul]:
    """A vision transformer with a class token, MLP of four times the width.

    Args:
      width: Features of a token.
      depth: Blocks.
      heads: Heads of attention.
      image: Height and width of the image, in pixels.
      patch: Height and width of a patch.
      classes: Outputs of the head.
    """
    for name, value in (("heads", heads), ("patch", patch)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if width % heads or image % patch:
        raise ValueError(
            f"expected heads that divide the width and patches that divide the image, "
            f"got {heads} of {width} and {patch} of {image}"
        )
    patches = (image // patch) ** 2
    tokens, size = patches + 1, width // heads
    products = [
        MatMul(
            "patch_embed", patches, 3 * patch**2, width, 1, "patch_embed.proj.weight",
            elementwise=tokens * width,
        )
    ]  # fmt: skip
    for i in range(depth):
        block = f"blocks.{i}"

        def dense(name, inputs, outputs, elementwise=0, block=block):
            return MatMul(
                f"{block}.{name}", tokens, inputs, outputs, 1,
                f"{block}.{name}.weight", elementwise,
            )  # fmt: skip

        products += [
            dense("attn.qkv", width, 3 * width),
            MatMul(
                f"{block}.attn.scores", tokens, size, tokens, heads,
                elementwise=heads * tokens**2,
            ),
            MatMul(f"{block}.attn.values", tokens, tokens, size, heads),
            dense("attn.proj", width, width, tokens * width),
            dense("mlp.fc1", width, 4 * width, 4 * tokens * width),
            dense("mlp.fc2", 4 * width, width, tokens * width),
        ]  # fmt: skip
    return [*products, MatMul("head", 1, width, classes, 1, "head.weight")]


def vit_of(
    shapes: Mapping[str, Sequence[int]], heads: int | None = None
) -> list[MatMul]:
    """The vision transformer whose parameters have these names and shapes.

    Args:
      shapes: Of a timm `VisionTransformer` with class token, PyTorch's layout.
      heads: Heads of attention; 64 features each where not given.

    Raises:
      ValueError: Parameters that are missing.
    """
    for name in ("patch_embed.proj.weight", "pos_embed", "head.weight"):
        if name not in shapes:
            raise ValueError(f"{name}: missing; no timm vision transformer")
    kernel, positions = shapes["patch_embed.proj.weight"], shapes["pos_embed"]
    head = shapes["head.weight"]
    depth = sum(name.endswith(".attn.qkv.weight") for name in shapes)
    unknown = ValueError(
        f"no timm vision transformer with one class token: {depth} blocks, patch "
        f"embedding {tuple(kernel)}, positions {tuple(positions)}, head {tuple(head)}"
    )
    if (len(kernel), len(positions), len(head)) != (4, 3, 2):
        raise unknown
    width, patch, classes = kernel[0], kernel[2], head[0]
    side = math.isqrt(max(0, positions[1] - 1))
    of_image = tuple(positions) == (1, side**2 + 1, width)
    if min(width, patch, classes, depth, side) < 1 or not of_image:
        raise unknown
    return vit(
        width,
        depth,
        heads or max(1, width // 64),
        image=side * patch,
        patch=patch,
        classes=classes,
    )


_LITE0 = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
_MOBILENET_V2 = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (3, 3, 2, 6, 32), (4, 3, 2, 6, 64),
    (3, 3, 1, 6, 96), (3, 3, 2, 6, 160), (1, 3, 1, 6, 320),
)  # fmt: skip


def efficientnet_lite0(image: int = 224, classes: int = 1000) -> list[MatMul]:
    """EfficientNet-Lite0."""
    return _inverted_residuals(_LITE0, image, classes)


def mobilenet_v2(image: int = 224, classes: int = 1000) -> list[MatMul]:
    """MobileNet-V2 1.0."""
    return _inverted_residuals(_MOBILENET_V2, image, classes)


def _inverted_residuals(
    stages: Sequence[tuple[int, int, int, int, int]], image: int, classes: int
) -> list[MatMul]:
    """Networks of stages (repeats, kernel, stride, expansion, channels)."""
    side, channels = -(-image // 2), 32
    products = [_conv("conv_stem", side, 3, 3, channels, inputs=3 * image**2)]
    for s, (repeats, kernel, stride, expansion, outputs) in enumerate(stages):
        for b in range(repeats):
            block, wide = f"blocks.{s}.{b}", expansion * channels
            if expansion > 1:
                products.append(_conv(f"{block}.conv_pw", side, 1, channels, wide))
            inputs, side = wide * side**2, -(-side // (stride if b == 0 else 1))
            name, pixels = f"{block}.conv_dw", side**2
            products.append(
                MatMul(
                    name,
                    pixels,
                    kernel**2,
                    1,
                    wide,
                    f"{name}.weight",
                    pixels * wide,
                    inputs,
                )  # fmt: skip
            )
            name = "conv_pwl" if expansion > 1 else "conv_pw"
            linear = _conv(f"{block}.{name}", side, 1, wide, outputs, activated=False)
            products.append(linear)
            channels = outputs
    products.append(_conv("conv_head", side, 1, channels, 1280))
    return [*products, MatMul("classifier", 1, 1280, classes, 1, "classifier.weight")]


def _conv(
    name: str,
    side: int,
    kernel: int,
    channels: int,
    filters: int,
    *,
    activated: bool = True,
    inputs: int | None = None,
) -> MatMul:
    pixels = side**2
    elements = pixels * filters if activated else 0
    weights, k = f"{name}.weight", kernel**2 * channels
    return MatMul(name, pixels, k, filters, 1, weights, elements, inputs)


def llama(
    width: int = 576,
    depth: int = 30,
    heads: int = 9,
    key_value_heads: int = 3,
    mlp: int = 1536,
    vocabulary: int = 49_152,
    context: int = 512,
    tied: bool = True,
) -> list[MatMul]:
    """One token of a Llama-like decoder at batch 1; by default SmolLM2-135M's sizes.

    Args:
      width: Features of a token.
      depth: Layers.
      heads: Heads of attention.
      key_value_heads: Heads of keys and values, shared by groups of the others.
      mlp: Width of the gated MLP.
      vocabulary: Outputs of the last product.
      context: Tokens that attention looks back at; their keys and values, int8, come
        from main memory.
      tied: Whether the embedding is the last product's weight, too.
    """
    size = width // heads
    shared = key_value_heads * size
    products = []
    for i in range(depth):
        layer = f"model.layers.{i}"
        for part, inputs, outputs in (
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", width, shared),
            ("self_attn.v_proj", width, shared),
        ):
            name = f"{layer}.{part}"
            products.append(MatMul(name, 1, inputs, outputs, 1, f"{name}.weight"))
        group, cached = heads // key_value_heads, shared * context
        products += [
            MatMul(
                f"{layer}.scores", group, size, context, key_value_heads,
                elementwise=heads * context, cached=cached,
            ),
            MatMul(
                f"{layer}.values", group, context, size, key_value_heads, cached=cached
            ),
        ]  # fmt: skip
        for part, inputs, outputs, elements in (
            ("self_attn.o_proj", width, width, width),
            ("mlp.gate_proj", width, mlp, mlp),
            ("mlp.up_proj", width, mlp, 0),
            ("mlp.down_proj", mlp, width, width),
        ):
            name = f"{layer}.{part}"
            weights = f"{name}.weight"
            products.append(MatMul(name, 1, inputs, outputs, 1, weights, elements))
    name = "model.embed_tokens.weight" if tied else "lm_head.weight"
    return [*products, MatMul("lm_head", 1, width, vocabulary, 1, name)]


def llama_of(
    shapes: Mapping[str, Sequence[int]], head: int = 64, context: int = 512
) -> list[MatMul]:
    """One token of the Llama whose parameters have these names and shapes.

    Args:
      shapes: Of Hugging Face's `LlamaForCausalLM`, PyTorch's layout.
      head: Features of a head of attention.
      context: As of `llama`.

    Raises:
      ValueError: Embedding, or keys or gate of the first layer, that are missing or of
        other axes; heads that do not divide features and keys, or keys that do not
        divide the features.
    """
    names = "model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight"
    names = *names, "model.layers.0.mlp.gate_proj.weight"
    for name in names:
        if len(shapes.get(name, ())) != 2:
            raise ValueError(f"{name}: expected two axes; no Llama of Hugging Face")
    (vocabulary, width), (shared, _), (mlp, _) = (shapes[name] for name in names)
    depth = sum(name.endswith(".self_attn.k_proj.weight") for name in shapes)
    sizes = head, vocabulary, width, shared, mlp
    if min(sizes) < 1 or width % head or shared % head or width % shared:
        raise ValueError(
            f"expected a Llama with heads of {head}, got {width} features, {shared} "
            f"of keys, {mlp} of the MLP and {vocabulary} tokens"
        )
    return llama(
        width,
        depth,
        width // head,
        shared // head,
        mlp,
        vocabulary,
        context,
        tied="lm_head.weight" not in shapes,
    )


models = {
    "deit_tiny": deit_tiny,
    "efficientnet_lite0": efficientnet_lite0,
    "mobilenet_v2": mobilenet_v2,
    "llama": llama,
}
"""Models by name, each a function that gives its products."""
