"""The Parzen-window estimate of log p(x|y), as Table 2 has it: windows around samples for the attributes of each face.

    log p(x|y) ~ log 1/N sum_i N(x; s_i, sigma^2 I),   s_i = mean of p(x|z_i),  z_i ~ p(z|y)

The figure rewards samples near the mean and is reported for parity with the paper, always beside the bound.
"""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax.data.dataset import Faces, pixels
from cmma_jax.errors import InputError
from cmma_jax.models.distributions import LOG_2PI
from cmma_jax.models.flow import STEPS, draw
from cmma_jax.models.model import Model, Params
from cmma_jax.training import parallel
from cmma_jax.training.bounds import by_rows

# One window's deviation, in steps of 1 %: between two of them the estimate loses at most D (0.005)^2 = 0.3 nats.
SIGMAS = np.geomspace(0.01, 1.0, 463)


class Sampler(NamedTuple):
    """A model as the Parzen window sees it."""

    sample: Callable[..., jax.Array]  # (params, [n] keys, y, mask [n, A]) -> [n, H, W, 3] means of p(x|z); pure
    params: Any
    conditional: bool = True  # whether y makes a difference; where it does not, one set of samples serves every face


@functools.lru_cache(maxsize=32)  # one function a model, so that jit compiles it once
def _sample(model: Model, steps: int) -> Callable[..., jax.Array]:
    def sample(params: Params, keys: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
        return model.likelihood(params, draw(model, params, keys, y, mask, steps=steps), y, mask).mean

    return sample


def model_sampler(model: Model, params: Params, conditional: bool = True, steps: int = STEPS) -> Sampler:
    """Returns a model's samples: decoder means, not clipped, at z from its prior, unguided; steps: of a flow's solver.
    """
    return Sampler(_sample(model, steps), params, conditional)


def parzen_log_likelihood(sampler: Sampler, faces: Faces, samples: int, sigmas: np.ndarray, seed: int = 0,
                          chunk: int = 200, save: pathlib.Path | None = None, progress: str = "") -> np.ndarray:
    """Returns log p(x|y) of each of M faces for each window: [M, S] nats, float64.

    Sample j of face i comes from (seed, i, j) alone. Memory holds `chunk` samples and S sums a face, whatever N is.

    Args:
      samples: N, windows a face.
      sigmas: [S] deviations of a window, in pixels of [0, 1].
      save, progress: as of `bounds.by_rows`.

    Raises:
      InputError: N is not a number above 0, or memory does not suffice.
    """
    if samples < 1:
        raise InputError(f"--samples={samples}: a Parzen window needs at least 1 sample")
    key, sigmas32 = jax.random.key(seed), jnp.asarray(sigmas, jnp.float32)
    devices = jax.local_device_count() if sampler.conditional else 1
    run = _compiled(sampler.sample, sampler.conditional, chunk, devices)
    try:
        return by_rows(lambda rows, batch: run(sampler.params, key, sigmas32, jnp.int32(samples), rows, *batch), faces,
                       devices if sampler.conditional else faces.size, len(sigmas), save, progress)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError("too little memory for the Parzen estimate; give a smaller --batch_size, or a smaller "
                         "--limit") from error


def choose_sigma(log_likelihood: np.ndarray, sigmas: np.ndarray) -> float:
    """Returns the deviation with the highest mean log-likelihood, [M, S] of validation faces, refined between steps.

    Raises:
      InputError: the best is the first or the last of the grid, so that none inside it is known to be best.
    """
    mean = log_likelihood.mean(0)
    best = int(np.argmax(mean))
    if best in (0, len(sigmas) - 1) or not np.isfinite(mean[best]):
        raise InputError(f"no best Parzen sigma between {sigmas[0]:.3g} and {sigmas[-1]:.3g} (the best was "
                         f"{sigmas[best]:.3g}): are the samples faces? look at the run's grids")
    left, middle, right = mean[best - 1:best + 2]
    offset = 0.5 * (left - right) / (left - 2 * middle + right)  # the parabola through the three, in log sigma
    return float(sigmas[best] * (sigmas[best + 1] / sigmas[best]) ** offset)


def parzen(sampler: Sampler, validation: Faces, faces: Faces, samples: int, seed: int = 0, chunk: int = 200,
           save: pathlib.Path | None = None, progress: str = "") -> dict[str, float]:
    """Returns the Parzen figure of faces with sigma chosen on validation faces, in nats a face.

    Keys: parzen, parzen_stderr (standard error of the mean over faces), parzen_sigma, parzen_samples, parzen_faces.
    """
    paths = files(save)
    curve = parzen_log_likelihood(sampler, validation, samples, SIGMAS, seed, chunk, paths[0],
                                  progress and f"{progress}, sigma")
    sigma = choose_sigma(curve, SIGMAS)
    values = parzen_log_likelihood(sampler, faces, samples, np.asarray([sigma]), seed + 1, chunk, paths[1],
                                   progress and f"{progress}, Parzen")[:, 0]
    stderr = float(values.std(ddof=1) / math.sqrt(faces.size)) if faces.size > 1 else math.nan
    return {"parzen": float(values.mean()), "parzen_stderr": stderr, "parzen_sigma": sigma,
            "parzen_samples": samples, "parzen_faces": faces.size}


def files(save: pathlib.Path | None) -> list[pathlib.Path | None]:
    """Returns where `parzen` keeps what it has done: of the faces that sigma is chosen on, and of the others."""
    return [save and save.with_name(f"{save.name}-{part}.jsonl") for part in ("validation", "faces")]


@functools.lru_cache(maxsize=32)
def _compiled(sample: Callable, conditional: bool, chunk: int, devices: int) -> Callable[..., jax.Array]:
    return parallel.over_devices(functools.partial(_conditional if conditional else _shared, sample, chunk), 4, devices)


def _keys(key: jax.Array, row: jax.Array, numbers: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, row), numbers)


