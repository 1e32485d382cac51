"""What the page asks of a model, in batches of 1 and of BATCH faces, so that nothing is compiled after the start."""

import base64
import dataclasses
import io
from typing import NamedTuple

import numpy as np
from PIL import Image, features

from cmma_jax.data.dataset import Faces, spread
from cmma_jax.data.images import HEIF, open_picture
from cmma_jax.errors import InputError
from cmma_jax.models.flow import STEPS
from cmma_jax.sampling import photos
from cmma_jax.sampling.attributes import Attributes
from cmma_jax.sampling.face_model import FaceModel
from cmma_jax.web.groups import presets

BATCH = 8  # faces made at once
SHOWN = 240  # test faces that can be picked
STAND_INS = 48  # faces that the model makes where there are no test faces
PREVIEW_STEPS = 4  # of a flow's solver while a slider moves
# Of photographs; Pillow starts other programs for some of the others.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", *(["AVIF"] if features.check("avif") else []), *HEIF)
PREVIEW = 1024  # pixels of a photograph's longer side in which a face is looked for, and which the page shows

Wanted = dict[str, float]


class Crop(NamedTuple):
    """A face cut from a photograph."""

    turn: int  # degrees to the left by which the photograph was turned, for its face to be upright
    width: int  # of the photograph so turned
    height: int
    box: tuple[float, float, float]  # left, top, size of the square in it
    found: bool | None  # whether the detector found the face there; None: there is no detector
    face: np.ndarray  # [H, W, 3] float32 in [0, 1]
    preview: Image.Image  # the photograph, at most PREVIEW pixels wide and high


