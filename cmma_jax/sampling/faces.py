"""Faces from attributes, faces again from their latents, faces changed, attributes told: jitted pure functions.

All take a model (static under `jax.jit`), its parameters and arrays: x: [B, H, W, 3] in [0, 1]; y, mask: [B, A].
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax.models.distributions import Gaussian, fold_each
from cmma_jax.models.flow import Wanted, draw, to_gaussian, to_latent
from cmma_jax.models.model import Model, Params

LARGEST_BATCH = 256  # faces at once in `in_batches`


@functools.partial(jax.jit, static_argnums=0)
def generate(model: Model, params: Params, key: jax.Array, y: jax.Array, mask: jax.Array,
             temperature: float = 1.0, guidance: float | None = None) -> jax.Array:
    """Returns faces [B, H, W, 3] in [0, 1]: means of p(x|z), z ~ p(z|y) with its deviation times temperature.

    A temperature of 0 gives the face at the prior's mean ("the variance parameter of the noise set to 0",
    section 4.5). key: one key, or [B] keys, one an example; y, mask: [B, A], unknown attributes masked out;
    guidance: of a flow prior, as of `flow.draw`.
    """
    z = draw(model, params, key, y, mask, temperature, guidance)
    return jnp.clip(model.likelihood(params, z, y, mask).mean, 0, 1)


@functools.partial(jax.jit, static_argnums=0)
def reconstruct(model: Model, params: Params, x: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns faces [B, H, W, 3] in [0, 1]: the mean of p(x|z) at the mean of q(z|x, y)."""
    z = model.posterior(params, x, y, mask).mean
    return jnp.clip(model.likelihood(params, z, y, mask).mean, 0, 1)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("literal", "keep_detail"))
def edit(model: Model, params: Params, x: jax.Array, y: jax.Array, mask: jax.Array, new_y: jax.Array,
         new_mask: jax.Array, intensity: float | jax.Array = 1.0, *, literal: bool = False,
         keep_detail: bool = False) -> jax.Array:
    """Returns faces changed from attributes y to new_y (section 4.5): [B, H, W, 3] in [0, 1].

    z = h(x, y) + intensity (f(new_y) - f(y)), all of them means; the face is the mean of p(x|z). Where the likelihood
    sees attributes, as a CVAE's, it sees y + intensity (new_y - y). Where the prior is a flow, that step is taken in
    the Gaussian from which it begins: the flow leads there under y, and back under new_y.

    Args:
      model: one with a posterior.
      params: its parameters.
      x: the faces.
      y, mask: their attributes.
      new_y, new_mask: those that they are to have.
      intensity: a number or [B]; 0 changes nothing, 1 is new_y, what lies outside extrapolates.
      literal: whether h sees new_y, as step 2 of the paper has it, which counts the change twice.
      keep_detail: whether what the model cannot reproduce of a face, x less its reconstruction, is added again; then
        an edit that changes nothing returns x itself.
    """
    intensity = jnp.broadcast_to(jnp.asarray(intensity, x.dtype), (len(x),))[:, None]
    seen = (new_y, new_mask) if literal else (y, mask)
    z = to_gaussian(model, params, model.posterior(params, x, *seen).mean, Wanted(*seen))
    change = model.prior(params, new_y, new_mask).mean - model.prior(params, y, mask).mean

    def decode(args: tuple[jax.Array, ...]) -> jax.Array:
        place, weight, seen_mask = args
        latent = to_latent(model, params, place + weight * change, Wanted(new_y, new_mask), other=Wanted(y, mask),
                           weight=weight)
        return model.likelihood(params, latent, y + weight * (new_y - y), seen_mask).mean

    if not keep_detail:
        return jnp.clip(decode((z, intensity, new_mask)), 0, 1)
    start = z if not literal else to_gaussian(model, params, model.posterior(params, x, y, mask).mean, Wanted(y, mask))
    # The same loop body decodes both, so that equal latents give equal faces to the last bit.
    after, before = jax.lax.map(decode, jax.tree.map(lambda a, b: jnp.stack([a, b]), (z, intensity, new_mask),
                                                     (start, jnp.zeros_like(intensity), mask)))
    return jnp.clip(x + (after - before), 0, 1)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("samples", "steps"))
