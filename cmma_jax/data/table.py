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
import logging
import math
import pathlib
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from cmma_jax.data.images import one_line
from cmma_jax.errors import Faults, InputError, did_you_mean, split_names
from cmma_jax.models.spec import Kind

TABLE = "attributes.csv"
TABLES = (TABLE, "attributes.tsv", "attributes.txt", "metadata.csv", "metadata.jsonl", "list_attr_celeba.csv",
          "list_attr_celeba.txt")
PARTITIONS = ("list_eval_partition.csv", "list_eval_partition.txt")
FILE = ("file", "file_name", "filename", "image", "image_id", "path")
SPLIT = ("split", "partition", "subset")
LAYOUT = "its first two lines like 'file,Smiling,Eyeglasses' and 'anna.jpg,1,0'"
PARTS = {"train": "train", "training": "train", "0": "train", "validation": "validation", "val": "validation",
         "valid": "validation", "dev": "validation", "1": "validation", "test": "test", "testing": "test",
         "eval": "test", "2": "test"}
WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
LETTERS = {"t": 1.0, "f": 0.0}, {"y": 1.0, "n": 0.0}  # where a column has no others: f is a woman elsewhere
MISSING = {"", "?", "-", "--", ".", "\u2014", "na", "n/a", "n.a.", "<na>", "#na", "#n/a", "#n/a n/a", "nan", "-nan",
           "nat", "1.#qnan", "-1.#ind", "none", "nil", "null", "\\n", "unk", "unknown", "undefined", "missing"}
MOST_WORDS = 30  # in a column; more of them are names or texts
PAIRS = {0.0, 1.0}, {-1.0, 1.0}, {1.0, 2.0}  # absent and present
BELOW, ABOVE = {-1.0, -2.0, -8.0, -9.0, -99.0, -999.0, -9999.0}, {9.0, 99.0, 999.0, 9999.0}  # that stand for "unknown"
CODES = {*BELOW, *ABOVE, 7.0, 8.0, 77.0, 88.0, 97.0, 98.0, 255.0}  # beside 0 and 1, or 1 and 2

log = logging.getLogger(__name__)


class Reading(NamedTuple):
    """What a person says of a table that its values cannot tell.

    `unknown` has the numbers that stand for "unknown" in columns with two other values or more, or COLUMN=NUMBER, with
    commas between; "none" in a number's place: every number is a value; "" where nothing is said.
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
    faults: Faults  # what is wrong with it so far


class Column(NamedTuple):
    """An attribute; a categorical column has one for each word, named "race: Asian"."""

    name: str
    kind: Kind
    values: np.ndarray  # [N] float32, 0 where unknown
    known: np.ndarray  # [N] bool
    note: str = ""  # what a person should know of how it was read


def read_table(folder: pathlib.Path) -> Table:
    """Returns a folder's table, with the faults of its lines; raises InputError if there is none that can be read."""
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder / TABLE} not found; expected a CSV file of the images' attributes, {LAYOUT}: write "
                         f"it, or name another folder (other names that are read: {', '.join(TABLES[1:])})")
    header, rows = _read(path)
    header = ["" if re.fullmatch(r"Unnamed: \d+", name) else name for name in header]  # pandas' row numbers, read again
    names = [name.lower() for name in header]
    column = next((names.index(name) for name in FILE if name in names), None)
    if column is None:
        first = header[0] if header else ""
        near = next((name for name in header if "did you mean" in did_you_mean(name, FILE)), first)
        raise InputError(f"{path} has the column {near!r}{did_you_mean(near, FILE)}; expected 'file', with {LAYOUT}: "
                         "mend its header")
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
    for i in range(len(header)):
        values = [cells[i] for _, cells in whole]
        if not header[i] and any(values) and not all(value.isdigit() for value in values):
            faults.add("has a column without name that holds more than row numbers; expected a name: rename or drop it")
        elif not header[i] and any(values):
            log.warning("%s: a column of row numbers is left out", path)
    split = next((i for i, name in enumerate(names) if name in SPLIT), -1)
    splits = []
    for line, row in whole if split >= 0 else ():
        splits.append(PARTS.get(row[split].lower(), ""))
        if not splits[-1]:
            faults.add(f"line {line}: split {row[split]!r} is none of train, validation, test"
                       f"{did_you_mean(row[split], ('train', 'validation', 'test'))}: write one of them")
    attributes = {name: [row[i] for _, row in whole] for i, name in enumerate(header)
                  if name and i not in (column, split)}
    if not attributes:
        raise InputError(f"{path} has no attributes; expected a column for each, with {LAYOUT}: add one")
    files = [row[column] for _, row in whole]
    return Table(path, [line for line, _ in whole], files, splits or _partition(folder, files), attributes, faults)


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
    named = re.match(r"sep=(.)\s*$", lines[0]) if lines else None  # Excel's
    heading = re.sub(r'"[^"]*"', "", next((line for line in lines[bool(named):] if line.strip()), ""))
    separator = named[1] if named else max(",;\t|", key=heading.count)
    try:
        reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)][bool(named):]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not CSV ({one_line(error)}): check its quotation "
                         "marks") from error
    if separator != ",":  # as where 0,5 is a half
        rows = [(line, [re.sub(r"^([+-]?\d+),(\d+)$", r"\1.\2", cell) for cell in cells]) for line, cells in rows]
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


