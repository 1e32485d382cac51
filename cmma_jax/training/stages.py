"""A run's stages, one after another in one folder: the autoencoder by the bound, then on its latents the detail, and
the flow.

A CGAN has one stage of its own. Each stage has a folder of checkpoints, with its own steps and its own best, so that
scores of different scale are never compared; records count the epochs of all.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cmma_jax.data.dataset import Dataset, mirrored, pixels, spread
from cmma_jax.data.files import write_whole
from cmma_jax.errors import InputError, Interrupted
from cmma_jax.models.model import Model, Params, count_parameters, make_model
from cmma_jax.models.objectives import make_adversarial_loss, make_detail_loss, make_flow_loss, make_loss
from cmma_jax.models.spec import Spec
from cmma_jax.training import parallel
from cmma_jax.training.bounds import flow_matching, variational_bound
from cmma_jax.training.checkpoint import RANKED_BY, Checkpoints, has_checkpoints, open_checkpoints, set_damaged_aside
from cmma_jax.training.config import DETAIL, FIRST, FLOW, MAY_CHANGE, OWN, Config, refuse_old_version, up_to
from cmma_jax.training.records import open_records, read_metrics
from cmma_jax.training.step import TrainState, begin, fit, make_later_optimizer, make_optimizer, make_step

FLOW_AVERAGE = 0.9995
WHOLLY, PARTLY = 0.1, 0.3  # of the faces whose attributes the flow does not see, in training
SCALE_FACES = 5000  # and their mirror images, from which the latents' standardisation is taken
CPU_STEPS = 4  # between looks: a step takes a good second there, the bar is to move, and a signal to be seen in time
STEPS = 50
BOUND_FACES = 500  # validation faces on which the detail is measured
# Settings on which the stages before do not depend.
LATER = {DETAIL: ("detail_width", "detail_blocks", "detail_rate", "components"),
         FLOW: ("prior", "flow_width", "flow_blocks", "flow_rate", "precision")}


class Stage(NamedTuple):
    """One of a run's stages."""

    name: str  # for the progress bar and the records
    number: int  # another one has other noise
    folder: str  # of its checkpoints, in the run's
    flag: str  # the setting that says how many epochs it has
    epochs: int
    before: int  # the epochs of the stages before it
    model: Model  # as it stands in this stage, without what later ones train
    loss: Callable  # (params, keys, x, y, mask) -> ([B], terms)
    optimizer: Any
    rate: Callable  # step -> the learning rate
    average: float  # decay of the parameters' moving average
    fresh: Callable[[], TrainState]  # the state before the first step
    like: Callable[[], TrainState]  # its shapes and types
    validate: Callable[[Params], dict[str, float]]  # figures of the validation faces
    score: Callable[[dict[str, float], int], float]  # those, and the epoch -> what the best, the highest, is kept by
    headline: tuple[str, str]  # (name, format) of the term beside the bar


class Watcher(NamedTuple):
    """Who follows a run from outside."""

    say: Callable[[str], Any]  # takes a line
    warn: Callable[[str], Any]  # takes a line
    asked: Callable[[], int]  # the number of a signal that came, 0 if none did
    picture: Callable[..., Any]  # (model, params, validation faces, path) writes a picture of the progress
    validate: Callable[..., dict[str, float]]  # (model, params, validation faces) -> more figures of a CGAN
    log: Callable[[int, dict[str, float]], Any] | None = None  # takes an epoch's records, those of metrics.jsonl


