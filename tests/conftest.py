"""Strict surroundings for every test: 4 CPU devices, no silent broadcasting, warnings are errors."""

import csv
import os
import pathlib
from typing import NamedTuple

# LLVM's third level takes three quarters of the time that a small program's compilation takes, and gains it nothing.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402  (the environment above must stand before JAX starts)
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

from cmma_jax.data import load_dataset  # noqa: E402
from cmma_jax.data.dataset import Dataset, Faces, make_dataset  # noqa: E402
from cmma_jax.models.model import Model, cmma, make_model  # noqa: E402
from cmma_jax.training.checkpoint import RANKED_BY, open_checkpoints  # noqa: E402
from cmma_jax.training.config import Config  # noqa: E402
from cmma_jax.training.ppca import fit_conditional_ppca, start_from_ppca  # noqa: E402
from cmma_jax.training.step import TrainState  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_let_go():
    """Each takes some of the 65,530 memory maps that Linux gives a process: all of them together would be too many."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def lfw_dir() -> pathlib.Path:
    """A folder with LFW in its publishers' layout, from the environment variable CMMA_LFW_DIR."""
    folder = os.environ.get("CMMA_LFW_DIR")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("needs Labeled Faces in the Wild: set CMMA_LFW_DIR to its folder")
    return pathlib.Path(folder)


def write_faces(folder: pathlib.Path) -> None:
    """Writes 60 pictures of 16x16 whose attributes show; 40 train."""
    rng = np.random.default_rng(0)
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


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> pathlib.Path:
    """A folder with `write_faces`' pictures."""
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder)
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


NAMED = ("Male", "Asian", "Senior", "Eyeglasses", "No Eyewear", "Sunglasses", "Mustache", "No Beard", "Smiling",
         "Mouth Closed", "Mouth Wide Open", "Bushy Eyebrows", "Big Nose", "Pointy Nose", "Big Lips")


@pytest.fixture(scope="session")
def named_runs(tmp_path_factory) -> pathlib.Path:
    """A folder of runs of a CMMA, a CVAE and a CGAN on pictures of 16x16 with some of LFW's attributes, as they are
    before training, and with a random q(y|z); beside it real-run, a CMMA on real-valued attributes, its q(y|z) N(0, 1),
    and cmma-plane and vae-plane, with two latents.
    """
    from cmma_jax.cli import train

    folder, rng = tmp_path_factory.mktemp("named"), np.random.default_rng(3)
    y = (rng.random((400, len(NAMED))) < 0.4).astype(int)
    for kind, values in (("binary", y), ("real", (2 * y - 1) * rng.uniform(0.5, 1.5, y.shape).round(3))):
        (folder / kind).mkdir()
        rows = []
        for i, row in enumerate(values):
            x = rng.normal(110, 12, (16, 16, 3))
            x[:8] += 50 * y[i, 0]
            x[10:, :8, 0] += 60 * y[i, 8]
            Image.fromarray(np.clip(x, 0, 255).astype(np.uint8)).save(folder / kind / f"{i:03d}.png")
            rows.append([f"{i:03d}.png", *row, "train" if i < 200 else "validation" if i < 300 else "test"])
        with open(folder / kind / "attributes.csv", "w", newline="") as file:
            csv.writer(file).writerows([["file", *NAMED, "split"], *rows])
    runs = folder / "runs"
    tiny = ["--dataset=folder", "--image_size=16", "--latent_size=8", "--width=2", "--prior_hidden=8", "--devices=1",
            "--batch_size=20", "--epochs=1"]
    plane = ["--latent_size=2"]
    for name, kind, where, flags in (
            ("cvae", "binary", runs / "cvae", []), ("cgan", "binary", runs / "cgan", []),
            ("cmma", "binary", runs / "cmma", []), ("cmma", "real", folder / "real-run", []),
            ("cmma", "binary", folder / "cmma-plane", plane), ("vae", "binary", folder / "vae-plane", plane)):
        config = train.parse([*tiny, *flags, f"--model={name}", f"--data_dir={folder / kind}"])
        data = load_dataset("folder", config.data_dir, image_size=16)
        model = make_model(config, data.spec)
        params = jax.jit(model.init)(jax.random.key(0))
        if config.linear_path:
            params = start_from_ppca(params, fit_conditional_ppca(data.train, data.spec, config.latent_size))
        if name == "cmma" and kind == "binary":
            kernel = params["h2"]["heads"]["kernel"]
            params["h2"]["heads"]["kernel"] = 0.5 * jax.random.normal(jax.random.key(1), kernel.shape)
        with open_checkpoints(where / "checkpoints") as checkpoints:
            checkpoints.save(TrainState(np.int32(1), params, {}), config, data.spec, {RANKED_BY: 1.0})
        (where / "config.json").write_text(config.to_json())
        (where / "metrics.jsonl").write_text('{"epoch": 1}\n')
    return runs
