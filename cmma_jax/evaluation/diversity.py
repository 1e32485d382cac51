"""Whether a model's faces differ from one another as real ones do."""

import functools

import jax
import jax.numpy as jnp

from cmma_jax.data.dataset import Faces, pixels
from cmma_jax.models import Model, Params
from cmma_jax.sampling import generate


def diversity(model: Model, params: Params, faces: Faces, seed: int = 0) -> float:
    """Returns the mean distance between two generated faces over that between two of the real ones.

    One face is generated for the attributes of each real one; distances are Euclidean, over all pairs. Near 0 the
    model has collapsed; 1 is the spread of the data.
    """
    return float(_ratio(model, params, jax.random.key(seed), *jax.tree.map(jnp.asarray, tuple(faces))))


@functools.partial(jax.jit, static_argnums=0)
def _ratio(model, params, key, x, y, mask):
    return mean_pair_distance(generate(model, params, key, y, mask)) / mean_pair_distance(pixels(x))


def mean_pair_distance(x: jax.Array) -> jax.Array:
    """Returns the mean Euclidean distance over all pairs of the [N, ...] faces."""
    flat = x.reshape(len(x), -1)
    total = jax.lax.map(lambda one: jnp.sqrt(jnp.square(flat - one[None]).sum(-1)).sum(), flat).sum()
    return total / (len(x) * (len(x) - 1))
