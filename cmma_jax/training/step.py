"""Training, in three nouns: the state, a step, and fit. It knows pytrees and functions, never a model."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmma_jax.data.dataset import Faces, call_rows, mirror_some, pixels
from cmma_jax.data.disk import read_ahead
from cmma_jax.errors import InputError
from cmma_jax.models.distributions import split_each
from cmma_jax.training.config import Config
from cmma_jax.training.parallel import Placement

MOMENTUM_EPOCHS = 250  # over which sgd's momentum rises (Gauthier 2015)
MUON_RMS = 0.8  # of a matrix's step, over the learning rate; an element of Adam's moves by up to 1


class TrainState(NamedTuple):
    """All that training changes; with the seed and the data it determines every later step."""

    step: jax.Array  # int32, steps taken
    params: Any  # those that are trained, as they are to be evaluated
    opt_state: Any
    moving: Any = ()  # the parameters that the steps move, where `params` are their average; else empty
    frozen: Any = ()  # the model's other parameters, which an earlier stage trained

    @property
    def whole(self) -> Any:
        """The model's parameters, trained and frozen."""
        return {**(self.frozen or {}), **self.params}


def begin(params: Any, optimizer: optax.GradientTransformation, average: float = 0.0, frozen: Any = ()) -> TrainState:
    """Returns the state before the first step."""
    return TrainState(jnp.int32(0), params, optimizer.init(params), params if average else (), frozen)


def make_optimizer(config: Config, steps_per_epoch: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the first stage's optimiser and its learning rate as a function of the step.

    adagrad starts with an accumulator of 0, as Torch7's does: with optax's 0.1 the first steps differ
    300-fold. Its first gradients stay in the accumulator for ever, so that it needs both the warm-up and the
    clipping.
    """
    rate = _rate(config, config.learning_rate, steps_per_epoch * config.epochs)
    momentum = optax.linear_schedule(config.momentum, config.final_momentum, MOMENTUM_EPOCHS * steps_per_epoch)
    rule = {"adam": lambda: optax.adam(rate),
            "adagrad": lambda: optax.adagrad(rate, initial_accumulator_value=0.0, eps=1e-10),
            "sgd": lambda: optax.inject_hyperparams(optax.sgd)(rate, momentum)}[config.optimizer]()
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, rule, optax.masked(optax.scale(config.discriminator_rate), _discriminator)), rate


def make_later_optimizer(config: Config, highest: float, steps: int
                         ) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimiser of the later stages and its learning rate over `steps` steps, at most `highest`.

    The matrices of the flow's blocks, and the kernels of the detail's as matrices of [9 C, C], move by Muon (Jordan et
    al. 2024), along the nearest orthogonal matrix to their momentum; all else by Adam with Nesterov's momentum (Dozat
    2016).
    """
    rate = _rate(config, highest, steps)
    rule = optax.contrib.muon(rate, weight_decay=0.01, adam_b2=0.99, consistent_rms=MUON_RMS,
                              muon_weight_dimension_numbers=_matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), rule), rate


def _matrices(params: Any) -> Any:
    """Returns, in the structure of parameters, which of them Muon moves: None where it does not."""
    def kind(path: tuple, leaf: Any) -> Any:
        own, *names = (getattr(key, "key", "") for key in path)
        inside = any(name.startswith("block") for name in names) and leaf.ndim == {"flow": 2, "detail": 4}[own]
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1) if inside else None

    return jax.tree_util.tree_map_with_path(kind, params)


