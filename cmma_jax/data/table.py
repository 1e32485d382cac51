"""Tables of labels as people have them: the separator, the column that names the image, and what each column holds.

    file,Smiling,Age,race,split
    anna.jpg,1,31,Asian,train
    more/bert.png,,54,,test

is a folder's `attributes.csv`. Separators may be commas, semicolons or tabs; `metadata.csv` and `metadata.jsonl` of the
Hugging Face hub's imagefolder (`file_name`), and CelebA's own `list_attr_celeba.txt` or Kaggle's .csv, beside
`list_eval_partition`, are read as they are.
"""

import csv
import io
import json
import pathlib
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from cmma_jax.data.images import one_line
from cmma_jax.errors import Faults, InputError, did_you_mean
from cmma_jax.models.spec import Kind

TABLE = "attributes.csv"
TABLES = (TABLE, "attributes.tsv", "attributes.txt", "metadata.csv", "metadata.jsonl", "list_attr_celeba.csv",
          "list_attr_celeba.txt")
PARTITIONS = ("list_eval_partition.csv", "list_eval_partition.txt")
FILE, SPLIT = ("file", "file_name", "filename", "image", "image_id", "path"), ("split", "partition")
LAYOUT = "its first two lines like 'file,Smiling,Eyeglasses' and 'anna.jpg,1,0'"
PARTS = {"train": "train", "training": "train", "0": "train", "validation": "validation", "val": "validation",
         "valid": "validation", "dev": "validation", "1": "validation", "test": "test", "testing": "test",
         "eval": "test", "2": "test"}
WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
MISSING = {"", "?", "-", "na", "n/a", "<na>", "nan", "none", "null", "unknown", "undefined"}
MOST_WORDS = 30  # in a column; more of them are names or texts
CODES = {-1.0, -9.0, -99.0, -999.0, 9.0, 99.0, 999.0}  # that people write for "unknown" among numbers


class Reading(NamedTuple):
    """What a person says of a table that its values cannot tell.

    `unknown` is the number that stands for "unknown" in columns with two other values or more, or "none": every number
    is a value; "" where nothing is said.
    """

    ignore: tuple[str, ...] = ()  # columns that are no attributes
    unknown: str = ""
    follow_links: bool = False  # whether images may be links that lead out of the folder


AS_IT_IS = Reading()


class Table(NamedTuple):
    """A table as it was read, every cell as text."""

    path: pathlib.Path
    lines: list[int]  # [N] the rows' line numbers
    files: list[str]  # [N] images
    splits: list[str]  # [N] "train", "validation" or "test"; empty where the table has no such column
    cells: dict[str, list[str]]  # {column: [N]}


class Column(NamedTuple):
    """An attribute; a categorical column has one for each word, named "race: Asian"."""

    name: str
    kind: Kind
    values: np.ndarray  # [N] float32, 0 where unknown
    known: np.ndarray  # [N] bool
    note: str = ""  # what a person should know of how it was read


