"""What benchmarks train, and on what: any network's time is the same on noise, and before training as after it."""

from typing import Any

import jax
import numpy as np

from cmma_jax.data.dataset import Dataset, Faces, make_dataset
from cmma_jax.models.model import cmma
from cmma_jax.models.objectives import make_loss
from cmma_jax.training import parallel
from cmma_jax.training.config import Config
from cmma_jax.training.step import TrainState, make_optimizer, make_run, make_step

ATTRIBUTES = 73  # LFW's


def noise(count: int) -> Faces:
    """Returns faces of noise, 64x64, all of whose attributes are known."""
    rng = np.random.default_rng(0)
    return Faces(rng.integers(0, 256, (count, 64, 64, 3), np.uint8),
                 (rng.random((count, ATTRIBUTES)) < 0.4).astype(np.float32), np.ones((count, ATTRIBUTES), bool))


def as_dataset(train: Faces) -> Dataset:
    """Returns a data set of which the first 200 faces describe the rest."""
    few = Faces(*(np.asarray(a[:200]) for a in train))
    return make_dataset("noise", tuple(f"a{i}" for i in range(ATTRIBUTES)), "binary", few, few, few)


def default_training(config: Config, data: Dataset, devices: int = 1) -> tuple[Any, TrainState, parallel.Placement]:
    """Returns what `fit` asks for: the compiled steps, the first state and its placement, as train.py makes them."""
    model, (optimizer, _) = cmma(config, data.spec), make_optimizer(config, 100)
    placement = parallel.place(devices, config.parallel, config.batch_size)
    step = make_step(make_loss(model, config.attribute_dropout, config.attribute_weight), optimizer, config.seed,
                     config.batch_size, config.mirror, placement)
    params = jax.jit(model.init)(jax.random.key(0))
    return make_run(step, placement), TrainState(jax.numpy.int32(0), params, optimizer.init(params)), placement
