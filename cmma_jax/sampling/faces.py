"""Faces from attributes, faces reconstructed, edited and morphed, attributes inferred: jitted pure functions.

All take a model (static under `jax.jit`), its parameters and arrays: x: [B, H, W, 3] in [0, 1]; y, mask: [B, A].
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax.models.detail import draw as draw_pixels
from cmma_jax.models.distributions import fold_each, row_keys
from cmma_jax.models.flow import STEPS, Wanted, draw, from_noise, to_noise, transport
from cmma_jax.models.model import Model, Params

LARGEST_BATCH = 256  # faces at once in `in_batches`
PIXELS = 1  # folded into a key for the noise of pixels


@functools.partial(jax.jit, static_argnums=0, static_argnames="steps")
def generate(model: Model, params: Params, key: jax.Array, y: jax.Array, mask: jax.Array,
             temperature: float = 1.0, guidance: float | jax.Array | None = None, detail: float | None = None, *,
             steps: int = STEPS) -> jax.Array:
    """Returns faces [B, H, W, 3] in [0, 1]: means of p(x|z), z ~ p(z|y) with its noise times temperature.

    A temperature of 0 gives the face at the noise's mean ("the variance parameter of the noise set to 0",
    section 4.5), or where a flow leads it. key: one key, or [B] keys, one an example; y, mask: [B, A], unknown
    attributes masked out; guidance, steps: of a flow, as of `flow.draw`; detail: of a model that has one, the
    temperature at which the pixels are drawn from p(x|z) as well, 1: x ~ p(x|y) itself; None: the decoder's mean.
    """
    z = draw(model, params, key, y, mask, temperature, guidance, steps)
    if detail is not None:
        return draw_pixels(model, params, fold_each(key, PIXELS), z, y, mask, detail)
    return jnp.clip(model.likelihood(params, z, y, mask).mean, 0, 1)


@functools.partial(jax.jit, static_argnums=0)
def reconstruct(model: Model, params: Params, x: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns faces [B, H, W, 3] in [0, 1]: the mean of p(x|z) at the mean of q(z|x, y)."""
    z = model.posterior(params, x, y, mask).mean
    return jnp.clip(model.likelihood(params, z, y, mask).mean, 0, 1)


GUIDANCE = 1.5  # the scale w of a flow's, where no other is given and every attribute is known
# An edit of intensity 1 is as large as this, a root mean square of what the new attributes change in the velocity of
# standardised latents, whichever they are; the weight by which that is reached lies between the two bounds.
EDIT_SIZE, EDIT_WEIGHTS = 0.2, (2.0, 8.0)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("literal", "steps"))
def edit(model: Model, params: Params, x: jax.Array, y: jax.Array, mask: jax.Array, new_y: jax.Array,
         new_mask: jax.Array, intensity: float | jax.Array = 1.0, *, literal: bool = False,
         keep_detail: bool | jax.Array = True, steps: int = STEPS) -> jax.Array:
    """Returns faces changed from attributes y to new_y: [B, H, W, 3] in [0, 1].

    Under a flow that sees attributes, z ~ q(z|x, y) is led to the noise under y and back by velocity(y) + w intensity
    (velocity(new_y) - velocity(y)) (`flow.transport`), w such that every edit is as large, EDIT_SIZE. Under a Gaussian
    prior (section 4.5), z = h(x, y) + intensity (f(new_y) - f(y)), all of them means. The face is the mean of p(x|z);
    where the likelihood sees attributes, as a CVAE's, it sees y + intensity (new_y - y).

    Args:
      model: one with a posterior.
      intensity: a number or [B]; 0 changes nothing, a negative one leads the other way.
      literal: of a Gaussian prior, whether h sees new_y, as step 2 of the paper has it, which counts the change twice.
      keep_detail: whether what the model cannot reproduce of a face, x less its reconstruction, is added again; then
        an edit that changes nothing returns x itself, to the last bit.
      steps: of a flow's solver, each way.
    """
    intensity = jnp.broadcast_to(jnp.asarray(intensity, x.dtype), (len(x),))[:, None]
    start = _latent(model, params, x, y, mask)
    if model.guided:
        end = transport(model, params, start, Wanted(y, mask), Wanted(new_y, new_mask),
                        lambda change: intensity * jnp.clip(EDIT_SIZE / change, *EDIT_WEIGHTS), steps)
    else:
        begun = _latent(model, params, x, new_y, new_mask) if literal else start
        end = begun + intensity * (model.prior(params, new_y, new_mask).mean - model.prior(params, y, mask).mean)
    seen, seen_mask = y + intensity * (new_y - y), jnp.where(intensity == 0, mask, new_mask)
    # One batch decodes both, so that equal latents give equal faces to the last bit.
    both = (jnp.concatenate(pair) for pair in ((end, start), (seen, y), (seen_mask, mask)))
    after, before = jnp.split(model.likelihood(params, *both).mean, 2)
    same = (mask == new_mask) & (jnp.where(mask, y, 0) == jnp.where(new_mask, new_y, 0))
    unchanged = ((intensity[:, 0] == 0) | same.all(-1))[:, None, None, None]
    kept = jnp.where(unchanged, x, jnp.clip(x + (after - before), 0, 1))
    return jnp.where(keep_detail, kept, jnp.clip(after, 0, 1))


