"""Labeled Faces in the Wild with 73 attributes, from its publishers' files.

Sources:
  Faces: G. B. Huang, M. Ramesh, T. Berg, E. Learned-Miller, "Labeled Faces in the Wild", 2007; cropped to
    64x64 as LFWcrop by C. Sanderson, B. C. Lovell, "Multi-Region Probabilistic Histograms for Robust and
    Scalable Identity Inference", 2009.
  Real-valued attributes: N. Kumar, A. C. Berg, P. N. Belhumeur, S. K. Nayar, "Attribute and Simile
    Classifiers for Face Verification", 2009.
  Binary attributes (LFWA+): Z. Liu, P. Luo, X. Wang, X. Tang, "Deep Learning Face Attributes in the
    Wild", 2015.
"""

import dataclasses
import functools
import io
import logging
import os
import pathlib
import re
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np
import tqdm
from PIL import Image

from cmma_jax.data.dataset import Dataset, Faces, make_dataset
from cmma_jax.data.folder import SPLITS, add_constant
from cmma_jax.data.images import one_line
from cmma_jax.data.mat import read_mat
from cmma_jax.errors import Faults, InputError

TRAIN, VALIDATION = 10_000, 1_000  # rows; the rest are for the test, as in the paper
FACES, LABELS = 13_233, 13_143  # what the publishers' files hold
SIZE = 64
LARGEST = 1_000_000  # bytes of a face's file; a real one has 12,301

FACE_FOLDERS = ("lfwcrop_color/faces", "faces")
ARCHIVE = "lfwcrop_color.zip"
BINARY = "lfw_att_73.mat"
SCORES = "lfw_attributes.txt"
ESTIMATED = "lfw_attributes_estimated.txt"
URLS = {ARCHIVE: "http://conradsanderson.id.au/lfwcrop/lfwcrop_color.zip",
        SCORES: "https://www.cs.columbia.edu/CAVE/databases/pubfig/download/lfw_attributes.txt"}
ADVICE = (f"put {ARCHIVE} ({URLS[ARCHIVE]}) and {SCORES} ({URLS[SCORES]}) there by hand; instead of the latter, "
          f"binary attributes can come from LFWA+'s {BINARY} (no direct link: it is on its authors' drive, linked "
          "from the CelebA project page)")

log = logging.getLogger(__name__)


class Labels(NamedTuple):
    """The attributes of N faces."""

    keys: list[str]  # N names "Person_Name_0001"
    attributes: tuple[str, ...]
    y: np.ndarray  # [N, A] float32, 0 or 1, or scores
    dataset: str  # "lfw" or "lfw (estimated scores)"


class Part(NamedTuple):
    """One of the three parts: its N faces and their names "Person_Name_0001"."""

    keys: list[str]
    faces: Faces


def load_lfw(data_dir: str | pathlib.Path, kind: Literal["binary", "real"] = "binary") -> Dataset:
    """Loads LFWcrop's colour faces with their attributes, in the paper's split.

    The faces come from one of FACE_FOLDERS or ARCHIVE. Binary attributes come from LFWA+'s file, BINARY, or else as
    score > 0; real-valued ones are Kumar et al.'s SCORES, standardised on the training rows. If only ESTIMATED is
    there, its scores are taken and the data set is named "lfw (estimated scores)". What is missing is downloaded if it
    can be.

    Rows keep the order of the label file and are split by row. A row whose face is missing is dropped and its place
    stays empty, so that no other row changes its part; more than 1 in 10 missing is an error. Faces without attributes
    are left out. x is [N, 64, 64, 3] uint8, y is [N, 73] float32, all of it known.

    Raises:
      InputError: a file is missing, or is not as described; the message names it.
    """
    labels, parts = read_lfw(data_dir, kind)
    data = make_dataset(labels.dataset, labels.attributes, kind, *(parts[s].faces for s in SPLITS))
    return dataclasses.replace(data, test_people=tuple(key.rsplit("_", 1)[0] for key in parts["test"].keys))


def read_lfw(data_dir: str | pathlib.Path, kind: Literal["binary", "real"]) -> tuple[Labels, dict[str, Part]]:
    """Returns the labels and the three parts as they were read, scores not standardised; raises as `load_lfw`."""
    labels = read_labels(data_dir, kind)
    x, found = _read_faces(pathlib.Path(data_dir), labels.keys)
    rows = np.flatnonzero(found)
    cuts = np.searchsorted(rows, [TRAIN, TRAIN + VALIDATION])
    parts = {}
    for split, part, faces in zip(SPLITS, np.split(rows, cuts), np.split(x, cuts), strict=True):
        y = labels.y[part]
        parts[split] = Part([labels.keys[row] for row in part], Faces(faces, y, np.ones(y.shape, bool)))
    train = parts["train"].faces
    faults = Faults(f"the attributes in {data_dir}")
    add_constant(faults, labels.attributes, train.y, train.mask, "the file is broken, get it again")
    faults.tell()
    return labels, parts


