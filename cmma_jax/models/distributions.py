"""The distributions as values: those of Table 1, and the one of bytes. `kl(q, p)` reads in order."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LOG_2PI = 1.8378770664093453


class Gaussian(NamedTuple):
    """A diagonal Gaussian N(mean, exp(logvar)); mean and logvar: arrays of one shape [B, ...]."""

    mean: jax.Array
    logvar: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws z = mean + eps * exp(logvar / 2), eps ~ N(0, I) (Eqs. 9-10).

        key: one key for the whole array, or [B] keys, one an example, so that an example's noise does
        not depend on the batch or the device it stands in.
        """
        return self.mean + standard_normal(key, self.mean.shape) * jnp.exp(self.logvar / 2)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Returns log N(x; mean, exp(logvar)), in nats, for each element; Eq. 8 is its sum over pixels."""
        return -0.5 * (jnp.square(x - self.mean) * jnp.exp(-self.logvar) + self.logvar + LOG_2PI)

    @property
    def entropy(self) -> jax.Array:
        """-E log N, in nats, of each element."""
        return 0.5 * (self.logvar + LOG_2PI + 1)


class LogisticMixture(NamedTuple):
    """A discretised mixture of K logistics over the 256 values of each pixel (Salimans et al. 2017).

    A component is one for all three channels: green's mean moves with red, and blue's with red and green, linearly,
    inside each component. A value has the mass of the interval of 1/255 around it; 0 and 255 have the tails as well.
    """

    log_weights: jax.Array  # [B, H, W, K], normalised
    means: jax.Array  # [B, H, W, 3, K], in pixels of [0, 1], at the centre of the channels before
    log_scales: jax.Array  # [B, H, W, 3, K]
    slopes: jax.Array  # [B, H, W, 3, K], of green on red, blue on red, blue on green
    centre: jax.Array  # [1, H, W, 3], from which the channels before are measured

    @property
    def mean(self) -> jax.Array:
        """[B, H, W, 3], the mixture's mean, the tails beyond [0, 1] left where they are."""
        shifts = self.means - self.centre[..., None]
        means = self._regressed(shifts[..., 0, :], shifts[..., 0, :] * self.slopes[..., 0, :] + shifts[..., 1, :])
        return (jnp.exp(self.log_weights)[..., None, :] * means).sum(-1)

    def sample(self, key: jax.Array, temperature: float | jax.Array = 1.0) -> jax.Array:
        """Draws [B, H, W, 3], bytes / 255; key: one key, or [B] keys, one an example.

        temperature: factor on the scales; 0: the mean of the likeliest component, rounded.
        """
        which_key, pixel_key = split_each(key, 2)
        gumbel = -jnp.log(-jnp.log(_open(standard_uniform(which_key, self.log_weights.shape))))
        chosen = jnp.argmax(self.log_weights + jnp.where(temperature == 0, 0, gumbel), -1)
        mine = jax.nn.one_hot(chosen, self.log_weights.shape[-1])[..., None, :]
        means, log_scales, slopes = ((each * mine).sum(-1) for each in (self.means, self.log_scales, self.slopes))
        uniform = _open(standard_uniform(pixel_key, means.shape))
        noise = temperature * jnp.exp(log_scales) * (jnp.log(uniform) - jnp.log1p(-uniform))
        made: list[jax.Array] = []
        for channel, on in enumerate(((), (0,), (1, 2))):  # green on red, blue on red and on green
            moved = sum((slopes[..., i] * (before - self.centre[..., j])
                         for j, (i, before) in enumerate(zip(on, made, strict=False))), jnp.zeros(()))
            value = means[..., channel] + moved + noise[..., channel]
            made.append(jnp.round(255 * jnp.clip(value, 0, 1)) / 255)
        return jnp.stack(made, -1)

    def log_mass(self, x: jax.Array) -> jax.Array:
        """Returns [B, H, W] the log-probability of each pixel's bytes, in nats; x: [B, H, W, 3], bytes / 255."""
        shifts = (x - self.centre)[..., None]
        means = self._regressed(shifts[..., 0, :], shifts[..., 1, :])
        inverse = jnp.exp(-self.log_scales)
        middle, half = inverse * (x[..., None] - means), inverse * (0.5 / 255)
        upper, lower = middle + half, middle - half
        # sigmoid(upper) - sigmoid(lower), in a form that neither cancels nor overflows
        inside = jnp.log(-jnp.expm1(-jnp.maximum(2 * half, 1e-12))) - jax.nn.softplus(-upper) - jax.nn.softplus(lower)
        x = x[..., None]
        mass = jnp.where(x < 0.5 / 255, -jax.nn.softplus(-upper),
                         jnp.where(x > 254.5 / 255, -jax.nn.softplus(lower), inside))
        return jax.nn.logsumexp(self.log_weights + mass.sum(-2), -1)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Returns [B, H, W] log P + 3 ln 255, nats: the density of bytes / 255 whose integral over one is its mass."""
        return self.log_mass(x) + 3 * math.log(255)

    def _regressed(self, red: jax.Array, green: jax.Array) -> jax.Array:
        """Returns the means [B, H, W, 3, K] given how far red and green are from the centre, [B, H, W, 1 or K] each."""
        on_red, blue_on_red, blue_on_green = (self.slopes[..., i, :] for i in range(3))
        moved = jnp.stack([jnp.zeros_like(on_red), on_red * red, blue_on_red * red + blue_on_green * green], -2)
        return self.means + moved


class Bernoulli(NamedTuple):
    """Independent binary variables; logits: [B, ...]."""

    logits: jax.Array

    @property
    def mean(self) -> jax.Array:
        """The probabilities of 1."""
        return jax.nn.sigmoid(self.logits)

    def log_prob(self, y: jax.Array) -> jax.Array:
        """Returns y log p + (1 - y) log(1 - p), in nats, for each element, y in {0, 1}."""
        return y * self.logits - jax.nn.softplus(self.logits)


class Mixed(NamedTuple):
    """Binary and real-valued variables side by side, Bernoulli and Gaussian."""

    binary: np.ndarray  # [A] bool, which are which
    heads: jax.Array  # [B, A] logits of the binary ones, means of the others
    logvar: jax.Array  # [B, A] log-variances of the others

    def _both(self) -> tuple[Bernoulli, Gaussian]:
        return Bernoulli(self.heads), Gaussian(self.heads, self.logvar)

    def _choose(self, one: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.where(self.binary[None], one, other)

    @property
    def mean(self) -> jax.Array:
        """The probabilities of 1, or the means."""
        return self._choose(*(each.mean for each in self._both()))

    @property
    def variance(self) -> jax.Array:
        """Of the real-valued ones; 0 of the binary ones, whose uncertainty is in their mean."""
        return self._choose(jnp.zeros_like(self.heads), jnp.exp(self.logvar))

    def log_prob(self, y: jax.Array) -> jax.Array:
        """Returns the log-probability or log-density of each, in nats."""
        return self._choose(*(each.log_prob(y) for each in self._both()))


def _open(uniform: jax.Array) -> jax.Array:
    """Returns draws from [0, 1) moved inside, where logarithms are finite."""
    return jnp.clip(uniform, 1e-7, 1 - 1e-7)


def kl(q: Gaussian, p: Gaussian) -> jax.Array:
    """Returns KL[q || p] in nats for each element; Eq. 7, with the -1 a dimension that its print drops.

    Differences of log-variances come before exponentials, so extremes neither overflow nor cancel.
    """
    return 0.5 * (p.logvar - q.logvar + jnp.exp(q.logvar - p.logvar)
                  + jnp.square(q.mean - p.mean) * jnp.exp(-p.logvar) - 1)


def sum_event(a: jax.Array) -> jax.Array:
    """Sums over all axes but the first: [B, ...] -> [B]."""
    return a.reshape(len(a), -1).sum(-1)


def split_each(key: jax.Array, n: int) -> tuple[jax.Array, ...]:
    """Splits one key, or each of [B] keys, into n of the same shape."""
    return tuple(jax.random.split(key, n) if key.ndim == 0 else jax.vmap(jax.random.split, (0, None), 1)(key, n))


def fold_each(key: jax.Array, i: jax.Array | int) -> jax.Array:
    """Folds one number into one key, or into each of [B] keys."""
    return jax.random.fold_in(key, i) if key.ndim == 0 else jax.vmap(jax.random.fold_in, (0, None))(key, i)


@jax.jit
def row_keys(seed: int | jax.Array, rows: jax.Array) -> jax.Array:
    """Returns a key a row, [B], from the seed and the row's number alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)


def standard_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws N(0, I) of a shape [B, ...], from one key or from [B] keys."""
    return _draw(jax.random.normal, key, shape)


def standard_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws U[0, 1) of a shape [B, ...], from one key or from [B] keys."""
    return _draw(jax.random.uniform, key, shape)


def _draw(draw, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return draw(key, shape) if key.ndim == 0 else jax.vmap(lambda k: draw(k, shape[1:]))(key)
