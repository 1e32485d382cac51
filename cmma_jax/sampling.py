"""Faces from attributes and faces again from their latents, as pure functions."""

import jax
import jax.numpy as jnp

from cmma_jax.distributions import standard_normal
from cmma_jax.models import Model, Params


def generate(model: Model, params: Params, key: jax.Array, y: jax.Array, mask: jax.Array,
             temperature: float = 1.0) -> jax.Array:
    """Returns faces [B, H, W, 3] in [0, 1]: means of p(x|z), z ~ p(z|y) with its deviation times temperature.

    A temperature of 0 gives the face at the prior's mean ("the variance parameter of the noise set to 0",
    section 4.5). key: one key, or [B] keys, one an example; y, mask: [B, A], unknown attributes masked out.
    """
    p = model.prior(params, y, mask)
    z = p.mean + temperature * jnp.exp(p.logvar / 2) * standard_normal(key, p.mean.shape)
    return jnp.clip(model.likelihood(params, z, y, mask).mean, 0, 1)


def reconstruct(model: Model, params: Params, x: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns faces [B, H, W, 3] in [0, 1]: the mean of p(x|z) at the mean of q(z|x, y)."""
    z = model.posterior(params, x, y, mask).mean
    return jnp.clip(model.likelihood(params, z, y, mask).mean, 0, 1)