def _latent(model: Model, params: Params, x: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns [B, J], where an edit begins: a draw from q(z|x, y) where a flow is trained on such, else its mean.

    The noise of the draw is the same for every face, so that none depends on its batch.
    """
    q = model.posterior(params, x, y, mask)
    if model.velocity is None:
        return q.mean
    return q.sample(row_keys(0, jnp.zeros(len(x), int)))


@functools.partial(jax.jit, static_argnums=0, static_argnames="samples")
def infer_attributes(model: Model, params: Params, key: jax.Array, x: jax.Array, y: jax.Array, mask: jax.Array,
                     *, samples: int = 20) -> tuple[jax.Array, jax.Array]:
    """Returns what attributes faces have, mean and deviation [B, A]: q(y|z) averaged over z ~ q(z|x, known y).

    The mean of a binary attribute is its probability, and its deviation that of the probability between samples of z;
    of a real-valued one they are the mean and deviation of q(y|x), in standard units.

    Args:
      model: one with q(y|z), a CMMA.
      key: one key, or [B] keys, one an example.
      y, mask: what is known of their attributes; an empty mask: nothing.
      samples: of z.
    """
    q = model.posterior(params, x, y, mask)

    def sample(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        inferred = model.attributes(params, q.sample(fold_each(fold_each(key, i), 0)))
        return inferred.mean, inferred.variance

    means, variances = jax.lax.map(sample, jnp.arange(samples))
    return means.mean(0), jnp.sqrt(means.var(0) + variances.mean(0))


@functools.partial(jax.jit, static_argnums=0, static_argnames="steps")
def morph(model: Model, params: Params, x: jax.Array, y: jax.Array, mask: jax.Array, weights: jax.Array, *,
          steps: int = STEPS) -> jax.Array:
    """Returns faces [T, H, W, 3] on a path between two faces, from the reconstruction of one to that of the other.

    Under a Gaussian prior the path is straight in z. Under a flow, where halfway in z lies a blur, it goes through the
    noise: each z ~ q(z|x, y) is led to its noise under its own attributes, and the flow leads from a great circle
    between the two noises under attributes between theirs; the solver's errors at the ends, between them their mean,
    are taken off again.

    x: [2, H, W, 3]; y, mask: [2, A], their attributes; weights: [T], 0 for the first face, 1 for the second; steps: of
    a flow's solver, each way.
    """
    def between(ends: jax.Array, weights: jax.Array) -> jax.Array:
        return ends[:1] + weights[:, None] * (ends[1:] - ends[:1])

    known, z = mask.all(0, keepdims=True), _latent(model, params, x, y, mask)
    path = between(z, weights)
    if model.velocity is not None:
        weighed = jnp.concatenate([jnp.array([0.0, 1.0]), weights])
        noise = _on_circle(to_noise(model, params, z, Wanted(y, mask), steps), weighed)
        ends, middle = jnp.split(from_noise(model, params, noise, Wanted(
            between(y, weighed), jnp.broadcast_to(known, (len(weighed), y.shape[1]))), steps=steps), [2])
        path = middle + between(z - ends, weights)
    seen = between(y, weights)
    return jnp.clip(model.likelihood(params, path, seen, jnp.broadcast_to(known, seen.shape)).mean, 0, 1)


def _on_circle(ends: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns [T, J] spherical interpolations of two noises [2, J] (Shoemake 1985); weights: [T].

    A straight path would lead through noise that is shorter than any draw.
    """
    cosine = (ends[0] * ends[1]).sum() / jnp.sqrt(jnp.square(ends).sum(-1).prod())
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    straight = jnp.sin(angle) < 1e-4  # as where the ends are equal
    first, second = (jnp.where(straight, share, jnp.sin(share * angle) / jnp.sin(angle))
                     for share in (1 - weights, weights))
    return first[:, None] * ends[:1] + second[:, None] * ends[1:]


def in_batches(function: Callable, *arrays: np.ndarray):
    """Returns function(*arrays) on the host, computed in batches whose sizes are powers of two.

    So it is compiled for few sizes, whatever sizes are asked for. The last rows are repeated to fill a batch up.
    arrays: [N, ...], N above 0; function: of arrays [B, ...], row by row; its result may be a tree of such arrays.
    """
    parts, n = [], len(arrays[0])
    for start in range(0, n, LARGEST_BATCH):
        size = min(LARGEST_BATCH, n - start)
        rows = np.minimum(start + np.arange(1 << (size - 1).bit_length()), n - 1)
        made = function(*(np.asarray(a)[rows] for a in arrays))
        parts.append(jax.tree.map(lambda leaf, size=size: np.asarray(leaf)[:size], made))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
