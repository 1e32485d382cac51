"""The settings of a model: what its networks are, and nothing of how they are trained."""

import dataclasses
from typing import Literal

ModelName = Literal["cmma", "cvae", "vae", "cgan"]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What `make_model` needs beside the data's description; every field is a flag of the training."""

    model: ModelName = "cmma"
    """cmma: attributes -> latent -> face, the paper's model. What it is compared with: cvae (attributes and latent ->
    face), vae (latent -> face, no attributes), cgan (conditional adversarial network)."""
    latent_size: int = 500
    """J, the dimensions of z."""
    width: int = 32
    """Channels of the first convolution; each of the four stages doubles them."""
    blocks: int = 0
    """Residual blocks of two 3x3 convolutions after each stage of h and of g."""
    variance: Literal["pixel", "channel", "shared"] = "pixel"
    """What of a face has a variance of its own, told from its latent: each pixel value, each channel, or the face."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the images between the networks' layers: bfloat16 halves their memory, for GPUs and TPUs. Parameters, linear
    paths, heads and the loss are float32 (on GPUs with TF32 products, which are JAX's default there)."""
    prior_hidden: int = 800
    """Softplus units of f, and of q(y|z)."""
    linear_path: bool = True
    """A matrix beside the other layers of f, h and g; not in the paper. It starts as conditional PPCA, the exact
    linear model, so that training begins at its likelihood."""
    prior: Literal["gaussian", "flow"] = "gaussian"
    """Of z: a Gaussian, or a flow from it to where the latents of faces lie. A flow is trained on a finished run with a
    Gaussian prior, whose networks stay as they are."""
    weight_variance: float = 1.0
    """cgan: factor on the variance of the initial weights."""
