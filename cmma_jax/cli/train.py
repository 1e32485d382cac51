"""Train a model: `python train.py --model=cmma`. `--help` lists every flag."""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import NoReturn, cast

import jax
import numpy as np
from tqdm import tqdm

from cmma_jax.cli import command_line
from cmma_jax.data import load_dataset
from cmma_jax.data.dataset import Dataset, Faces, mirrored, spread
from cmma_jax.data.files import make_folder, write_whole
from cmma_jax.errors import InputError, did_you_mean
from cmma_jax.evaluation.diversity import diversity, generated_faces
from cmma_jax.evaluation.parzen import SIGMAS, model_sampler, parzen_log_likelihood
from cmma_jax.models.model import MODELS, Model, count_parameters, make_model
from cmma_jax.models.networks import GROUP
from cmma_jax.models.objectives import make_adversarial_loss, make_flow_loss, make_loss
from cmma_jax.models.spec import Spec
from cmma_jax.sampling import pictures
from cmma_jax.training import parallel
from cmma_jax.training.bounds import bits_per_dimension, dequantised_pixels, flow_matching, variational_bound
from cmma_jax.training.checkpoint import RANKED_BY, Checkpoints, open_checkpoints, set_damaged_aside
from cmma_jax.training.config import MAY_CHANGE, PRESETS, Config, ModelName
from cmma_jax.training.ppca import fit_conditional_ppca, start_from_ppca
from cmma_jax.training.records import open_records, read_metrics
from cmma_jax.training.runs import check_data, load_run
from cmma_jax.training.step import TrainState, fit, make_optimizer, make_run, make_step

HELP = """Train a model that makes faces from attributes, and write its run to --run_dir.

  python train.py --model=cmma                                     the embedded faces: a few minutes on 2 cores
  python train.py --model=cmma --dataset=lfw --data_dir=DIR        Labeled Faces in the Wild
  python train.py --model=cmma --dataset=lfw --data_dir=DIR --preset=best    after it: a flow prior for its latents
  python train.py --model=cmma --dataset=lfw --data_dir=DIR --preset=paper
  python train.py --model=cvae --seeds=0,1,2                       (also vae, cgan) what CMMA is compared with
  python train.py --model=cgan --preset=gauthier

Running the same command again goes on where the run stopped. A run holds checkpoints/, config.json,
metrics.jsonl (a line an epoch), grids/*.png (originals; reconstructions with and without their attributes;
faces at the prior's mean; random samples) and tensorboard/ (tensorboard --logdir=RUN)."""

PROGRAM = "train.py"  # as the errors name it, unless it was started as a command of the package
GAN_FACES, GAN_SAMPLES = 100, 50  # of an epoch's Parzen estimate, a few seconds on 2 cores
CPU_STEPS_PER_CALL = 10  # a step takes a good part of a second there: call often, so that the bar moves
STREAMED_STEPS_PER_CALL = 50  # elsewhere: some calls' faces, 61 MB each in batches of 100, are on the device at once
PPCA_FACES = 20_000  # from which the linear start is fitted, spread over those that train; in memory as float32


def parse(argv: list[str], program: str = PROGRAM) -> Config:
    """Returns the settings of a command line; the preset and the data set say where they start.

    Raises:
      InputError: one line for an unknown flag or a bad value, with what was meant.
    """
    preset, model = _peek(argv, "preset", Config.preset), _peek(argv, "model", Config.model)
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}{did_you_mean(preset, list(PRESETS))}")
    if model not in MODELS:
        raise InputError(f"unknown model {model!r}{did_you_mean(model, list(MODELS))}")
    start = PRESETS[preset](cast(ModelName, model), _peek(argv, "dataset", Config.dataset))
    return command_line.parse(Config, argv, program, HELP, default=start)


def _peek(argv: list[str], flag: str, otherwise: str) -> str:
    for i, word in enumerate(argv):
        if word.startswith(f"--{flag}="):
            return word.split("=", 1)[1]
        if word == f"--{flag}" and i + 1 < len(argv):
            return argv[i + 1]
    return otherwise


