"""Train a model: `python train.py --model=cmma`. `--help` lists every flag."""

import contextlib
import dataclasses
import os
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any, NoReturn, cast

import jax
import numpy as np
from tqdm import tqdm

from cmma_jax.cli import command_line
from cmma_jax.data import load_dataset
from cmma_jax.data.dataset import Dataset, Faces, spread
from cmma_jax.data.files import held, make_folder
from cmma_jax.errors import InputError, did_you_mean
from cmma_jax.evaluation.diversity import diversity, generated_faces
from cmma_jax.evaluation.parzen import SIGMAS, model_sampler, parzen_log_likelihood
from cmma_jax.models.architecture import latent_shape
from cmma_jax.models.model import MODELS, Model, Params
from cmma_jax.models.networks import GROUP
from cmma_jax.sampling import pictures
from cmma_jax.training import parallel
from cmma_jax.training.bounds import dequantised_bits, flow_matching, variational_bound
from cmma_jax.training.config import DETAIL, FIRST, FLOW, PRESETS, Config, ModelName
from cmma_jax.training.runs import Run, load_run
from cmma_jax.training.stages import Watcher, train_run

HELP = """Train a model that makes faces from attributes, and write its run to --run_dir.

  python train.py --model=cmma                                     the embedded faces: minutes on 2 cores
  python train.py --model=cmma --dataset=lfw --data_dir=DIR        Labeled Faces in the Wild
  python train.py --model=cmma --dataset=lfw --data_dir=DIR --preset=paper
  python train.py --model=cvae --seeds=0,1,2                       (also vae, cgan) what CMMA is compared with
  python train.py --model=cgan --preset=gauthier

There are three stages: f, g, h and h2 by the variational bound (--epochs); on their latents the detail, which gives
p(x|z) group of pixels by group (--detail_epochs), left out by --detail_width=0; and the flow, p(z|y) (--flow_epochs),
left out by --prior=gaussian. Running the same command again goes on where the run stopped. A run holds checkpoints/,
detail/ and flow/, config.json, metrics.jsonl (a line an epoch), grids/*.png (originals; reconstructions with and
without their attributes; random samples for them) and tensorboard/."""

PROGRAM = "train.py"  # as the errors name it, unless it was started as a command of the package
GAN_FACES, GAN_SAMPLES = 100, 50  # of an epoch's Parzen estimate, a few seconds on 2 cores
FLOW_FACES = 100  # on which a finished flow's bound is told: each takes some hundred passes of the transformer


def parse(argv: list[str], program: str = PROGRAM) -> Config:
    """Returns the settings of a command line, as `command_line.parse`; preset and data set say where they start."""
    preset, model = _peek(argv, "preset", Config.preset), _peek(argv, "model", Config.model)
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}{did_you_mean(preset, list(PRESETS))}")
    if model not in MODELS:
        raise InputError(f"unknown model {model!r}{did_you_mean(model, list(MODELS))}")
    start = PRESETS[preset](cast(ModelName, model), _peek(argv, "dataset", Config.dataset))
    if _peek(argv, "latent_size", "0") != "0":  # a vector, over which there is no flow
        start = dataclasses.replace(start, prior="gaussian")
    if _peek(argv, "likelihood", start.likelihood) != "gaussian":  # around which the detail is
        start = dataclasses.replace(start, detail_width=0)
    return command_line.parse(Config, argv, program, HELP, default=start)


def _peek(argv: list[str], flag: str, otherwise: str) -> str:
    for i, word in enumerate(argv):
        if word.startswith(f"--{flag}="):
            return word.split("=", 1)[1]
        if word == f"--{flag}" and i + 1 < len(argv):
            return argv[i + 1]
    return otherwise


def train(config: Config, program: str = PROGRAM, log: Callable[[int, dict[str, float]], Any] | None = None,
          data: Dataset | None = None) -> None:
    """Trains a run to its end, from its last checkpoint if there is one, and prints what came out.

    log: (epoch, {name: value}) is called after each epoch with its records, such as train_bound, validation_bound and
    seconds; the epoch counts those of all stages. data: what it is trained on, where that is not to be loaded by the
    name that the config has.
    """
    parallel.prepare()
    main = jax.process_index() == 0
    say = tqdm.write if main else lambda *_: None  # above the progress bar, where there is one

    def warn(line: str) -> None:
        if main:
            tqdm.write(f"{program}: warning: {line}", file=sys.stderr)

    if warning := parallel.warn_unused_gpu():
        warn(warning)
    group = GROUP if config.model == "cgan" else 1
    placement = parallel.place(config.devices, config.parallel, config.batch_size, group)
    if not config.latent_size:
        latent_shape(config, config.image_size)
    run = pathlib.Path(config.run_path())
    if not config.resume and (run / "config.json").exists():
        raise InputError(f"{run} already holds a run, which --no-resume will not overwrite; "
                         "give another --run_dir, or leave --no-resume out to go on with it")
    room = parallel.room_for_faces(config.data_on_device)
    named = data is None
    data = data or load_dataset(config.dataset, config.data_dir, kind=config.attributes, image_size=config.image_size,
                                memory=room, cache=config.cache, reading=config.reading)
    if data.train.size < config.batch_size:
        devices = placement.devices if data.train.size >= placement.devices * group else 1
        unit = devices * group
        raise InputError(f"{data.train.size} training faces are fewer than --batch_size={config.batch_size}; "
                         f"give --batch_size={max(unit, data.train.size // 2 // unit * unit)}"
                         + (" --devices=1" if devices < placement.devices else ""))
    if data.spec.pixel_std < 1e-9:  # 0, but for the mean's rounding
        raise InputError(f"the {data.train.size} training faces are all equal, so nothing can be learnt from them; "
                         "give others")
    make_folder(run, "the run's folder", "run_dir")
    if config.dataset not in ("synthetic", "lfw"):
        say(describe(data))
    say(f"{config.model} on {data.spec.dataset}: {data.train.size:,} training faces, {len(data.spec.attributes)} "
        f"{data.spec.kind} attributes, {placement.devices} x {jax.devices()[0].device_kind}; run in {run}")
    with held(run, "run_dir") if main else contextlib.nullcontext(), command_line.signals_noted() as asked:
        train_run(config, data, run, data.train.x.nbytes <= room, placement,
                  Watcher(say, warn, asked, draw_progress, validate_cgan, log))
    report(load_run(run), data, say, named)


