"""The models, as NamedTuples of pure functions of (params, arrays)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cmma_jax.config import Config
from cmma_jax.data.dataset import Spec
from cmma_jax.distributions import Bernoulli, Gaussian
from cmma_jax.networks import AttributeNetwork, LikelihoodNetwork, PosteriorNetwork, PriorNetwork

Params = dict

# Variance of a pixel's rounding to 8 bits, (1/255)^2 / 12: a density sharper than that describes the rounding
# and not the face, and at a saturated pixel it could grow without end.
PIXEL_LOGVAR_FLOOR = -13.567
ATTRIBUTE_LOGVAR_FLOOR = -4.0  # a standardised attribute is not known better than to 0.135 of its deviation


class Model(NamedTuple):
    """What every objective, sampler and figure needs of a model, and all it needs.

    x: [B, H, W, 3] in [0, 1]; y, mask: [B, A] (`Faces`); z: [B, J].

    Attributes:
      init: key -> params.
      prior: (params, y, mask) -> p(z|y), Gaussian over [B, J].
      posterior: (params, x, y, mask) -> q(z|x, y); with an empty mask it is q(z|x).
      likelihood: (params, z, y, mask) -> p(x|z), or a CVAE's p(x|y, z), Gaussian over [B, H, W, 3].
      attributes: (params, z) -> q(y|z), Bernoulli or Gaussian over [B, A].
    """

    init: Callable[..., Params]
    prior: Callable[..., Gaussian]
    posterior: Callable[..., Gaussian]
    likelihood: Callable[..., Gaussian]
    attributes: Callable[..., Bernoulli | Gaussian]


def encode_attributes(y: jax.Array, mask: jax.Array, kind: str) -> jax.Array:
    """Returns what networks see of attributes, [B, A] -> [B, 2A]: values, binary ones as -1 and 1, then the mask.

    A hole is a 0 in both halves.
    """
    values = 2 * y - 1 if kind == "binary" else y
    return jnp.concatenate([jnp.where(mask, values, 0), mask.astype(y.dtype)], -1)


def cmma(config: Config, spec: Spec) -> Model:
    """Returns the conditional multimodal autoencoder: y -> z -> x, with p(z|y) = f and p(x|z) = g (Table 1)."""
    count, binary = len(spec.attributes), spec.kind == "binary"
    f = PriorNetwork(config.latent_size, config.prior_hidden, config.linear_path)
    h = PosteriorNetwork(config.latent_size, config.width, config.linear_path)
    g = LikelihoodNetwork(spec.image_shape, config.width, config.linear_path)
    h2 = AttributeNetwork(count, 1 if binary else 2, config.prior_hidden)
    mean_face, pixel_logvar = jnp.asarray(spec.mean_face)[None], 2 * jnp.log(spec.pixel_std)

    def encode(y: jax.Array, mask: jax.Array) -> jax.Array:
        return encode_attributes(y, mask, spec.kind)

    def init(key: jax.Array) -> Params:
        keys = dict(zip(("f", "h", "g", "h2"), jax.random.split(key, 4), strict=True))
        a, z = jnp.zeros((1, 2 * count)), jnp.zeros((1, config.latent_size))
        x = jnp.zeros((1, *spec.image_shape))
        return {"f": f.init(keys["f"], a)["params"], "h": h.init(keys["h"], x, a)["params"],
                "g": g.init(keys["g"], z)["params"], "h2": h2.init(keys["h2"], z)["params"]}

    def prior(params: Params, y: jax.Array, mask: jax.Array) -> Gaussian:
        return Gaussian(*f.apply({"params": params["f"]}, encode(y, mask)))

    def posterior(params: Params, x: jax.Array, y: jax.Array, mask: jax.Array) -> Gaussian:
        scaled = (x - mean_face) / spec.pixel_std
        return Gaussian(*h.apply({"params": params["h"]}, scaled, encode(y, mask)))

    def likelihood(params: Params, z: jax.Array, y: jax.Array, mask: jax.Array) -> Gaussian:
        del y, mask  # given z, a CMMA's face does not depend on the attributes
        mean, logvar = g.apply({"params": params["g"]}, z)
        return Gaussian(mean_face + spec.pixel_std * mean, jnp.maximum(pixel_logvar + logvar, PIXEL_LOGVAR_FLOOR))

    def attributes(params: Params, z: jax.Array) -> Bernoulli | Gaussian:
        heads = h2.apply({"params": params["h2"]}, z)
        return Bernoulli(*heads) if binary else Gaussian(heads[0], jnp.maximum(heads[1], ATTRIBUTE_LOGVAR_FLOOR))

    return Model(init, prior, posterior, likelihood, attributes)


MODELS = {"cmma": cmma}


def make_model(config: Config, spec: Spec) -> Model:
    """Returns the model that a config names, for data as a spec describes them."""
    return MODELS[config.model](config, spec)


def count_parameters(params: Params) -> int:
    """Returns the number of values in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
