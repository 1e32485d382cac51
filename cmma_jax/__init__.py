"""Conditional multimodal autoencoders in JAX and Flax: faces from attributes, and faces changed.

    model = cmma_jax.load("lfw")  # comes with the package; or the folder of a run of your own
    faces = model.generate({"Male": 1, "Eyeglasses": 1}, n=16)
    changed = model.edit(faces, {"Mustache": 1})

`cmma_jax.sampling.faces` has the pure functions of (model, params, key, arrays) beneath, for `vmap`, `grad` and `pmap`.
"""

import importlib.metadata
import os

# On a CPU YNNPACK, XLA's default there, is to have the matrix products alone, among them those in bfloat16: by it the
# gradients of a convolution's kernel take up to six times as long, and element-wise work longer.
# Whoever has set flags has the word; and a release of which nobody has seen that it has the flag would end the process.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT")

from cmma_jax.errors import InputError  # noqa: E402
from cmma_jax.sampling.face_model import FaceModel, load  # noqa: E402
from cmma_jax.sampling.faces import edit, generate, infer_attributes, morph, reconstruct  # noqa: E402

__all__ = ["FaceModel", "InputError", "edit", "generate", "infer_attributes", "load", "morph", "reconstruct"]
