"""Pictures from files: upright, RGB, and refused before they are decoded where they are too large."""

import contextlib
import dataclasses
import functools
import logging
import math
import pathlib
import re
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from cmma_jax.errors import InputError

log = logging.getLogger(__name__)

DEPTHS = (8, 10, 12, 14, 16)  # bits of the values that 16-bit files hold
try:
    import pillow_heif
except ImportError:
    HEIF: tuple[str, ...] = ()
else:
    pillow_heif.register_heif_opener()
    HEIF = ("HEIF",)

NO_HEIC = "HEIC needs pip install '.[heic]'"
LARGEST = 40_000_000  # pixels; a header that promises more is refused, or a JPEG is decoded at half its size


@dataclasses.dataclass
class Depth:
    """How many bits the 16-bit files of one set of pictures hold: as many as the brightest that was read needs."""

    bits: int = 0


def open_picture(source: pathlib.Path | BinaryIO, name: str, formats: tuple[str, ...] | None = None,
                 depth: Depth | None = None) -> Image.Image:
    """Returns a picture in RGB, turned upright by its EXIF orientation, on white where it is transparent.

    name: the picture's, for error messages; formats: Pillow's names of those that are read; None: all of Pillow's, some
    of which start other programs; depth: of the set that it is of, which it may raise.

    Raises:
      InputError: the picture is corrupt, or its header promises more than LARGEST pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(source, formats=formats) as image:
                if math.prod(image.size) > LARGEST and image.format == "JPEG":
                    image.draft("RGB", (image.width // 2, image.height // 2))  # decoded at half its size, or less
                pixels = f"{math.prod(image.size)}"
                picture = _upright(image, depth or Depth()) if math.prod(image.size) <= LARGEST else None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            picture, pixels = None, f"more than {LARGEST}"
        except Exception as error:  # a corrupt file makes Pillow's decoders raise almost anything
            mend = "replace it or leave it out" if HEIF or not _is_heic(source) else NO_HEIC
            raise InputError(f"{name} cannot be decoded ({one_line(error)}); expected an image that Pillow reads: "
                             + mend) from error
    if picture is None:
        raise InputError(f"{name} is too large: {pixels} pixels; expected at most {LARGEST}: scale it down")
    return picture


def _upright(image: Image.Image, depth: Depth) -> Image.Image:
    sixteen = any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    image = ImageOps.exif_transpose(image)
    if sixteen and image.mode.startswith(("RGB", "LA")):  # of which Pillow keeps the upper 8 bits
        highest = max(high for _, high in image.convert("RGB").getextrema())  # type: ignore[misc]
        if highest < 2**(DEPTHS[-2] - 8):
            raise ValueError(f"16-bit colours that are all below {256 * (highest + 1)}, of which the upper 8 bits are "
                             "nearly black; save it with 8 bits a channel")
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        depth.bits = max(depth.bits, next(bits for bits in DEPTHS if values.max(initial=0) < 2**bits))
        if depth.bits < 16:
            _say_depth(depth.bits)
        image = Image.fromarray((values >> (depth.bits - 8)).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels of mode {image.mode}; save it with 8 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _is_heic(source: pathlib.Path | BinaryIO) -> bool:
    with (contextlib.suppress(OSError),
          source.open("rb") if isinstance(source, pathlib.Path) else contextlib.nullcontext(source) as file):
        file.seek(0)
        return file.read(12)[4:] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc")
    return False


@functools.cache  # said once, of however many pictures
def _say_depth(bits: int) -> None:
    log.warning("16-bit pixels that are all below %d are taken for %d-bit ones, as cameras and scanners write them",
                2**bits, bits)


def one_line(error: Exception) -> str:
    """Returns an exception's message on one line, without places in memory."""
    words = re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>", "it", str(error))
    return " ".join(words.split()) or type(error).__name__
