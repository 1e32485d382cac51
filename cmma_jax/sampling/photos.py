"""A person's own photograph: the face in it, cropped as LFWcrop crops, and put back.

The face is found by dlib's detector of oriented gradients (Dalal and Triggs 2005; King 2009), in an upright picture or
one that lies on its side. LFWcrop's crop has the middle of dlib's box and LFWCROP of its sides, by the median of faces
of LFWcrop that were pasted on grey.
"""

import math
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from cmma_jax.data.images import open_picture
from cmma_jax.errors import InputError

LFWCROP = 0.885  # of the sides of the detector's box
LOOKED_AT = 1024  # pixels of the longer side, to which a larger photograph is reduced, and a smaller one enlarged by 2
LIKELY = 0.25  # of the best score, below which a find is none
SURE = 0.5  # the score from which a photograph is not tried turned: upside down, one of six faces may still have 0.1
TURNS = (0, 90, 270, 180)  # degrees to the left, in the order in which they are tried
SMALLEST = 32  # pixels each way, below which a photograph holds no face to be found
FEATHER = 0.2  # of the crop's side, over which a face that is put back fades in


class Box(NamedTuple):
    """A rectangle of a photograph, in pixels; it may reach over the border."""

    left: float
    top: float
    width: float
    height: float


class Photo(NamedTuple):
    """A photograph and the face in it."""

    picture: Image.Image  # the whole, upright, RGB
    box: Box  # where the face lies in it
    face: np.ndarray  # [size, size, 3] float32 in [0, 1]
    note: str = ""  # what was found, in words; empty: nothing was looked for


def read_photo(path: pathlib.Path | str, size: int = 64, face: int = 0, crop: Box | None = None) -> Photo:
    """Reads a photograph and finds the face; a picture of size x size is taken for a face already cropped.

    size: height and width of the model's faces; face: which one where there are several; 0: the largest, 1: the largest
    but one, and so on; crop: the face's rectangle, instead of the detector's.

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
    note = ""
    if crop is None and picture.size == (size, size):
        crop = Box(0, 0, width, height)
    elif crop is None:
        picture, crop, note = find_face(picture, path, face)
    elif not (0 < crop.width < 3 * width and 0 < crop.height < 3 * height and -crop.width < crop.left < width
              and -crop.height < crop.top < height):
        raise InputError(f"--crop={','.join(f'{v:g}' for v in crop)} lies outside {path} or is too large: that has "
                         f"{width}x{height} pixels; give left,top,width,height inside it")
    return Photo(picture, crop, cut(picture, crop, size), note)


def find_face(picture: Image.Image, name: pathlib.Path | str, face: int = 0) -> tuple[Image.Image, Box, str]:
    """Returns the picture, turned upright, the rectangle that LFWcrop would keep of a face, and what was found."""
    turn, boxes = upright(picture)
    if not boxes:
        raise InputError(f"no face found in {name}, upright or turned; give its rectangle: "
                         "--crop=left,top,width,height in pixels")
    if not 0 <= face < len(boxes):
        raise InputError(f"--face={face}: {len(boxes)} found in {name}; give a number from 0 to {len(boxes) - 1}")
    places = [f"{box.width:.0f}x{box.height:.0f} pixels at {box.left:.0f},{box.top:.0f}" for box in boxes]
    note = f"a face found, {places[0]}" if len(boxes) == 1 else (
        f"{len(boxes)} faces found; the {'largest' if face == 0 else f'one of --face={face}'} is taken, "
        + places[face] + "".join(f"; --face={i}: {place}" for i, place in enumerate(places[:4]) if i != face))
    if turn:
        note += f"; the photograph was turned by {turn if turn <= 180 else turn - 360} degrees to the left"
    return turned(picture, turn), lfwcrop(boxes[face]), note


def upright(picture: Image.Image) -> tuple[int, list[Box]]:
    """Returns by how many degrees to the left a picture is to be turned for faces to be upright, and their boxes, as
    `detect` has them, in the turned one; 0 and none if there is no face. Of several ways the likeliest is taken.
    """
    best, way = 0.0, (0, list[Box]())
    for turn in TURNS:
        score, boxes = detect(turned(picture, turn))
        if boxes and score > best:
            best, way = score, (turn, boxes)
        if best >= SURE:
            break
    return way


def turned(picture: Image.Image, turn: int) -> Image.Image:
    """Returns a picture turned by so many degrees to the left, a multiple of 90."""
    return picture.rotate(turn, expand=True) if turn else picture


def detect(picture: Image.Image) -> tuple[float, list[Box]]:
    """Returns the best score and the boxes of the upright faces that dlib's detector finds, the largest first.

    Raises:
      InputError: dlib is not installed.
    """
    try:
        import dlib
    except ImportError as error:
        raise InputError("finding a face needs dlib: pip install '.[photos]'; or give its rectangle by --crop="
                         "left,top,width,height") from error
    scale = min(2.0, LOOKED_AT / max(picture.size))
    looked_at = picture.convert("RGB").resize([max(1, round(scale * side)) for side in picture.size], reducing_gap=2.0)
    found, scores, _ = dlib.get_frontal_face_detector().run(np.asarray(looked_at))
    boxes = [Box(*(value / scale for value in (each.left(), each.top(), each.width(), each.height())))
             for each, score in zip(found, scores, strict=True) if score > LIKELY * max(scores)]
    return max(scores, default=0.0), sorted(boxes, key=lambda box: -box.width * box.height)


def lfwcrop(box: Box) -> Box:
    """Returns the part that LFWcrop would keep of a face in the detector's box."""
    width, height = LFWCROP * box.width, LFWCROP * box.height
    return Box(box.left + (box.width - width) / 2, box.top + (box.height - height) / 2, width, height)


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
