"""Sign splitting and its straight-through estimator."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def split_signs(
    weight: Float[Array, "*shape"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Split a weight into magnitude and sign.

    Args:
      weight: Array of any shape and floating dtype.

    Returns:
      `(magnitude, sign)`, both of the weight's shape and dtype: `magnitude >= 0`,
      `sign` in {-1, +1} with `sign(0) = +1`, and `magnitude * sign == weight`.

    Examples:
      >>> import jax.numpy as jnp
      >>> magnitude, sign = split_signs(jnp.array([-0.5, 0.0, 2.0]))
      >>> magnitude.tolist(), sign.tolist()
      ([0.5, 0.0, 2.0], [-1.0, 1.0, 1.0])
    """
    return jnp.abs(weight), _sign(weight)


@jax.custom_jvp
def sign_ste(latent: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Sign of a latent, with the straight-through estimator as derivative.

    Forward: `+1` where `latent >= 0`, else `-1`. Derivative: that of the identity.

    Args:
      latent: Array of any shape and floating dtype.

    Returns:
      Array of the latent's shape and dtype with values in {-1, +1}.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> jax.grad(lambda l: (3.0 * sign_ste(l)).sum())(jnp.array([-0.5, 0.0])).tolist()
      [3.0, 3.0]

    References:
      Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons
      for Conditional Computation", 2013, arXiv 1308.3432.
    """
    return _sign(latent)


@sign_ste.defjvp
def _sign_ste_jvp(primals, tangents):
    return sign_ste(*primals), tangents[0]


def _sign(x: Array) -> Array:
    # Not `jnp.sign`: that is 0 for 0.
    return jnp.where(x >= 0, jnp.ones_like(x), -jnp.ones_like(x))