def describe(data: Dataset) -> str:
    """Returns a line an attribute: its name and kind, in how much of the training faces it is known, and in how much of
    those it is 1, or the range of its values.
    """
    spec, (_, y, mask) = data.spec, data.train
    lines = [f"{'attribute':28} kind    known"]
    for i, name in enumerate(spec.attributes):
        values = np.asarray(y[:, i])[np.asarray(mask[:, i])]
        score = (values * spec.attribute_std[i] + spec.attribute_mean[i]).round(3)
        last = f"{values.mean():.1%} are 1" if spec.binary[i] else f"{score.min():g} to {score.max():g}"
        lines.append(f"{name:28} {spec.kinds[i]:7} {np.asarray(mask[:, i]).mean():5.0%}  {last}")
    return "\n".join(lines)


def draw_progress(model: Model, params: Params, faces: Faces, path: pathlib.Path) -> None:
    """Writes the picture of an epoch."""
    pictures.save_picture(pictures.progress(model, params, faces), path)


def validate_cgan(model: Model, params: Params, faces: Faces) -> dict[str, float]:
    """Returns a CGAN's figures on validation faces: a Parzen estimate, and how its faces differ from one another."""
    few = spread(faces, GAN_FACES)
    curve = parzen_log_likelihood(model_sampler(model, params), few, GAN_SAMPLES, SIGMAS, chunk=GAN_SAMPLES)
    return {"parzen": float(np.max(curve.mean(0))),
            "diversity": diversity(generated_faces(model, params, few), few.x / 255)}


def report(run: Run, data: Dataset, say, named: bool) -> None:
    """Prints the best checkpoint's figures on validation faces, where it lies, and what to do next; named: whether the
    data can be loaded by their name.
    """
    model, params, faces = run.model, run.params, data.validation
    if not model.posterior:
        found = validate_cgan(model, params, faces)
        say(f"validation Parzen {found['parzen']:,.0f} nats a face ({GAN_FACES} faces, {GAN_SAMPLES} samples each)\n"
            f"diversity         {found['diversity']:.2f} (distance between two samples over that of two real faces)")
    else:
        if model.velocity:
            say(f"flow              matching error {flow_matching(model, params, faces):.4f} "
                f"({faces.size:,} validation faces)")
            faces = spread(faces, FLOW_FACES)
        found = variational_bound(model, params, faces)
        how = "of the bytes themselves" if model.discrete else "uniform dequantisation"
        bits = found["bits_per_dim"] if model.discrete else dequantised_bits(model, params, faces)[0]
        say(f"validation bound  {found['bound']:,.0f} +- {found['bound_stderr']:,.0f} nats a face "
            f"({faces.size:,} faces, 1 sample of z each; pixels in [0, 1])\n"
            f"                  {bits:.3f} bits/dim ({how})")
    folder = FLOW if model.velocity else DETAIL if model.detail else FIRST
    say(f"best checkpoint   {run.path / folder / str(run.step)}\n"
        f"pictures          {run.path / 'grids'}\n"
        f"next              python -m cmma_jax generate --run={shlex.quote(str(run.path))} --n=16 makes faces"
        + (f"\n                  python -m cmma_jax evaluate --parzen --dataset={run.config.dataset} compares the runs"
           if named else ""))


def train_seeds(config: Config, program: str = PROGRAM) -> None:
    """Trains one run, or one for each of --seeds, in this process and those it joins."""
    parallel.start_processes(config.coordinator, config.num_processes, config.process_id)
    seeds = [int(seed) for seed in config.seeds.split(",")] if config.seeds else [config.seed]
    with parallel.losses_told(program, "start all of them again: they go on after the last checkpoint"):
        for i, seed in enumerate(seeds):
            suffix = f"-seed{seed}" if i else ""
            train(dataclasses.replace(config, seed=seed, run_dir=config.run_path() + suffix), program)


def main(argv: list[str], program: str = PROGRAM) -> int:
    """Runs the command line; returns its exit code: 2 for bad input, 130 for an interrupt, 143 for SIGTERM."""
    return command_line.run(program, lambda: train_seeds(parse(argv, program), program),
                            "the same command begins again, or goes on after the last checkpoint")


def program(argv: list[str], name: str = PROGRAM) -> NoReturn:
    """Runs the command line and ends the process."""
    code = main(argv, name)
    if code == 2:  # at once: threads that a failed write of orbax's left behind may wait for one another without end
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
