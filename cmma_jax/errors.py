"""Faults that a person can mend, told in one line."""

import csv
import difflib


class InputError(ValueError):
    """Bad input: its message is one line, whatever it quotes, that names the thing, what was expected, and the mend.

    The command line prints the line and exits with code 2; a library caller may catch it.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


class Faults:
    """Collects what is wrong with a thing, so that all of it is told at once."""

    MOST = 20

    def __init__(self, where: str):
        self.where, self.found = where, list[str]()

    def add(self, fault: str) -> None:
        """Adds a fault; "line 3: ..." follows the thing's name after a comma."""
        self.found.append(fault)

    def tell(self) -> None:
        """Raises InputError if there is a fault: of one its line, of several their number and the first MOST."""
        if len(self.found) == 1:
            (fault,) = self.found
            comma = "," if fault.startswith("line ") else ":" if not fault.startswith("has ") else ""
            raise InputError(f"{self.where}{comma} {fault}")
        if self.found:
            listed = " ".join(f"({i}) {fault}" for i, fault in enumerate(self.found[:self.MOST], 1))
            more = f" ... and {len(self.found) - self.MOST} more" if len(self.found) > self.MOST else ""
            raise InputError(f"{self.where} has {len(self.found)} faults: {listed}{more}")


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


def split_names(text: str) -> list[str]:
    """Returns the parts of a list with commas between, as on a command line; one with a comma stands in quotes:
    '"Hair, dark",Hat'.
    """
    try:
        (parts,) = csv.reader([text], skipinitialspace=True) if text.strip() else ([],)
    except (csv.Error, ValueError):  # no list as tables have them
        parts = text.split(",")
    return [part.strip() for part in parts if part.strip()]
