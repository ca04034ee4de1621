"""What data tell about weights."""

from ssvq_jax.calibration.allocation import Allocation as Allocation
from ssvq_jax.calibration.allocation import allocate as allocate
from ssvq_jax.calibration.biases import correct_biases as correct_biases
from ssvq_jax.calibration.collection import calibrate as calibrate
from ssvq_jax.calibration.compression import compress as compress
from ssvq_jax.calibration.fisher import fisher_factors as fisher_factors
from ssvq_jax.calibration.found import Role as Role
from ssvq_jax.calibration.moments import Moment as Moment
from ssvq_jax.calibration.moments import Moments as Moments
from ssvq_jax.calibration.products import Form as Form
from ssvq_jax.calibration.refine import refine as refine