def infer_attributes(model: Model, params: Params, key: jax.Array, x: jax.Array, y: jax.Array, mask: jax.Array,
                     *, samples: int = 20, steps: int = 0) -> tuple[jax.Array, jax.Array]:
    """Returns what attributes faces have, mean and deviation [B, A]: q(y|z) averaged over z ~ q(z|x, known y).

    The mean of a binary attribute is its probability, and its deviation that of the probability between samples of z;
    of a real-valued one they are the mean and deviation of q(y|x), in standard units.

    Args:
      model: one with q(y|z), a CMMA.
      params: its parameters.
      key: one key, or [B] keys, one an example.
      x: the faces.
      y, mask: what is known of their attributes; an empty mask: nothing.
      samples: of z.
      steps: of a chain in which each sample goes on: y ~ q(y|z), the known ones kept, then z ~ q(z|x, y)
        (Bengio et al. 2014, the paper's [4]).
    """
    q = model.posterior(params, x, y, mask)

    def sample(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        mine = fold_each(key, i)
        z = q.sample(fold_each(mine, 0))
        for step in range(steps):
            drawn = model.attributes(params, z).sample(fold_each(mine, 2 * step + 1))
            drawn = jnp.where(mask, y, drawn)
            z = model.posterior(params, x, drawn, jnp.ones_like(mask)).sample(fold_each(mine, 2 * step + 2))
        told = model.attributes(params, z)
        return told.mean, jnp.exp(told.logvar) if isinstance(told, Gaussian) else jnp.zeros_like(told.mean)

    means, variances = jax.lax.map(sample, jnp.arange(samples))
    return means.mean(0), jnp.sqrt(means.var(0) + variances.mean(0))


@functools.partial(jax.jit, static_argnums=0)
def morph(model: Model, params: Params, x: jax.Array, y: jax.Array, mask: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns faces [T, H, W, 3] on the straight path in z between two faces.

    x: [2, H, W, 3]; y, mask: [2, A], their attributes; weights: [T], 0 for the first face, 1 for the second.
    """
    z = model.posterior(params, x, y, mask).mean
    path, known = (a[:1] + weights[:, None] * (a[1:] - a[:1]) for a in (z, y))
    both = jnp.broadcast_to(mask.all(0, keepdims=True), known.shape)
    return jnp.clip(model.likelihood(params, path, known, both).mean, 0, 1)


@functools.partial(jax.jit, static_argnums=0)
def encode(model: Model, params: Params, x: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns latents [B, J] of faces: the mean of q(z|x, y)."""
    return model.posterior(params, x, y, mask).mean


@functools.partial(jax.jit, static_argnums=0)
def decode(model: Model, params: Params, z: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns faces [B, H, W, 3] in [0, 1] of latents z: [B, J], the mean of p(x|z); y, mask: as a CVAE sees them."""
    return jnp.clip(model.likelihood(params, z, y, mask).mean, 0, 1)


def in_batches(function: Callable, *arrays: np.ndarray):
    """Returns function(*arrays) on the host, computed in batches whose sizes are powers of two.

    So it is compiled for few sizes, whatever sizes are asked for. The last rows are repeated to fill a batch up.

    Args:
      function: of arrays [B, ...], row by row; its result may be a tree of such arrays.
      *arrays: [N, ...] each, N above 0.
    """
    parts, n = [], len(arrays[0])
    for start in range(0, n, LARGEST_BATCH):
        size = min(LARGEST_BATCH, n - start)
        rows = np.minimum(start + np.arange(1 << (size - 1).bit_length()), n - 1)
        made = function(*(np.asarray(a)[rows] for a in arrays))
        parts.append(jax.tree.map(lambda leaf, size=size: np.asarray(leaf)[:size], made))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
