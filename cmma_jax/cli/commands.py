"""What `python -m cmma_jax` does with a finished run: generate, edit, infer, morph, sweep, export, compact, push."""

import dataclasses
import io
import math
import pathlib
import sys
import tempfile

import numpy as np
from PIL import Image
from tyro.conf import Positional

from cmma_jax.data.files import write_whole
from cmma_jax.errors import InputError
from cmma_jax.models.architecture import check
from cmma_jax.models.flow import STEPS
from cmma_jax.sampling import photos, pictures
from cmma_jax.sampling.attributes import parse_settings
from cmma_jax.sampling.face_model import INFERENCE_SAMPLES, FaceModel, load
from cmma_jax.training.compact import SUFFIX, shipped
from cmma_jax.training.hub import FILE, push
from cmma_jax.training.runs import save_compact


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """Which model."""

    run: str = ""
    """The run's folder, a compact file, the name of a model that comes with the package, such as lfw, or hf://USER/NAME;
    empty: the newest finished CMMA, or lfw where there is none."""
    runs_dir: str = "runs"
    """Where it is looked for."""
    groups: bool = True
    """Setting an attribute resets what contradicts it (Eyeglasses resets No Eyewear); --no-groups: it does not."""

    def model(self) -> FaceModel:
        """Returns the model; says so where one that comes with the package stands in for a run."""
        model = load(self.run, runs_dir=self.runs_dir)
        if not self.run and model.run.path in shipped().values():
            print(f"no finished run in {self.runs_dir}: using {model.run.path.stem}, which comes with the package",
                  file=sys.stderr)
        return model


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Photo:
    """How the face is found in a photograph."""

    face: int = 0
    """Which face, where the photograph has several: 0 is the largest, 1 the next."""
    crop: str = ""
    """The face's rectangle, left,top,width,height in pixels, instead of looking for it. A picture of the model's own
    size, 64x64, is taken for a cropped face as it is."""

    def read(self, path: str, size: int) -> photos.Photo:
        """Returns a photograph with its face, and says where it was found."""
        photo = photos.read_photo(path, size, self.face, self.box())
        if photo.note:
            print(f"{path}: {photo.note}", file=sys.stderr)
        return photo

    def box(self) -> photos.Box | None:
        """Returns the rectangle that was given; raises InputError if it is none."""
        if not self.crop:
            return None
        try:
            box = photos.Box(*map(float, self.crop.split(",")))
        except (TypeError, ValueError):
            box = None
        if box is None or not all(map(math.isfinite, box)):
            raise InputError(f"--crop={self.crop} is no rectangle; give left,top,width,height in pixels")
        return box


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(_Run):
    """Make faces from attributes; those not named are unknown.

      python -m cmma_jax generate --set "Male=1,Eyeglasses=1" --n 16 --out faces.png
    """

    set: str = ""
    """NAME=VALUE, with commas between. Binary: 0 to 1; real-valued: a score, +2sd or p95. A name alone is set to 1."""
    n: int = 16
    """How many faces."""
    seed: int = 0
    """Of the noise."""
    temperature: float = 1.0
    """Factor on the deviation of the noise; 0: the face at its mean."""
    guidance: float | None = None
    """Of a flow: the scale w of classifier-free guidance; 1: none; above 1 faces show their attributes more, and differ
    less. Left out: 1.5 where all attributes are set, towards 5 as fewer are."""
    steps: int = STEPS
    """Of a flow's solver; fewer are faster and less exact."""
    detail: float | None = None
    """Temperature at which the pixels are drawn as well, by a model with a detail: 1 gives samples of p(x|y) itself,
    grain and all. Left out: the decoder's mean, a smooth face."""
    columns: int = 8
    """Faces in a row of the picture."""
    out: str = "faces.png"
    """The picture to write."""

    def act(self) -> None:
        for name in ("n", "columns"):
            check(getattr(self, name) > 0, name, getattr(self, name), "1 or more")
        model = self.model()
        made = model.generate(parse_settings(self.set), self.n, self.seed, self.temperature, self.groups,
                              self.guidance, self.steps, self.detail)
        columns = min(self.columns, len(made))
        made = np.concatenate([made, np.ones((-len(made) % columns, *made.shape[1:]), made.dtype)])
        _write(pictures.grid(list(made.reshape(-1, columns, *made.shape[1:]))), self.out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit(_Run, _Photo):
    """Change the face in a photograph; its attributes, where they are not given, are inferred.

      python -m cmma_jax edit photo.jpg --set "Mustache=1" --out edited.png
    """

    photo: Positional[str]
    """An image file."""
    set: str = ""
    """What the face is to have: NAME=VALUE, with commas between."""
    known: str = ""
    """What is known of the face: NAME=VALUE, with commas between."""
    intensity: float = 1.0
    """0: no change; 1: plainly visible, with a flow; 2: twice that; negative: the other way."""
    literal: bool = False
    """Of a Gaussian prior, as the paper's step 2 has it: the encoder sees the new attributes too, which counts the
    change twice."""
    keep_detail: bool = True
    """Keep what the model cannot reproduce of the face; --no-keep_detail: the face as the model decodes it."""
    steps: int = STEPS
    """Of a flow's solver, to the noise and back; fewer are faster and less exact."""
    whole: bool = False
    """Put the face back into the photograph, blended; else the picture is the face, before and after."""
    out: str = "edited.png"
    """The picture to write."""

    def act(self) -> None:
        check(math.isfinite(self.intensity), "intensity", self.intensity, "a finite number")
        if not self.set:
            raise InputError("nothing to change; give --set NAME=VALUE, such as --set Mustache=1")
        model = self.model()
        photo = self.read(self.photo, model.run.spec.image_shape[0])
        (edited,) = model.edit(photo.face, parse_settings(self.set), parse_settings(self.known), self.intensity,
                               literal=self.literal, keep_detail=self.keep_detail, groups=self.groups,
                               steps=self.steps)
        picture = photos.put_back(photo, edited) if self.whole else pictures.grid([np.stack([photo.face, edited])])
        _write(picture, self.out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Infer(_Run, _Photo):
    """Infer the attributes of the face in a photograph.

      python -m cmma_jax infer photo.jpg
    """

    photo: Positional[str]
    """An image file."""
    known: str = ""
    """What is known of the face: NAME=VALUE, with commas between."""
    samples: int = INFERENCE_SAMPLES
    """Of z, over which is averaged."""
    seed: int = 0
    """Of the samples."""

    def act(self) -> None:
        model = self.model()
        photo = self.read(self.photo, model.run.spec.image_shape[0])
        inferred = model.infer_attributes(photo.face, parse_settings(self.known), self.seed, self.samples)
        heading = {"binary": "probability", "real": "score", "mixed": "prob./score"}[model.run.spec.kind]
        lines = [f"{'attribute':28} {heading:>11} {'deviation':>10}"]
        for name, (mean, deviation) in sorted(inferred.items(), key=lambda entry: -float(entry[1][0][0])):
            lines.append(f"{name:28} {mean[0]:11.3f} {deviation[0]:10.3f}")
        print("\n".join(lines))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Morph(_Run, _Photo):
    """Turn one face into another: through the noise of a flow, or on the straight path in z.

      python -m cmma_jax morph a.jpg b.jpg --out morph.gif
    """

    first: Positional[str]
    """An image file."""
    second: Positional[str]
    """Another."""
    frames: int = 24
    """Of the way; a GIF goes there and back."""
    out: str = "morph.gif"
    """A .gif moves; a .png is a row of faces."""

    def act(self) -> None:
        model = self.model()
        size = model.run.spec.image_shape[0]
        faces = np.stack([self.read(path, size).face for path in (self.first, self.second)])
        _write_frames(model.morph(faces, self.frames), self.out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(_Run, _Photo):
    """Edit a face along one attribute, from negative to positive intensity.

      python -m cmma_jax sweep --attribute Smiling --out sweep.gif
      python -m cmma_jax sweep --attribute Smiling --photo photo.jpg --out sweep.png
    """

    attribute: str
    """Its name."""
    photo: str = ""
    """An image file; empty: a sample of a flow, or the face at the mean of p(z|attributes)."""
    set: str = ""
    """Without a photograph: other attributes, NAME=VALUE, with commas between."""
    reach: float = 1.0
    """Intensities go from -reach to reach; 1 is an edit that sets the attribute."""
    frames: int = 9
    """On the way; a GIF goes there and back."""
    out: str = "sweep.gif"
    """A .gif moves; a .png is a row of faces."""

    def act(self) -> None:
        check(self.frames > 1, "frames", self.frames, "2 or more")
        check(0 < self.reach < math.inf, "reach", self.reach, "a finite number above 0")
        model = self.model()
        levels = np.linspace(-self.reach, self.reach, self.frames)
        if self.photo:
            face = self.read(self.photo, model.run.spec.image_shape[0]).face
            frames = model.sweep(self.attribute, levels, face=face, groups=self.groups)
        else:
            frames = model.sweep(self.attribute, levels, parse_settings(self.set), groups=self.groups)
        _write_frames(frames, self.out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(_Run):
    """Write the sampler as StableHLO, for programs without this package.

      python -m cmma_jax export --out sampler.bin
    """

    out: str = "sampler.bin"
    """The file to write; OUT.json says how to call it."""
    guidance: float | None = None
    """As of generate, the same for every call; left out: 1.5 with a flow."""
    steps: int = STEPS
    """Of a flow's solver."""

    def act(self) -> None:
        for path in self.model().export(self.out, self.guidance, self.steps):
            print(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compact(_Run):
    """Write a run as one file in half precision, which is accepted wherever a run's folder is.

      python -m cmma_jax compact --run runs/cmma-lfw --out lfw.safetensors
    """

    out: str = "model.safetensors"
    """The file to write."""

    def act(self) -> None:
        out = pathlib.Path(self.out)
        if out.suffix != SUFFIX:
            raise InputError(f"--out={out}: give a name that ends in {SUFFIX}")
        save_compact(self.model().run, out)
        print(f"{out} ({out.stat().st_size / 2**20:.1f} MiB)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Push(_Run):
    """Put a run on the Hugging Face hub, as one file in half precision; load("hf://USER/NAME") takes it from there.

      python -m cmma_jax push --run runs/cmma-folder --to hf://USER/NAME --card card.md
    """

    to: str
    """hf://USER/NAME, a repository, which is made if it is not there."""
    card: str
    """A file of Markdown, the repository's README: what the model was trained on, by which command, how good it is,
    and what it is not for."""
    private: bool = False
    """Whether a new repository is private."""

    def act(self) -> None:
        card = pathlib.Path(self.card)
        if not card.is_file():
            raise InputError(f"--card={self.card} is no file; write what the model was trained on and how good it is")
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / FILE
            save_compact(self.model().run, file)
            push(file, card.read_text(), self.to, self.private)
        print(self.to)


def _write(picture: Image.Image, out: str) -> None:
    encoded, suffix = io.BytesIO(), pathlib.Path(out).suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"--out={out}: give a name that ends in .png, .jpg or .webp")
    picture.save(encoded, format={".jpg": "jpeg"}.get(suffix, suffix[1:]), quality=95)
    write_whole(pathlib.Path(out), encoded.getvalue())
    print(out)


def _write_frames(faces: np.ndarray, out: str) -> None:
    if pathlib.Path(out).suffix.lower() == ".gif":
        write_whole(pathlib.Path(out), pictures.animation(faces))
        print(out)
    else:
        _write(pictures.grid([faces]), out)