def parse_unknown(text: str) -> dict[str, set[float | None]]:
    """Returns {column: its marks of the unknown} of `Reading.unknown`, "" for all others; None: there is no mark.

    Raises ValueError if a part is neither a finite number nor none.
    """
    marks: dict[str, set[float | None]] = {}
    for part in split_names(text):
        column, _, mark = part.rpartition("=")
        number = None if mark.strip() == "none" else float(np.float32(mark))
        if number is not None and not math.isfinite(number):
            raise ValueError(mark)
        marks.setdefault(column.strip(), set()).add(number)
    return marks


def read_columns(table: Table, reading: Reading = AS_IT_IS) -> list[Column]:
    """Returns the attributes of a table, each column of the kind that its values say.

    Numbers 0 and 1, or -1 and 1, or 1 and 2, or 0 and another, or true/yes and false/no, are binary; other numbers are
    real; words, at most MOST_WORDS of them, are categories, of which each becomes a binary attribute. Empty cells and
    MISSING are unknown. A column that could be read in two ways, or in none, is a fault.
    """
    faults, unknown = table.faults, parse_unknown(reading.unknown)
    for flag, names in (("ignore", reading.ignore), ("unknown", unknown)):
        for name in filter(None, names):
            if name not in table.cells:
                faults.add(f"--{flag}={name}: no such column{did_you_mean(name, list(table.cells))}")
    columns = []
    for name, cells in table.cells.items():
        if name not in reading.ignore:
            columns += _read_column(table, name, cells, unknown)
    if not columns and not faults.found:
        faults.add("has no attributes but those that --ignore leaves out: leave out fewer")
    return columns


