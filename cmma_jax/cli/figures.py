"""The paper's figures from finished runs, and two of our own: `python -m cmma_jax figures --figure=8`."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Literal

import numpy as np

from cmma_jax.data.dataset import Faces, spread
from cmma_jax.data.files import make_folder
from cmma_jax.errors import InputError
from cmma_jax.evaluation import plots
from cmma_jax.sampling.attributes import PEOPLE, PLAIN, Attributes, Settings
from cmma_jax.sampling.face_model import FaceModel, load
from cmma_jax.training.runs import load_data

COLUMNS = 8  # faces in a row

# Figure 6's columns; its rows are PEOPLE, who are PLAIN in the first of them.
CHANGES = {"no change": {}, "mouth open": {"Mouth Wide Open": 1}, "spectacles": {"Eyeglasses": 1},
           "bushy eyebrows": {"Bushy Eyebrows": 1}, "big nose": {"Big Nose": 1}, "pointy nose": {"Pointy Nose": 1},
           "thick lips": {"Big Lips": 1}}
# Figure 8's rows, and Figure 10's.
EDITS = {"no change": {}, "big nose": {"Big Nose": 1}, "spectacles": {"Eyeglasses": 1}, "moustache": {"Mustache": 1},
         "big lips": {"Big Lips": 1}}
UNKNOWN_EDITS = {"unchanged": {}, "big nose": {"Big Nose": 1}, "moustache": {"Mustache": 1},
                 "spectacles, moustache": {"Eyeglasses": 1, "Mustache": 1}}
BARE = {"No Eyewear": 1, "Eyeglasses": 0, "Mustache": 0, "Big Nose": 0}  # the faces that they are shown on
# The overview's rows, of random faces, and its columns, of test faces changed.
ASKED = {"man, spectacles, smiling": {"Male": 1, "Eyeglasses": 1, "Smiling": 1},
         "woman, mouth open": {"Male": 0, "Mouth Wide Open": 1},
         "old man, moustache": {"Male": 1, "Senior": 1, "Mustache": 1},
         "Asian woman, smiling": {"Male": 0, "Asian": 1, "Smiling": 1},
         "man, big nose": {"Male": 1, "Big Nose": 1},
         "sunglasses": {"Sunglasses": 1}}
CHANGED = {"face": {}, "spectacles": {"Eyeglasses": 1}, "moustache": {"Mustache": 1}, "smiling": {"Smiling": 1},
           "old": {"Senior": 1}, "sunglasses": {"Sunglasses": 1}}
SWEPT = ("Smiling", "Eyeglasses", "Mustache", "Senior", "Male")


@dataclasses.dataclass(frozen=True)
class Figures:
    """Draw the paper's figures for a data set with its attributes, as LFW, from finished runs.

      python -m cmma_jax figures --figure=all --data_dir=DIR

    4 sets the latent plane of a CMMA beside that of a VAE; it needs a finished run of each with two latents:

      python train.py --model=cmma --preset=paper --latent_size=2 --run_dir=runs/cmma-plane
      python train.py --model=vae --preset=paper --latent_size=2 --run_dir=runs/vae-plane

    6: faces from attributes, by CMMA, CVAE and CGAN; 8: training faces edited, by CMMA and CVAE; 9: training faces made
    old; 10: test faces edited whose attributes are inferred; sweep: a test face along single attributes;
    samples: random faces for one vector of attributes; overview: a CMMA's random faces for a few attributes, in the
    order of their seeds, and test faces changed.
    """

    figure: Literal["4", "6", "8", "9", "10", "sweep", "samples", "overview", "all"]
    """Its number in the paper, or its name."""
    runs_dir: str = "runs"
    """Where the newest finished runs are looked for."""
    cmma: str = ""
    """The CMMA's run; empty: the newest."""
    cvae: str = ""
    """The CVAE's."""
    cgan: str = ""
    """The CGAN's."""
    cmma_plane: str = "runs/cmma-plane"
    """Figure 4: the CMMA with two latents."""
    vae_plane: str = "runs/vae-plane"
    """Figure 4: the VAE with two latents."""
    data_dir: str = ""
    """Folder of the data set's files; empty: where the runs found them."""
    intensity: float = 1.0
    """Of the changes; with Gaussian priors many are too faint to be seen below 3."""
    literal: bool = False
    """8 and 9, with Gaussian priors: the encoder sees the new attributes, as in the paper's step 2."""
    limit: int = 1000
    """Figure 4: validation faces whose posteriors are drawn."""
    seed: int = 0
    """Of the random samples."""
    out_dir: str = "figures"
    """Folder of the pictures, figure6.png and so on."""

    def act(self) -> None:
        make_folder(pathlib.Path(self.out_dir), "the pictures' folder", "out_dir")
        names = [*DRAWN] if self.figure == "all" else [self.figure]
        for name in names:
            path = pathlib.Path(self.out_dir) / f"figure{name if name.isdigit() else f'-{name}'}.png"
            DRAWN[name](self, path)
            print(path)