def _stream(draw: Callable[[jax.Array], jax.Array], x: jax.Array, sigmas: jax.Array, samples: jax.Array,
            chunk: int) -> jax.Array:
    """draw: [chunk] sample numbers -> [chunk, D]; x: [M, D] -> [M, S] log mean windows."""
    precision = 1 / (2 * jnp.square(sigmas))  # [S]

    def add(j: jax.Array, total: jax.Array) -> jax.Array:
        numbers = j * chunk + jnp.arange(chunk)
        s = draw(numbers)
        distances = jax.lax.map(lambda one: jnp.square(s - one[None]).sum(-1), x)  # [M, chunk]
        distances = jnp.where((numbers < samples)[None], distances, jnp.inf)
        # a few sigmas at a time, so that no array of M x chunk x S is made
        sums = jax.lax.map(lambda p: jax.nn.logsumexp(-p * distances, axis=1), precision, batch_size=16)  # [S, M]
        return jnp.logaddexp(total, sums.T)

    chunks = (samples + chunk - 1) // chunk
    total = jax.lax.fori_loop(0, chunks, add, jnp.full((len(x), len(sigmas)), -jnp.inf))
    dimensions = x.shape[1]
    return total - jnp.log(samples) - 0.5 * dimensions * (LOG_2PI + 2 * jnp.log(sigmas))[None]


def _conditional(sample, chunk, params, key, sigmas, samples, rows, x, y, mask):
    """rows: [M]; x: [M, H, W, 3] uint8; y, mask: [M, A] -> [M, S], every face with samples of its own."""
    def one(face):
        row, x, y, mask = face

        def draw(numbers):
            y_each, mask_each = (jnp.broadcast_to(a, (chunk, *a.shape)) for a in (y, mask))
            return sample(params, _keys(key, row, numbers), y_each, mask_each).reshape(chunk, -1)

        return _stream(draw, pixels(x).reshape(1, -1), sigmas, samples, chunk)[0]

    return jax.lax.map(one, (rows, x, y, mask))


def _shared(sample, chunk, params, key, sigmas, samples, rows, x, y, mask):
    """The same for samples that do not depend on y: drawn once, and used for every face."""
    del rows

    def draw(numbers):
        nothing = jnp.zeros((chunk, y.shape[1])), jnp.zeros((chunk, mask.shape[1]), bool)
        return sample(params, _keys(key, jnp.int32(0), numbers), *nothing).reshape(chunk, -1)

    return _stream(draw, pixels(x).reshape(len(x), -1), sigmas, samples, chunk)
