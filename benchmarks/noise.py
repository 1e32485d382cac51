"""What benchmarks train, and on what: any network's time is the same on noise, and before training as after it."""

import pathlib
from typing import Any

import jax
import numpy as np

from cmma_jax.data.dataset import Dataset, Faces, make_dataset
from cmma_jax.models.model import Model, Params
from cmma_jax.training import parallel
from cmma_jax.training.config import FIRST, OWN, Config
from cmma_jax.training.stages import Stage, Watcher, first_stage, later_stage
from cmma_jax.training.step import TrainState, begin, make_step

ATTRIBUTES = 73  # LFW's
NOBODY = Watcher(print, print, lambda: 0, print, dict)


def noise(count: int) -> Faces:
    """Returns faces of noise, 64x64, all of whose attributes are known."""
    rng = np.random.default_rng(0)
    return Faces(rng.integers(0, 256, (count, 64, 64, 3), np.uint8),
                 (rng.random((count, ATTRIBUTES)) < 0.4).astype(np.float32), np.ones((count, ATTRIBUTES), bool))


def as_dataset(train: Faces) -> Dataset:
    """Returns a data set of which the first 200 faces describe the rest."""
    few = Faces(*(np.asarray(a[:200]) for a in train))
    return make_dataset("noise", tuple(f"a{i}" for i in range(ATTRIBUTES)), "binary", few, few, few)


def untrained(model: Model) -> Params:
    """Returns a model's fresh parameters, a flow's among them, on the device."""
    return jax.jit(model.init)(jax.random.key(0))


def training(folder: str, config: Config, data: Dataset, devices: int = 1
             ) -> tuple[Any, TrainState, parallel.Placement, Stage]:
    """Returns what `fit` asks for of a run's stage, as train.py makes it, a later one over latents of an untrained
    autoencoder: the compiled step, the first state, its placement, and the stage; folder: of the stage's checkpoints.
    """
    stage = (first_stage(config, data, NOBODY) if folder == FIRST else
             later_stage(config, data, pathlib.Path(), folder))
    params = untrained(stage.model)
    trained = params if folder == FIRST else {OWN[folder]: params.pop(OWN[folder])}
    placement = parallel.place(devices, config.parallel, config.batch_size)
    step = make_step(stage.loss, stage.optimizer, config.seed, config.batch_size, config.mirror, placement,
                     stage.average, stage.number)
    state = begin(trained, stage.optimizer, stage.average, () if folder == FIRST else params)
    # On the host: on the device the average would share the memory of what it is one of.
    return step, jax.tree.map(np.array, state), placement, stage
