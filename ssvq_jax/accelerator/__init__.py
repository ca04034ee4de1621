"""The simulated accelerator: cycles, bytes and energy of compressed weights."""

from ssvq_jax.accelerator import stored as stored
from ssvq_jax.accelerator import workloads as workloads
from ssvq_jax.accelerator.config import ASSUMED as ASSUMED
from ssvq_jax.accelerator.config import Config as Config
from ssvq_jax.accelerator.config import Energy as Energy
from ssvq_jax.accelerator.config import presets as presets
from ssvq_jax.accelerator.multiply import multiply as multiply
from ssvq_jax.accelerator.report import Layer as Layer
from ssvq_jax.accelerator.report import Report as Report
from ssvq_jax.accelerator.simulate import simulate as simulate
from ssvq_jax.accelerator.workloads import MatMul as MatMul
