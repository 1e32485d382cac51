"""Anybody's faces: a folder of images with a table of their attributes.

The folder holds `attributes.csv`, whose first column `file` names an image relative to the folder:

    file,Smiling,Eyeglasses,split
    anna.jpg,1,0,train
    more/bert.png,,1,test

An empty cell is an unknown attribute. The column `split` (train, validation, test) is optional.
"""

import csv
import logging
import math
import pathlib
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import tqdm
from PIL import Image

from cmma_jax.data.dataset import Dataset, Faces, make_dataset
from cmma_jax.data.disk import CACHE, PARTS, New, decoded, fingerprint
from cmma_jax.data.images import one_line, open_picture
from cmma_jax.errors import InputError

TABLE = "attributes.csv"
SPLITS = PARTS
LAYOUT = "its first two lines like 'file,Smiling,Eyeglasses' and 'anna.jpg,1,0'"
SMALLEST_FOLDER = 10  # faces that an 80/10/10 split needs
WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A row of the table: its line number, the image, its split ("" if there is none), the cells."""

    line: int
    file: str
    path: pathlib.Path
    split: str
    cells: list[str]


def load_folder(data_dir: str | pathlib.Path, image_size: int = 64, seed: int = 0, memory: float = math.inf,
                cache: pathlib.Path = pathlib.Path(CACHE)) -> Dataset:
    """Loads a folder of images and its `attributes.csv`.

    If every column holds only 0 and 1, or -1 and 1, or true/yes and false/no, the attributes are
    binary; otherwise all are real-valued and standardised. Images may have any size and any of
    Pillow's formats: they are turned upright by their EXIF orientation, put on white where they are
    transparent, cropped to their central square and resized. Rows come in the order of their file
    names; without a column `split` they are split 80/10/10 by a permutation that the seed decides.
    Neither depends on the order of the rows in the table.

    Args:
      data_dir: the folder.
      image_size: height and width of the faces, a multiple of 16.
      seed: of the split.
      memory, cache: as of `disk.decoded`: a larger set is decoded to memory maps, anew where the table or an image
        has changed.

    Returns:
      The data set; x is [N, image_size, image_size, 3] uint8.

    Raises:
      InputError: the table or an image is not as described; the message names it.
    """
    require_image_size(image_size)
    folder = pathlib.Path(data_dir)
    table = folder / TABLE
    attributes, rows = _read_table(folder, table)
    rows = sorted(rows, key=lambda row: row.file)
    y, mask, kind = _read_cells(table, attributes, rows)
    parts = _split(table, rows, seed)
    refuse_constant(str(table), attributes, y[parts["train"]], mask[parts["train"]], "drop the column")
    _mention_unused(folder, rows)

    def build(new: New) -> Dataset:
        x = {part: new(part, len(members)) for part, members in parts.items()}
        with tqdm.tqdm(total=len(rows), desc="reading images", disable=None) as bar:
            for part, members in parts.items():
                for i, row in enumerate(rows[member] for member in members):
                    x[part][i] = read_image(row.path, f"{table}, line {row.line}: image {row.file!r}", image_size)
                    bar.update()
        return make_dataset("folder", attributes, kind, *(Faces(x[s], y[parts[s]], mask[parts[s]]) for s in SPLITS))

    return decoded(build, image_size, len(parts["train"]), memory, cache, lambda: [
        image_size, seed, table.read_text(encoding="utf-8-sig"), fingerprint(row.path for row in rows)])


def require_image_size(image_size: int) -> None:
    """Raises InputError unless image_size is a positive multiple of 16."""
    if image_size <= 0 or image_size % 16:
        raise InputError(f"image_size must be a positive multiple of 16, such as 32, 64 or 128; "
                         f"got {image_size}")


def refuse_constant(where: str, attributes: tuple[str, ...], y: np.ndarray, mask: np.ndarray,
                    mend: str) -> None:
    """Raises InputError if an attribute has fewer than two values among the training rows.

    Args:
      where: the thing that is read, for the message.
      attributes: A names.
      y, mask: [N, A] attributes of the training rows and whether they are known.
      mend: what to do about it, for the message.
    """
    low = np.where(mask, y, np.inf).min(0, initial=np.inf)
    high = np.where(mask, y, -np.inf).max(0, initial=-np.inf)
    for i in np.flatnonzero(low >= high)[:1]:
        seen = f"is {low[i]:g} in all of" if mask[:, i].any() else "is unknown in all of"
        raise InputError(f"{where}: attribute {attributes[i]!r} {seen} the {len(y)} training rows, so nothing "
                         f"can be learnt from it; expected two values or more: {mend}")


def read_image(source: pathlib.Path | BinaryIO, name: str, image_size: int) -> np.ndarray:
    """Reads an image as an upright, centred square.

    Args:
      source: a file or its path.
      name: the image's name for error messages.
      image_size: height and width of the result.

    Returns:
      [image_size, image_size, 3] uint8.

    Raises:
      InputError: the image is corrupt, or its header promises more than LARGEST pixels.
    """
    image = open_picture(source, name)
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((image_size, image_size), Image.Resampling.LANCZOS))


def _read_table(folder: pathlib.Path, table: pathlib.Path) -> tuple[tuple[str, ...], list[Row]]:
    """Returns the names of the attributes and the rows of the table, each of another file in the folder."""
    if not table.is_file():
        raise InputError(f"{table} not found; expected a CSV file of the images' attributes, {LAYOUT}: write it, "
                         "or name another folder")
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except UnicodeDecodeError as error:
        raise InputError(f"{table} is not UTF-8 ({one_line(error)}): save it as 'CSV UTF-8'") from error
    except csv.Error as error:
        raise InputError(f"{table}, line {reader.line_num} is not CSV ({one_line(error)}): check its quotation "
                         "marks") from error
    header = lines[0][1] if lines else []
    if header[:1] != ["file"]:
        raise InputError(f"{table} starts with the column {header[0] if header else ''!r}; expected 'file', "
                         f"with {LAYOUT}: mend its header")
    for name in header:
        if header.count(name) > 1 or not name:
            fault = f"has the column {name!r} {header.count(name)} times" if name else "has a column without name"
            raise InputError(f"{table} {fault}; expected different names: rename or drop a column")
    attributes = tuple(name for name in header[1:] if name != "split")
    if not attributes:
        raise InputError(f"{table} has no attributes; expected a column for each, with {LAYOUT}: add one")
    rows: list[Row] = []
    seen: dict[pathlib.Path, int] = {}
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise InputError(f"{table}, line {line} has {len(cells)} columns; expected {len(header)} as in its "
                             "header: mend the line (an unknown attribute is an empty cell)")
        row = dict(zip(header, cells, strict=True))
        path = _inside(folder, f"{table}, line {line}", row["file"])
        if path in seen:
            raise InputError(f"{table}, line {line}: file {row['file']!r} is already on line {seen[path]}; "
                             "expected one row a file: drop one of them")
        seen[path] = line
        rows.append(Row(line, row["file"], path, row.get("split", ""), [row[name] for name in attributes]))
        if "split" in header and rows[-1].split not in SPLITS:
            raise InputError(f"{table}, line {line}: split {rows[-1].split!r} is none of {', '.join(SPLITS)}: "
                             "write one of them")
    return attributes, rows


def _inside(folder: pathlib.Path, where: str, name: str) -> pathlib.Path:
    """Returns the path of an existing file inside the folder, links resolved."""
    try:
        path = (folder / name).resolve()
        inside, exists = path.is_relative_to(folder.resolve()), path.is_file()
    except (OSError, RuntimeError, ValueError):  # too long a name, links in a circle, a null character
        inside, exists = True, False
    if not inside:
        raise InputError(f"{where}: file {name!r} is outside of {folder}; expected a path inside: copy it there")
    if not exists:
        raise InputError(f"{where}: file {name!r} not found in {folder}; expected an image: mend the name (it is "
                         "relative to the folder) or drop the row")
    return path


def _read_cells(table: pathlib.Path, attributes: tuple[str, ...],
                rows: list[Row]) -> tuple[np.ndarray, np.ndarray, Literal["binary", "real"]]:
    """Returns y [N, A] float32, mask [N, A] bool, and what kind of attributes they are."""
    mask = np.array([[cell != "" for cell in row.cells] for row in rows], bool).reshape(-1, len(attributes))
    y = np.zeros(mask.shape, np.float32)
    for i, j in np.argwhere(mask):
        y[i, j] = _number(rows[i].cells[j], f"{table}, line {rows[i].line}, column {attributes[j]!r}")
    values = [set(y[mask[:, j], j].tolist()) for j in range(len(attributes))]
    if all(v <= {0, 1} or v <= {-1, 1} for v in values):
        return np.where(mask, np.maximum(y, 0), 0), mask, "binary"
    return y, mask, "real"


def _number(cell: str, where: str) -> float:
    try:
        value = WORDS[cell.lower()] if cell.lower() in WORDS else float(cell)
    except ValueError:
        value = math.nan
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise InputError(f"{where}: {cell!r} is not a finite number; expected a number or true/false: mend it, or "
                         "leave the cell empty if the attribute is unknown")
    return value


def _split(table: pathlib.Path, rows: list[Row], seed: int) -> dict[str, np.ndarray]:
    """Returns the row numbers of each part."""
    if any(row.split for row in rows):
        parts = {s: np.array([i for i, row in enumerate(rows) if row.split == s], int) for s in SPLITS}
        for part, members in parts.items():
            if not len(members):
                raise InputError(f"{table} has no row with split {part!r}; expected some of each of "
                                 f"{', '.join(SPLITS)}: add some, or drop the column 'split'")
        return parts
    if len(rows) < SMALLEST_FOLDER:
        raise InputError(f"{table} has too few faces for three splits: {len(rows)}; expected {SMALLEST_FOLDER} or "
                         "more: add some, or write a column 'split'")
    order = np.random.default_rng(seed).permutation(len(rows))
    tenth = len(rows) // 10
    cuts = np.split(order, [len(rows) - 2 * tenth, len(rows) - tenth])
    return {part: np.sort(cut) for part, cut in zip(SPLITS, cuts, strict=True)}


def _mention_unused(folder: pathlib.Path, rows: list[Row]) -> None:
    used = {row.path for row in rows}
    unused = sum(path.suffix.lower() in ENDINGS and path.resolve() not in used for path in folder.rglob("*"))
    if unused:
        log.warning("%s: %d images are not in %s and are left out", folder, unused, TABLE)
