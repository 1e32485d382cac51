"""Whether a face detector that knows nothing of the model takes what it makes for faces."""

import jax
import numpy as np
from PIL import Image

from cmma_jax.errors import InputError

SMALLEST = 32  # pixels of what is found
ENLARGED, MARGIN = 2, 0.4  # a face of 64 pixels is searched for at 128, with 51 more at every side


def detected(x: np.ndarray | jax.Array) -> np.ndarray:
    """Returns [N] bool, whether Viola and Jones's detector finds a face; x: [N, H, W, 3] in [0, 1].

    It is the one that Labeled Faces in the Wild was made with (Huang et al. 2007). LFWcrop's faces fill their picture,
    and it wants room around them: the border is repeated outwards.

    Raises:
      InputError: OpenCV is not installed.
    """
    found = []
    for face in np.round(255 * np.clip(np.asarray(x), 0, 1)).astype(np.uint8):
        height, width = (ENLARGED * side for side in face.shape[:2])
        large = np.asarray(Image.fromarray(face).resize((width, height), Image.Resampling.BICUBIC))
        more = round(MARGIN * height)
        found.append(detect(Image.fromarray(np.pad(large, ((more, more), (more, more), (0, 0)), mode="edge"))))
    return np.asarray(found)


def detect(picture: Image.Image) -> bool:
    """Whether OpenCV's Viola-Jones detector finds a face in a picture."""
    try:
        import cv2
        cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    except (ImportError, AttributeError) as error:  # OpenCV 5 has no such detector
        raise InputError("whether a detector finds the faces needs OpenCV 4: pip install '.[evaluation]'") from error
    grey = cv2.equalizeHist(np.asarray(picture.convert("L")))
    return len(cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(SMALLEST, SMALLEST))) > 0
