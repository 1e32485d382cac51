"""Files written whole or not at all, files of what a long computation has done, and folders that can be written to."""

import contextlib
import json
import pathlib
import tempfile
from typing import Any

from cmma_jax.errors import InputError


def write_whole(path: pathlib.Path, content: bytes, flag: str = "out") -> None:
    """Writes a file whole or not at all; raises InputError, which names the flag, if it cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); give another --{flag}") from error


def read_lines(path: pathlib.Path | None) -> dict[int, Any]:
    """Returns {number: value} of a file of JSON lines [number, value]; what is cut short or damaged goes from it."""
    done: dict[int, Any] = {}
    if path and path.exists():
        for line in path.read_text(errors="replace").splitlines(keepends=True):
            with contextlib.suppress(ValueError, TypeError, OverflowError, RecursionError):
                number, value = json.loads(line if line.endswith("\n") else "")
                done[int(number)] = value
        path.write_text("".join(json.dumps([number, value]) + "\n" for number, value in done.items()))
    return done


def add_lines(path: pathlib.Path | None, values: dict[int, Any]) -> None:
    """Appends values to a file that `read_lines` reads; without a path, nothing."""
    if path:
        with path.open("a") as file:
            file.writelines(json.dumps([number, value]) + "\n" for number, value in values.items())


def make_folder(folder: pathlib.Path, what: str, flag: str) -> None:
    """Makes a folder and sees that it can be written to; raises InputError, which names it and the flag, if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # of a name of its own: several processes look at once
            pass
    except OSError as error:
        raise InputError(f"cannot write to {what} {folder} ({error.strerror}); give another --{flag}") from error
