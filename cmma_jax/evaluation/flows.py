"""What measuring a flow prior takes: its solver's error, and an estimate of the time before it is spent."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax.data.dataset import Faces, pixels, spread
from cmma_jax.models.distributions import row_keys, split_each
from cmma_jax.models.flow import draw, log_prior
from cmma_jax.models.model import Model, Params

FACES = 4  # on which the solver's error is measured
TIMES_STEPS = 4  # as many steps stand for the exact solution: Heun's error falls with the square of their number


def solver_error(model: Model, params: Params, faces: Faces, steps: int, seed: int = 0) -> tuple[float, float]:
    """Returns the error of a flow's solver at `steps`, against TIMES_STEPS as many, on FACES faces spread over a set.

    Two mean absolute differences: of a sample's pixel, in [0, 1], and of a face's log p(z|y), in nats. Both solutions
    have the same noise and, for the trace, the same random signs: what differs is the solver's.
    """
    few = spread(faces, FACES)
    keys = row_keys(seed, np.arange(few.size))
    coarse, fine = (jax.tree.map(lambda a: np.asarray(a, np.float64), _solved(model, each, params, keys, few))
                    for each in (steps, TIMES_STEPS * steps))
    return float(np.abs(coarse[0] - fine[0]).mean()), float(np.abs(coarse[1] - fine[1]).mean())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _solved(model: Model, steps: int, params: Params, keys: jax.Array, faces: Faces) -> tuple[jax.Array, jax.Array]:
    """Returns samples [B, H, W, 3] in [0, 1] and log p(z|y) [B] at z ~ q(z|x, y)."""
    noise_key, latent_key, sign_key = split_each(keys, 3)
    z = draw(model, params, noise_key, faces.y, faces.mask, steps=steps)
    made = jnp.clip(model.likelihood(params, z, faces.y, faces.mask).mean, 0, 1)
    z = model.posterior(params, pixels(faces.x), faces.y, faces.mask).sample(latent_key)
    return made, log_prior(model, params, z, faces.y, faces.mask, sign_key, steps)


def seconds(action: Callable[[], object]) -> float:
    """Returns the seconds of a call that has been made once before, and so is compiled."""
    jax.block_until_ready(action())
    began = time.perf_counter()
    jax.block_until_ready(action())
    return time.perf_counter() - began


def in_words(seconds: float) -> str:
    """Returns a time as a person says it: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