def train(config: Config, program: str = PROGRAM) -> None:
    """Trains a run to its end, from its last checkpoint if there is one, and prints what came out."""
    parallel.enable_compilation_cache()
    main = jax.process_index() == 0
    say = print if main else lambda *_: None

    def warn(line: str) -> None:
        if main:
            print(f"{program}: warning: {line}", file=sys.stderr)

    if warning := parallel.warn_unused_gpu():
        warn(warning)
    placement = parallel.place(config.devices, config.parallel, config.batch_size)
    if config.model == "cgan" and config.batch_size % (GROUP * placement.count):
        raise InputError(f"--batch_size={config.batch_size}: a CGAN's discriminator compares faces in groups "
                         f"of {GROUP} on each device; give a multiple of {GROUP * placement.count}")
    run = pathlib.Path(config.run_path())
    if not config.resume and (run / "config.json").exists():
        raise InputError(f"{run} already holds a run, which --no-resume will not overwrite; "
                         "give another --run_dir, or leave --no-resume out to go on with it")
    room = parallel.room_for_faces(config.data_on_device)
    data = load_dataset(config.dataset, config.data_dir, kind=config.attributes, image_size=config.image_size,
                        memory=room, cache=config.cache)
    if data.train.size < config.batch_size:
        raise InputError(f"{data.train.size} training faces are fewer than --batch_size={config.batch_size}; "
                         f"give --batch_size={max(1, data.train.size // 2)}")
    # A start that does not fit is refused before anything is written.
    start = start_params(config, data) if config.prior == "flow" and not run.exists() else None
    make_folder(run, "the run's folder", "run_dir")
    model = make_model(config, data.spec)
    steps_per_epoch = data.train.size // config.batch_size
    optimizer, rate = make_optimizer(config, steps_per_epoch)
    state = fresh_state(model, optimizer, config.seed, config.average)
    say(f"{config.model} on {data.spec.dataset}: {data.train.size:,} training faces, {len(data.spec.attributes)} "
        f"{data.spec.kind} attributes, {count_parameters(state.params):,} parameters, {placement.count} x "
        f"{jax.devices()[0].device_kind}; run in {run}")

    for line in set_damaged_aside(run / "checkpoints"):
        warn(line)
    with open_checkpoints(run / "checkpoints") as checkpoints:
        begun = {}
        if checkpoints.steps():
            check_same(config, data.spec, checkpoints)
            state, begun = checkpoints.restore(state), checkpoints.begun()
            epochs, steps = divmod(int(state.step), steps_per_epoch)
            say(f"going on after epoch {epochs} of {config.epochs}" + (f" and {steps} steps" if steps else ""))
        else:
            if logged := len(read_metrics(run)):
                refuse_lost_checkpoints(run, logged, config.checkpoint_every)
                warn(f"{run} was stopped before its first checkpoint; its {logged} logged epochs are done again")
            if config.prior == "flow":
                state = begin_at(state, state.params | (start or start_params(config, data)))
            elif config.linear_path:
                say("starting from conditional probabilistic PCA ...")
                faces = spread(data.train, PPCA_FACES)
                faces = mirrored(faces) if config.mirror else faces
                if config.model == "vae":
                    faces = faces._replace(mask=np.zeros_like(faces.mask))
                ppca = fit_conditional_ppca(faces, data.spec, config.latent_size)
                state = begin_at(state, start_from_ppca(state.params, ppca))
            if main:
                write_whole(run / "config.json", config.to_json().encode(), "run_dir")
        loss = objective(model, config, data.spec)
        step = make_step(loss, optimizer, config.seed, config.batch_size, config.mirror, placement, config.average)
        with command_line.signals_noted() as asked:
            train_epochs(config, data, data.train.x.nbytes <= room, run, model, make_run(step, placement), rate,
                         state, begun, placement, checkpoints, asked)
        report(config, data, run, model, state, checkpoints, say)


def refuse_lost_checkpoints(run: pathlib.Path, logged: int, checkpoint_every: int) -> None:
    """Raises InputError if a run without a checkpoint has more epochs in its records than it can have lost by a kill:
    those to the first checkpoint, and those while that was written.
    """
    if logged > 2 * checkpoint_every:
        raise InputError(f"{run} has {logged} epochs in metrics.jsonl but no checkpoint; restore {run / 'checkpoints'} "
                         "from a copy, or give another --run_dir to train from the beginning")


