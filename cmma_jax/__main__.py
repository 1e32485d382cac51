"""`python -m cmma_jax figures --figure=4`: the paper's figures from finished runs."""

import dataclasses
import inspect
import pathlib
import sys
from typing import Literal

from cmma_jax import command_line, plots
from cmma_jax.data import load_dataset
from cmma_jax.errors import InputError
from cmma_jax.runs import load_run


@dataclasses.dataclass(frozen=True)
class Figures:
    """Draw a figure of the paper.

    Figure 4 sets the latent plane of a CMMA beside that of a VAE. It needs a finished run of each with two latents:

      python train.py --model=cmma --preset=paper --latent_size=2 --run_dir=runs/cmma-plane
      python train.py --model=vae --preset=paper --latent_size=2 --run_dir=runs/vae-plane
    """

    figure: Literal["4"]
    """Its number in the paper."""
    cmma: str = "runs/cmma-plane"
    """The CMMA's run, with two latents."""
    vae: str = "runs/vae-plane"
    """The VAE's run, with two latents."""
    data_dir: str = ""
    """Folder of the data set's files; empty: where the runs found them."""
    limit: int = 1000
    """Validation faces whose posteriors are drawn."""
    out: str = "figure4.png"
    """The PNG to write."""


def draw(arguments: Figures) -> None:
    """Draws Figure 4 and prints the average posterior deviations that the paper gives with it."""
    runs = [load_run(path) for path in (arguments.cmma, arguments.vae)]
    for run in runs:
        if run.config.latent_size != 2:
            raise InputError(f"the run in {run.path} has {run.config.latent_size} latents; Figure 4 needs "
                             "--latent_size=2")
    config = runs[0].config
    data = load_dataset(config.dataset, arguments.data_dir or config.data_dir, kind=config.attributes,
                        image_size=config.image_size)
    deviations = plots.latent_planes([(run.system, run.model, run.params) for run in runs], data, arguments.limit,
                                     pathlib.Path(arguments.out))
    for run, deviation in zip(runs, deviations, strict=True):
        print(f"{run.system}: average standard deviation of the posterior {deviation:.4f}")
    print("the paper: .04 (CMMA) and .036 (VAE)\n" + arguments.out)


COMMANDS = {"figures": (Figures, draw)}


def main(argv: list[str]) -> int:
    """Runs a command; returns its exit code: 2 for bad input."""
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python -m cmma_jax {{{','.join(COMMANDS)}}} [--help]", file=sys.stderr)
        return 2
    arguments, action = COMMANDS[argv[0]]
    program = f"python -m cmma_jax {argv[0]}"
    return command_line.run(
        program, lambda: action(command_line.parse(arguments, argv[1:], program, inspect.getdoc(arguments))),
        "nothing was written")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
