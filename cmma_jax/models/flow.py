"""The flow prior: p(z|y) as a continuous flow from the Gaussian N(f(y)) to where the latents of real faces lie.

    dz/dt = velocity(z, t, y),   z(0) ~ N(f(y)),   z(1) = the latent
    log p(z(1)|y) = log N(z(0); f(y)) - integral of tr(d velocity / dz) over t

The velocity is trained by flow matching (Lipman et al. 2023) on the trigonometric path (Albergo and Vanden-Eijnden
2023), z(t) = f(y) + deviation (cos(pi t / 2) e + sin(pi t / 2) u), e ~ N(0, I), u = the latent, standardised. If the
latents are Gaussian already, u has unit deviation at every t and the best velocity is 0; so a network that says nothing
leaves the Gaussian prior as it is. Where a model has no velocity the functions below are the identity.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cmma_jax.models.distributions import Gaussian, split_each, standard_normal, standard_uniform
from cmma_jax.models.model import Model, Params

STEPS = 10  # of the midpoint rule, from t = 0 to 1; with 80 a pixel of LFW differs by 0.0006, log p(z|y) by 0.4 nats
QUARTER_TURN = jnp.pi / 2


class Wanted(NamedTuple):
    """Attributes under which a flow goes. y, mask: [B, A]."""

    y: jax.Array
    mask: jax.Array


def matching(model: Model, params: Params, key: jax.Array, q: Gaussian, y: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns [B] the squared error of the velocity at one random time and noise, over that of the velocity 0.

    1 is the Gaussian prior. key: [B] keys; q: q(z|x, y), from which z is drawn.
    """
    z_key, noise_key, time_key = split_each(key, 3)
    p = model.prior(params, y, mask)
    deviation = jnp.exp(p.logvar / 2)
    u, e = (q.sample(z_key) - p.mean) / deviation, standard_normal(noise_key, p.mean.shape)
    t = standard_uniform(time_key, (len(y), 1))
    cos, sin = jnp.cos(QUARTER_TURN * t), jnp.sin(QUARTER_TURN * t)
    said = model.velocity(params, p.mean + deviation * (cos * e + sin * u), t[:, 0], y, mask) / deviation
    return (jnp.square(said / QUARTER_TURN - (cos * u - sin * e))).mean(-1)


def to_latent(model: Model, params: Params, start: jax.Array, wanted: Wanted, *, other: Wanted | None = None,
              weight: jax.Array | float = 1.0, steps: int = STEPS) -> jax.Array:
    """Returns latents z(1) [B, J] from places in the Gaussian prior, z(0): [B, J].

    With `other`, the velocity is that of `other` plus weight times the difference of the two: above 1 it goes further
    than wanted. With all of `other` unknown this is classifier-free guidance (Ho and Salimans 2022).

    Args:
      model, params: with or without a flow.
      start: z(0).
      wanted: the attributes.
      other: others, of which `weight` leads away.
      weight: a number or [B, 1].
      steps: of the midpoint rule.
    """
    def velocity(z: jax.Array, t: jax.Array) -> jax.Array:
        at = jnp.broadcast_to(t, len(z))
        toward = model.velocity(params, z, at, *wanted)
        if other is None:
            return toward
        away = model.velocity(params, z, at, *other)
        return away + weight * (toward - away)

    return start if model.velocity is None else _go(velocity, start, 0.0, 1.0, steps)


def to_gaussian(model: Model, params: Params, z: jax.Array, wanted: Wanted, steps: int = STEPS) -> jax.Array:
    """Returns the place in the Gaussian prior, z(0), that the flow under `wanted` leads to z: `to_latent` reversed."""
    if model.velocity is None:
        return z
    return _go(lambda z, t: model.velocity(params, z, jnp.broadcast_to(t, len(z)), *wanted), z, 1.0, 0.0, steps)


def draw(model: Model, params: Params, key: jax.Array, y: jax.Array, mask: jax.Array,
         temperature: float | jax.Array = 1.0, guidance: float | jax.Array | None = None) -> jax.Array:
    """Returns z ~ p(z|y), [B, J]; key: one key, or [B] keys.

    temperature: factor on the Gaussian's deviation; 0 gives its mean, or where the flow carries it.
    guidance: how far the velocity is carried beyond the one of unknown attributes; 0 or None: not at all.
    """
    p = model.prior(params, y, mask)
    start = p.mean + temperature * jnp.exp(p.logvar / 2) * standard_normal(key, p.mean.shape)
    if guidance is None or model.velocity is None:
        return to_latent(model, params, start, Wanted(y, mask))
    nothing = Wanted(jnp.zeros_like(y), jnp.zeros_like(mask))
    return to_latent(model, params, start, Wanted(y, mask), other=nothing, weight=1 + jnp.asarray(guidance))


def log_ratio(model: Model, params: Params, z: jax.Array, y: jax.Array, mask: jax.Array,
              key: jax.Array | None = None, steps: int = STEPS) -> jax.Array:
    """Returns log p(z|y) - log N(z; f(y)), in nats, a latent each: [B, J]; 0 without a flow.

    The trace belongs to all latents and is shared out evenly. With a key, one or [B] of them, it is estimated without
    bias by random signs (Hutchinson 1990), so that a bound keeps its expectation; without one it is exact, at J
    products with the Jacobian a step.
    """
    p = model.prior(params, y, mask)
    if model.velocity is None:
        return jnp.zeros_like(p.mean)

    def with_trace(state: tuple[jax.Array, jax.Array], t: jax.Array) -> tuple[jax.Array, jax.Array]:
        at = jnp.broadcast_to(t, len(z))
        velocity, pull = jax.vjp(lambda z: model.velocity(params, z, at, y, mask), state[0])
        if key is None:
            units = jnp.eye(z.shape[1])
            diagonal = jax.lax.map(lambda one: (pull(jnp.broadcast_to(one, z.shape))[0] * one[None]).sum(-1), units)
            return velocity, diagonal.sum(0)
        return velocity, (pull(signs)[0] * signs).sum(-1)

    if key is not None:
        signs = jnp.sign(standard_normal(key, z.shape))
    place, trace = _go(with_trace, (z, jnp.zeros(len(z))), 1.0, 0.0, steps)
    # From t = 1 to 0 the integral comes out negative: it is minus the one of log p.
    return p.log_prob(place) - p.log_prob(z) + trace[:, None] / z.shape[1]


def _go(velocity: Callable, state, start: float, end: float, steps: int):
    """Integrates a tree of arrays by the midpoint rule; velocity: (state, t) -> a tree like it."""
    length = (end - start) / steps

    def step(state, i):
        t = start + length * i
        half = jax.tree.map(lambda s, v: s + length / 2 * v, state, velocity(state, t))
        return jax.tree.map(lambda s, v: s + length * v, state, velocity(half, t + length / 2)), None

    return jax.lax.scan(step, state, jnp.arange(steps))[0]
