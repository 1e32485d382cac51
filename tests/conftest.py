"""Strict surroundings for every test: 4 CPU devices, no silent broadcasting, warnings are errors."""

import csv
import dataclasses
import importlib.metadata
import json
import os
import pathlib
from typing import NamedTuple

# What the tests compile is small, and run a few times: LLVM's optimisations, and the emitters that make it more to
# optimise, take six sevenths of the time that its compilation takes.
FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # another release may not know them, and would end
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
    FLAGS += " --xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"  # the package's own
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax  # noqa: E402  (the environment above must stand before JAX starts)
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

from cmma_jax.data import load_dataset  # noqa: E402
from cmma_jax.data.dataset import Dataset, Faces, make_dataset  # noqa: E402
from cmma_jax.models.model import Model, make_model  # noqa: E402
from cmma_jax.training import compact, runs, stages  # noqa: E402
from cmma_jax.training.checkpoint import RANKED_BY, open_checkpoints  # noqa: E402
from cmma_jax.training.config import FIRST, FLOW, MAY_CHANGE, Config, up_to  # noqa: E402
from cmma_jax.training.step import TrainState  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


# The files that take longest, the longest first.
LONGEST = ("test_train.py", "test_documents.py", "test_faults.py", "test_notebook.py", "test_stages.py",
           "test_evaluate.py", "test_web.py", "test_face_model.py", "test_commands.py", "test_model.py",
           "test_objectives.py", "test_compact.py")


def pytest_configure(config):
    """Of several workers none is to be left alone with a long file at the end: xdist's own order is by numbers of
    tests, and a training is one.
    """
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_let_go():
    """Each takes some of the 65,530 memory maps that Linux gives a process: all of them together would be too many."""
    yield
    jax.clear_caches()


def settings_of_a_model(config: Config, spec) -> str:
    """Returns all that a model is made of, or more."""
    chosen = {name: value for name, value in dataclasses.asdict(config).items() if name not in MAY_CHANGE}
    return json.dumps([chosen, spec.to_json()], sort_keys=True)


@pytest.fixture(scope="module", autouse=True)
def equal_models_and_their_steps_are_one():
    """A run that is loaded twice, or goes on after a stop, has the programs of the first time: to trace and to compile
    them anew would take most of the time. What starts in a process of its own, as in tests/faults/kill.py, has its own.
    """
    models: dict = {}
    steps: dict = {}
    make_model, make_step, train_stage = stages.make_model, stages.make_step, stages.train_stage

    def make_model_once(config, spec):
        key = settings_of_a_model(config, spec)
        if key not in models:
            models[key] = make_model(config, spec)
        return models[key]

    def train_stage_by_a_step_that_is_there(stage, config, data, run, on_device, placement, *more):
        losses = stages.make_loss, stages.make_adversarial_loss, stages.make_detail_loss, stages.make_flow_loss
        key = (stage.name, stage.epochs, data.train.size, placement.devices, config.parallel, losses,
               settings_of_a_model(up_to(config, stage.folder), data.spec))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stages, "make_step", lambda *made_of: steps[key] if key in steps else steps.setdefault(
                key, make_step(*made_of)))
            train_stage(stage, config, data, run, on_device, placement, *more)

    with pytest.MonkeyPatch.context() as patch:
        for module in (compact, runs, stages):
            patch.setattr(module, "make_model", make_model_once)
        patch.setattr(stages, "train_stage", train_stage_by_a_step_that_is_there)
        yield


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
    """A small data set and a CMMA for it, of random parameters: none is zero by chance.

    model has a flow, gaussian is the same with the prior N(f(y)), which the same params fit.
    """

    config: Config
    data: Dataset
    model: Model
    gaussian: Model
    params: dict

    def variant(self, kind: str = "binary", **changes) -> tuple[Model, dict]:
        """Returns another model for the data, its attributes of another kind, and random parameters."""
        kinds = {"mixed": ("binary", "real") * 3}.get(kind, (kind,) * 6)[:5]
        spec = dataclasses.replace(self.data.spec, kinds=kinds)
        model = make_model(dataclasses.replace(self.config, **changes), spec)
        return model, jax.tree.map(jax.numpy.asarray, random_params(model))


