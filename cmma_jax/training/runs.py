"""Finished runs: where they are, and their best checkpoint as a model with its parameters."""

import json
import pathlib
import shlex
from typing import NamedTuple

import jax

from cmma_jax.data import load_dataset
from cmma_jax.data.dataset import Dataset
from cmma_jax.errors import InputError
from cmma_jax.models.model import Model, Params, make_model
from cmma_jax.models.spec import Spec
from cmma_jax.training import parallel
from cmma_jax.training.checkpoint import has_checkpoints, open_checkpoints
from cmma_jax.training.compact import read_compact, shipped, write_compact
from cmma_jax.training.config import DETAIL, FIRST, FLOW, Config, up_to
from cmma_jax.training.hub import fetch, on_hub
from cmma_jax.training.records import read_metrics


class Run(NamedTuple):
    """A run's best checkpoint."""

    path: pathlib.Path  # the run's folder, or the file of a compact model
    config: Config
    spec: Spec  # the description of its data
    step: int  # of the checkpoint, the best by score
    epoch: int  # the run's last whole one
    model: Model
    params: Params  # on the device

    @property
    def system(self) -> str:
        """The name under which it stands in tables: runs that differ in the seed alone share it."""
        preset = self.config.preset
        return self.config.model if preset == "default" else f"{self.config.model} ({preset})"


def load_run(path: pathlib.Path | str, unfinished: bool = False) -> Run:
    """Returns the best checkpoint of a run: its folder, a compact file, a model that comes with the package, or one on
    the Hugging Face hub, hf://USER/NAME.

    Raises:
      InputError: there is no run, it is damaged, or it is not finished and `unfinished` is false.
    """
    path = fetch(str(path)) if on_hub(path) else pathlib.Path(path)
    if not any((path / folder).is_dir() for folder in (FIRST, DETAIL, FLOW)):
        file = path if path.is_file() else shipped().get(str(path))
        if file is None:
            raise InputError(f"no run in {path}, nor does a model of that name come with the package (it has: "
                             f"{', '.join(shipped()) or 'none'}); train one: python -m cmma_jax train "
                             f"--run_dir={shlex.quote(str(path))}")
        return Run(file, *read_compact(file))
    folder = next((folder for folder in (FLOW, DETAIL) if has_checkpoints(path / folder)), FIRST)
    with open_checkpoints(path / folder) as checkpoints:
        if not checkpoints.steps():
            raise InputError(f"the run in {path} has no checkpoint yet; its training must pass its first epoch")
        last = _asked(path) or checkpoints.facts()[0]
        epoch = max((int(record["epoch"]) for record in read_metrics(path)), default=0)
        without = last.prior == "flow" and folder != FLOW
        reached = up_to(last, folder)
        if (epoch < last.all_epochs or reached != last) and not unfinished:
            lost = ", without a checkpoint of its flow" if without else ""
            raise InputError(f"the run in {path} stopped after epoch {epoch} of {last.all_epochs}{lost}; the "
                             "command that began it goes on with it, or give --unfinished to take it as it is"
                             + (", with a Gaussian prior" if without else ""))
        step = checkpoints.best_step()
        assert step is not None  # there is a checkpoint, and so a best one
        config, spec, _ = checkpoints.facts(step)
        config = up_to(config, folder)
        model = make_model(config, spec)
        params = checkpoints.restore_params(jax.eval_shape(model.init, jax.random.key(0)), step)
    params = jax.device_put(params)  # once: a compiled function would copy the host's arrays at every call
    return Run(path, config, spec, step, epoch, model, params)


def _asked(path: pathlib.Path) -> Config | None:
    """Returns the settings of a run's last start; None: they are not there, or another program's or version's."""
    try:
        return Config.from_json((path / "config.json").read_text())
    except (OSError, InputError, TypeError):
        return None


def save_compact(run: Run, path: pathlib.Path | str) -> None:
    """Writes a run as one file, which `load_run` takes in place of its folder; raises as `write_compact`."""
    write_compact(pathlib.Path(path), run.config, run.spec, run.step, run.epoch, run.params)


def find_runs(folder: pathlib.Path | str, model: str = "", dataset: str = "",
              unfinished: bool = False) -> list[pathlib.Path]:
    """Returns the newest finished run of each model and preset, with its other seeds, in the order of their names.

    folder: where runs lie, one level deep; model: only this one, empty: all; dataset: only runs on it, empty: the data
    set of the newest run; unfinished: whether runs whose training has not come to its end count.

    Raises:
      InputError: there is none.
    """
    found = []
    for path in (file.parent for file in pathlib.Path(folder).glob("*/config.json")):
        config, records = _asked(path), read_metrics(path)
        if config and records and (unfinished or records[-1]["epoch"] >= config.all_epochs):
            found.append(((path / "metrics.jsonl").stat().st_mtime, path, config))
    found.sort(key=lambda entry: entry[0], reverse=True)
    found = [entry for entry in found if not model or entry[2].model == model]
    if found and not dataset:
        dataset = found[0][2].dataset
    newest: dict[tuple[str, str], tuple[dict, dict[int, pathlib.Path]]] = {}
    for _, path, config in found:
        if config.dataset != dataset:
            continue
        group = newest.setdefault((config.model, config.preset), (_but_seed(config), {}))
        if group[0] == _but_seed(config):
            group[1].setdefault(config.seed, path)
    if not newest:
        what = f"{model or 'model'} on {dataset}" if dataset else (model or "model")
        raise InputError(f"no finished run of a {what} in {folder}; train one: python -m cmma_jax train"
                         + (f" --model={model}" if model else "") + (f" --dataset={dataset}" if dataset else "")
                         + ", or give --runs_dir or --run")
    order = ("cmma", "cvae", "vae", "cgan")
    keys = sorted(newest, key=lambda key: (order.index(key[0]), key[1]))
    return [path for key in keys for _, path in sorted(newest[key][1].items())]


def _but_seed(config: Config) -> dict:
    fields = json.loads(config.to_json())
    for name in ("seed", "seeds", "run_dir", "data_dir", "data_on_device", "cache", "devices", "resume"):
        del fields[name]
    return fields


def load_data(run: Run, data_dir: str = "") -> Dataset:
    """Returns the data that a run was trained on, from data_dir, or where the run found it.

    Raises:
      InputError: it is not there, or other data is.
    """
    config = run.config
    data = load_dataset(config.dataset, data_dir or config.data_dir, kind=config.attributes,
                        image_size=config.image_size, memory=parallel.room_for_faces(config.data_on_device),
                        cache=config.cache, reading=config.reading)
    check_data(run, data)
    return data


def check_data(run: Run, data: Dataset) -> None:
    """Raises InputError if a run was trained on other data, or on other attributes of it."""
    mine, theirs = run.spec.to_json(), data.spec.to_json()
    if mine == theirs:
        return
    where = f"the run in {run.path} was trained on other data"
    if mine["dataset"] != theirs["dataset"]:
        raise InputError(f"{where}: {mine['dataset']}, not {theirs['dataset']}; give --dataset={mine['dataset']}")
    if mine["attributes"] != theirs["attributes"]:
        other = sorted(set(mine["attributes"]) ^ set(theirs["attributes"]))[:3]
        raise InputError(f"{where}: its attributes differ from those of this {theirs['dataset']}, for instance "
                         f"{', '.join(other) or 'in their order'}; give the run's own --data_dir")
    raise InputError(f"{where}: its faces are not those found here; give the run's own --data_dir")
