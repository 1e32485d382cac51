"""What a program does with a finished run: `cmma_jax.load(...)` and the methods of `FaceModel`."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax.data.files import write_whole
from cmma_jax.errors import InputError
from cmma_jax.models.distributions import row_keys
from cmma_jax.models.flow import STEPS
from cmma_jax.sampling import faces
from cmma_jax.sampling.attributes import Attributes, Settings
from cmma_jax.sampling.faces import GUIDANCE
from cmma_jax.training.compact import shipped
from cmma_jax.training.config import Config
from cmma_jax.training.runs import Run, find_runs, load_run

INFERENCE_SAMPLES = 20
# The scale of a flow's guidance where no other is given and one attribute of many is known, to which a velocity that
# has mostly seen many of them does not hold by itself (`benchmarks.asked`).
GUIDANCE_OF_FEW = 5.0
CANNOT_ENCODE = "cannot encode a face; choose a CMMA, a CVAE or a VAE"
SHIPPED = "lfw"  # the model that stands in where nothing has been trained


def load(path: pathlib.Path | str = "", *, runs_dir: pathlib.Path | str = "runs", model: str = "cmma",
         unfinished: bool = False) -> "FaceModel":
    """Returns the model of a run's best checkpoint.

    Args:
      path: the run's folder, a compact file, the name of a model that comes with the package, such as "lfw", or
        hf://USER/NAME, one on the Hugging Face hub. Empty: the newest finished run of `model` in `runs_dir`; where
        there is no CMMA, "lfw".
      runs_dir, model: where it is looked for, and of which kind; an empty `model`: of any.
      unfinished: whether a run whose training has not come to its end will do.

    Raises:
      InputError: there is none, or it is damaged.
    """
    if not path:
        try:
            path = max(find_runs(runs_dir, model, unfinished=unfinished),
                       key=lambda run: (run / "metrics.jsonl").stat().st_mtime)
        except InputError:
            if model != "cmma" or SHIPPED not in shipped():
                raise
            path = SHIPPED
    return FaceModel(load_run(path, unfinished))


@dataclasses.dataclass(frozen=True)
class FaceModel:
    """A trained model as a person uses it: attributes by name, arrays in and out, noise from a seed.

    Faces go in as [H, W, 3] or [N, H, W, 3], uint8 or floats in [0, 1], and come out as [N, H, W, 3] float32 in
    [0, 1]. Attributes are {name: value}, forgiving of case and `_`; those not named are unknown. A binary one takes 0
    to 1, a real-valued one a score, "+2sd" or "p95". Each method calls the function of `cmma_jax.sampling` that has its
    name, compiled once for each power of two of N. All raise InputError for what is wrong with their input.
    """

    run: Run

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of its A attributes."""
        return self.run.spec.attributes

    @property
    def guided(self) -> bool:
        """Whether there is a flow that sees attributes, and so takes guidance."""
        return self.run.model.guided

    def generate(self, attributes: Settings | None = None, n: int = 1, seed: int = 0, temperature: float = 1.0,
                 groups: bool = True, guidance: float | None = None, steps: int = STEPS, detail: float | None = None
                 ) -> np.ndarray:
        """Returns n faces for attributes, samples of p(x|y), of which those not named are unknown.

        Args:
          attributes: what they are to have.
          n: how many.
          seed: of the noise; face i depends on the seed and i alone.
          groups: whether setting an attribute resets what contradicts it.
          temperature, steps, detail: as of `faces.generate`.
          guidance: the scale w of a flow's classifier-free guidance; above 1 faces show their attributes more, and
            differ less; 1: none; None: 1.5 where all attributes are named, towards 5 as fewer are. Where nothing is
            asked for it has no effect.
        """
        return self.generate_encoded(*self._rows(attributes or {}, max(n, 0), groups), seed, temperature, guidance,
                                     steps, detail)

    def generate_encoded(self, y: np.ndarray, mask: np.ndarray, seed: int = 0, temperature: float = 1.0,
                         guidance: float | None = None, steps: int = STEPS, detail: float | None = None) -> np.ndarray:
        """Returns a face for each row of y, mask: [N, A], arguments else as of `generate`."""
        if not len(y):
            raise InputError("0 faces were asked for; give 1 or more")
        _require(temperature, "temperature", 0.0)
        if detail is not None:
            _require(detail, "detail", 0.0)
            self._require("detail", "has no detail, by which pixels are drawn; leave detail out")
        detail = None if detail is None else jnp.float32(detail)
        steps = self._steps(steps)
        guided = self._guided_by(guidance, bool(np.any(mask)))

        def make(rows, y, mask):
            return faces.generate(self.run.model, self.run.params, row_keys(seed, rows), y, mask,
                                  jnp.float32(temperature), guided(mask), detail, steps=steps)

        return faces.in_batches(make, np.arange(len(y)), y, mask)

    def edit(self, x: np.ndarray, attributes: Settings, y: Settings | None = None, intensity: float = 1.0, *,
             literal: bool = False, keep_detail: bool = True, groups: bool = True, steps: int = STEPS) -> np.ndarray:
        """Returns faces with attributes changed; a face's edit does not depend on those beside it.

        Args:
          x: the faces.
          attributes: what they are to have.
          y: what they have, as far as that is known; the rest is inferred from each face, by q(y|z). Without q(y|z),
            as in a CVAE, it stays unknown.
          intensity, literal, keep_detail, steps: as of `faces.edit`.
          groups: as of `generate`.
        """
        x = self._faces(x)
        self._settings().settle(attributes, *self.encode({}), groups)  # errors before the work
        old, mask = self.complete(x, *self._rows(y or {}, len(x), groups))
        new, new_mask = self._settings().settle(attributes, old, mask, groups)
        return self.edit_encoded(x, old, mask, new, new_mask, intensity, literal=literal, keep_detail=keep_detail,
                                 steps=steps)

    def edit_encoded(self, x: np.ndarray, y: np.ndarray, mask: np.ndarray, new_y: np.ndarray, new_mask: np.ndarray,
                     intensity: float | np.ndarray = 1.0, *, literal: bool = False, keep_detail: bool = True,
                     steps: int = STEPS) -> np.ndarray:
        """Returns faces changed from y to new_y, [N, A] each with its mask; intensity: a number or [N]."""
        intensity = np.broadcast_to(np.asarray(intensity, np.float32), (len(x),))
        _require(float(np.abs(intensity).max()), "intensity", 0.0)
        self._require("posterior", CANNOT_ENCODE)
        if literal and self.run.model.velocity is not None:
            raise InputError(f"literal is for Gaussian priors: the {self.run.system} in {self.run.path} edits by its "
                             "flow; leave literal out")
        steps = self._steps(steps)

        def change(*arrays):
            return faces.edit(self.run.model, self.run.params, *arrays, literal=literal, keep_detail=keep_detail,
                              steps=steps)

        return faces.in_batches(change, x, y, mask, new_y, new_mask, intensity)

    def infer_attributes(self, x: np.ndarray, y: Settings | None = None, seed: int = 0,
                         samples: int = INFERENCE_SAMPLES) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns {name: (mean [N], deviation [N])}: a binary attribute's probability, a real-valued one's score.

        The deviation is that of the probability between samples of z, or of q(y|x) in the score's units.

        Args:
          x: the faces.
          y: what is known of all of them.
          seed, samples: of the draws of z.
        """
        x = self._faces(x)
        mean, deviation = self._infer(x, *self._rows(y or {}, len(x), True), seed, samples)
        spec = self.run.spec
        scale = np.where(spec.binary, 1, spec.attribute_std)[None]
        mean, deviation = mean * scale + np.where(spec.binary, 0, spec.attribute_mean)[None], deviation * scale
        return {name: (mean[:, i], deviation[:, i]) for i, name in enumerate(self.attributes)}

    def reconstruct(self, x: np.ndarray, y: Settings | None = None) -> np.ndarray:
        """Returns reconstructions of faces, at the mean of q(z|x, y); y: what is known of all of them."""
        x = self._faces(x)
        self._require("posterior", CANNOT_ENCODE)

        def make(*arrays):
            return faces.reconstruct(self.run.model, self.run.params, *arrays)

        return faces.in_batches(make, x, *self._rows(y or {}, len(x), True))

    def morph(self, x: np.ndarray, frames: int = 24) -> np.ndarray:
        """Returns [frames, H, W, 3], the way from the first of two faces to the second, as of `faces.morph`."""
        x = self._faces(x)
        self._require("posterior", CANNOT_ENCODE)
        if len(x) != 2 or frames < 2:
            raise InputError(f"a morph needs 2 faces and 2 frames or more; got {len(x)} faces and {frames} frames")
        y, mask = self.complete(x, *self._rows({}, 2, True))
        return np.asarray(faces.morph(self.run.model, self.run.params, x, y, mask, np.linspace(0, 1, frames,
                                                                                                dtype=np.float32)))

    def sweep(self, attribute: str, levels: np.ndarray, attributes: Settings | None = None, *,
              face: np.ndarray | None = None, groups: bool = True) -> np.ndarray:
        """Returns a face moved along one attribute: [T, H, W, 3].

        Args:
          attribute: its name.
          levels: [T] intensities of an edit that sets it, or raises a real-valued one by a deviation.
          attributes: what the face else has; it is the one at the prior's mean, or a sample of a flow.
          face: a face instead; what it has is inferred.
          groups: as of `generate`.
        """
        levels = np.asarray(levels, np.float32)
        if face is None and self.run.model.velocity is not None:
            face = self.generate(attributes, groups=groups)
        x = None if face is None else self._faces(face)
        y, mask = self.encode(attributes or {}, groups) if x is None else (
            a[0] for a in self.complete(x, *self._rows(attributes or {}, 1, groups)))
        column, settle = self._settings().find(attribute), functools.partial(self._settings().settle, groups=groups)
        binary = self.run.spec.binary[column]
        if binary:
            (less, less_mask), (more, more_mask) = (settle({attribute: value}, y, mask) for value in (0, 1))
        else:
            less, less_mask = y, mask | (np.arange(len(y)) == column)
            more, more_mask = y + np.eye(len(y), dtype=np.float32)[column], less_mask
        if x is None:
            between = (less + more)[None] / 2 + levels[:, None] * (more - less)[None]
            return self.generate_encoded(between, np.repeat((less_mask & more_mask)[None], len(levels), 0),
                                         temperature=0.0)
        way = (less, less_mask, more, more_mask)
        if binary and y[column] > 0.5:
            way, levels = (more, more_mask, less, less_mask), -levels
        rows, old, old_mask, new, new_mask = (np.repeat(a[None], len(levels), 0) for a in (x[0], *way))
        return self.edit_encoded(rows, old, old_mask, new, new_mask, levels)

    def encode(self, attributes: Settings, groups: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Returns y, mask: [A] of named attributes, the others unknown."""
        nothing = np.zeros(len(self.attributes), np.float32)
        return self._settings().settle(attributes, nothing, nothing.astype(bool), groups)

    def complete(self, x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns y, mask: [N, A] of faces x with what is unknown inferred by q(y|z), where there is one."""
        if self.run.model.attributes is None or mask.all():
            return y, mask
        mean, _ = self._infer(x, y, mask, 0, INFERENCE_SAMPLES)
        inferred = np.where(self.run.spec.binary[None], mean > 0.5, mean).astype(np.float32)
        return np.where(mask, y, inferred), np.ones_like(mask)

    def export(self, path: pathlib.Path | str, guidance: float | None = None, steps: int = STEPS
               ) -> list[pathlib.Path]:
        """Writes the sampler as StableHLO, by `jax.export`, for programs that do not have this package.

        path gets the sampler with its parameters, and path + ".json" the names of the attributes and how to call it:
        `jax.export.deserialize(bytes).call(seed, y, mask, temperature)`, seed: uint32, y: [N, A] float32, mask: [N, A]
        bool, temperature: float32 -> [N, H, W, 3] float32 in [0, 1], any N, on CPU, CUDA GPU and TPU.

        guidance, steps: as of `generate`, the same for every call.

        Returns both paths.
        """
        model, params, spec = self.run.model, self.run.params, self.run.spec
        guided, steps = self._guided_by(guidance, True), self._steps(steps)

        def sampler(seed, y, mask, temperature):
            def one(row, y, mask):
                return faces.generate(model, params, row_keys(seed, row[None]), y[None], mask[None], temperature,
                                      guided(mask[None]), steps=steps)[0]

            return jax.vmap(one)(jnp.arange(y.shape[0]), y, mask)

        (batch,) = jax.export.symbolic_shape("n")
        shape, number = (batch, len(spec.attributes)), jax.ShapeDtypeStruct
        exported = jax.export.export(jax.jit(sampler), platforms=("cpu", "cuda", "tpu"))(
            number((), jnp.uint32), number(shape, jnp.float32), number(shape, jnp.bool_), number((), jnp.float32))
        facts = {"call": "jax.export.deserialize(bytes).call(seed, y, mask, temperature)",
                 "arguments": {"seed": "uint32", "y": "[N, A] float32", "mask": "[N, A] bool, True: known",
                               "temperature": "float32, 1: samples, 0: the face at the noise's mean"},
                 "guidance": guidance if guidance is not None else "as the package's" if self.guided else 1.0,
                 "steps": steps,
                 "result": f"[N, {', '.join(map(str, spec.image_shape))}] float32 in [0, 1]",
                 "attributes": spec.attributes, "kinds": spec.kinds, "attribute_mean": spec.attribute_mean,
                 "attribute_std": spec.attribute_std, "dataset": spec.dataset, "model": self.run.config.model}
        paths = [pathlib.Path(path), pathlib.Path(f"{path}.json")]
        write_whole(paths[0], bytes(exported.serialize()))
        write_whole(paths[1], json.dumps(facts, indent=1).encode())
        return paths

    def _settings(self) -> Attributes:
        return Attributes(self.run.spec)

    def _rows(self, attributes: Settings, n: int, groups: bool) -> tuple[np.ndarray, np.ndarray]:
        y, mask = self.encode(attributes, groups)
        return np.repeat(y[None], n, 0), np.repeat(mask[None], n, 0)

    def _infer(self, x, y, mask, seed, samples) -> tuple[np.ndarray, np.ndarray]:
        self._require("attributes", "has no q(y|z), by which attributes are inferred; use a CMMA")
        _require(samples, "samples", 1)

        def infer(rows, *arrays):
            return faces.infer_attributes(self.run.model, self.run.params, row_keys(seed, rows), *arrays,
                                          samples=samples)

        return faces.in_batches(infer, np.arange(len(x)), x, y, mask)

    def _faces(self, x: np.ndarray) -> np.ndarray:
        """Returns faces as [N, H, W, 3] float32 in [0, 1]."""
        x = np.asarray(x)
        x = x / np.float32(255) if x.dtype == np.uint8 else x
        x = x[None] if x.ndim == 3 else x
        shape = self.run.spec.image_shape
        if x.ndim != 4 or x.shape[1:] != shape or not len(x):
            raise InputError(f"faces of shape {x.shape}; expected [N, {', '.join(map(str, shape))}], or one without N "
                             "(cmma_jax.sampling.photos.read_photo crops a photograph)")
        x = x.astype(np.float32)
        if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
            raise InputError("faces with pixels outside [0, 1]; give floats in [0, 1] or uint8")
        return x

    def _guided_by(self, guidance: float | None, asked: bool) -> Callable[[Any], Any]:
        """Returns (mask [N, A]) -> the scale [N] that a flow is given, or None for none.

        guidance: where it is not given, it is chosen for each face, by the share of its attributes that is known;
        asked: whether any attribute is.
        """
        if guidance is not None:
            _require(guidance, "guidance", 0.0)
            if guidance == 0 and asked:
                raise InputError("guidance 0 forgets the attributes: it is the scale w, of which 1 is none (in version "
                                 "0.1 0 was); give 1 for none, or more")
            if guidance != 1 and not self.guided:
                raise InputError(f"the {self.run.system} in {self.run.path} {self._without_guidance()}; leave guidance "
                                 "out, or give 1, which is none")
        if not (self.guided and asked) or guidance == 1:
            return lambda mask: None
        few, all_known = (GUIDANCE_OF_FEW, GUIDANCE) if guidance is None else (guidance, guidance)
        return lambda mask: few + (all_known - few) * jnp.asarray(mask, jnp.float32).mean(-1)

    def _without_guidance(self) -> str:
        """Says why there is no guidance."""
        if self.run.model.velocity is not None:
            return "has a flow that does not see attributes, which takes no guidance"
        settings = self.run.path / "config.json"
        if settings.is_file() and Config.from_json(settings.read_text()).prior == "flow":
            return "has no flow yet, which guidance is for (the command that began the run goes on with it)"
        return "has a Gaussian prior, which takes no guidance"

    def _steps(self, steps: int) -> int:
        """Returns the solver's steps; where there is no flow those do not matter, and are one number."""
        _require(steps, "steps", 1)
        return int(steps) if self.run.model.velocity is not None else STEPS

    def _require(self, part: str, without: str) -> None:
        if getattr(self.run.model, part) is None:
            raise InputError(f"the {self.run.system} in {self.run.path} {without}")


def _require(value: float, name: str, least: float) -> None:
    if not (math.isfinite(value) and value >= least):
        raise InputError(f"{name} {value:g} is out of range; give {least:g} or more" if math.isfinite(value)
                         else f"{name} {value} is no number; give a finite one")
    if isinstance(least, int) and value != int(value):
        raise InputError(f"{name} {value:g} is no whole number; give one")
