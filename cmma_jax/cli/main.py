"""`python -m cmma_jax COMMAND`, or `cmma COMMAND`: each command's --help lists its flags."""

import importlib
import inspect
import sys
from typing import Any, NoReturn

from cmma_jax import web
from cmma_jax.cli import command_line, commands, figures
from cmma_jax.training import parallel

# Modules with main(argv, program), imported when they are called, and what stands of them in the list of commands.
PROGRAMS = {
    "train": "Train a model that makes faces from attributes.",
    "evaluate": "Compare finished runs on faces that they were not trained on.",
    "classifier": "Train the attribute classifier by which evaluate measures generated faces.",
}
# A class each: its fields are the flags, and `act` is what it does.
COMMANDS: dict[str, type] = {
    "generate": commands.Generate, "edit": commands.Edit, "infer": commands.Infer, "morph": commands.Morph,
    "sweep": commands.Sweep, "export": commands.Export, "compact": commands.Compact, "push": commands.Push,
    "figures": figures.Figures, "web": web.Web,
}


def main(argv: list[str]) -> int:
    """Runs a command; returns its exit code: 2 for bad input."""
    name, rest = (argv[0], argv[1:]) if argv else ("", [])
    if name in PROGRAMS:
        return _module(name).main(rest, _program(name))
    if name not in COMMANDS:
        asked = name in ("--help", "-h")
        said = PROGRAMS | {each: (inspect.getdoc(kind) or each).splitlines()[0] for each, kind in COMMANDS.items()}
        lines = [f"  {each:10} {what}" for each, what in said.items()]
        print("\n".join([f"usage: python -m cmma_jax {{{','.join(said)}}} [--help]", *lines]),
              file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2

    def act() -> None:
        command = command_line.parse(COMMANDS[name], rest, _program(name), inspect.getdoc(COMMANDS[name]) or "")
        parallel.prepare()
        command.act()

    return command_line.run(_program(name), act, "nothing was written")


def program() -> NoReturn:
    """Runs the command line and ends the process; the console command `cmma`."""
    if sys.argv[1:2] == ["train"]:
        _module("train").program(sys.argv[2:], _program("train"))
    sys.exit(main(sys.argv[1:]))


def _module(name: str) -> Any:
    return importlib.import_module(f"cmma_jax.cli.{name}")


def _program(name: str) -> str:
    return f"python -m cmma_jax {name}"