def read_labels(data_dir: str | pathlib.Path, kind: Literal["binary", "real"]) -> Labels:
    """Returns the attributes in the label file's order; raises as `load_lfw`."""
    folder = pathlib.Path(data_dir)
    if kind not in ("binary", "real"):
        raise InputError(f"kind {kind!r} of LFW's attributes is unknown; expected 'binary' or 'real'")
    if not folder.is_dir():
        raise InputError(f"LFW's folder {folder} not found; expected one with {ARCHIVE} and attributes: make it, "
                         "or name another")
    if kind == "binary" and (folder / BINARY).is_file():
        path = folder / BINARY
        labels = _read_mat(path)
    else:
        estimated = (folder / ESTIMATED).is_file() and not (folder / SCORES).is_file()
        path = folder / ESTIMATED if estimated else _present(folder, SCORES)
        labels = _read_scores(path)._replace(dataset="lfw (estimated scores)" if estimated else "lfw")
        if kind == "binary":
            labels = labels._replace(y=(labels.y > 0).astype(np.float32))
    if len(labels.keys) <= TRAIN + VALIDATION:
        raise InputError(f"{path} has {len(labels.keys)} rows; expected {TRAIN + VALIDATION + 1} or more "
                         f"({TRAIN} train, {VALIDATION} validation, the rest test): get the whole file")
    return labels


def _read_mat(path: pathlib.Path) -> Labels:
    """Reads LFWA+'s `lfw_att_73.mat`, with the names of the attributes as Kumar et al. write them."""
    try:
        mat = read_mat(path, ["name", "label", "AttrName"])
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is corrupt ({one_line(error)}); expected LFWA+'s MATLAB file: delete it and "
                         "download it again") from error
    for field in ("name", "label", "AttrName"):
        if field not in mat:
            raise InputError(f"{path} has no field {field!r}; expected name, label and AttrName as in LFWA+: get "
                             "the file again")
    names, y, columns = np.atleast_1d(mat["name"]), mat["label"], np.atleast_1d(mat["AttrName"])
    if y.shape != (len(names), len(columns)):
        raise InputError(f"{path} has a label of shape {list(y.shape)}; expected {[len(names), len(columns)]}, "
                         "a row for each name and a column for each AttrName: get the file again")
    attributes = tuple(str(name).replace("_", " ").replace("5 o Clock", "5 o' Clock") for name in columns)
    wrong = np.argwhere(~np.isin(y, (0, 1)))
    if len(wrong):
        row, column = wrong[0]
        raise InputError(f"{path}, row {row + 1}, attribute {attributes[column]!r} is {y[row, column]}; expected "
                         "0 or 1: get the file again")
    keys = [re.split(r"[\\/]", str(name))[-1].removesuffix(".jpg") for name in names]
    _refuse_repeated(path, "row", enumerate(keys, 1))
    return Labels(keys, attributes, y.astype(np.float32), "lfw")


def _read_scores(path: pathlib.Path) -> Labels:
    """Reads the format of Kumar et al.'s `lfw_attributes.txt`: a comment, a header, tab-separated rows."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text ({one_line(error)}); expected Kumar et al.'s attributes: get the file "
                         "again") from error
    header = lines[1].split("\t") if len(lines) > 1 else []
    attributes = tuple(header[3:])
    if header[:3] != ["#", "person", "imagenum"] or not attributes or len(set(attributes)) < len(attributes):
        raise InputError(f"{path}, line 2 is no header of Kumar et al.'s attributes; expected '#', 'person', "
                         "'imagenum' and different attributes, separated by tabs: get the file again")
    keys, scores = [], []
    rows = [(number, line.split("\t")) for number, line in enumerate(lines[2:], 3) if line]
    for number, cells in rows:
        if len(cells) != len(header) - 1:
            raise InputError(f"{path}, line {number} has {len(cells)} columns; expected {len(header) - 1} as in "
                             "its header: get the file again")
        if not cells[1].isdecimal():
            raise InputError(f"{path}, line {number}, column 'imagenum' is {cells[1]!r}; expected a whole number: "
                             "get the file again")
        keys.append(f"{cells[0].replace(' ', '_')}_{int(cells[1]):04d}")
        scores.append([_number(cell) for cell in cells[2:]])
    y = np.array(scores, np.float32).reshape(-1, len(attributes))
    wrong = np.argwhere(~np.isfinite(y))
    if len(wrong):
        row, column = wrong[0]
        number, cells = rows[row]
        raise InputError(f"{path}, line {number}, column {attributes[column]!r} is {cells[2 + column]!r}; expected "
                         "a finite number: get the file again")
    _refuse_repeated(path, "line", ((number, key) for (number, _), key in zip(rows, keys, strict=True)))
    return Labels(keys, attributes, y, "lfw")


def _number(cell: str) -> float:
    """Returns the number in a cell, NaN if there is none that a float32 holds."""
    try:
        value = float(cell)
    except ValueError:
        return np.nan
    return value if abs(value) <= float(np.finfo(np.float32).max) else np.nan


def _refuse_repeated(path: pathlib.Path, unit: str, keys: Iterable[tuple[int, str]]) -> None:
    seen: dict[str, int] = {}
    for number, key in keys:
        if key in seen:
            raise InputError(f"{path}, {unit} {number} is {key} again, after {unit} {seen[key]}; expected every "
                             "face once: get the file again")
        seen[key] = number


def _read_faces(folder: pathlib.Path, keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the faces there are, x [M, 64, 64, 3] uint8 in the order of the N keys, and found [N] bool."""
    place, readers = _find_faces(folder)
    found = np.array([key in readers for key in keys])
    missing = len(keys) - found.sum()
    if missing > len(keys) / 10:
        raise InputError(f"{place} lacks the faces of {missing} of {len(keys)} rows of attributes; expected "
                         "LFWcrop's colour faces of the same people: check the folder")
    if missing:
        log.warning("%s lacks the faces of %d of %d rows of attributes (the first is %s): the rows are dropped",
                    place, missing, len(keys), keys[np.argmin(found)])
    x = np.empty((found.sum(), SIZE, SIZE, 3), np.uint8)
    present = (key for key in keys if key in readers)
    for i, key in enumerate(tqdm.tqdm(present, "reading faces", len(x), disable=None)):
        x[i] = _decode(f"{place}: face {key}.ppm", readers[key])
    return x, found