def figure4(arguments: Figures, path: pathlib.Path) -> None:
    """The latent planes of a CMMA and a VAE; prints the average posterior deviations that the paper gives with it."""
    runs = [load(each).run for each in (arguments.cmma_plane, arguments.vae_plane)]
    for run in runs:
        if run.config.latent_size != 2:
            raise InputError(f"the run in {run.path} has {run.config.latent_size} latents; Figure 4 needs "
                             "--latent_size=2")
    data = load_data(runs[0], arguments.data_dir)
    deviations = plots.latent_planes([(run.system, run.model, run.params) for run in runs], data, arguments.limit,
                                     path)
    for run, deviation in zip(runs, deviations, strict=True):
        print(f"{run.system}: average standard deviation of the posterior {deviation:.4f}")
    print("the paper: .04 (CMMA) and .036 (VAE)")


def figure6(arguments: Figures, path: pathlib.Path) -> None:
    """Faces at the prior's mean for the usual attributes of four kinds of people, and for one attribute more."""
    models = _models(arguments, "cmma", "cvae", "cgan")
    train, settings = load_data(models[0].run, arguments.data_dir).train, Attributes(models[0].run.spec)
    blocks = []
    for model in models:
        rows = []
        for people in PEOPLE.values():
            start = settings.settle({**people, **PLAIN}, *_usual(train, settings, people))
            y, mask = (np.stack(each) for each in zip(*(settings.settle(change, *start) for change in CHANGES.values()),
                                                      strict=True))
            rows.append(model.generate_encoded(start[0] + arguments.intensity * (y - start[0]), mask, temperature=0.0))
        blocks.append((model.run.system, rows))
    plots.labelled_faces(blocks, list(PEOPLE), path, [list(CHANGES)] * len(blocks))


def figure8(arguments: Figures, path: pathlib.Path) -> None:
    """Training faces without these attributes, their reconstructions, and with one more each row."""
    models = _models(arguments, "cmma", "cvae")
    faces = _having(load_data(models[0].run, arguments.data_dir).train, models[0], BARE | {"Big Lips": 0})
    _edits(arguments, models, faces, EDITS, path)


def figure9(arguments: Figures, path: pathlib.Path) -> None:
    """Training faces that are not old, and made old."""
    (model,) = _models(arguments, "cmma")
    faces = _having(load_data(model.run, arguments.data_dir).train, model, {"Senior": 0})
    _edits(arguments, [model], faces, {"no change": {}, "old": {"Senior": 1}}, path)


def figure10(arguments: Figures, path: pathlib.Path) -> None:
    """Test faces whose attributes are inferred; the data's own only choose faces without these."""
    (model,) = _models(arguments, "cmma")
    faces = _having(load_data(model.run, arguments.data_dir).test, model, BARE)
    rows = [faces.x / 255, *(model.edit(faces.x, change, intensity=arguments.intensity,
                             keep_detail=bool(change)) for change in UNKNOWN_EDITS.values())]
    plots.labelled_faces([(f"{model.run.system}, attributes unknown", rows)], ["face", *UNKNOWN_EDITS], path)


