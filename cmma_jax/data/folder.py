"""Anybody's faces: a folder of images with a table of their attributes (`data.table`)."""

import logging
import math
import pathlib
import unicodedata
import urllib.parse
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import tqdm
from PIL import Image

from cmma_jax.data.dataset import Dataset, Faces, make_dataset
from cmma_jax.data.disk import CACHE, PARTS, New, decoded, fingerprint
from cmma_jax.data.images import Depth, open_picture
from cmma_jax.data.table import AS_IT_IS, Reading, Table, read_columns, read_table
from cmma_jax.errors import Faults, InputError

SPLITS = PARTS
SMALLEST_FOLDER = 10  # faces that an 80/10/10 split needs
LOOKED_AT = 1000  # images that are decoded beside a fault of the table, so that theirs are told with it
ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A row of the table: its number in it, the image as it is named, and where it lies."""

    number: int
    file: str
    path: pathlib.Path


def load_folder(data_dir: str | pathlib.Path, image_size: int = 64, memory: float = math.inf,
                cache: pathlib.Path = pathlib.Path(CACHE), reading: Reading = AS_IT_IS) -> Dataset:
    """Loads a folder of images and its table.

    Images may have any size and any of Pillow's formats: they are turned upright by their EXIF orientation, put on
    white where they are transparent, cropped to their central square and resized. Rows come in the order of their file
    names; without a column `split` they are split 80/10/10 by a permutation, always the same. Neither depends on the
    order of the rows in the table. x is [N, image_size, image_size, 3] uint8, image_size a multiple of 16.

    memory, cache: as of `disk.decoded`: a larger set is decoded to memory maps, anew where the table or an image has
    changed; reading: what the table's values cannot tell, and whether images may lie outside of the folder.

    Raises:
      InputError: the table or an image is not as described; the message names it, and of several faults all.
    """
    require_image_size(image_size)
    folder = pathlib.Path(data_dir)
    table = read_table(folder)
    faults = table.faults
    rows = sorted(_rows(folder, table, reading.follow_links), key=lambda row: row.file)
    whole = not faults.found
    columns = read_columns(table, reading)
    order = np.array([row.number for row in rows], int)
    attributes = tuple(column.name for column in columns)
    y, mask = (np.reshape(arrays, (len(columns), len(table.files))).T[order]
               for arrays in ([column.values for column in columns], [column.known for column in columns]))
    parts = _split(table, order) if whole else {}
    if parts:
        add_constant(faults, attributes, y[parts["train"]], mask[parts["train"]],
                     "drop the column, or leave it out by --ignore; join a rare word with another")

    depth = Depth()

    def read(row: Row) -> np.ndarray | None:
        try:
            return read_image(row.path, f"line {table.lines[row.number]}: image {row.file!r}", image_size, depth)
        except InputError as error:
            faults.add(str(error))
        return None

    if faults.found:
        for row in rows[:LOOKED_AT]:
            read(row)
    faults.tell()
    _mention_unused(folder, rows, table)
    for note in sorted({column.note for column in columns} - {""}):
        log.warning("%s: %s in %s", table.path, note, ", ".join(c.name for c in columns if c.note == note))

    def build(new: New) -> Dataset:
        x = {part: new(part, len(members)) for part, members in parts.items()}
        places = [(part, i, rows[member]) for part, members in parts.items() for i, member in enumerate(members)]
        shallow = 0  # how many were read before one that holds more bits
        with tqdm.tqdm(total=len(rows), desc="reading images", disable=None) as bar:
            for done, (part, i, row) in enumerate(places):
                before, image = depth.bits, read(row)
                if 0 < before < depth.bits:
                    shallow = done
                if image is not None:
                    x[part][i] = image
                bar.update()
        faults.tell()
        for part, i, row in places[:shallow]:
            x[part][i] = read(row)
        return make_dataset("folder", attributes, tuple(column.kind for column in columns),
                            *(Faces(x[s], y[parts[s]], mask[parts[s]]) for s in SPLITS))

    return decoded(build, image_size, len(parts["train"]), memory, cache, lambda: [
        image_size, list(reading), table.path.read_text(encoding="utf-8-sig"), list(table.splits),
        fingerprint(row.path for row in rows)])


def require_image_size(image_size: int) -> None:
    """Raises InputError unless image_size is a positive multiple of 16."""
    if image_size <= 0 or image_size % 16:
        raise InputError(f"image_size must be a positive multiple of 16, such as 32, 64 or 128; "
                         f"got {image_size}")


def add_constant(faults: Faults, attributes: tuple[str, ...], y: np.ndarray, mask: np.ndarray, mend: str) -> None:
    """Adds a fault for each of A attributes with fewer than two values among the training rows; y, mask: [N, A].

    mend: what to do about it, for the message.
    """
    low = np.where(mask, y, np.inf).min(0, initial=np.inf)
    high = np.where(mask, y, -np.inf).max(0, initial=-np.inf)
    for i in np.flatnonzero(low >= high):
        seen = f"is {low[i]:g} in all of" if mask[:, i].any() else "is unknown in all of"
        faults.add(f"attribute {attributes[i]!r} {seen} the {len(y)} training rows, so nothing can be learnt from it; "
                   f"expected two values or more: {mend}")


def read_image(source: pathlib.Path | BinaryIO, name: str, image_size: int, depth: Depth | None = None) -> np.ndarray:
    """Returns an image's central square, upright, [image_size, image_size, 3] uint8; depth, errors: as of
    `open_picture`.
    """
    image = open_picture(source, name, depth=depth)
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((image_size, image_size), Image.Resampling.LANCZOS))


def _rows(folder: pathlib.Path, table: Table, follow_links: bool) -> list[Row]:
    """Returns the rows of a table, each of another file in the folder, or in one below it that holds them all; adds the
    faults of the others.
    """
    faults, rows, seen = table.faults, [], dict[pathlib.Path, int]()
    base = _base(folder, table.files)
    for number, (line, file) in enumerate(zip(table.lines, table.files, strict=True)):
        fault, path = _inside(folder, base, file, follow_links)
        for spelling in _spellings(file) if fault else ():
            other, there = _inside(folder, base, spelling, follow_links)
            if not other:
                fault, path = other, there
                break
        if fault:
            hint = _other_case(path) if fault.startswith("not") and len(faults.found) < faults.MOST else ""
            faults.add(f"line {line}: file {file!r} {fault}{hint}")
        elif path in seen:
            faults.add(f"line {line}: file {file!r} is already on line {seen[path]}; expected one row a file: drop one "
                       "of them")
        else:
            seen[path] = line
            rows.append(Row(number, file, path))
    return rows


def _spellings(file: str) -> Iterator[str]:
    """Yields a name as other systems may have it: Windows' separators, a URL's %20, a Mac's letters with accents."""
    for name in (file, file.replace("\\", "/"), urllib.parse.unquote(file)):
        for form in (None, "NFC", "NFD"):
            yield unicodedata.normalize(form, name) if form else name


