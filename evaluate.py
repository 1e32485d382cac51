#!/usr/bin/env python3
"""Evaluate a finished run: `python evaluate.py --run=runs/cmma-lfw --split=test`."""

import dataclasses
import pathlib
import sys
from typing import Literal

import jax
import tyro

from cmma_jax import figures, parallel
from cmma_jax.checkpoint import open_checkpoints
from cmma_jax.data import load_dataset
from cmma_jax.errors import InputError
from cmma_jax.evaluation.bounds import bits_per_dimension, dequantised_pixels, variational_bound
from cmma_jax.models import make_model


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The variational bound of a run's best checkpoint, on one part of its data, with its standard error."""

    run: str = "runs/cmma-synthetic"
    """The run's folder."""
    split: Literal["train", "validation", "test"] = "validation"
    """Which faces; the best checkpoint was chosen on validation."""
    data_dir: str = ""
    """Folder of the data set's files; empty: where the run found them."""
    picture: str = ""
    """Also write a PNG of these faces: originals; reconstructions with and without their attributes; faces at the
    prior's mean for the attributes; random samples for them."""


def evaluate(arguments: Arguments) -> None:
    """Prints the bound, its parts and bits/dim of the best checkpoint."""
    parallel.enable_compilation_cache()
    folder = pathlib.Path(arguments.run) / "checkpoints"
    if not folder.is_dir():
        raise InputError(f"no run in {arguments.run}; give --run=FOLDER, or train one: python train.py")
    with open_checkpoints(folder) as checkpoints:
        best = checkpoints.best_step()
        config, spec, _ = checkpoints.facts(best)
        data = load_dataset(config.dataset, arguments.data_dir or config.data_dir, kind=config.attributes,
                            image_size=config.image_size)
        if data.spec.to_json() != spec.to_json():
            raise InputError(f"the run in {arguments.run} was trained on other data; give its --data_dir")
        model = make_model(config, spec)
        params = checkpoints.restore_params(jax.eval_shape(model.init, jax.random.key(0)), best)
    faces = getattr(data, arguments.split)
    if arguments.picture:
        figures.save_picture(figures.progress(model, params, faces), pathlib.Path(arguments.picture))
    exact = variational_bound(model, params, faces)
    smooth = variational_bound(model, params, faces, as_pixels=dequantised_pixels)
    print(f"{config.model} on {spec.dataset}, {arguments.split}, {faces.size:,} faces, step {best}, 1 sample of z\n"
          f"bound           {exact['bound']:,.0f} +- {exact['bound_stderr']:,.0f} nats a face, pixels in [0, 1]\n"
          f"reconstruction  {exact['reconstruction']:,.0f}\n"
          f"KL              {exact['kl']:,.0f}, {exact['active_latents']} of {config.latent_size} latents active\n"
          f"log q(y|z)      {exact['attributes']:,.1f} at posterior samples, {exact['attributes_prior']:,.1f} at prior "
          f"samples; in no bound\n"
          f"bits/dim        {bits_per_dimension(smooth['bound'], spec.dimensions):.3f} (uniform dequantisation)")


def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit code: 2 for bad input."""
    try:
        evaluate(tyro.cli(Arguments, args=argv))
    except InputError as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
