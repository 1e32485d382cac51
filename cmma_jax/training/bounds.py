"""The variational bound of a whole set of faces, with its standard error."""

import contextlib
import functools
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cmma_jax.data.dataset import Faces, pixels
from cmma_jax.data.files import add_lines, read_lines
from cmma_jax.errors import InputError
from cmma_jax.models.distributions import row_keys
from cmma_jax.models.flow import STEPS
from cmma_jax.models.model import Model, Params
from cmma_jax.models.objectives import Terms, elbo, importance_weighted_bound, make_flow_loss

TERMS = ("bound", *Terms._fields)


def by_rows(compute: Callable[[np.ndarray, Faces], jax.Array], faces: Faces, at_once: int, width: int = 1,
            save: pathlib.Path | None = None, progress: str = "") -> np.ndarray:
    """Returns figures of N faces, [N, width] float64, computed for so many at once.

    Args:
      compute: ([at_once] row numbers, those faces) -> their figures; the last face is repeated to fill up.
      save: a file of JSON lines to which each finished face goes; a second call with it goes on from there. The caller
        names in it whatever the result depends on.
      progress: name on the progress bar; empty: no bar.
    """
    done = kept_rows(save, width)
    todo = [row for row in range(faces.size) if row not in done]
    with tqdm(total=faces.size, initial=faces.size - len(todo), unit=" faces", desc=progress, disable=not progress,
              dynamic_ncols=True) as bar:
        for start in range(0, len(todo), at_once):
            group = todo[start:start + at_once]
            rows = np.asarray(group + group[-1:] * (at_once - len(group)))
            found = np.asarray(compute(rows, Faces(*(np.asarray(a)[rows] for a in faces))), np.float64)
            new = dict(zip(group, found.reshape(at_once, width), strict=False))
            add_lines(save, {row: values.tolist() for row, values in new.items()})
            done |= new
            bar.update(len(group))
    return np.stack([done[row] for row in range(faces.size)])


def kept_rows(save: pathlib.Path | None, width: int) -> dict[int, np.ndarray]:
    """Returns the faces that a stopped call of `by_rows` had finished, `width` figures each; others are done again."""
    done = {}
    for row, values in read_lines(save).items():
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            done[row] = np.asarray(values, np.float64).reshape(width)
    return done


def dequantised_pixels(key: jax.Array, x: jax.Array) -> jax.Array:
    """Returns (x + u) / 256, u ~ U[0, 1): a density of these bounds the probability of the 8-bit face.

    Theis, van den Oord and Bethge (2016), section 3.1. key: [B] keys.
    """
    noise = jax.vmap(lambda k: jax.random.uniform(k, x.shape[1:]))(key)
    return (x.astype(jnp.float32) + noise) / 256


def variational_bound(model: Model, params: Params, faces: Faces, seed: int = 0, batch_size: int = 100,
                      as_pixels: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
                      steps: int = STEPS, save: pathlib.Path | None = None, progress: str = "") -> dict[str, float]:
    """Returns the mean bound over faces, one sample of z each, with its parts, in nats a face.

    Keys: bound, bound_stderr (the standard error of the mean over faces), reconstruction, kl, attributes,
    attributes_prior, and where p(x|z) is discrete bits_per_dim with bits_per_dim_stderr. A face's noise
    comes from the seed and its row alone, so the figure does not depend on batch_size beyond rounding.

    Args:
      model, params, faces, seed, batch_size: what is measured, by which noise, how many faces at once.
      as_pixels: ([B] keys, uint8 faces) -> pixels; None: as they are, in [0, 1], the scale of every bound in nats.
      steps: of a flow's solver.
      save, progress: as of `by_rows`; the result depends on batch_size too.
    """
    found = by_rows(functools.partial(_batch_terms, model, as_pixels, steps, params, seed), faces, batch_size,
                    len(TERMS), save, progress)
    every = dict(zip(TERMS, found.T, strict=True))
    result = {name: float(values.mean()) for name, values in every.items()}
    if model.discrete:
        dimensions = int(np.prod(faces.x.shape[1:]))
        result |= {"bits_per_dim": bits(result["bound"], dimensions, 255),
                   "bits_per_dim_stderr": standard_error(every["bound"]) / (dimensions * math.log(2))}
    return result | {"bound_stderr": standard_error(every["bound"])}


def dequantised_bits(model: Model, params: Params, faces: Faces, seed: int = 0, **how) -> tuple[float, float]:
    """Returns bits a pixel value of dequantised faces, and its standard error: what a density's bound says of bytes.

    how: as of `variational_bound`.
    """
    smooth = variational_bound(model, params, faces, seed, as_pixels=dequantised_pixels, **how)
    dimensions = int(np.prod(faces.x.shape[1:]))
    return bits(smooth["bound"], dimensions, 256), smooth["bound_stderr"] / (dimensions * math.log(2))


def flow_matching(model: Model, params: Params, faces: Faces, seed: int = 0, batch_size: int = 100) -> float:
    """Returns the mean matching error of a flow prior over faces, all attributes known; 1 is the Gaussian prior."""
    return float(by_rows(functools.partial(_batch_matching, model, params, seed), faces, batch_size).mean())


@functools.partial(jax.jit, static_argnums=0)
def _batch_matching(model, params, seed, rows, batch):
    keys = row_keys(seed, rows)
    return make_flow_loss(model)(params, keys, pixels(batch.x), batch.y, batch.mask)[0]


def importance_weighted(model: Model, params: Params, faces: Faces, samples: int, seed: int = 0,
                        batch_size: int = 100) -> dict[str, float]:
    """Returns the mean importance-weighted bound over faces, K = `samples` of z each, in nats a face.

    Keys: iwae, iwae_stderr (the standard error of the mean over faces), iwae_samples. Noise as in
    `variational_bound`.

    Raises:
      InputError: K is not a number above 0.
    """
    if samples < 1:
        raise InputError(f"--iwae={samples}: the importance-weighted bound needs at least 1 sample")
    values = by_rows(functools.partial(_batch_weighted, model, samples, params, seed), faces, batch_size)[:, 0]
    return {"iwae": float(values.mean()), "iwae_stderr": standard_error(values), "iwae_samples": samples}


def standard_error(values: np.ndarray) -> float:
    """Returns the standard error of the mean of [N] values; NaN of one alone."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


@functools.partial(jax.jit, static_argnums=(0, 1))
def _batch_weighted(model, samples, params, seed, rows, batch):
    keys = row_keys(seed, rows)
    return importance_weighted_bound(model, params, keys, pixels(batch.x), batch.y, batch.mask, samples)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _batch_terms(model, as_pixels, steps, params, seed, rows, batch):
    keys = row_keys(seed, rows)
    pixel_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    x = as_pixels(pixel_keys, batch.x) if as_pixels else pixels(batch.x)
    terms = elbo(model, params, noise_keys, x, batch.y, batch.mask, steps=steps)
    return jnp.stack([terms.bound, *terms], 1)


def bits(bound: float, dimensions: int, levels: int) -> float:
    """Returns bits a pixel value, -log2 P / D, for a bound, in nats, on log P + D ln levels, P the bytes' probability.

    levels: 255 of what is discretised; 256 of the density of dequantised faces, one bin of 1/256 a byte.
    """
    return (math.log(levels) - bound / dimensions) / math.log(2)