def _read_column(table: Table, name: str, cells: list[str], unknown: dict[str, set[float | None]]) -> list[Column]:
    faults, known_words = table.faults, {cell.lower() for cell in cells} - MISSING
    words = WORDS | next((pair for pair in LETTERS if known_words <= pair.keys()), {})
    numbers = [_number(cell, words) for cell in cells]
    said = [number is not None for number in numbers]
    present = [cell.lower() not in MISSING for cell in cells]
    others = Counter(cell for cell, number, there in zip(cells, numbers, present, strict=True)
                     if there and number is None)
    if others and (sum(said) <= sum(others.values()) or known_words <= {*map(str.lower, others), *words}):
        return _categories(name, cells, present, faults)
    for line, cell, number, there in zip(table.lines, cells, numbers, present, strict=True):
        if there and number is None:
            faults.add(f"line {line}, column {name!r}: {cell!r} is not a finite number; expected a number or "
                       "true/false: mend it, or leave the cell empty if the attribute is unknown")
    if others:
        return []
    if len(numbers) > 2 and numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1))):
        faults.add(f"column {name!r} counts the rows, which no attribute does; leave it out: --ignore={name}")
        return []
    values, known = np.array([number or 0 for number in numbers], np.float32), np.array(said, bool)
    found = set(values[known].tolist())
    marks, notes = found & unknown.get(name, unknown.get("", set())), []
    rest = found - marks
    if marks and (name in unknown or len(rest) > 1 and (rest in PAIRS or all(
            not min(rest) < mark < max(rest) for mark in marks))):
        known, found, notes = known & ~np.isin(values, list(marks)), rest, [f"{_listed(marks)} is unknown"]
    if name not in unknown and None not in unknown.get("", ()) and (asked := _possible_marks(found)):
        readings = ", or ".join(_reading(found, each) for each in asked)
        faults.add(f"column {name!r} has the values {_listed(found)}: is {_listed(set.union(*asked), ' or ')} "
                   f"'unknown' or a value? say {readings}, or --unknown=none if every number is a value (of this "
                   f"column alone: --unknown={name}=...)")
        return []
    kind: Kind = "real"
    if found <= {0.0, 1.0}:
        kind = "binary"
    elif found <= {-1.0, 1.0} or found == {1.0, 2.0} or len(found) == 2 and 0.0 in found:
        kind, high = "binary", max(found)
        notes.append(f"{high:g} is present, {min(found - {high}, default=-1):g} absent")
        values = (values == max(high, 1)).astype(np.float32)
    elif 2 < len(found) < 11 and found <= set(range(11)):
        notes.append("taken for numbers; write words in their place if they stand for kinds")
    return [Column(name, kind, np.where(known, values, 0).astype(np.float32), known, "; ".join(notes))]


def _possible_marks(found: set[float]) -> list[set[float]]:
    """Returns the sets of a column's numbers of which each may stand for "unknown", beside two others or more."""
    alone = [{mark} for mark in sorted(found) if found - {mark} in PAIRS]
    if alone:
        return alone
    codes = found & CODES - {1.0}
    rest = found - codes
    if codes and rest in PAIRS:
        return [codes]
    below = found & BELOW
    if below and len(found - below) > 1 and 0 <= min(found - below):
        return [below]
    highest, *others = sorted(found, reverse=True) or [0]
    if highest in ABOVE and len(others) > 1 and highest - others[0] > 1 and all(each % 1 == 0 for each in others):
        return [{highest}]
    return []


def _reading(found: set[float], marks: set[float]) -> str:
    """Returns the flag by which some numbers are "unknown", and what the two that are left then mean."""
    flag, rest = f"--unknown={_listed(marks, ',')}", found - marks
    return flag + (f" ({min(rest):g} is absent, {max(rest):g} present)" if rest in PAIRS else "")


def _categories(name: str, cells: list[str], present: list[bool], faults: Faults) -> list[Column]:
    known = np.array(present, bool)
    plain = [cell.casefold() if there else "" for cell, there in zip(cells, present, strict=True)]
    spelt = {word.casefold(): word for word, _ in reversed(Counter(cells).most_common())}  # the most usual one
    kinds = sorted(set(plain) - {""}, key=spelt.__getitem__)
    if len(kinds) > MOST_WORDS or len(kinds) > max(2, known.sum() // 2):
        faults.add(f"column {name!r} holds {len(kinds)} different words, such as {spelt[kinds[0]]!r}: more than "
                   f"categories do; leave it out: --ignore={name}")
        return []
    marks = sorted({cell for cell, there in zip(cells, present, strict=True) if not there and cell})
    note = f"one of {len(kinds)} words" + (f" ({', '.join(map(repr, marks))} is unknown)" if marks else "")
    return [Column(f"{name}: {spelt[kind]}", "binary", np.array([each == kind for each in plain], np.float32), known,
                   note) for kind in kinds]


def _number(cell: str, words: dict[str, float]) -> float | None:
    text = cell.lower()
    if text in MISSING or "_" in text:  # 20_29 would be 2029
        return None
    try:
        value = words[text] if text in words else float(text.removesuffix("%"))
    except ValueError:
        return None
    return value if abs(value) <= float(np.finfo(np.float32).max) else None


def _listed(values: set[float], between: str = ", ") -> str:
    some = [f"{value:g}" for value in sorted(values)]
    return between.join(some if len(some) < 7 else [*some[:3], "...", some[-1]])
