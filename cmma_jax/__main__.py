"""`python -m cmma_jax COMMAND`: what can be done with finished runs; each command's --help lists its flags."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

from cmma_jax import command_line, commands, paper_figures, parallel, web

COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "generate": (commands.Generate, commands.generate), "edit": (commands.Edit, commands.edit),
    "infer": (commands.Infer, commands.infer), "morph": (commands.Morph, commands.morph),
    "sweep": (commands.Sweep, commands.sweep), "export": (commands.Export, commands.export),
    "compact": (commands.Compact, commands.compact), "figures": (paper_figures.Figures, paper_figures.draw),
    "web": (web.Web, web.serve),
}


def main(argv: list[str]) -> int:
    """Runs a command; returns its exit code: 2 for bad input."""
    if not argv or argv[0] not in COMMANDS:
        asked = bool(argv) and argv[0] in ("--help", "-h")
        lines = [f"  {name:9} {(inspect.getdoc(kind) or name).splitlines()[0]}" for name, (kind, _) in COMMANDS.items()]
        print("\n".join([f"usage: python -m cmma_jax {{{','.join(COMMANDS)}}} [--help]", *lines]),
              file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    arguments, action = COMMANDS[argv[0]]
    program = f"python -m cmma_jax {argv[0]}"

    def act() -> None:
        parsed = command_line.parse(arguments, argv[1:], program, inspect.getdoc(arguments) or "")
        parallel.enable_compilation_cache()
        action(parsed)

    return command_line.run(program, act, "nothing was written")


def program() -> None:
    """Runs the command line and ends the process; the console command `cmma`."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    program()
