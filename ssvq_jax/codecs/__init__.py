"""Codecs: SSVQ and the baselines, all with the protocol of `codecs.protocol`."""

from ssvq_jax.codecs.mvq import MVQ as MVQ
from ssvq_jax.codecs.product import matmul as matmul
from ssvq_jax.codecs.protocol import Codec as Codec
from ssvq_jax.codecs.protocol import Compressed as Compressed
from ssvq_jax.codecs.protocol import encode as encode
from ssvq_jax.codecs.protocol import is_compressed as is_compressed
from ssvq_jax.codecs.ssvq import SSVQ as SSVQ
from ssvq_jax.codecs.uniform import Uniform as Uniform
from ssvq_jax.codecs.vq import VQ as VQ