def read_table(folder: pathlib.Path) -> Table:
    """Returns a folder's table; raises InputError, with all faults at once, if there is none that can be read."""
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder / TABLE} not found; expected a CSV file of the images' attributes, {LAYOUT}: write "
                         f"it, or name another folder (other names that are read: {', '.join(TABLES[1:])})")
    header, rows = _read(path)
    names = [name.lower() for name in header]
    column = next((names.index(name) for name in FILE if name in names), None)
    if column is None:
        hint = did_you_mean(header[0] if header else "", FILE) or ""
        raise InputError(f"{path} starts with the column {header[0] if header else ''!r}{hint}; expected 'file', with "
                         f"{LAYOUT}: mend its header")
    faults = Faults(f"{path}")
    for name, count in Counter(filter(None, header)).items():
        if count > 1:
            faults.add(f"has the column {name!r} {count} times; expected different names: rename or drop a column")
    whole = []
    for line, cells in rows:
        while len(cells) > len(header) and not cells[-1]:
            cells = cells[:-1]  # a comma at the end
        if len(cells) != len(header):
            faults.add(f"line {line} has {len(cells)} columns; expected {len(header)} as in its header: mend the line "
                       "(an unknown attribute is an empty cell)")
        else:
            whole.append((line, cells))
    faults.tell()
    for i in range(len(header)):
        values = [cells[i] for _, cells in whole]
        if not header[i] and any(values) and not all(value.isdigit() for value in values):
            faults.add("has a column without name that holds more than row numbers; expected a name: rename or drop it")
    split = next((i for i, name in enumerate(names) if name in SPLIT), -1)
    splits = []
    for line, row in whole if split >= 0 else ():
        splits.append(PARTS.get(row[split].lower(), ""))
        if not splits[-1]:
            faults.add(f"line {line}: split {row[split]!r} is none of train, validation, test"
                       f"{did_you_mean(row[split], ('train', 'validation', 'test'))}: write one of them")
    faults.tell()
    attributes = {name: [row[i] for _, row in whole] for i, name in enumerate(header)
                  if name and i not in (column, split)}
    if not attributes:
        raise InputError(f"{path} has no attributes; expected a column for each, with {LAYOUT}: add one")
    files = [row[column] for _, row in whole]
    return Table(path, [line for line, _ in whole], files, splits or _partition(folder, files), attributes)


