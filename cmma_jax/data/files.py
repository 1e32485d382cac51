"""Files written whole or not at all, files of what a long computation has done, and folders that can be written to."""

import contextlib
import json
import logging
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

from cmma_jax.errors import InputError

log = logging.getLogger(__name__)


def write_whole(path: pathlib.Path, content: bytes, flag: str = "out") -> None:
    """Writes a file whole or not at all, its folder too; raises InputError, which names the flag, if it cannot."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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


@contextlib.contextmanager
def held(folder: pathlib.Path, flag: str) -> Iterator[None]:
    """Holds a folder for this process alone, until it leaves or ends in whatever way, `kill -9` included.

    The lock is the operating system's, on the file `lock`, which names who has it and stays behind; a disk that knows
    no locks gives none, which is said, as does a system without them.

    Raises:
      InputError: another process holds the folder.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(folder / "lock", "a+", encoding="utf-8"))
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(f"{folder} is in use by {file.read().strip() or 'another process'}; wait for it, stop it, "
                             f"or give another --{flag}") from error
        except OSError as error:
            log.warning("%s is on a disk that gives no locks (%s): see to it that one process at a time has it", folder,
                        error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def make_folder(folder: pathlib.Path, what: str, flag: str) -> None:
    """Makes a folder and sees that it can be written to; raises InputError, which names it and the flag, if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # of a name of its own: several processes look at once
            pass
    except OSError as error:
        raise InputError(f"cannot write to {what} {folder} ({error.strerror}); give another --{flag}") from error
