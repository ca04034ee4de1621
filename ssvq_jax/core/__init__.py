"""Pure functions: signs, blocks, bits and k-means."""

from ssvq_jax.core.blocks import contracted_axis as contracted_axis
from ssvq_jax.core.kmeans import fit_codebook as fit_codebook
from ssvq_jax.core.signs import sign_ste as sign_ste
from ssvq_jax.core.signs import split_signs as split_signs
