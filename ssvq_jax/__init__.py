"""SSVQ: sign-splitting vector quantization of network weights, for JAX and Flax."""

from importlib.metadata import version as _version

from ssvq_jax.calibration import Moments as Moments
from ssvq_jax.calibration import allocate as allocate
from ssvq_jax.calibration import calibrate as calibrate
from ssvq_jax.calibration import compress as compress
from ssvq_jax.calibration import correct_biases as correct_biases
from ssvq_jax.calibration import refine as refine
from ssvq_jax.codecs import MVQ as MVQ
from ssvq_jax.codecs import SSVQ as SSVQ
from ssvq_jax.codecs import VQ as VQ
from ssvq_jax.codecs import Codec as Codec
from ssvq_jax.codecs import Compressed as Compressed
from ssvq_jax.codecs import Uniform as Uniform
from ssvq_jax.codecs import encode as encode
from ssvq_jax.codecs import matmul as matmul
from ssvq_jax.core import fit_codebook as fit_codebook
from ssvq_jax.core import sign_ste as sign_ste
from ssvq_jax.core import split_signs as split_signs
from ssvq_jax.export import FormatError as FormatError
from ssvq_jax.export import load as load
from ssvq_jax.export import save as save
from ssvq_jax.freeze import FreezeSignsState as FreezeSignsState
from ssvq_jax.freeze import freeze_signs as freeze_signs
from ssvq_jax.tree import Rule as Rule
from ssvq_jax.tree import combine as combine
from ssvq_jax.tree import decode as decode
from ssvq_jax.tree import finalize as finalize
from ssvq_jax.tree import label_tree as label_tree
from ssvq_jax.tree import partition as partition
from ssvq_jax.tree import report as report

__version__ = _version("ssvq_jax")
