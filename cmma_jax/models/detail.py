"""The detail: p(x|z) group of pixels by group, each group given those before it and the picture that g makes of z.

    log p(x|z) = sum over groups of log p(x_group | the groups before it, z)

The groups halve the distance between pixels LEVELS times (Reed et al. 2017). A level begins with every second pixel of
a row and column, the first of the four of each block of 2x2; the one across is added to it, then the two beside it. In
the first level the first pixel is itself a group, given z alone. The pixels of a group are independent, each a
discretised mixture of logistics around g's mean, so that the likelihood is exact, and a face is drawn by 1 + 3 LEVELS
passes of one network. It is trained on a finished z and g, whose mean is what a face without detail shows.
"""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax.models.distributions import Gaussian, LogisticMixture, fold_each, standard_uniform, sum_event
from cmma_jax.models.model import Model, Params
from cmma_jax.models.networks import LEVELS

PLACES = np.array([0, 3, 1, 2])  # of a block's pixels, row by row, in the order of their groups
ORDER = np.argsort(PLACES)  # of the groups of a block's pixels, row by row


def log_prob(model: Model, params: Params, x: jax.Array, z: jax.Array, y: jax.Array, mask: jax.Array,
             key: jax.Array | None = None) -> jax.Array:
    """Returns [B] log P(x|z) + D ln 255 in nats; x: [B, H, W, 3], bytes / 255; y, mask: as a CVAE's g sees them.

    With a key, one or [B] of them, it is an unbiased estimate by one random group a level and example, which is what
    training takes.
    """
    picture = cast(Gaussian, model.likelihood(params, z, y, mask))
    total = jnp.zeros(len(x))
    for level in range(LEVELS):
        first = _first(level)
        if key is None:  # all groups of a level in one batch
            groups = jnp.repeat(jnp.arange(first, 4), len(x))
            whole, around = jax.tree.map(lambda a, n=4 - first: jnp.concatenate([a] * n), (x, picture))
            total += _group(model, params, whole, around, level, groups).reshape(-1, len(x)).sum(0)
        else:
            uniform = standard_uniform(fold_each(key, level), (len(x), 1))[:, 0]
            random = first + jnp.floor((4 - first) * uniform).astype(int)
            total += (4 - first) * _group(model, params, x, picture, level, random)
    return total


def draw(model: Model, params: Params, key: jax.Array, z: jax.Array, y: jax.Array, mask: jax.Array,
         temperature: float | jax.Array = 1.0) -> jax.Array:
    """Returns faces x ~ p(x|z), [B, H, W, 3], bytes / 255; key: one key, or [B] keys, one an example.

    temperature: factor on the logistics' scales; at 0 each pixel is the mean of its likeliest component.
    """
    picture = cast(Gaussian, model.likelihood(params, z, y, mask))
    x = jnp.zeros_like(picture.mean)
    for level in range(LEVELS):
        stride = _stride(level)
        for group in range(_first(level), 4):
            found = _mixture(model, params, _blocks(x, level), picture, level, jnp.full(len(x), group))
            row, column = divmod(int(PLACES[group]), 2)
            x = x.at[:, stride * row::2 * stride, stride * column::2 * stride].set(
                found.sample(fold_each(key, 4 * level + group), temperature))
    return x


def _group(model: Model, params: Params, x: jax.Array, picture: Gaussian, level: int, group: jax.Array) -> jax.Array:
    """Returns [B] log P + D ln 255 of a group of pixels; group: [B], its number in the level."""
    blocks = _blocks(x, level)
    wanted = jnp.asarray(PLACES)[group][:, None, None, None, None]
    pixels = jnp.take_along_axis(blocks, wanted, 3)[:, :, :, 0]
    return sum_event(_mixture(model, params, blocks, picture, level, group).log_prob(pixels))


def _mixture(model: Model, params: Params, blocks: jax.Array, picture: Gaussian, level: int, group: jax.Array
             ) -> LogisticMixture:
    """Returns the distribution of a group's pixels, [B, h, w, ...], given those of earlier groups.

    blocks: [B, h, w, 4, 3], of which the other pixels are not looked at; group: [B], its number in the level.
    """
    around = Gaussian(*(_blocks(each, level) for each in picture))
    known = (jnp.asarray(ORDER)[None] < group[:, None])[:, None, None, :, None]
    own = jax.nn.one_hot(jnp.asarray(PLACES)[group], 4)[:, None, None, :, None]
    centre = Gaussian(*((own * each).sum(3) for each in around))
    number = jax.nn.one_hot(4 * level + group, 4 * LEVELS)
    return model.detail(params, jnp.where(known, blocks - around.mean, 0), around, centre, number)


def _first(level: int) -> int:
    """Returns a level's first group: the first pixel of a block is there from the level before, if there is one."""
    return 0 if level == 0 else 1


def _stride(level: int) -> int:
    """Returns the distance between a level's pixels."""
    return 2 ** (LEVELS - 1 - level)


def _blocks(x: jax.Array, level: int) -> jax.Array:
    """Returns the pixels of a level in blocks of 2x2, row by row: [B, H, W, C] -> [B, h, w, 4, C]."""
    x = x[:, ::_stride(level), ::_stride(level)]
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    return x.reshape(batch, height // 2, width // 2, 4, channels)
