"""A page to look at about a packed file."""

from ssvq_jax.page.page import page as page
from ssvq_jax.page.page import read_steps as read_steps
from ssvq_jax.page.page import require_extras as require_extras