def _rate(config: Config, highest: float, steps: int) -> optax.Schedule:
    warmup_steps = min(config.warmup_steps, steps // 2)
    after = {"constant": optax.constant_schedule(highest),
             "cosine": optax.cosine_decay_schedule(highest, max(steps - warmup_steps, 1))}[config.schedule]
    warmup = optax.linear_schedule(highest / max(warmup_steps, 1), highest, max(warmup_steps, 1))
    return optax.join_schedules([warmup, after], [warmup_steps])


def _discriminator(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(getattr(key, "key", "") == "discriminator" for key in path), params)


def make_step(loss: Callable, optimizer: optax.GradientTransformation, seed: int, batch_size: int, mirror: bool,
              placement: Placement, average: float = 0.0, stage: int = 1
              ) -> Callable[[TrainState, tuple], tuple[TrainState, dict]]:
    """Returns step(state, (faces, batch)) -> (state, means over the batch), compiled.

    faces are all of them, on the devices, and batch its row numbers, [B]; or faces is None, and batch is those faces
    themselves, [B, ...] each, every device with its share of B: they were streamed.

    Each example's noise comes from (seed, step, its number in the whole batch): no device count changes what is
    computed. Several steps are not one `lax.scan`: inside a loop XLA's convolutions have gradients on a CPU that take a
    hundred times as long, and a step takes longer than its dispatch everywhere.

    Args:
      loss: (params, [B] keys, x, y, mask) -> ([B] loss, a tree of per-example terms).
      batch_size: faces a step, over all devices.
      mirror: whether each face is mirrored half of the times.
      average: decay of the parameters' moving average, begun with a shorter memory; 0: there is none.
      stage: another one has other noise.
    """
    noise = jax.random.fold_in(jax.random.key(seed), stage)

    def step(state: TrainState, data: tuple[Faces | None, Any]) -> tuple[TrainState, dict]:
        faces, batch = data
        if faces is not None:
            rows = placement.share(batch)
            batch = Faces(*(a[rows] for a in faces))
        moving = state.moving if average else state.params
        numbers = placement.share(jnp.arange(batch_size))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(noise, state.step), numbers)
        keys, mirror_keys = split_each(keys, 2)
        x, y, mask = pixels(batch.x), batch.y, batch.mask
        if mirror:
            x = mirror_some(mirror_keys, x)

        def mean_loss(params):
            losses, terms = loss({**(state.frozen or {}), **params}, keys, x, y, mask)
            return losses.mean(), terms

        (value, terms), gradients = jax.value_and_grad(mean_loss, has_aux=True)(moving)
        means = {"loss": value} | jax.tree.map(jnp.mean, terms)
        gradients, means = placement.mean((gradients, means))
        means |= {"gradient_norm": optax.tree.norm(gradients)}  # not finite if any of the gradients is not
        updates, opt_state = optimizer.update(gradients, state.opt_state, moving)
        moving = optax.apply_updates(moving, updates)
        if not average:
            return state._replace(step=state.step + 1, params=moving, opt_state=opt_state), means
        keep = jnp.minimum(average, (1 + state.step) / (10 + state.step))
        params = jax.tree.map(lambda old, new: new + keep * (old - new), state.params, moving)
        return TrainState(state.step + 1, params, opt_state, moving, state.frozen), means

    return placement.compile(step)


def fit(step: Callable, state: TrainState, faces: Faces, placement: Placement, seed: int, batch_size: int, epochs: int,
        steps_per_call: int, on_device: bool = True) -> Iterator[tuple[TrainState, dict[str, np.ndarray]]]:
    """Trains to the end of `epochs`, from wherever the state stands, and yields after every few steps.

    The batches' rows come from (seed, step), wherever the faces are, so the parameters are the same to the last bit.

    Args:
      step: from `make_step`, with the same placement, seed and batch_size.
      state: host values; they are put on the devices here.
      faces: host values, or memory maps.
      steps_per_call: steps between looks from outside: many where steps are fast. Looks are taken at epochs' ends.
      on_device: whether all faces are put on every device. If not, threads read the batches ahead of the steps, each
        process its own rows of them.

    Yields:
      (state on the devices, means of the steps just taken as [n] NumPy arrays). The state is donated to the
      next step: who wants to keep it copies it first.

    Raises:
      InputError: a loss or a gradient was not finite; the step is named, and nothing is yielded after it.
    """
    done = int(state.step)
    rows = call_rows(seed, done, faces.size // batch_size * epochs, faces.size, batch_size, steps_per_call)
    state = placement.put(state)
    if on_device:
        whole = placement.put(faces)
        calls: Generator[list, None, None] = ([(whole, placement.put(row)) for row in each] for each in rows)
    else:
        def read(each: np.ndarray) -> list:
            mine = each[:, placement.rows]
            return [(None, placement.split(Faces(*(a[row] for a in faces)))) for row in mine]

        calls = read_ahead(read, rows)
    with contextlib.closing(calls):
        for call in calls:
            taken = []
            for data in call:
                state, means = step(state, data)
                taken.append(placement.get(means))
            found = {name: np.stack([np.asarray(means[name]) for means in taken]) for name in taken[0]}
            watched = {"the loss": found["loss"], "the gradient's norm": found["gradient_norm"]}
            bad = np.flatnonzero(~np.isfinite(sum(watched.values())))
            if bad.size:
                name, value = next((name, each[bad[0]]) for name, each in watched.items()
                                   if not np.isfinite(each[bad[0]]))
                raise InputError(f"{name} was {value} at step {done + bad[0] + 1}; the last checkpoint before it is "
                                 "kept; lower --learning_rate or --clip_norm")
            done += len(found["loss"])
            yield state, found
