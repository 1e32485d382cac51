"""Faults that a person can mend, told in one line."""

import difflib


class InputError(ValueError):
    """Bad input: its message is one line, whatever it quotes, that names the thing, what was expected, and the mend.

    The command line prints the line and exits with code 2; a library caller may catch it.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


class Interrupted(Exception):
    """A signal was obeyed; the message says where the program can go on."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


def did_you_mean(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Returns "; did you mean 'Mustache'?" for a misspelt name, or what names there are."""
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in known], 1)
    if close:
        return f"; did you mean {next(k for k in known if k.lower() == close[0])!r}?"
    return f"; known: {', '.join(known)}"