def sweep(arguments: Figures, path: pathlib.Path) -> None:
    """One test face along single attributes, by intensity."""
    (model,) = _models(arguments, "cmma")
    face = _having(load_data(model.run, arguments.data_dir).test, model, BARE).x[3]
    levels = arguments.intensity * np.linspace(-1, 1, 9)
    plots.labelled_faces([(model.run.system, [model.sweep(name, levels, face=face) for name in SWEPT])], list(SWEPT),
                         path, [[f"{level:g}" for level in levels]])


def samples(arguments: Figures, path: pathlib.Path) -> None:
    """Random samples of each model for the attributes of one test face."""
    models = _models(arguments, "cmma", "cvae", "cgan")
    test = load_data(models[0].run, arguments.data_dir).test
    y, mask = (np.repeat(a[:1], 3 * COLUMNS, 0) for a in (test.y, test.mask))
    blocks = []
    for model in models:
        made = model.generate_encoded(y, mask, arguments.seed)
        blocks.append((model.run.system, list(made.reshape(3, COLUMNS, *made.shape[1:]))))
    plots.labelled_faces(blocks, ["", "", ""], path)


def overview(arguments: Figures, path: pathlib.Path) -> None:
    """Random faces for a few attributes, all else unknown, and test faces changed, their attributes inferred."""
    (model,) = _models(arguments, "cmma")
    faces = _having(load_data(model.run, arguments.data_dir).test, model, BARE)
    made = [model.generate(asked, len(ASKED), arguments.seed) for asked in ASKED.values()]
    edited = np.stack([model.edit(faces.x[:len(ASKED)], change, intensity=arguments.intensity)
                       for change in CHANGED.values()], 1)
    plots.labelled_faces([("random faces", made), ("test faces, changed", list(edited))], list(ASKED), path,
                         [[""] * len(ASKED), list(CHANGED)])


DRAWN = {"4": figure4, "6": figure6, "8": figure8, "9": figure9, "10": figure10, "sweep": sweep, "samples": samples,
         "overview": overview}


def _edits(arguments: Figures, models: list[FaceModel], faces: Faces, edits: Mapping[str, Settings],
           path: pathlib.Path) -> None:
    blocks = []  # where nothing changes the row is the reconstruction: with its detail it would be the face itself
    for model in models:
        rows, settings = [faces.x / 255], Attributes(model.run.spec)
        for change in edits.values():
            new = settings.settle(change, faces.y, faces.mask)
            rows.append(model.edit_encoded(faces.x / np.float32(255), faces.y, faces.mask, *new, arguments.intensity,
                                           literal=arguments.literal, keep_detail=bool(change)))
        blocks.append((model.run.system, rows))
    plots.labelled_faces(blocks, ["face", *edits], path)


def _models(arguments: Figures, *names: str) -> list[FaceModel]:
    return [load(getattr(arguments, name), runs_dir=arguments.runs_dir, model=name) for name in names]


def _usual(train: Faces, settings: Attributes, people: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Returns what most training faces of some people have, y, mask: [A]."""
    faces = _select(train, settings, people, 1)
    y = (faces.y.mean(0) > 0.5).astype(np.float32)
    return y, np.ones_like(y, bool)


def _having(faces: Faces, model: FaceModel, wanted: Settings) -> Faces:
    """Returns COLUMNS faces with such attributes, spread over a part."""
    return spread(_select(faces, Attributes(model.run.spec), wanted, COLUMNS), COLUMNS)


def _select(faces: Faces, settings: Attributes, wanted: Settings, least: int) -> Faces:
    rows = np.ones(faces.size, bool)
    for name, value in wanted.items():
        rows &= faces.y[:, settings.find(name)] == value
    if rows.sum() < least:
        asked = ", ".join(f"{name}={value}" for name, value in wanted.items())
        raise InputError(f"the figure needs {least} faces with {asked}; the data set has {rows.sum()}")
    return Faces(*(np.asarray(a)[rows] for a in faces))