def _read(path: pathlib.Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Returns a file's header, and its rows with their line numbers; blank ones are left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({one_line(error)}): save it as 'CSV UTF-8'") from error
    if path.suffix == ".jsonl":
        return _read_json(path, text)
    lines = text.splitlines()
    if lines and lines[0].strip().isdigit() and len(lines) > 1:  # CelebA's own: a count, then names without the file's
        header = ["file", *lines[1].split()]
        return header, [(i, line.split()) for i, line in enumerate(lines[2:], 3) if line.strip()]
    separators = sorted(",;\t", key=lambda each: -(lines[0] if lines else "").count(each))
    try:
        reader = csv.reader(io.StringIO(text), delimiter=separators[0], strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not CSV ({one_line(error)}): check its quotation "
                         "marks") from error
    return (rows[0][1], rows[1:]) if rows else ([], [])


def _read_json(path: pathlib.Path, text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    header: dict[str, None] = {}
    records = []
    for line, words in enumerate(text.splitlines(), 1):
        if not words.strip():
            continue
        try:
            record = json.loads(words)
            header |= dict.fromkeys(record)
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{path}, line {line} is no JSON object: mend the line") from error
        records.append((line, record))
    return list(header), [(line, ["" if record.get(name) is None else str(record[name]).strip() for name in header])
                          for line, record in records]


def _partition(folder: pathlib.Path, files: list[str]) -> list[str]:
    """Returns the rows' parts as CelebA's own list has them, beside its attributes; empty: there is none."""
    path = next((folder / name for name in PARTITIONS if (folder / name).is_file()), None)
    if path is None:
        return []
    pairs = [re.split(r"[,\s]+", line.strip()) for line in path.read_text(errors="replace").splitlines()]
    parts = {pair[0]: PARTS.get(pair[1], "") for pair in pairs if len(pair) == 2}
    lost = [file for file in files if not parts.get(file)]
    if lost:
        raise InputError(f"{path} has no part, 0, 1 or 2, of {len(lost)} images, such as {lost[0]!r}: mend or remove "
                         "it")
    return [parts[file] for file in files]


def read_columns(table: Table, reading: Reading = AS_IT_IS) -> list[Column]:
    """Returns the attributes of a table, each column of the kind that its values say.

    Numbers 0 and 1, or -1 and 1, or 1 and 2, or true/yes and false/no, are binary; other numbers are real; words, at
    most MOST_WORDS of them, are categories, of which each becomes a binary attribute. Empty cells and MISSING are
    unknown.

    Raises:
      InputError: a column could be read in two ways, or in none; all of them are named.
    """
    faults = Faults(f"{table.path}")
    for name in reading.ignore:
        if name not in table.cells:
            faults.add(f"--ignore={name}: no such column{did_you_mean(name, list(table.cells))}")
    faults.tell()
    columns = []
    for name, cells in table.cells.items():
        if name not in reading.ignore:
            columns += _read_column(table, name, cells, reading, faults)
    faults.tell()
    if not columns:
        raise InputError(f"{table.path} has no attributes but those that --ignore leaves out: leave out fewer")
    return columns


def _read_column(table: Table, name: str, cells: list[str], reading: Reading, faults: Faults) -> list[Column]:
    numbers = [_number(cell) for cell in cells]
    said = [number is not None for number in numbers]
    present = [cell.lower() not in MISSING for cell in cells]
    words = Counter(cell for cell, number, there in zip(cells, numbers, present, strict=True)
                    if there and number is None)
    if words and sum(said) <= sum(words.values()):
        return _categories(name, cells, present, words, faults)
    for line, cell, number, there in zip(table.lines, cells, numbers, present, strict=True):
        if there and number is None:
            faults.add(f"line {line}, column {name!r}: {cell!r} is not a finite number; expected a number or "
                       "true/false: mend it, or leave the cell empty if the attribute is unknown")
    if words:
        return []
    values, known = np.array([number or 0 for number in numbers], np.float32), np.array(said, bool)
    found = set(values[known].tolist())
    if reading.unknown not in ("", "none") and len(rest := found - {float(np.float32(reading.unknown))}) > 1:
        known, found = known & (values != np.float32(reading.unknown)), rest
    codes = found & CODES - {1.0}
    rest = found - codes
    # A mark of the unknown lies outside of the other numbers, which are 0 and 1 or many.
    if not reading.unknown and len(codes) == 1 and len(rest) > 1 and (
            rest <= {0.0, 1.0, 2.0} or min(codes) < 0 <= min(rest)):
        code = f"{codes.pop():g}"
        other = f", or --unknown=0 if {code} is 'absent'" if rest == {0.0, 1.0} and code == "-1" else ""
        faults.add(f"column {name!r} has the values {_listed(found)}: is {code} 'unknown' or a value? say "
                   f"--unknown={code}{other}, or --unknown=none if every number is a value")
        return []
    note = ""
    kind: Kind = "real"
    if found <= {0.0, 1.0} or found <= {-1.0, 1.0}:
        kind = "binary"
        values, note = np.maximum(values, 0), "1 is present, -1 absent" if -1.0 in found else ""
    elif found == {1.0, 2.0}:
        kind, note, values = "binary", "2 is present, 1 absent", values - 1
    return [Column(name, kind, np.where(known, values, 0).astype(np.float32), known, note)]


def _categories(name: str, cells: list[str], present: list[bool], words: Counter, faults: Faults) -> list[Column]:
    known = np.array(present, bool)
    kinds = sorted({cell for cell, there in zip(cells, present, strict=True) if there})
    if len(kinds) > MOST_WORDS or len(kinds) > max(2, known.sum() // 2):
        faults.add(f"column {name!r} holds {len(kinds)} different words, such as {kinds[0]!r}: more than categories "
                   f"do; leave it out: --ignore={name}")
        return []
    note = f"one of {len(kinds)} words"
    return [Column(f"{name}: {kind}", "binary", np.array([cell == kind for cell in cells], np.float32) * known, known,
                   note) for kind in kinds]


def _number(cell: str) -> float | None:
    text = cell.lower()
    if text in MISSING:
        return None
    try:
        value = WORDS[text] if text in WORDS else float(text)
    except ValueError:
        return None
    return value if abs(value) <= float(np.finfo(np.float32).max) else None


def _listed(values: set[float]) -> str:
    some = [f"{value:g}" for value in sorted(values)]
    return ", ".join(some if len(some) < 7 else [*some[:3], "...", some[-1]])
