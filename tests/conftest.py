"""Strict surroundings for every test: 4 CPU devices, no silent broadcasting, warnings are errors."""

import csv
import os
import pathlib
from typing import NamedTuple

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402  (the environment above must stand before JAX starts)
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

from cmma_jax.config import Config  # noqa: E402
from cmma_jax.data.dataset import Dataset, Faces, make_dataset  # noqa: E402
from cmma_jax.models import Model, cmma  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def lfw_dir() -> pathlib.Path:
    """A folder with LFW in its publishers' layout, from the environment variable CMMA_LFW_DIR."""
    folder = os.environ.get("CMMA_LFW_DIR")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("needs Labeled Faces in the Wild: set CMMA_LFW_DIR to its folder")
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> pathlib.Path:
    """A folder of 60 pictures of 16x16 whose attributes show; 40 train."""
    folder, rng = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    with open(folder / "attributes.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "Red", "Striped", "split"])
        for i in range(60):
            red, striped = i % 2, i // 2 % 2
            x = rng.normal(100, 15, (16, 16, 3))
            x[..., 0] += 80 * red
            x[::4] += 60 * striped
            Image.fromarray(np.clip(x, 0, 255).astype(np.uint8)).save(folder / f"{i:02d}.png")
            rows.writerow([f"{i:02d}.png", red, striped, "train" if i < 40 else "validation" if i < 50 else "test"])
    return folder


class Small(NamedTuple):
    """A small data set and a CMMA for it, with random heads so that nothing is zero by chance."""

    config: Config
    data: Dataset
    model: Model
    params: dict


@pytest.fixture(scope="session")
def small() -> Small:
    """16x16 faces that depend on 5 attributes, some unknown; 96 of them train; J = 6."""
    rng = np.random.default_rng(7)

    def draw(n: int) -> Faces:
        y = (rng.random((n, 5)) < 0.4).astype(np.float32)
        patterns = np.random.default_rng(1).normal(0, 30, (5, 16, 16, 3))
        x = 128 + np.tensordot(y - 0.4, patterns, 1) + 20 * rng.normal(size=(n, 16, 16, 3))
        return Faces(np.clip(x, 0, 255).astype(np.uint8), y, rng.random((n, 5)) < 0.9)

    data = make_dataset("small", ("Male", "Smiling", "Bald", "Eyeglasses", "Mustache"), "binary",
                        draw(96), draw(30), draw(30))
    config = Config(latent_size=6, width=4, prior_hidden=8, batch_size=16)
    model = cmma(config, data.spec)
    leaves, tree = jax.tree.flatten(jax.jit(model.init)(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return Small(config, data, model, jax.tree.unflatten(tree, params))