def train_epochs(config: Config, data: Dataset, on_device: bool, run: pathlib.Path, model: Model, run_steps, rate,
                 state: TrainState, begun: dict[str, list[float]], placement: parallel.Placement,
                 checkpoints: Checkpoints, asked: Callable[[], int]) -> None:
    """Trains epoch by epoch; after each: the validation bound, records, a checkpoint, now and then a picture.

    Where a signal has come, it stops at the next look with a checkpoint of the state as it is, which may be in the
    middle of an epoch: `begun` are the means of that epoch's steps from the checkpoint that it goes on from.

    Raises:
      Interrupted: a signal came, to this process or another; all is saved.
    """
    steps_per_epoch = data.train.size // config.batch_size
    start = int(state.step) // steps_per_epoch
    steps_per_call = (CPU_STEPS_PER_CALL if jax.default_backend() == "cpu" else
                      steps_per_epoch if on_device else STREAMED_STEPS_PER_CALL)
    main = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(open_records(run, start)) if main else lambda _: None
        bar = stack.enter_context(tqdm(total=steps_per_epoch * config.batch_size * config.epochs, unit=" faces",
                                       initial=int(state.step) * config.batch_size, disable=not main,
                                       mininterval=0.5, dynamic_ncols=True))
        parts = [{name: np.asarray(values, np.float32) for name, values in begun.items()}] if begun else []
        steps, began = steps_per_epoch - int(state.step) % steps_per_epoch, time.perf_counter()
        for now, means in fit(run_steps, state, data.train, placement, config.seed, config.batch_size, config.epochs,
                              steps_per_call, on_device):
            parts.append(means)
            bar.update(len(means["loss"]) * config.batch_size)
            bar.set_description(f"epoch {start + 1}/{config.epochs}", refresh=False)
            bar.set_postfix_str(headline(means), refresh=False)
            epoch = {name: np.concatenate([part[name] for part in parts]) for name in means}
            here = placement.get(now)
            if len(epoch["loss"]) < steps_per_epoch:
                if number := parallel.highest(asked()):
                    checkpoints.save(here, config, data.spec, {}, {name: a.tolist() for name, a in epoch.items()})
                    stop(number, checkpoints, here)
                continue
            seconds, start = time.perf_counter() - began, start + 1
            train_means = {f"train_{name}": float(values.mean()) for name, values in epoch.items()}
            measured = validate(model, here.params, data.validation)
            # a CGAN's latest: Parzen prefers one whose faces are all alike
            score = -measured["matching"] if "matching" in measured else measured.get("bound", start)
            metrics = {"epoch": start, "step": int(here.step), **train_means,
                       **{f"validation_{name}": value for name, value in measured.items()},
                       "learning_rate": float(rate(int(here.step) - 1)),
                       "faces_per_second": steps * config.batch_size / seconds, "seconds": seconds}
            record(metrics)
            last, number = start == config.epochs, parallel.highest(asked())
            if number or last or start % config.checkpoint_every == 0:
                checkpoints.save(here, config, data.spec, {RANKED_BY: score})
            if main and (last or start == 1 or start % config.grid_every == 0):
                picture = pictures.progress(model, here.params, data.validation)
                pictures.save_picture(picture, run / "grids" / f"epoch_{start:04d}.png")
            if number:
                stop(number, checkpoints, here)
            parts, steps, began = [], steps_per_epoch, time.perf_counter()
        checkpoints.wait()


def stop(number: int, checkpoints: Checkpoints, state: TrainState) -> NoReturn:
    """Waits for the checkpoint of a state to be on disk, and raises Interrupted for a signal's number."""
    checkpoints.wait()
    raise command_line.Interrupted(number, f"the same command goes on after step {int(state.step)}")


def objective(model: Model, config: Config, spec: Spec):
    """Returns what training minimises: a CGAN's two losses, the flow's error, or the negative bound."""
    if config.prior == "flow":
        return make_flow_loss(model, config.attribute_dropout)
    if model.discriminator:
        return make_adversarial_loss(model, config.discriminator_dropout, spec.pixel_std, config.gradient_penalty)
    return make_loss(model, config.attribute_dropout, config.attribute_weight)


def headline(means: dict[str, np.ndarray]) -> str:
    """Returns the words beside the progress bar."""
    if "bound" in means:
        return f"bound {means['bound'].mean():,.0f}"
    if "matching" in means:
        return f"matching {means['matching'].mean():.4f}"
    return f"discriminator right {means['accuracy'].mean():.0%}"


def validate(model: Model, params, faces: Faces) -> dict[str, float]:
    """Returns an epoch's figures on validation faces: the bound, a flow's error, or a CGAN's Parzen and diversity."""
    if model.velocity:
        return {"matching": flow_matching(model, params, faces)}
    if model.posterior:
        return variational_bound(model, params, faces)
    few = spread(faces, GAN_FACES)
    curve = parzen_log_likelihood(model_sampler(model, params), few, GAN_SAMPLES, SIGMAS, chunk=GAN_SAMPLES)
    return {"parzen": float(np.max(curve.mean(0))),
            "diversity": diversity(generated_faces(model, params, few), few.x / 255)}


