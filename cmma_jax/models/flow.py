"""The flow prior: p(z|y) as a continuous flow from N(0, I) to where the latents of real faces lie.

    du/dt = velocity(u, t, y),   u(0) ~ N(0, I),   z = mean + deviation u(1), a mean and a deviation a channel
    log p(z|y) = log N(u(0); 0, I) - integral of tr(d velocity / du) over t - sum of log deviation

The velocity is trained by flow matching on straight paths, u(t) = (1 - t) e + t u (Lipman et al. 2023; Liu et al.
2023), e ~ N(0, I), with some or all attributes hidden, so that it is that of p(z) as well. Guidance of scale w (Ho and
Salimans 2022) is velocity(y) + (w - 1) (velocity(y) - velocity(nothing)); 1 is p(z|y) itself. Where a model has no
velocity p(z|y) is its Gaussian prior.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cmma_jax.models.distributions import Gaussian, split_each, standard_normal, sum_event
from cmma_jax.models.model import Model, Params

STEPS = 10  # of Heun's method, two velocities each


class Wanted(NamedTuple):
    """Attributes under which a flow goes. y, mask: [B, A]."""

    y: jax.Array
    mask: jax.Array


def matching(model: Model, params: Params, key: jax.Array, z: jax.Array, y: jax.Array, mask: jax.Array,
             dropout: bool = False, t: jax.Array | None = None) -> jax.Array:
    """Returns [B] the mean squared error of the velocity on the path to a latent, at one random time and noise.

    Times are logit-normal (Esser et al. 2024): most in the middle, where the velocity is hardest to tell.

    key: [B] keys, one an example; z: [B, J] latents of faces; y, mask: what the velocity sees of their attributes;
    dropout: whether units of the velocity are dropped, as in training; t: [B], the times, if they are not drawn.
    """
    noise_key, time_key, drop_key = split_each(key, 3)
    u, e = _standardised(params, z), standard_normal(noise_key, z.shape)
    t = jax.nn.sigmoid(standard_normal(time_key, (len(z), 1))) if t is None else t[:, None]
    found = model.velocity(params, (1 - t) * e + t * u, t[:, 0], y, mask, drop_key if dropout else None)
    return jnp.square(found - (u - e)).mean(-1)


def draw(model: Model, params: Params, key: jax.Array, y: jax.Array, mask: jax.Array,
         temperature: float | jax.Array = 1.0, guidance: float | jax.Array | None = None,
         steps: int = STEPS) -> jax.Array:
    """Returns z ~ p(z|y), [B, J]; key: one key, or [B] keys.

    temperature: factor on the deviation of the noise; 0 gives the Gaussian's mean, or where the flow carries it.
    guidance: the scale, of a flow, or [B], one an example; 1 or None: p(z|y) itself. steps: of the solver.
    """
    noise = temperature * standard_normal(key, (len(y), model.latents))
    if model.velocity is None:
        p = model.prior(params, y, mask)
        return p.mean + jnp.exp(p.logvar / 2) * noise
    return from_noise(model, params, noise, Wanted(y, mask), guidance, steps)


def from_noise(model: Model, params: Params, noise: jax.Array, wanted: Wanted,
               guidance: float | jax.Array | None = None, steps: int = STEPS) -> jax.Array:
    """Returns z, [B, J], to which a flow leads noise, [B, J]; arguments else as of `draw`."""
    y, mask = wanted
    nothing = Wanted(jnp.zeros_like(y), jnp.zeros_like(mask))

    def plain(u: jax.Array, t: jax.Array) -> jax.Array:
        return model.velocity(params, u, _everywhere(t, u), y, mask)

    def guided(u: jax.Array, t: jax.Array) -> jax.Array:
        toward, away = _both(model, params, u, t, wanted, nothing)
        return toward + (jnp.broadcast_to(jnp.asarray(guidance), (len(u),))[:, None] - 1) * (toward - away)

    def solve(velocity: Callable) -> Callable[[jax.Array], jax.Array]:
        return lambda noise: _heun(velocity, noise, 0.0, 1.0, steps)[0]

    if guidance is None:
        return _latent(params, solve(plain)(noise))
    if jnp.ndim(guidance):
        return _latent(params, solve(guided)(noise))
    # In a batch twice as large the plain velocity would round otherwise.
    return _latent(params, jax.lax.cond(jnp.asarray(guidance) == 1, solve(plain), solve(guided), noise))


def to_noise(model: Model, params: Params, z: jax.Array, known: Wanted, steps: int = STEPS) -> jax.Array:
    """Returns the noise, [B, J], from which a flow under known attributes leads to z; but for the solver's error."""
    return _heun(lambda u, t: model.velocity(params, u, _everywhere(t, u), *known), _standardised(params, z), 1.0, 0.0,
                 steps)[0]