def _find_faces(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Callable[[], bytes]]]:
    """Returns where the faces are, and a function that reads each one's file."""
    for name in FACE_FOLDERS:
        readers = {path.stem: path.read_bytes for path in (folder / name).glob("*.ppm")}
        if readers:
            return folder / name, readers
    path = _present(folder, ARCHIVE)
    return path, _open_archive(path)


def _open_archive(path: pathlib.Path) -> dict[str, Callable[[], bytes]]:
    """Returns a function that reads each face of the archive; only the base names of its members count."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
        infos = archive.infolist()
    except Exception as error:  # a corrupt archive makes zipfile raise almost anything
        raise InputError(f"{path} is no whole zip archive ({one_line(error)}): delete it and download it again from "
                         f"{URLS[ARCHIVE]}") from error
    members = {pathlib.PurePosixPath(member.filename): member for member in infos}
    return {name.stem: functools.partial(_read_member, path, archive, member)
            for name, member in members.items() if name.suffix == ".ppm"}


def _read_member(path: pathlib.Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        if member.file_size > LARGEST:
            raise ValueError(f"{member.file_size} bytes")
        return archive.read(member)
    except Exception as error:  # as above
        raise InputError(f"{path}: face {member.filename!r} is corrupt ({one_line(error)}): delete {path.name} and "
                         f"download it again from {URLS[ARCHIVE]}") from error


def _decode(name: str, read: Callable[[], bytes]) -> np.ndarray:
    """Returns a face as [64, 64, 3] uint8."""
    try:
        image = Image.open(io.BytesIO(read()), formats=["PPM"])
        face = np.asarray(image) if (*image.size, image.mode) == (SIZE, SIZE, "RGB") else None
    except InputError:
        raise
    except Exception as error:  # a corrupt file makes Pillow's decoders raise almost anything
        raise InputError(f"{name} is corrupt ({one_line(error)}); expected a PPM image: get it again") from error
    if face is None:
        width, height = image.size
        raise InputError(f"{name} is {width}x{height} {image.mode}; expected {SIZE}x{SIZE} RGB: use LFWcrop's "
                         "colour faces")
    return face


def _present(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the path of one of the publishers' files, downloaded if it is not there."""
    path = folder / name
    if path.is_file():
        return path
    try:
        with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
            part = pathlib.Path(scratch) / name
            _download(URLS[name], part)
            count, expected = ((len(_open_archive(part)), FACES) if name == ARCHIVE
                               else (len(_read_scores(part).keys), LABELS))
            if count != expected:
                raise ValueError(f"{count} rows, expected {expected}")
            os.replace(part, path)
    except Exception as error:  # no network, no such host, no space, an error page instead of the file...
        raise InputError(f"{path} not found, and it could not be downloaded ({one_line(error)}): {ADVICE}") from error
    return path


def _download(url: str, path: pathlib.Path) -> None:
    """Writes what is at the URL to the path; raises OSError without a connection in 5 seconds, or if it breaks off."""
    with urllib.request.urlopen(url, timeout=5) as reply, open(path, "wb") as file:
        size = int(reply.headers.get("Content-Length") or 0)
        bar = {"total": size or None, "desc": f"downloading {path.name}", "disable": None}
        with tqdm.tqdm.wrapattr(reply, "read", **bar) as read:
            shutil.copyfileobj(read, file)
        if size and file.tell() != size:
            raise OSError(f"{file.tell()} of {size} bytes came")
