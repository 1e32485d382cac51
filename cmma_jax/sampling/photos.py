"""A person's own photograph: the face in it, cropped as LFWcrop crops, and put back.

The face is found by OpenCV's Viola-Jones detector, which is the one that Labeled Faces in the Wild was made with. LFW
enlarges the detector's box 2.2 times and scales it to 250x250; LFWcrop keeps columns 83 to 166 and rows 92 to 175 of
that and scales them to 64x64 (Huang et al. 2007; Sanderson and Lovell 2009).
"""

import math
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from cmma_jax.data.images import open_picture
from cmma_jax.errors import InputError

ENLARGED, LFW_SIZE = 2.2, 250  # the detector's box is enlarged so often, and scaled to so many pixels
CROP_LEFT, CROP_TOP, CROP_SIZE = 83, 92, 84  # of LFW's pixels
SMALLEST = 32  # pixels each way, below which a photograph holds no face to be found
FEATHER = 0.2  # of the crop's side, over which a face that is put back fades in


class Box(NamedTuple):
    """A rectangle of a photograph, in pixels; it may reach over the border."""

    left: float
    top: float
    width: float
    height: float


class Photo(NamedTuple):
    """A photograph and the face in it.

    Attributes:
      picture: the whole, upright, RGB.
      box: where the face lies in it.
      face: [size, size, 3] float32 in [0, 1].
    """

    picture: Image.Image
    box: Box
    face: np.ndarray


def read_photo(path: pathlib.Path | str, size: int = 64, face: int = 0, crop: Box | None = None) -> Photo:
    """Reads a photograph and finds the face; a picture of size x size is taken for a face already cropped.

    Args:
      path: of the photograph.
      size: height and width of the model's faces.
      face: which one where there are several; 0: the largest, 1: the largest but one, and so on.
      crop: the face's rectangle, instead of the detector's.

    Raises:
      InputError: no such file, no image, an image too small or too large, no face in it, or a crop outside it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"no photograph {path}: give an image file")
    picture = open_picture(path, str(path))
    width, height = picture.size
    if min(width, height) < SMALLEST and picture.size != (size, size):
        raise InputError(f"{path} is too small: {width}x{height} pixels; expected {SMALLEST} each way or more")
    if crop is None:
        crop = Box(0, 0, width, height) if picture.size == (size, size) else find_face(picture, path, face)
    elif not (0 < crop.width < 3 * width and 0 < crop.height < 3 * height and -crop.width < crop.left < width
              and -crop.height < crop.top < height):
        raise InputError(f"--crop={','.join(f'{v:g}' for v in crop)} lies outside {path} or is too large: that has "
                         f"{width}x{height} pixels; give left,top,width,height inside it")
    return Photo(picture, crop, cut(picture, crop, size))


def find_face(picture: Image.Image, name: pathlib.Path | str, face: int = 0) -> Box:
    """Returns the rectangle that LFWcrop would keep of a face; arguments and errors as of `read_photo`."""
    boxes = detect(picture)
    if not boxes:
        raise InputError(f"no face found in {name}; give its rectangle: --crop=left,top,width,height in pixels")
    if not 0 <= face < len(boxes):
        raise InputError(f"--face={face}: {len(boxes)} found in {name}; give a number from 0 to {len(boxes) - 1}")
    return lfwcrop(boxes[face])


def detect(picture: Image.Image) -> list[Box]:
    """Returns the boxes of the faces that OpenCV's Viola-Jones detector finds, the largest first.

    Raises:
      InputError: OpenCV is not installed.
    """
    try:
        import cv2
        cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    except (ImportError, AttributeError) as error:  # OpenCV 5 has no such detector
        raise InputError("finding a face needs OpenCV 4: pip install '.[photos]'; or give its rectangle by --crop="
                         "left,top,width,height") from error
    grey = cv2.equalizeHist(np.asarray(picture.convert("L")))
    found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(SMALLEST, SMALLEST))
    return sorted((Box(*map(float, box)) for box in found), key=lambda box: -box.width * box.height)


def lfwcrop(box: Box) -> Box:
    """Returns the part that LFWcrop keeps of LFW's enlargement of a detector's box."""
    width, height = ENLARGED * box.width, ENLARGED * box.height
    left, top = box.left + (box.width - width) / 2, box.top + (box.height - height) / 2
    return Box(left + width * CROP_LEFT / LFW_SIZE, top + height * CROP_TOP / LFW_SIZE,
               width * CROP_SIZE / LFW_SIZE, height * CROP_SIZE / LFW_SIZE)


def cut(picture: Image.Image, box: Box, size: int) -> np.ndarray:
    """Returns a rectangle of a picture, [size, size, 3] float32 in [0, 1]; black beyond the border, as in LFW."""
    left, top, right, bottom = _around(box)
    region = picture.crop((left, top, right, bottom))  # black beyond the border
    inner = (box.left - left, box.top - top, box.left - left + box.width, box.top - top + box.height)
    face = region.resize((size, size), Image.Resampling.LANCZOS if box.width > size else Image.Resampling.BICUBIC,
                         box=inner)
    return np.asarray(face, np.float32) / 255


def put_back(photo: Photo, edited: np.ndarray) -> Image.Image:
    """Returns the photograph with its face changed as `edited` [size, size, 3] differs from `photo.face`.

    The difference is scaled up and faded out towards the crop's border, so that what the small face does not show of
    the photograph stays, and no difference changes nothing.
    """
    left, top, right, bottom = _around(photo.box)
    size = (right - left, bottom - top)
    difference = np.stack([np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BICUBIC))
                           for channel in np.moveaxis(edited - photo.face, -1, 0).astype(np.float32)], -1)
    mask = np.minimum(_ramp(size[1])[:, None], _ramp(size[0])[None])[..., None]
    region = np.asarray(photo.picture.crop((left, top, right, bottom)), np.float32)
    whole = photo.picture.copy()
    changed = np.clip(np.round(region + 255 * mask * difference), 0, 255).astype(np.uint8)
    whole.paste(Image.fromarray(changed), (left, top))  # what lies beyond the border is dropped
    return whole


def _around(box: Box) -> tuple[int, int, int, int]:
    """Returns the whole pixels around a box: left, top, right, bottom."""
    return (math.floor(box.left), math.floor(box.top), math.ceil(box.left + box.width),
            math.ceil(box.top + box.height))


def _ramp(n: int) -> np.ndarray:
    """Returns [n] weights that rise from 0 at either end to 1."""
    distance = np.minimum(np.arange(n), np.arange(n)[::-1]) / max(FEATHER * n, 1)
    return 0.5 - 0.5 * np.cos(np.pi * np.minimum(distance, 1))