def transport(model: Model, params: Params, z: jax.Array, old: Wanted, new: Wanted,
              weight: Callable[[jax.Array], jax.Array], steps: int = STEPS) -> jax.Array:
    """Returns [B, J] latents z led to the noise under old attributes, and back by old + weight (new - old).

    What is solved for on the way back is the difference d from the way there, u(t):

        dd/dt = velocity(u + d; old) - velocity(u; old) + weight (velocity(u + d; new) - velocity(u + d; old)),

    whose solution is the same and whose error is that of the difference: a weight of 0, or equal attributes, return z.

    weight: the root mean square of velocity(new) - velocity(old) halfway to the noise, [B, 1] -> [B, 1]; 1 is the new
    attributes' own flow, more goes further. steps: of the solver, each way.
    """
    def under_old(u: jax.Array, t: jax.Array) -> jax.Array:
        return model.velocity(params, u, _everywhere(t, u), *old)

    end = _standardised(params, z)
    start, (places, velocities) = _heun(under_old, end, 1.0, 0.0, steps)
    # What was met on the way there, from t = 0 on.
    places = jnp.concatenate([places, start[None]])[::-1]
    velocities = jnp.concatenate([velocities, under_old(start, jnp.zeros(()))[None]])[::-1]

    half = steps // 2
    apart = model.velocity(params, places[half], _everywhere(jnp.asarray(half / steps), end), *new) - velocities[half]
    scale = weight(jnp.sqrt(jnp.square(apart).mean(-1, keepdims=True)))

    def change(d: jax.Array, t: jax.Array, i: jax.Array) -> jax.Array:
        toward, away = _both(model, params, places[i] + d, t, new, old)
        return away - velocities[i] + scale * (toward - away)

    def step(d: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        first = change(d, i / steps, i)
        second = change(d + first / steps, (i + 1) / steps, i + 1)
        return d + (first + second) / (2 * steps), None

    d, _ = jax.lax.scan(step, jnp.zeros_like(end), jnp.arange(steps))
    return z + _deviation(params, z) * d


def log_prior(model: Model, params: Params, z: jax.Array, y: jax.Array, mask: jax.Array,
              key: jax.Array | None = None, steps: int = STEPS) -> jax.Array:
    """Returns [B] log p(z|y) in nats, z: [B, J].

    With a key, one or [B] of them, a flow's trace is estimated without bias by random signs (Hutchinson 1990), so that
    a bound keeps its expectation; without one it is exact, at J products with the Jacobian a velocity.
    """
    if model.velocity is None:
        return sum_event(model.prior(params, y, mask).log_prob(z))

    def with_trace(state: tuple[jax.Array, jax.Array], t: jax.Array) -> tuple[jax.Array, jax.Array]:
        velocity, pull = jax.vjp(lambda u: model.velocity(params, u, _everywhere(t, u), y, mask), state[0])
        if key is None:
            units = jnp.eye(z.shape[1])
            diagonal = jax.lax.map(lambda one: (pull(jnp.broadcast_to(one, z.shape))[0] * one[None]).sum(-1), units)
            return velocity, diagonal.sum(0)
        return velocity, (pull(signs)[0] * signs).sum(-1)

    if key is not None:
        signs = jnp.sign(standard_normal(key, z.shape))
    (start, trace), _ = _heun(with_trace, (_standardised(params, z), jnp.zeros(len(z))), 1.0, 0.0, steps)
    # From t = 1 to 0 the integral comes out negative: it is minus the one of log p.
    noise = Gaussian(jnp.zeros_like(start), jnp.zeros_like(start))
    return sum_event(noise.log_prob(start)) + trace - sum_event(jnp.log(_deviation(params, z)))


def _standardised(params: Params, z: jax.Array) -> jax.Array:
    return (z - _tiled(params["scale"]["mean"], z)) / _deviation(params, z)


def _latent(params: Params, u: jax.Array) -> jax.Array:
    return _tiled(params["scale"]["mean"], u) + _deviation(params, u) * u


def _deviation(params: Params, z: jax.Array) -> jax.Array:
    return _tiled(params["scale"]["deviation"], z)


def _tiled(channels: jax.Array, z: jax.Array) -> jax.Array:
    """[C] -> [B, J], where a latent's last axis was C before it was laid out flat."""
    return jnp.broadcast_to(jnp.tile(channels, z.shape[1] // len(channels))[None], z.shape)


def _everywhere(t: jax.Array, u: jax.Array) -> jax.Array:
    return jnp.broadcast_to(t, len(u))


def _both(model: Model, params: Params, u: jax.Array, t: jax.Array, first: Wanted, second: Wanted
          ) -> tuple[jax.Array, jax.Array]:
    """Returns the velocities under two sets of attributes, by one pass of the network."""
    y, mask = (jnp.concatenate(pair) for pair in zip(first, second, strict=True))
    found = model.velocity(params, jnp.concatenate([u, u]), _everywhere(t, y), y, mask)
    return found[:len(u)], found[len(u):]


def _heun(velocity: Callable, state, start: float, end: float, steps: int):
    """Integrates a tree of arrays by Heun's method; velocity: (state, t) -> a tree like it.

    Returns the state at the end, and the states and velocities at the beginnings of the steps, [steps, ...].
    """
    length = (end - start) / steps

    def step(state, i):
        t = start + length * i
        first = velocity(state, t)
        second = velocity(jax.tree.map(lambda s, v: s + length * v, state, first), t + length)
        return jax.tree.map(lambda s, v, w: s + length / 2 * (v + w), state, first, second), (state, first)

    return jax.lax.scan(step, state, jnp.arange(steps))
