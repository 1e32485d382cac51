"""Command lines: a dataclass's fields are the flags, and an error is one line."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from typing import Any

import tyro

from cmma_jax.errors import InputError


def parse(kind: type, argv: list[str], program: str, description: str, **options) -> Any:
    """Returns a dataclass's value as a command line gives it; options are tyro's.

    Raises:
      InputError: one line for an unknown flag or a bad value, with what was meant.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=argv, prog=program, description=description, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        words = re.sub(r"[─-╿]", " ", said.getvalue()).split("For full helptext")[0]
        raise InputError(" ".join(words.split()) + f" ({program} --help lists every flag)") from None


def run(program: str, action: Callable[[], None], interrupted: str) -> int:
    """Returns a program's exit code: 0, 2 for bad input, which is told in one line, 130 for an interrupt."""
    try:
        action()
    except InputError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; {interrupted}", file=sys.stderr)
        return 130
    return 0
