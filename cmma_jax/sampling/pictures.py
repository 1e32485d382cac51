"""Grids of faces, files in and out."""

import functools
import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cmma_jax.data.dataset import Faces, pixels, spread
from cmma_jax.data.files import write_whole
from cmma_jax.models.model import Model, Params
from cmma_jax.sampling.faces import GUIDANCE, generate, reconstruct

GAP = 2  # white pixels between faces


def grid(rows: list[np.ndarray]) -> Image.Image:
    """Returns one picture of rows of faces; each row: [N, H, W, 3] in [0, 1], all of one length."""
    faces = np.round(255 * np.clip(np.stack([np.asarray(row) for row in rows]), 0, 1)).astype(np.uint8)
    padded = np.pad(faces, ((0, 0), (0, 0), (GAP, 0), (GAP, 0), (0, 0)), constant_values=255)
    r, n, height, width, channels = padded.shape
    whole = padded.transpose(0, 2, 1, 3, 4).reshape(r * height, n * width, channels)
    return Image.fromarray(np.pad(whole, ((0, GAP), (0, GAP), (0, 0)), constant_values=255))


def animation(faces: np.ndarray, scale: int = 4, seconds: float = 0.08) -> bytes:
    """Returns a GIF of faces [T, H, W, 3] in [0, 1] that goes there and back, for ever; each pixel `scale` wide."""
    frames = np.round(255 * np.clip(faces, 0, 1)).astype(np.uint8).repeat(scale, 1).repeat(scale, 2)
    pictures = [Image.fromarray(frame) for frame in (*frames, *frames[-2:0:-1])]
    encoded = io.BytesIO()
    pictures[0].save(encoded, format="GIF", save_all=True, append_images=pictures[1:], duration=1000 * seconds, loop=0)
    return encoded.getvalue()


def save_picture(picture: Image.Image, path: pathlib.Path) -> None:
    """Writes a PNG whole or not at all."""
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    write_whole(path, encoded.getvalue())


def progress(model: Model, params: Params, faces: Faces, columns: int = 12) -> Image.Image:
    """Returns the picture of a training's progress, on faces spread over a set.

    Its rows: originals, reconstructions from q(z|x, y) and from q(z|x), and two random samples for the same attributes,
    guided as they are elsewhere; without a flow the face at the prior's mean and one. A CGAN reconstructs nothing: two
    rows less, two samples more.
    """
    return grid(_progress_rows(model, params, spread(faces, columns)))


@functools.partial(jax.jit, static_argnums=0)
def _progress_rows(model: Model, params: Params, faces: Faces) -> list[jax.Array]:
    x, y, mask = pixels(faces.x), faces.y, faces.mask
    seen = [] if model.posterior is None else [reconstruct(model, params, x, y, mask),
                                               reconstruct(model, params, x, y, jnp.zeros_like(mask))]
    mean_first = model.velocity is None  # a flow's, where it leads the noise's mean, is a blur
    return [x, *seen, *(generate(model, params, jax.random.key(i), y, mask, float(i > 0 or not mean_first),
                                 GUIDANCE if model.guided else None) for i in range(4 - len(seen)))]
