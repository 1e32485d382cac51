"""The settings of a model: what its networks are, and nothing of how they are trained."""

import dataclasses
from typing import Literal

from cmma_jax.errors import InputError

ModelName = Literal["cmma", "cvae", "vae", "cgan"]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What `make_model` needs beside the data's description; every field is a flag of the training."""

    model: ModelName = "cmma"
    """cmma: attributes -> latent -> face, the paper's model. What it is compared with: cvae (attributes and latent ->
    face), vae (latent -> face, no attributes), cgan (conditional adversarial network)."""
    latent_size: int = 0
    """J, the dimensions of z as a vector, beside the paper's networks; 0: z is a small picture, a map of cells."""
    latent_channels: int = 4
    """Channels of that map."""
    latent_cells: int = 0
    """Its height and width, the image's divided by 2, 4 or 8; 0: a quarter of the image's."""
    width: int = 48
    """Channels of the first convolution; each stage doubles them."""
    blocks: int = 1
    """Residual blocks of two 3x3 convolutions at the map's own size, where z is a map."""
    likelihood: Literal["gaussian", "logistic_mixture"] = "gaussian"
    """p(x|z) of a pixel: a Gaussian, a density, or a discretised mixture of logistics, which gives each of the 256
    values its probability: a better likelihood, and for as many nats in z a blurrier mean."""
    components: int = 3
    """K, the logistics of a mixture."""
    prior_hidden: int = 800
    """Softplus units of f."""
    prior: Literal["flow", "gaussian"] = "flow"
    """p(z|y): a flow by a transformer, trained in a second stage once the other networks are, or N(f(y))."""
    flow_width: int = 256
    """Features of a token in the flow's transformer, a multiple of 64."""
    flow_blocks: int = 6
    """Its blocks."""
    detail_width: int = 0
    """Channels of the detail, the network that gives p(x|z) group of pixels by group, each given those before it: a far
    better likelihood, trained in a stage of its own on a finished z; 0: p(x|z) is the decoder's Gaussian itself."""
    detail_blocks: int = 3
    """Its residual blocks."""
    projection: bool = False
    """cgan: the discriminator's word also has the inner product of the face's features with the attributes', by which
    each attribute is looked for (Miyato and Koyama 2018)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the factors of the flow's products, whose sums are float32, as is all else: bfloat16 is faster on GPUs, TPUs
    and CPUs that multiply it (AMX, AVX-512 BF16)."""

    def __post_init__(self) -> None:
        for name in ("latent_channels", "width", "blocks", "components", "prior_hidden", "flow_blocks",
                     "detail_blocks"):
            check(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        for name in ("latent_size", "latent_cells", "detail_width"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        check(self.flow_width > 0 and self.flow_width % 64 == 0, "flow_width", self.flow_width, "a multiple of 64")
        if self.latent_size or self.model == "cgan":
            check(self.prior == "gaussian", "prior", self.prior, "gaussian: the flow is one over a map of latents, "
                  f"which a {'CGAN' if self.model == 'cgan' else 'vector of them'} has not")
        if self.detail_width:
            check(self.model != "cgan" and self.likelihood == "gaussian", "detail_width", self.detail_width,
                  "0: the detail is a CMMA's, a CVAE's or a VAE's with --likelihood=gaussian")
        if self.model == "cgan":
            check(self.latent_size > 0, "latent_size", self.latent_size, "a number above 0: a CGAN's noise is a vector")


def check(good: bool, name: str, value: object, expected: str) -> None:
    """Raises InputError that names the flag, its value and what was expected, where a condition is not met."""
    if not good:  # a NaN compares false, and so ends here too
        raise InputError(f"--{name}={value} is out of range; give {expected}")


def latent_shape(architecture: Architecture, image_size: int) -> tuple[int, int, int]:
    """Returns [cells, cells, channels] of the map that z is.

    Raises:
      InputError: the cells do not divide the image as strided convolutions would.
    """
    cells = architecture.latent_cells or image_size // 4
    check(cells * 2 in (image_size, image_size / 2, image_size / 4) and cells % 2 == 0, "latent_cells", cells,
          f"an even half, quarter or eighth of the image's {image_size}, "
          f"such as {image_size // 4}")
    return cells, cells, architecture.latent_channels
