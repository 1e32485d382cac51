"""Whether a face detector that knows nothing of the model takes what it makes for faces."""

import jax
import numpy as np
from PIL import Image

from cmma_jax.sampling.photos import detect

ENLARGED, MARGIN = 2, 0.4  # a face of 64 pixels is searched for at 128, with 51 more at every side


def detected(x: np.ndarray | jax.Array) -> np.ndarray:
    """Returns [N] bool, whether Viola and Jones's detector finds a face; x: [N, H, W, 3] in [0, 1].

    LFWcrop's faces fill their picture, and the detector wants room around them: the border is repeated outwards.

    Raises:
      InputError: OpenCV is not installed.
    """
    found = []
    for face in np.round(255 * np.clip(np.asarray(x), 0, 1)).astype(np.uint8):
        height, width = (ENLARGED * side for side in face.shape[:2])
        large = np.asarray(Image.fromarray(face).resize((width, height), Image.Resampling.BICUBIC))
        more = round(MARGIN * height)
        found.append(bool(detect(Image.fromarray(np.pad(large, ((more, more), (more, more), (0, 0)), mode="edge")))))
    return np.asarray(found)
