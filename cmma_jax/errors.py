"""The one kind of error that a person can mend."""


class InputError(ValueError):
    """Bad input: its message is one line that names the thing, what was expected, and the mend.

    The command line prints the line and exits with code 2; a library caller may catch it.
    """
