"""The only file that names safetensors: a trained model in one file, in half precision, small enough to be shipped.

The file holds the parameters as float16, `params/h/conv0/kernel` and so on, a flow's standardisation and the mean
face as float32, f only where there is no flow, and in its metadata, under `cmma_jax`, JSON: the settings, the
description of the data, step and epoch. It holds no code: what is read is numbers and names. The same model gives the
same bytes.
"""

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors.numpy

from cmma_jax.data.files import write_whole
from cmma_jax.data.images import one_line
from cmma_jax.errors import InputError
from cmma_jax.models.model import Model, Params, make_model
from cmma_jax.models.spec import Spec
from cmma_jax.training.config import Config

SHIPPED = pathlib.Path(__file__).parent.parent / "pretrained"
SUFFIX = ".safetensors"
VERSION = 2
# Paths, hosts and abilities of the machine that trained a model: nobody else's concern, and not in the file.
PLACES: dict[str, Any] = {name: getattr(Config(), name)
                          for name in ("data_dir", "run_dir", "cache", "coordinator", "precision")}
MEAN_FACE, PARAMS = "spec/mean_face", "params/"
EXACT = "scale/"  # parameters that stay float32: few, and every latent is multiplied by them


def shipped() -> dict[str, pathlib.Path]:
    """Returns the models that come with the package, {name: file}."""
    return {path.stem: path for path in sorted(SHIPPED.glob(f"*{SUFFIX}"))}


def write_compact(path: pathlib.Path, config: Config, spec: Spec, step: int, epoch: int, params: Params) -> None:
    """Writes a model as one file, its parameters rounded to float16: by up to 2^-11 of themselves.

    Where there is a flow, f, the prior before it, which nothing asks any more, stays behind.

    Raises:
      InputError: a parameter is beyond the range of float16, or the file cannot be written.
    """
    flat = {name: np.asarray(value) for name, value in _flat(params, config).items()}
    with np.errstate(over="ignore"):  # told below
        tensors = {PARAMS + name: value.astype(np.float32 if name.startswith(EXACT) else np.float16)
                   for name, value in flat.items()}
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise InputError(f"{name} has a value that is not finite in float16, which ends at 65,504; the model "
                             "cannot be written as a compact file")
    fields = spec.to_json()
    del fields["mean_face"]
    facts = {"version": VERSION, "config": json.loads(dataclasses.replace(config, **PLACES).to_json()), "spec": fields,
             "step": step, "epoch": epoch}  # under one name, because safetensors writes several in no fixed order
    write_whole(path, safetensors.numpy.save(tensors | {MEAN_FACE: spec.mean_face}, {"cmma_jax": json.dumps(facts)}))


def read_compact(path: pathlib.Path) -> tuple[Config, Spec, int, int, Model, Params]:
    """Returns a model's settings, its data's description, step and epoch, the model, and its parameters in float32.

    Names, types and shapes are compared with what the settings ask for before a parameter is read.

    Raises:
      InputError: the file is damaged, or is no such file.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_slice(name) for name in file.keys()}
            stored = {name: (tensor.get_dtype(), tuple(tensor.get_shape())) for name, tensor in tensors.items()}
            dtype, shape = stored.pop(MEAN_FACE, ("none", ()))
            if dtype != "F32":
                raise _wrong(path, f"its mean face is of type {dtype}, expected F32")
            try:
                config, spec, step, epoch = _facts(metadata["cmma_jax"], file.get_tensor(MEAN_FACE))
                model = make_model(config, spec)
                like = jax.eval_shape(model.init, jax.random.key(0))
            except Exception as error:  # whatever JSON and the constructors say of what nobody has checked
                raise _wrong(path, one_line(error)) from error
            wanted = {PARAMS + name: ("F32" if name.startswith(EXACT) else "F16", tuple(a.shape))
                      for name, a in _flat(like, config).items()}
            for name in sorted(wanted.keys() | stored.keys()):
                if wanted.get(name) != stored.get(name):
                    raise _wrong(path, f"{name} is {stored.get(name, 'missing')}, expected {wanted.get(name, 'none')}")
            flat = {name.removeprefix(PARAMS): file.get_tensor(name).astype(np.float32) for name in wanted}
    except (safetensors.SafetensorError, OSError) as error:
        raise _wrong(path, one_line(error)) from error
    for name, value in flat.items():
        if not np.isfinite(value).all():
            raise _wrong(path, f"{PARAMS}{name} has a value that is not finite")
    return config, spec, step, epoch, model, flax.traverse_util.unflatten_dict(flat, sep="/")


def _flat(params: Params, config: Config) -> dict[str, Any]:
    """Returns {path: array} of what a file holds of parameters."""
    kept = {name: tree for name, tree in params.items() if name != "f" or config.prior == "gaussian"}
    return flax.traverse_util.flatten_dict(kept, sep="/")


def _facts(text: str, mean_face: np.ndarray) -> tuple[Config, Spec, int, int]:
    """Returns what the metadata say; raises ValueError, or whatever else, where they make no sense."""
    facts = json.loads(text)
    if facts["version"] == 1:
        raise ValueError("it was made by cmma_jax 0.1, whose networks are others: train the model again with this "
                         "version, or install cmma_jax 0.1 to use it as it is")
    if facts["version"] != VERSION:
        raise ValueError(f"it is of version {facts['version']!r}, expected {VERSION}")
    config, step, epoch = Config.from_json(json.dumps(facts["config"])), facts["step"], facts["epoch"]
    spec = Spec.from_json(facts["spec"] | {"mean_face": mean_face})
    names = spec.attributes
    count = len(names)
    numbers = [*spec.attribute_mean, *spec.attribute_std, spec.pixel_std, *mean_face.ravel(),
               *itertools.chain(*spec.attribute_percentiles)]
    for name, good in {
            "steps": all(isinstance(number, int) and number >= 0 for number in (step, epoch)),
            "attributes": all(isinstance(name, str) for name in names) and len(set(names)) == count > 0,
            "kinds": len(spec.kinds) == count and set(spec.kinds) <= {"binary", "real"},
            "dataset": isinstance(spec.dataset, str),
            "statistics": len(spec.attribute_mean) == len(spec.attribute_std) == count and spec.pixel_std > 0,
            "percentiles": [len(each) for each in spec.attribute_percentiles] == list(np.where(spec.binary, 0, 101)),
            "mean face": mean_face.shape == (config.image_size, config.image_size, 3),
            "numbers": np.isfinite(np.asarray(numbers, np.float64)).all()}.items():
        if not good:
            raise ValueError(f"its {name} make no sense")
    return config, spec, step, epoch


def _wrong(path: pathlib.Path, why: str) -> InputError:
    return InputError(f"{path} cannot be read as a model ({why}); make such a file: python -m cmma_jax compact "
                      f"--run RUN --out NAME{SUFFIX}")