def first_stage(config: Config, data: Dataset, watcher: Watcher) -> Stage:
    """Returns the stage that trains f, g, h and h2 by the bound, or a CGAN's two players."""
    model = make_model(up_to(config, FIRST), data.spec)
    optimizer, rate = make_optimizer(config, data.train.size // config.batch_size)

    @jax.jit
    def fresh() -> TrainState:
        params = model.init(jax.random.fold_in(jax.random.key(config.seed), 0))
        params = jax.tree.map(lambda leaf: leaf * config.weight_variance**0.5, params)  # biases are 0
        return begin(params, optimizer, config.average)

    stage = Stage(
        name="autoencoder", number=1, folder=FIRST, flag="epochs", epochs=config.epochs, before=0, model=model,
        loss=make_loss(model, config.attribute_dropout, config.attribute_weight, config.kl_weight),
        optimizer=optimizer, rate=rate, average=config.average, fresh=fresh, like=lambda: jax.eval_shape(fresh),
        validate=lambda params: variational_bound(model, params, data.validation),
        score=lambda found, epoch: found["bound"], headline=("bound", "bound {:,.0f}"))
    if not model.discriminator:
        return stage
    return stage._replace(
        name="cgan",
        loss=make_adversarial_loss(model, config.discriminator_dropout, data.spec.pixel_std, config.gradient_penalty,
                                   config.wrong_attributes, config.augment),
        validate=lambda params: watcher.validate(model, params, data.validation),
        # Its latest counts: a likelihood by Parzen windows prefers one whose faces are all alike.
        score=lambda found, epoch: float(epoch), headline=("accuracy", "discriminator right {:.0%}"))


def later_stage(config: Config, data: Dataset, run: pathlib.Path, folder: str) -> Stage:
    """Returns the stage that trains the detail or the flow on z ~ q(z|x, y) of the first stage's best epoch."""
    own, config = OWN[folder], up_to(config, folder)
    model = make_model(config, data.spec)
    detail = folder == DETAIL
    epochs = config.detail_epochs if detail else config.flow_epochs
    average = config.average if detail else FLOW_AVERAGE
    optimizer, rate = make_later_optimizer(config, config.detail_rate if detail else config.flow_rate,
                                           data.train.size // config.batch_size * epochs)

    def at(params: Params) -> TrainState:
        frozen = {name: tree for name, tree in params.items() if name != own}
        return begin({own: params[own]}, optimizer, average, frozen)

    def fresh() -> TrainState:
        params = best_params(config, data.spec, run, folder)
        params |= model.init(jax.random.fold_in(jax.random.key(config.seed), 4 if detail else 3), (own,))
        if not detail:
            params["scale"] = latent_scale(model, params, data, config)
        # Arrays of their own, on the host: on the device the average would share the memory of what it is one of.
        return jax.tree.map(np.array, at(params))

    stage = Stage(
        name=own, number=2, folder=folder, flag="flow_epochs", epochs=epochs, before=config.all_epochs - epochs,
        model=model, loss=make_flow_loss(model, WHOLLY, PARTLY, dropout=True), optimizer=optimizer, rate=rate,
        average=average, fresh=fresh, like=lambda: jax.eval_shape(lambda key: at(model.init(key)), jax.random.key(0)),
        validate=lambda params: {"matching": flow_matching(model, params, data.validation)},
        score=lambda found, epoch: -found["matching"], headline=("matching", "matching error {:.4f}"))
    if not detail:
        return stage
    faces = spread(data.validation, BOUND_FACES)
    return stage._replace(
        number=3, flag="detail_epochs", loss=make_detail_loss(model),
        validate=lambda params: variational_bound(model, params, faces),
        score=lambda found, epoch: found["bound"], headline=("reconstruction", "log p(x|z) {:,.0f}"))


def best_params(config: Config, spec: Spec, run: pathlib.Path, folder: str) -> Params:
    """Returns the parameters of the best checkpoint of the stage before a folder's."""
    before = DETAIL if folder == FLOW and config.detail_width else FIRST
    like = jax.eval_shape(make_model(up_to(config, before), spec).init, jax.random.key(0))
    with open_checkpoints(run / before) as checkpoints:
        return checkpoints.restore_params(like, checkpoints.best_step())


def latent_scale(model: Model, params: Params, data: Dataset, config: Config) -> dict[str, jax.Array]:
    """Returns the mean and the deviation [C] of each channel of z ~ q(z|x, y) over the training faces."""
    faces = spread(data.train, SCALE_FACES)
    faces = mirrored(faces) if config.mirror else faces
    sums = np.zeros(())
    posterior = jax.jit(lambda params, x, y, mask: model.posterior(params, pixels(x), y, mask))
    channels = config.latent_channels
    size = min(100, faces.size)
    for start in range(0, faces.size - size + 1, size):
        q = posterior(params, *(a[start:start + size] for a in faces))
        mean, variance = (np.asarray(a, np.float64).reshape(-1, channels) for a in (q.mean, np.exp(q.logvar)))
        sums = sums + np.stack([np.full(channels, len(mean)), mean.sum(0), (np.square(mean) + variance).sum(0)])
    mean = sums[1] / sums[0]
    deviation = np.sqrt(np.maximum(sums[2] / sums[0] - np.square(mean), 1e-12))
    return {"mean": jnp.asarray(mean, jnp.float32), "deviation": jnp.asarray(deviation, jnp.float32)}


def train_run(config: Config, data: Dataset, run: pathlib.Path, on_device: bool, placement: parallel.Placement,
              watcher: Watcher) -> None:
    """Trains a run's stages to their end, each from its last checkpoint if there is one.

    A run that was to do without its later stages, by --prior=gaussian or --detail_width=0, may be given them later.

    Raises:
      InputError: the run that is there has other settings, or its checkpoints are lost.
      Interrupted: a signal came, to this process or another; all is saved.
    """
    if (run / "config.json").exists():
        refuse_old_version((run / "config.json").read_text(errors="replace"), f"the run in {run}")
    folders = [FIRST, *([DETAIL] if config.detail_width else []), *([FLOW] if config.prior == "flow" else [])]
    for folder in (FIRST, DETAIL, FLOW):
        for line in set_damaged_aside(run / folder):
            watcher.warn(line)
    last = next((folder for folder in (FLOW, DETAIL) if has_checkpoints(run / folder)), FIRST)
    if last != FIRST:
        refuse_other_latents(config, data.spec, run, last)
    folders = folders[folders.index(last):]
    for folder in folders[1:]:
        say_what_becomes_of_a_lost_stage(config, run, folder, watcher)
    size = data.train.size // config.batch_size * config.batch_size
    with tqdm(total=size * config.all_epochs, unit=" faces", disable=jax.process_index() != 0, mininterval=0.5,
              dynamic_ncols=True, delay=1e-3) as bar:  # until there is something to do it is not shown
        for folder in folders:  # each begins with what the one before has left
            stage = (first_stage(config, data, watcher) if folder == FIRST else
                     later_stage(config, data, run, folder))
            train_stage(stage, config, data, run, on_device, placement, watcher, bar)


def refuse_other_latents(config: Config, spec: Spec, run: pathlib.Path, folder: str) -> None:
    """Raises InputError if the stage that is there belongs to other settings, or to fewer or more epochs before it."""
    with open_checkpoints(run / folder) as checkpoints:
        check_same(config, spec, checkpoints)
        old = checkpoints.facts()[0]
    for flag in ("epochs", *(["detail_epochs"] if folder == FLOW and config.detail_width else [])):
        before, now = getattr(old, flag), getattr(config, flag)
        if before != now:
            raise InputError(f"the {OWN[folder]} in {run} was trained on what --{flag}={before} left, not {now}, and "
                             f"belongs to it; give --{flag}={before}, or another --run_dir, or delete {run / folder} "
                             "to train it again after more epochs")


def say_what_becomes_of_a_lost_stage(config: Config, run: pathlib.Path, folder: str, watcher: Watcher) -> None:
    """Raises InputError if there are records of a later stage without a checkpoint, and no more epochs are asked for
    before it; where they are, says that it is trained again.
    """
    names = [record.get("stage") for record in read_metrics(run)]
    lost, before = names.count(OWN[folder]), sum(name not in OWN.values() for name in names)
    if lost and config.epochs > before:
        watcher.warn(f"the {lost} logged epochs of the {OWN[folder]} in {run} are done again, on the latents of "
                     f"--epochs={config.epochs}, not {before}")
    else:
        refuse_lost_checkpoints(run / folder, lost, config.checkpoint_every)


def train_stage(stage: Stage, config: Config, data: Dataset, run: pathlib.Path, on_device: bool,
                placement: parallel.Placement, watcher: Watcher, bar: tqdm) -> None:
    """Trains one stage to its end, from its last checkpoint if there is one; arguments as of `train_run`."""
    steps_per_epoch = data.train.size // config.batch_size
    with open_checkpoints(run / stage.folder) as checkpoints:
        epochs, steps = divmod(max(checkpoints.steps(), default=0), steps_per_epoch)
        if checkpoints.steps():
            check_same(config, data.spec, checkpoints)
            if epochs + bool(steps) > stage.epochs:
                raise InputError(f"the run in {run} has {epochs} epochs of the {stage.name} behind it, more than "
                                 f"--{stage.flag}={stage.epochs}; give --{stage.flag}={epochs + bool(steps)}, or "
                                 "another --run_dir")
        elif logged := sum(record["epoch"] > stage.before for record in read_metrics(run)):
            refuse_lost_checkpoints(run / stage.folder, logged, config.checkpoint_every)
            watcher.warn(f"{run} was stopped before the {stage.name}'s first checkpoint; its {logged} logged epochs "
                         "are done again")
        if jax.process_index() == 0:
            write_whole(run / "config.json", config.to_json().encode(), "run_dir")
        if epochs == stage.epochs:
            return
        if checkpoints.steps():
            watcher.say(f"going on with the {stage.name} after epoch {epochs} of {stage.epochs}"
                        + (f" and {steps} steps" if steps else ""))
            before = getattr(checkpoints.facts()[0], stage.flag)
            if before != stage.epochs and config.schedule != "constant":
                watcher.say(f"its learning rate fell over --{stage.flag}={before}; from here on it is that of "
                            f"{stage.epochs} epochs")
            state, begun = checkpoints.restore(stage.like()), checkpoints.begun()
        else:
            state, begun = stage.fresh(), {}
        watcher.say(f"{stage.name}: {stage.epochs} epochs, {count_parameters(state.params):,} parameters")
        step = make_step(stage.loss, stage.optimizer, config.seed, config.batch_size, config.mirror, placement,
                         stage.average, stage.number)
        train_epochs(stage, config, data, on_device, run, step, state, begun, placement, checkpoints, watcher, bar)


def train_epochs(stage: Stage, config: Config, data: Dataset, on_device: bool, run: pathlib.Path, step: Callable,
                 state: TrainState, begun: dict[str, list[float]], placement: parallel.Placement,
                 checkpoints: Checkpoints, watcher: Watcher, bar: tqdm) -> None:
    """Trains epoch by epoch; after each: validation figures, records, a checkpoint, now and then a picture.

    Where a signal has come, it stops at the next look with a checkpoint of the state as it is, which may be in the
    middle of an epoch: `begun` are the means of that epoch's steps from the checkpoint that it goes on from.
    """
    steps_per_epoch = data.train.size // config.batch_size
    epoch = int(state.step) // steps_per_epoch  # that are done
    main = jax.process_index() == 0
    seen = (steps_per_epoch * stage.before + int(state.step)) * config.batch_size
    if bar.n != seen:  # in an earlier process
        bar.n = bar.initial = bar.last_print_n = seen
    bar.delay = 0
    bar.set_description(f"{stage.name}, epoch {epoch + 1}/{stage.epochs}")
    with open_records(run, stage.before + epoch) if main else contextlib.nullcontext(lambda _: None) as record:
        parts = [{name: np.asarray(values, np.float32) for name, values in begun.items()}] if begun else []
        steps, began = steps_per_epoch - int(state.step) % steps_per_epoch, time.perf_counter()
        for now, means in fit(step, state, data.train, placement, config.seed, config.batch_size, stage.epochs,
                              CPU_STEPS if jax.default_backend() == "cpu" else STEPS, on_device):
            parts.append(means)
            bar.update(len(means["loss"]) * config.batch_size)
            bar.set_description(f"{stage.name}, epoch {epoch + 1}/{stage.epochs}", refresh=False)
            term, words = stage.headline
            bar.set_postfix_str(words.format(means[term].mean()), refresh=False)
            whole = {name: np.concatenate([part[name] for part in parts]) for name in means}
            if len(whole["loss"]) < steps_per_epoch:
                if number := parallel.highest(watcher.asked()):
                    here = placement.get(now)
                    checkpoints.save(here, config, data.spec, {}, {name: a.tolist() for name, a in whole.items()})
                    stop(number, checkpoints, here)
                continue
            here = placement.get(now)
            seconds, epoch = time.perf_counter() - began, epoch + 1
            measured = stage.validate(here.whole)
            values = {"step": int(here.step), **{f"train_{name}": float(a.mean()) for name, a in whole.items()},
                      **{f"validation_{name}": value for name, value in measured.items()},
                      "learning_rate": float(stage.rate(int(here.step) - 1)),
                      "faces_per_second": steps * config.batch_size / seconds, "seconds": seconds}
            record({"epoch": stage.before + epoch, "stage": stage.name, **values})
            if main and watcher.log:
                watcher.log(stage.before + epoch, values)
            last, number = epoch == stage.epochs, parallel.highest(watcher.asked())
            if number or last or epoch % config.checkpoint_every == 0:
                checkpoints.save(here, config, data.spec, {RANKED_BY: stage.score(measured, epoch)})
            if main and (last or epoch == 1 or epoch % config.grid_every == 0):
                path = run / "grids" / f"epoch_{stage.before + epoch:04d}.png"
                watcher.picture(stage.model, here.whole, data.validation, path)
            if number:
                stop(number, checkpoints, here)
            parts, steps, began = [], steps_per_epoch, time.perf_counter()
        checkpoints.wait()


def stop(number: int, checkpoints: Checkpoints, state: TrainState) -> NoReturn:
    """Waits for the checkpoint of a state to be on disk, and raises Interrupted for a signal's number."""
    checkpoints.wait()
    raise Interrupted(number, f"the same command goes on after step {int(state.step)}")


def refuse_lost_checkpoints(folder: pathlib.Path, logged: int, checkpoint_every: int) -> None:
    """Raises InputError if a stage without a checkpoint has more epochs in its records than it can have lost by a kill:
    those to the first checkpoint, and those while that was written.
    """
    if logged > 2 * checkpoint_every:
        raise InputError(f"{folder.parent} has {logged} epochs in metrics.jsonl but no checkpoint of them; restore "
                         f"{folder} from a copy, or give another --run_dir to train from the beginning")


def check_same(config: Config, spec: Spec, checkpoints: Checkpoints) -> None:
    """Raises InputError if a run that is there was trained with other settings or on other data."""
    old, old_spec, _ = checkpoints.facts()
    # A run may be given a later stage that it was to do without: nothing that it has depends on it.
    free: tuple[str, ...] = MAY_CHANGE
    if (old.prior, config.prior) == ("gaussian", "flow"):
        free += LATER[FLOW]
    if not old.detail_width and config.detail_width and checkpoints.folder.name == FIRST:
        free += LATER[DETAIL]
    for field in dataclasses.fields(Config):
        before, now = getattr(old, field.name), getattr(config, field.name)
        if field.name not in free and before != now:
            raise InputError(f"the run in {checkpoints.folder.parent} has --{field.name}={before}, not {now}; give "
                             f"--{field.name}={before} to go on with it, or another --run_dir")
    if json.dumps(old_spec.to_json()) != json.dumps(spec.to_json()):
        raise InputError(f"the run in {checkpoints.folder.parent} was trained on other data ({old_spec.dataset}, "
                         f"{len(old_spec.attributes)} attributes); give that --data_dir, or another --run_dir")