@dataclasses.dataclass(frozen=True)
class Studio:
    """A model; a face is [H, W, 3] float32 in [0, 1], N faces are [N, H, W, 3].

    Attributes that are wanted are {exact name: value}: a binary one's 0 is no and 1 yes, and what lies outside
    extrapolates, as an edit's intensity does; a real-valued one's are deviations from the mean. Setting one resets
    what contradicts it. All methods raise InputError if two that are wanted contradict each other.
    """

    model: FaceModel

    @property
    def encodes(self) -> bool:
        """Whether the model encodes faces, as a CGAN does not."""
        return self.model.run.model.posterior is not None

    @property
    def flows(self) -> bool:
        """Whether its prior is a flow."""
        return self.model.run.model.velocity is not None

    def make(self, wanted: Wanted, n: int, seed: int, temperature: float, guidance: float | None = None,
             preview: bool = False) -> np.ndarray:
        """Returns n <= BATCH faces that have attributes; preview: of one face, by fewer steps of the solver."""
        size = 1 if n == 1 else BATCH
        y, mask = (np.repeat(a[None], size, 0) for a in self._settle(wanted, *self.model.encode({})))
        return self.model.generate_encoded(y, mask, seed, temperature, guidance, _steps(preview, n))[:n]

    def infer(self, face: np.ndarray) -> dict[str, tuple[float, float]]:
        """Returns {attribute: (mean, deviation)} as q(y|z) infers them; nothing without a q(y|z)."""
        if self.model.run.model.attributes is None:
            return {}
        inferred = self.model.infer_attributes(face)
        return {name: (float(mean[0]), float(deviation[0])) for name, (mean, deviation) in inferred.items()}

    def edit(self, face: np.ndarray, edits: list[Wanted], intensity: float, keep_detail: bool,
             preview: bool = False) -> np.ndarray:
        """Returns a face changed in each of some ways, at most BATCH of them; preview: of one, by fewer steps."""
        x = face[None]
        (y,), (mask,) = self.model.complete(x, *(a[None] for a in self.model.encode({})))
        new = [self._settle(wanted, y, mask) for wanted in edits]
        new += new[-1:] * ((1 if len(new) == 1 else BATCH) - len(new))
        x, y, mask = (np.repeat(a[None], len(new), 0) for a in (face, y, mask))
        new_y, new_mask = (np.stack(each) for each in zip(*new, strict=True))
        return self.model.edit_encoded(x, y, mask, new_y, new_mask, intensity, keep_detail=keep_detail,
                                       steps=_steps(preview, len(edits)))[:len(edits)]

    def _settle(self, wanted: Wanted, y: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        settings, binary = Attributes(self.model.run.spec), self.model.run.spec.binary
        plain = {name: float(value > 0.5) if binary[settings.find(name)] else f"{value}sd"
                 for name, value in wanted.items()}
        y, mask = settings.settle(plain, y, mask)
        for name, value in wanted.items():
            y[settings.find(name)] = value
        return y, mask


def _steps(preview: bool, faces: int) -> int:
    return PREVIEW_STEPS if preview and faces == 1 else STEPS


def open_studio(model: FaceModel, face: np.ndarray) -> Studio:
    """Returns a model with everything that the page asks of it compiled; face: [H, W, 3] uint8, any."""
    studio = Studio(model)
    ways = [(1, False), (BATCH, False), *([(1, True)] if studio.flows else [])]
    for n, preview in ways:
        for wanted in ({}, {model.attributes[0]: 1.0}) if model.guided else ({},):
            studio.make(wanted, n, 0, 1.0, None, preview)
    if studio.encodes:
        face = face / np.float32(255)
        studio.infer(face)
        studio.model.reconstruct(face)
        for n, preview in ways:
            studio.edit(face, [{}] * n, 1.0, True, preview)
    return studio


def choose_faces(model: FaceModel, test: Faces | None) -> np.ndarray:
    """Returns the faces to pick from, [N, H, W, 3] uint8: some of the test, or of the model's own making."""
    if test is not None:
        return spread(test, SHOWN).x
    asked = [*presets(model.attributes).values()] or [{}]  # a few attributes each: plainer faces than where none is
    made = []
    for seed in range(STAND_INS // BATCH):
        encoded = [model.encode(asked[(seed * BATCH + i) % len(asked)]) for i in range(BATCH)]
        y, mask = (np.stack(each) for each in zip(*encoded, strict=True))
        made.append(model.generate_encoded(y, mask, seed))
    return np.round(255 * np.concatenate(made)).astype(np.uint8)


def read_crop(body: bytes, size: int, box: tuple[float, float, float] | None, turn: int = 0) -> Crop:
    """Returns the face in a photograph, an image file's bytes; nothing is written anywhere.

    size: height and width of the model's faces; box: left, top, size of the square to cut; None: where the detector
    finds a face, else the middle; turn: degrees to the left by which the photograph is turned before a box is cut.

    Raises:
      InputError: it is none of FORMATS, is corrupt or too large or too small, or the square lies outside it.
    """
    picture = open_picture(io.BytesIO(body), "the photograph", FORMATS)
    width, height = picture.size
    if min(width, height) < photos.SMALLEST and picture.size != (size, size):
        raise InputError(f"the photograph is too small: {width}x{height} pixels; expected {photos.SMALLEST} each way "
                         "or more")
    preview = picture.copy() if max(picture.size) <= PREVIEW else picture.resize(
        [max(1, round(side * PREVIEW / max(picture.size))) for side in picture.size], reducing_gap=2.0)
    found: bool | None = False
    if box is None:
        turn, box, found = _find(preview, width / preview.width, size)
    picture, preview = photos.turned(picture, turn), photos.turned(preview, turn)
    (width, height), (left, top, side) = picture.size, box
    if not (1 <= side <= max(width, height) and 0 <= left + side / 2 <= width and 0 <= top + side / 2 <= height):
        raise InputError(f"the square {left:g},{top:g}, {side:g} wide, lies outside the photograph, which has "
                         f"{width}x{height} pixels, or is larger than it; move it inside")
    return Crop(turn, width, height, box, found, photos.cut(picture, photos.Box(left, top, side, side), size), preview)


def _find(preview: Image.Image, scale: float, size: int) -> tuple[int, tuple[float, float, float], bool | None]:
    """Returns how far the photograph is to be turned, the square of the largest face, in the photograph's own pixels
    once turned, and whether there is one; None: there is no detector to say.
    """
    if preview.size == (size, size):
        return 0, (0.0, 0.0, float(size)), True  # a face already cropped, as of `photos.read_photo`
    try:
        turn, boxes = photos.upright(preview)
    except InputError:  # no detector: the person places the square
        turn, boxes = 0, None
    if boxes:
        box = photos.lfwcrop(boxes[0])
        return turn, (box.left * scale, box.top * scale, box.width * scale), True
    side = 0.6 * min(preview.size)
    middle = ((preview.width - side) / 2 * scale, (preview.height - side) / 2 * scale, side * scale)
    return 0, middle, None if boxes is None else False


def to_png(face: np.ndarray) -> str:
    """Returns a face as a data URL, a PNG without loss beyond 8 bits."""
    return to_url(Image.fromarray(np.round(255 * np.clip(face, 0, 1)).astype(np.uint8)), "PNG", compress_level=1)


def to_url(picture: Image.Image, kind: str, **options) -> str:
    """Returns a picture as a data URL."""
    encoded = io.BytesIO()
    picture.save(encoded, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded.getvalue()).decode()}"
