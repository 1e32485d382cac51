"""Files written whole or not at all, and folders that can be written to."""

import pathlib
import tempfile

from cmma_jax.errors import InputError


def write_whole(path: pathlib.Path, content: bytes, flag: str = "out") -> None:
    """Writes a file whole or not at all; raises InputError, which names the flag, if it cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); give another --{flag}") from error


def make_folder(folder: pathlib.Path, what: str, flag: str) -> None:
    """Makes a folder and sees that it can be written to; raises InputError, which names it and the flag, if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # of a name of its own: several processes look at once
            pass
    except OSError as error:
        raise InputError(f"cannot write to {what} {folder} ({error.strerror}); give another --{flag}") from error
