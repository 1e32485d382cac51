"""The two distributions of Table 1, as values: `kl(q, p)` reads in order."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

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


class Bernoulli(NamedTuple):
    """Independent binary variables; logits: [B, ...]."""

    logits: jax.Array

    @property
    def mean(self) -> jax.Array:
        """The probabilities of 1."""
        return jax.nn.sigmoid(self.logits)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws 0 or 1 (float32); key as for `Gaussian.sample`."""
        return (standard_uniform(key, self.logits.shape) < self.mean).astype(self.logits.dtype)

    def log_prob(self, y: jax.Array) -> jax.Array:
        """Returns y log p + (1 - y) log(1 - p), in nats, for each element, y in {0, 1}."""
        return y * self.logits - jax.nn.softplus(self.logits)


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