def start_params(config: Config, data: Dataset) -> dict:
    """Returns the networks of the run with a Gaussian prior, its best checkpoint, that a flow is trained for.

    Raises:
      InputError: there is none, it is not finished, or its model or data are others.
    """
    start = load_run(config.start_path())
    for name in ("model", "attributes", "latent_size", "width", "prior_hidden", "linear_path", "blocks", "variance"):
        if (theirs := getattr(start.config, name)) != getattr(config, name):
            raise InputError(f"--start_from={start.path} has --{name}={theirs}, not {getattr(config, name)}; give "
                             f"--{name}={theirs}, or another --start_from")
    if start.config.prior == "flow":
        raise InputError(f"--start_from={start.path} has a flow already; give a run with --prior=gaussian")
    check_data(start, data)
    return start.params


def fresh_state(model: Model, optimizer, seed: int, average: float = 0.0) -> TrainState:
    """Returns the state before the first step, a pure function of the seed."""

    @jax.jit
    def make(key: jax.Array) -> TrainState:
        params = model.init(key)
        return TrainState(jax.numpy.int32(0), params, optimizer.init(params), params if average else ())

    return make(jax.random.fold_in(jax.random.key(seed), 0))


def begin_at(state: TrainState, params: dict) -> TrainState:
    """Returns a fresh state at other parameters; a moving average, if there is one, begins there too."""
    return state._replace(params=params, moving=jax.tree.map(np.array, params) if state.moving else ())


def check_same(config: Config, spec: Spec, checkpoints: Checkpoints) -> None:
    """Raises InputError if a run that is there was trained with other settings or on other data."""
    old, old_spec, _ = checkpoints.facts()
    for field in dataclasses.fields(Config):
        before, now = getattr(old, field.name), getattr(config, field.name)
        if field.name not in MAY_CHANGE and before != now:
            raise InputError(f"the run in {checkpoints.folder.parent} has --{field.name}={before}, not {now}; give "
                             f"--{field.name}={before} to go on with it, or another --run_dir")
    if json.dumps(old_spec.to_json()) != json.dumps(spec.to_json()):
        raise InputError(f"the run in {checkpoints.folder.parent} was trained on other data ({old_spec.dataset}, "
                         f"{len(old_spec.attributes)} attributes); give that --data_dir, or another --run_dir")


def report(config: Config, data: Dataset, run: pathlib.Path, model: Model, like: TrainState, checkpoints: Checkpoints,
           say) -> None:
    """Prints the best checkpoint's figure on validation faces, where it lies, and what to do next."""
    best = checkpoints.best_step()
    params = checkpoints.restore(like, best).params
    if model.posterior:
        exact = variational_bound(model, params, data.validation)
        smooth = variational_bound(model, params, data.validation, as_pixels=dequantised_pixels)
        say(f"validation bound  {exact['bound']:,.0f} +- {exact['bound_stderr']:,.0f} nats a face "
            f"({data.validation.size:,} faces, 1 sample of z each; pixels in [0, 1])\n"
            f"                  {bits_per_dimension(smooth['bound'], data.spec.dimensions):.3f} bits/dim "
            f"(uniform dequantisation)")
    else:
        measured = validate(model, params, data.validation)
        say(f"validation Parzen {measured['parzen']:,.0f} nats a face ({GAN_FACES} faces, {GAN_SAMPLES} samples each)\n"
            f"diversity         {measured['diversity']:.2f} (distance between two samples over that of two real faces)")
    say(f"best checkpoint   {run / 'checkpoints' / str(best)}\n"
        f"pictures          {run / 'grids'}\n"
        f"next              python -m cmma_jax evaluate --parzen --dataset={config.dataset} compares finished runs\n"
        f"                  tensorboard --logdir={run}   or train longer: the same command with --epochs=N")


def train_seeds(config: Config, program: str = PROGRAM) -> None:
    """Trains one run, or one for each of --seeds, in this process and those it joins."""
    parallel.start_processes(config.coordinator, config.num_processes, config.process_id)
    seeds = [int(seed) for seed in config.seeds.split(",")] if config.seeds else [config.seed]
    with parallel.losses_told(program, "start all of them again: they go on after the last checkpoint"):
        for i, seed in enumerate(seeds):
            suffix = f"-seed{seed}" if i else ""
            start = config.start_path() + suffix if config.prior == "flow" else ""
            train(dataclasses.replace(config, seed=seed, run_dir=config.run_path() + suffix, start_from=start), program)


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
