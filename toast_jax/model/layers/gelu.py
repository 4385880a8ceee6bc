"""The exact GELU (Hendrycks & Gimpel, arXiv 1606.08415), as in timm."""

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """Computes `x * Phi(x)`, where Phi is the standard normal distribution function.

    Uses erf, as PyTorch does. The erfc of `jax.nn.gelu` is no more accurate here and almost three times slower on a CPU.
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * jnp.asarray(0.5**0.5, x.dtype)))
