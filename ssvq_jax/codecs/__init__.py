"""Codecs: SSVQ and the baselines, and products with what they compress."""

from ssvq_jax.codecs.codec import Codec as Codec
from ssvq_jax.codecs.codec import Compressed as Compressed
from ssvq_jax.codecs.codec import Field as Field
from ssvq_jax.codecs.codec import is_compressed as is_compressed
from ssvq_jax.codecs.embedding import attend as attend
from ssvq_jax.codecs.embedding import take as take
from ssvq_jax.codecs.encoding import encode as encode
from ssvq_jax.codecs.matmul import matmul as matmul
from ssvq_jax.codecs.mvq import MVQ as MVQ
from ssvq_jax.codecs.ssvq import SSVQ as SSVQ
from ssvq_jax.codecs.stacks import encode_stack as encode_stack
from ssvq_jax.codecs.stacks import stacked as stacked
from ssvq_jax.codecs.uniform import Uniform as Uniform
from ssvq_jax.codecs.vq import VQ as VQ

CODECS: dict[str, type[Codec]] = {
    "SSVQ": SSVQ,
    "VQ": VQ,
    "Uniform": Uniform,
    "MVQ": MVQ,
}
"""The codecs that files and commands know, by the names of their classes."""
