"""Command lines: a dataclass's fields are the flags, and an error is one line."""

import contextlib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tyro

from cmma_jax.errors import InputError, Interrupted

GRACE_SECONDS = 9  # from a signal to the end of the program, whatever it is in the middle of


def parse(kind: type, argv: list[str], program: str, description: str, **options) -> Any:
    """Returns a dataclass's value as a command line gives it; options are tyro's.

    Raises InputError, one line, for an unknown flag or a bad value, with what was meant.
    """
    said = io.StringIO()
    argv = [_at_home(word) for word in argv]
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=argv, prog=program, description=description, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        words = re.sub(r"[─-╿]", " ", said.getvalue()).split("For full helptext")[0]
        raise InputError(" ".join(words.split()) + f" ({program} --help lists every flag)") from None


def _at_home(word: str) -> str:
    """Returns --flag=~/path, or ~/path, with the home folder in the tilde's place, where shells leave it."""
    flag, equals, value = word.partition("=")
    return flag + equals + os.path.expanduser(value) if word.startswith("--") else os.path.expanduser(word)


def run(program: str, action: Callable[[], None], interrupted: str) -> int:
    """Returns a program's exit code.

    0; 2 for bad input, or a file that cannot be read or written, told in one line; 128 and a signal's number for that
    signal: 130 for an interrupt, 143 for SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # where they are ASCII, as with LC_ALL=C, a bar's ends are "?"
            stream.reconfigure(errors="replace")
    try:
        action()
    except InputError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{program}: error: {error.filename or 'a file'}: {error.strerror or error}; mend that, and give the "
              "same command again", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"\n{program}: {(signal.strsignal(stop.number) or 'stopped').lower()}; {stop}", file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; {interrupted}", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def signals_noted() -> Iterator[Callable[[], int]]:
    """Notes SIGTERM and SIGINT instead of obeying them, for a program that first saves what it has.

    A second signal of the same kind is obeyed at once. GRACE_SECONDS after the first one the program is ended with
    its exit code, from a thread: in the middle of a long computation Python runs no handler.

    Yields:
      asked(): the number of the signal that came, 0 as long as none did.
    """
    came, done = [], threading.Event()
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def note(number: int, _: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])

    def watch() -> None:
        while number := os.read(reader, 1):  # nothing: it was closed
            if number[0] in before and not done.wait(GRACE_SECONDS):
                os.write(2, b"\nended in the middle of a long computation; what was saved before it stands\n")
                os._exit(128 + number[0])

    for number in before:
        signal.signal(number, note)
    woken = signal.set_wakeup_fd(writer)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: came[0] if came else 0
    finally:
        done.set()
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        watcher.join()
        os.close(reader)
