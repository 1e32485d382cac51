"""Baselines that keep every table honest: Gaussian densities p(x|y), exact, in nats a face, pixels in [0, 1]."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax.data.dataset import Dataset, Faces

RIDGE = 10.0  # penalty on slopes, of attributes coded -1 and 1
ROUNDING = 1 / (12 * 255**2)  # variance of rounding to 8 bits; keeps a pixel that never changes from being certain


class Baseline(NamedTuple):
    """A fitted baseline."""

    name: str  # what tables call it
    parameters: int  # number of fitted values
    params: dict  # the fitted values, arrays; see `log_likelihood`
    log_likelihood: Callable[[Faces], np.ndarray]  # faces -> [N] exact log p(x|y), nats
    sample: Callable | None  # (params, keys [n], y [n, A], mask [n, A]) -> [n, H, W, 3] means of p(x|z)


def fit_baselines(data: Dataset, components: tuple[int, ...] = (10, 100, 500, 1500)) -> list[Baseline]:
    """Fits the mean face, linear regressions and conditional PPCA with each number of components that N and D allow.

    All is fitted to the training faces, but PPCA's variance off the axes to the validation faces.
    """
    mean = _rows(data.train.x).mean(0, dtype=np.float64)
    centred = _rows(data.train.x) - mean.astype(np.float32)
    face = {"mean": mean.reshape(data.spec.image_shape)}

    known = np.asarray(data.train.mask)
    y_mean = np.where(known, data.train.y, 0).sum(0, dtype=np.float64) / np.maximum(known.sum(0), 1)
    # Slopes are kept for y itself; of y in {0, 1} or {-1, 1} once centred, one is twice the other.
    scale = np.where(data.spec.binary, 2, 1)
    a = scale[None] * _centred_attributes(y_mean, data.train)
    gram = a.T @ a + RIDGE * np.eye(a.shape[1])
    slopes = scale[:, None] * np.linalg.solve(gram, a.T.astype(np.float32) @ centred)
    regression = face | {"attribute_mean": y_mean, "slopes": slopes}

    residuals = centred - (a / scale[None]).astype(np.float32) @ slopes.astype(np.float32)
    by_pixel = _variance_by_pixel(residuals)
    baselines = [
        _baseline("mean face", face | {"variance": _variance_by_pixel(centred).mean()}),
        _baseline("linear regression", regression | {"variance": by_pixel.mean()}),
        _baseline("linear regression, a variance a pixel", regression | {"variance": by_pixel})]
    counts = [count for count in components if count < min(residuals.shape)]
    if counts:
        with jax.default_matmul_precision("highest"):  # the density is exact where the axes are orthonormal
            axes, variances = map(np.asarray, principal_axes(jnp.asarray(residuals), max(counts)))
    for count in counts:
        params = regression | {"axes": axes[:count], "axis_variances": np.maximum(variances[:count], ROUNDING)}
        # On training faces, to which the axes are fitted, what is left is too small: elsewhere it is larger by a
        # factor. The likeliest factor for validation faces makes the variance theirs, whatever the training one is.
        left = sum(np.square(off_axes).sum() for _, off_axes in _parts(params, data.validation))
        variance = np.maximum(left / (data.validation.size * (mean.size - count)), ROUNDING)
        baselines.append(_baseline(f"conditional PPCA, {count} components", params | {"variance": variance},
                                   sample_ppca))
    return baselines


def log_likelihood(params: dict, faces: Faces) -> np.ndarray:
    """Returns [N] log densities of faces given their attributes, nats a face.

    params: mean [H, W, 3]; variance [] or, without axes, [D]; optional attribute_mean [A] with slopes [A, D], and
    axes [J, D], orthonormal, with axis_variances [J], along which these stand in for variance: the covariance of
    Tipping and Bishop (1999), in its eigenvectors.
    """
    dimensions, variance = params["mean"].size, params["variance"]
    axis_variances = params.get("axis_variances", np.zeros(0))
    log_determinant = (np.log(axis_variances, dtype=np.float64).sum()
                       + (dimensions - len(axis_variances)) * np.log(variance).mean())
    distances = [(np.square(along) / axis_variances).sum(1) + (np.square(off_axes) / variance).sum(1)
                 for along, off_axes in _parts(params, faces)]
    return -(np.concatenate(distances) + log_determinant + dimensions * math.log(2 * math.pi)) / 2


def sample_ppca(params: dict, keys: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns [n, H, W, 3] means of p(x|z), z from its prior given y [n, A]; a face's noise is its key's alone.

    A principal axis holds the noise of all pixels too (Tipping and Bishop 1999): z has what is beyond it.
    """
    deviations = jnp.sqrt(jnp.maximum(params["axis_variances"] - params["variance"], 0))
    z = jax.vmap(lambda key: jax.random.normal(key, deviations.shape))(keys) * deviations[None]
    x = jnp.where(mask, y - params["attribute_mean"][None], 0) @ params["slopes"] + z @ params["axes"]
    return params["mean"][None] + x.reshape(len(y), *params["mean"].shape)


def _baseline(name: str, params: dict, sample: Callable | None = None) -> Baseline:
    return Baseline(name, sum(np.size(value) for value in params.values()), params,
                    functools.partial(log_likelihood, params), sample)


def _parts(params: dict, faces: Faces, batch_size: int = 500) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches of faces less their mean given attributes: [B, J] along the axes and [B, D] off them."""
    axes = params.get("axes", np.zeros((0, params["mean"].size)))
    for start in range(0, faces.size, batch_size):
        batch = Faces(*(np.asarray(a[start:start + batch_size]) for a in faces))
        x = _rows(batch.x) - params["mean"].reshape(-1)
        if "slopes" in params:
            x -= _centred_attributes(params["attribute_mean"], batch) @ params["slopes"]
        along = x @ axes.T
        yield along, x - along @ axes


def _centred_attributes(y_mean: np.ndarray, faces: Faces) -> np.ndarray:
    """Returns [N, A] attributes less their mean, which an unknown one counts as."""
    return np.where(faces.mask, faces.y - y_mean, 0)


def _variance_by_pixel(centred: np.ndarray) -> np.ndarray:
    return np.maximum(np.square(centred).mean(0, dtype=np.float64), ROUNDING)


def _rows(x: np.ndarray) -> np.ndarray:
    """Returns faces [N, H, W, 3] uint8 as rows [N, D] float32 in [0, 1]."""
    return np.asarray(x).reshape(len(x), -1) / np.float32(255)


@jax.jit(static_argnums=1)
def principal_axes(x: jax.Array, components: int) -> tuple[jax.Array, jax.Array]:
    """x: [N, D], centred -> ([J, D] orthonormal rows, [J] variances), largest first.

    By subspace iteration (Halko, Martinsson and Tropp 2011).
    """
    size = min(components + 100, *x.shape)
    q = jnp.linalg.qr(x.T @ jax.random.normal(jax.random.key(0), (len(x), size)))[0]
    q = jax.lax.fori_loop(0, 6, lambda _, q: jnp.linalg.qr(x.T @ (x @ q))[0], q)
    _, deviations, axes = jnp.linalg.svd(x @ q, full_matrices=False)
    return (axes @ q.T)[:components], jnp.square(deviations[:components]) / len(x)
