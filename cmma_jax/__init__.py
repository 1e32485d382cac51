"""Conditional multimodal autoencoders in JAX and Flax: faces from attributes, and faces changed.

    model = cmma_jax.load("lfw")  # comes with the package; or the folder of a run of your own
    faces = model.generate({"Male": 1, "Eyeglasses": 1}, n=16)
    changed = model.edit(faces, {"Mustache": 1})

`cmma_jax.sampling.faces` has the pure functions of (model, params, key, arrays) beneath, for `vmap`, `grad` and `pmap`.
"""

from cmma_jax.errors import InputError
from cmma_jax.sampling.face_model import FaceModel, load
from cmma_jax.sampling.faces import edit, generate, infer_attributes, morph, reconstruct

__all__ = ["FaceModel", "InputError", "edit", "generate", "infer_attributes", "load", "morph", "reconstruct"]
