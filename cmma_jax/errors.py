"""The one kind of error that a person can mend."""


class InputError(ValueError):
    """Bad input: its message is one line, whatever it quotes, that names the thing, what was expected, and the mend.

    The command line prints the line and exits with code 2; a library caller may catch it.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))