def _other_case(path: pathlib.Path) -> str:
    """Returns a hint of a file whose name has other capitals, or an ending."""
    try:
        names = sorted(each.name for each in path.parent.iterdir())
    except (OSError, ValueError):
        return ""
    near = next((name for name in names if path.name and path.name.casefold() in (
        name.casefold(), pathlib.PurePath(name).stem.casefold())), None)
    return f"; did you mean {near!r}?" if near else ""


def _base(folder: pathlib.Path, files: list[str]) -> pathlib.Path:
    """Returns the folder itself, or the one below it where the first image lies, as CelebA's are beside their table."""
    first = files[0] if files else ""
    try:
        if first and not (folder / first).exists() and "\0" not in first and "/" not in first and "\\" not in first:
            return next((path.parent for path in sorted(folder.rglob(first)) if path.is_file()), folder)
    except (OSError, ValueError, NotImplementedError):
        pass  # no name of a file
    return folder


def _inside(folder: pathlib.Path, base: pathlib.Path, name: str, follow_links: bool) -> tuple[str, pathlib.Path]:
    """Returns what is wrong with an image's name, or "", and its path, links resolved."""
    try:
        path = (base / name).resolve()
        inside, exists = path.is_relative_to(folder.resolve()), path.is_file()
        named_inside = not pathlib.PurePath(name).is_absolute() and ".." not in pathlib.PurePath(name).parts
    except (OSError, RuntimeError, ValueError):  # too long a name, links in a circle, a null character
        path, inside, exists, named_inside = base / "?", True, False, True
    if not inside and not (follow_links and named_inside):
        mend = ("copy it there" if not named_inside else
                "a link leads there: copy what it names, or give --follow_links")
        return f"is outside of {folder}; expected a path inside: {mend}", path
    if not exists:
        return (f"not found in {folder}; expected an image: mend the name (it is relative to the folder) or drop the "
                "row"), path
    return "", path


def _split(table: Table, order: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the numbers of each part's rows, which come in this order of the table's; none: a fault was added."""
    if table.splits:
        parts = {s: np.array([i for i, number in enumerate(order) if table.splits[number] == s], int) for s in SPLITS}
        for part in (part for part, members in parts.items() if not len(members)):
            table.faults.add(f"has no row with split {part!r}; expected some of each of {', '.join(SPLITS)}: add some, "
                             "or drop the column 'split'")
        return parts if all(map(len, parts.values())) else {}
    if len(order) < SMALLEST_FOLDER:
        table.faults.add(f"has too few faces for three splits: {len(order)}; expected {SMALLEST_FOLDER} or more: add "
                         "some, or write a column 'split'")
        return {}
    shuffled = np.random.default_rng(0).permutation(len(order))
    tenth = len(order) // 10
    cuts = np.split(shuffled, [len(order) - 2 * tenth, len(order) - tenth])
    return {part: np.sort(cut) for part, cut in zip(SPLITS, cuts, strict=True)}


def _mention_unused(folder: pathlib.Path, rows: list[Row], table: Table) -> None:
    used = {row.path for row in rows}
    unused = sum(path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.resolve() not in used
                 for path in folder.rglob("*"))
    if unused:
        log.warning("%s: %d images are not in %s and are left out", folder, unused, table.path.name)
