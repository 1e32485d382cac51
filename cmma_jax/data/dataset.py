"""The data as values: faces, attributes with holes, and batches as a pure function of (seed, step)."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax.models.spec import Kind, Spec

Array = Any  # np.ndarray or jax.Array: which of them, its place says, and not its type


class Faces(NamedTuple):
    """Rows of faces with their attributes; NumPy arrays on the host, memory maps on disk, JAX arrays on a device."""

    x: Array  # [N, H, W, 3] uint8
    y: Array  # [N, A] float32; binary attributes are 0 or 1, real-valued ones standardised on the training rows
    mask: Array  # [N, A] bool, True where the attribute is known; y is 0 elsewhere

    @property
    def size(self) -> int:
        """N, the number of faces."""
        return len(self.x)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in its three parts, with what a model must know of it."""

    train: Faces
    validation: Faces
    test: Faces
    spec: Spec
    test_people: tuple[str, ...] = ()  # whose face each test row is, where that is known


def make_dataset(dataset: str, attributes: tuple[str, ...], kinds: Kind | tuple[Kind, ...],
                 train: Faces, validation: Faces, test: Faces) -> Dataset:
    """Puts a data set together: statistics of the training rows, real-valued attributes standardised.

    The attributes come in as they were read (0 or 1, or raw scores); unknown ones are masked out. kinds: of each
    attribute, or of all.
    """
    kinds = (kinds,) * len(attributes) if isinstance(kinds, str) else kinds
    real = np.array([kind == "real" for kind in kinds])
    known = np.maximum(train.mask.sum(0), 1)
    mean = np.where(train.mask, train.y, 0).sum(0, dtype=np.float64) / known
    std = np.sqrt(np.where(train.mask, np.square(train.y - mean), 0).sum(0, dtype=np.float64) / known)

    def finish(part: Faces) -> Faces:
        y = np.where(real, (part.y - mean) / np.where(std > 0, std, 1), part.y)
        return Faces(part.x, np.where(part.mask, y, 0).astype(np.float32), part.mask.astype(bool))

    mean_face = np.zeros(train.x.shape[1:], np.float64)
    squares = 0.0
    for start in range(0, train.size, 1000):  # in pieces, so that no float64 copy of all faces is made
        mean_face += (train.x[start:start + 1000] / 255.0).sum(0)
    mean_face /= train.size
    for start in range(0, train.size, 1000):
        squares += np.square(train.x[start:start + 1000] / 255.0 - mean_face).sum()
    percentiles = tuple(
        tuple(np.percentile(train.y[rows, a].astype(np.float64) if rows.any() else [0.0], np.arange(101)).tolist())
        if real[a] else () for a, rows in enumerate(train.mask.T))
    spec = Spec(dataset, tuple(attributes), tuple(kinds), tuple(mean.tolist()), tuple(std.tolist()),
                mean_face.astype(np.float32), float(np.sqrt(squares / train.x.size)), percentiles)
    return Dataset(finish(train), finish(validation), finish(test), spec)


@functools.partial(jax.jit, static_argnums=2)
def _permutation(seed: int, epoch: int, size: int) -> jax.Array:
    return jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), size)


def call_rows(seed: int, start: int, stop: int, size: int, batch_size: int, most: int) -> Iterator[np.ndarray]:
    """Yields the row numbers of steps start to stop, [n, batch_size] at a time: n is `most`, or what an epoch has left.

    An epoch is a permutation of the rows that comes from the seed and the epoch's number, drawn once, as the first of
    them are asked for; the size % batch_size rows left over are other ones every epoch.
    """
    batches = size // batch_size
    while start < stop:
        order = np.asarray(_permutation(seed, start // batches, size))
        rows = order[:batches * batch_size].reshape(batches, batch_size)
        last = min(batches, start % batches + stop - start)
        for first in range(start % batches, last, most):
            yield rows[first:min(first + most, last)]
        start += last - start % batches


def mirrored(faces: Faces) -> Faces:
    """Returns every face and its mirror image, which has the same attributes: twice the rows, on the host."""
    return Faces(np.concatenate([faces.x, faces.x[:, :, ::-1]]), *(np.concatenate([a, a]) for a in faces[1:]))


def mirror_some(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Mirrors half of the faces, at random; keys: [B], x: [B, H, W, 3]."""
    heads = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(heads[:, None, None, None], x[:, :, ::-1], x)


def spread(faces: Faces, n: int) -> Faces:
    """Returns at most n of the faces, spread evenly over the rows, on the host."""
    rows = spread_rows(faces.size, n)
    return Faces(*(np.asarray(a)[rows] for a in faces))


def spread_rows(size: int, n: int) -> np.ndarray:
    """Returns at most n of `size` row numbers, spread evenly."""
    return np.linspace(0, size - 1, min(n, size)).astype(int)


def pixels(x: jax.Array) -> jax.Array:
    """Returns uint8 faces as float32 in [0, 1]."""
    return x.astype(jnp.float32) / 255
