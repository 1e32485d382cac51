"""Faces generated for a set's attributes, and whether they differ from one another as real ones."""

import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax.data.dataset import Faces
from cmma_jax.models.distributions import row_keys
from cmma_jax.models.flow import STEPS
from cmma_jax.models.model import Model, Params
from cmma_jax.sampling.faces import generate, in_batches


def generated_faces(model: Model, params: Params, faces: Faces, seed: int = 0, temperature: float = 1.0,
                    guidance: float | None = None, steps: int = STEPS, detail: float | None = None) -> np.ndarray:
    """Returns a random face for the attributes of each of N faces: [N, H, W, 3] in [0, 1].

    A face's noise comes from the seed and its row alone; temperature, guidance, steps and detail as of
    `faces.generate`.
    """
    def make(rows, y, mask):
        return generate(model, params, row_keys(seed, rows), y, mask, temperature, guidance, detail, steps=steps)

    return in_batches(make, np.arange(faces.size), faces.y, faces.mask)


def diversity(made: np.ndarray, real: np.ndarray) -> float:
    """Returns the mean distance between two generated faces over that between two real ones, Euclidean, all pairs.

    Near 0 the model has collapsed; 1 is the spread of the data. made, real: [N, H, W, 3] in [0, 1].
    """
    return float(mean_pair_distance(jnp.asarray(made)) / mean_pair_distance(jnp.asarray(real)))


@jax.jit
def mean_pair_distance(x: jax.Array) -> jax.Array:
    """Returns the mean Euclidean distance over all pairs of the [N, ...] faces."""
    flat = x.reshape(len(x), -1)
    total = jax.lax.map(lambda one: jnp.sqrt(jnp.square(flat - one[None]).sum(-1)).sum(), flat).sum()
    return total / (len(x) * (len(x) - 1))