def random_params(model: Model, gain: float = 1.0) -> dict:
    """Returns random parameters, a flow's among them, heads too: kernels of deviation gain / sqrt(inputs), biases of
    gain / 10, factors about 1. By NumPy: to compile Flax's own for each network takes far longer.
    """
    rng = np.random.default_rng(0)

    def draw(path: tuple, like: jax.ShapeDtypeStruct) -> np.ndarray:
        factor = path[-1].key in ("scale", "deviation")
        deviation = gain / np.prod(like.shape[:-1]) ** 0.5 if len(like.shape) > 1 else gain / 10
        return (factor + deviation * rng.normal(size=like.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


@pytest.fixture(scope="session")
def small() -> Small:
    """16x16 faces that depend on 5 attributes, some unknown; 96 of them train; z is a map of 4x4 cells of 2 channels,
    J = 32.
    """
    rng = np.random.default_rng(7)

    def draw(n: int) -> Faces:
        y = (rng.random((n, 5)) < 0.4).astype(np.float32)
        patterns = np.random.default_rng(1).normal(0, 30, (5, 16, 16, 3))
        x = 128 + np.tensordot(y - 0.4, patterns, 1) + 20 * rng.normal(size=(n, 16, 16, 3))
        return Faces(np.clip(x, 0, 255).astype(np.uint8), y, rng.random((n, 5)) < 0.9)

    data = make_dataset("small", ("Male", "Smiling", "Bald", "Eyeglasses", "Mustache"), "binary",
                        draw(96), draw(30), draw(30))
    config = Config(image_size=16, latent_channels=2, width=4, prior_hidden=8, flow_width=64, flow_blocks=1,
                    batch_size=16, likelihood="logistic_mixture")
    model = make_model(config, data.spec)
    gaussian = make_model(dataclasses.replace(config, prior="gaussian"), data.spec)
    scale = {"mean": np.float32([0.3, -0.2]), "deviation": np.float32([0.8, 1.3])}
    params = jax.tree.map(jax.numpy.asarray, random_params(model) | {"scale": scale})
    return Small(config, data, model, gaussian, params)


NAMED = ("Male", "Asian", "Senior", "Eyeglasses", "No Eyewear", "Sunglasses", "Mustache", "No Beard", "Smiling",
         "Mouth Closed", "Mouth Wide Open", "Bushy Eyebrows", "Big Nose", "Pointy Nose", "Big Lips")


@pytest.fixture(scope="session")
def named_runs(tmp_path_factory) -> pathlib.Path:
    """A folder of finished runs, of random parameters, of a CMMA and a CVAE, z a map under a flow, and of a CGAN, on
    pictures of 16x16 with some of LFW's attributes; beside it real-run, a CMMA on real-valued attributes, its q(y|z)
    N(0, 1), and cmma-plane and vae-plane, with two latents and a Gaussian prior.
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
    tiny = ["--dataset=folder", "--image_size=16", "--latent_channels=2", "--width=4", "--prior_hidden=8",
            "--flow_width=64", "--flow_blocks=1", "--devices=1", "--batch_size=20", "--epochs=1", "--flow_epochs=1",
            "--likelihood=logistic_mixture"]
    for name, kind, where, flags in (
            ("cvae", "binary", runs / "cvae", []), ("cgan", "binary", runs / "cgan", ["--latent_size=8"]),
            ("cmma", "binary", runs / "cmma", []), ("cmma", "real", folder / "real-run", []),
            ("cmma", "binary", folder / "cmma-plane", ["--latent_size=2"]),
            ("vae", "binary", folder / "vae-plane", ["--latent_size=2"])):
        config = train.parse([*tiny, *flags, f"--model={name}", f"--data_dir={folder / kind}"])
        data = load_dataset("folder", config.data_dir, image_size=16)
        params = random_params(make_model(config, data.spec), 1.5 if config.latent_size == 2 else 1.0)
        if kind == "real":
            params["h2"]["heads"] = jax.tree.map(np.zeros_like, params["h2"]["heads"])
        write_run(where, config, data, params)
    return runs


def write_run(folder: pathlib.Path, config: Config, data: Dataset, params: dict) -> None:
    """Writes a run that is finished, a checkpoint of one step in each of its stages."""
    flow = {name: params[name] for name in ("flow",) if name in params}
    frozen = {name: params[name] for name in params.keys() - flow.keys()}
    first = {name: frozen[name] for name in frozen.keys() - {"scale"}}
    stages = {FIRST: TrainState(np.int32(1), first, {})} | ({FLOW: TrainState(np.int32(1), flow, {}, (), frozen)}
                                                            if flow else {})
    for name, state in stages.items():
        with open_checkpoints(folder / name) as checkpoints:
            checkpoints.save(state, config, data.spec, {RANKED_BY: 1.0})
    (folder / "config.json").write_text(config.to_json())
    records = [{"epoch": epoch} for epoch in range(1, config.all_epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
