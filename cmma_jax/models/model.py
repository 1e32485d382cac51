"""The models, as NamedTuples of pure functions of (params, arrays)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cmma_jax.models.architecture import Architecture
from cmma_jax.models.distributions import Bernoulli, Gaussian
from cmma_jax.models.networks import (
    GROUP,
    AttributeNetwork,
    DiscriminatorNetwork,
    LikelihoodNetwork,
    PosteriorNetwork,
    PriorNetwork,
    VelocityNetwork,
)
from cmma_jax.models.spec import Spec

Params = dict

# Variance of a pixel's rounding to 8 bits, (1/255)^2 / 12: a density sharper than that describes the rounding
# and not the face, and at a saturated pixel it could grow without end.
PIXEL_LOGVAR_FLOOR = -13.567
ATTRIBUTE_LOGVAR_FLOOR = -4.0  # a standardised attribute is not known better than to 0.135 of its deviation


class Model(NamedTuple):
    """What every objective, sampler and figure needs of a model, and all it needs; None is a part it has not.

    x: [B, H, W, 3] in [0, 1]; y, mask: [B, A] (`Faces`); z: [B, J]; t: [B] in [0, 1].

    Attributes:
      init: key -> params.
      prior: (params, y, mask) -> p(z|y), or p(z), Gaussian over [B, J]; a CGAN's noise. With a velocity it is where
        the flow to p(z|y) begins.
      likelihood: (params, z, y, mask) -> p(x|z), or a CVAE's p(x|y, z), Gaussian over [B, H, W, 3]; of a CGAN only
        its mean is meant, the generator's face.
      posterior: (params, x, y, mask) -> q(z|x, y); with an empty mask it is q(z|x). None: a CGAN.
      attributes: (params, z) -> q(y|z), Bernoulli or Gaussian over [B, A]. None where z does not depend on y.
      discriminator: (params, x, y, mask, seen) -> [B] logits of x being real; a CGAN's alone; B a multiple of
        `networks.GROUP`, whose faces it compares. seen: [B, H, W, 3] bool, the pixel values that it looks at
        (dropout of its input).
      velocity: (params, z, t, y, mask) -> [B, J], dz/dt of the flow prior (`flow`). None: the prior is Gaussian.
    """

    init: Callable[..., Params]
    prior: Callable[..., Gaussian]
    likelihood: Callable[..., Gaussian]
    # "| Any" and not "| None": who calls a part knows by the model's kind, or has asked, that it is there.
    posterior: Callable[..., Gaussian] | Any = None
    attributes: Callable[..., Bernoulli | Gaussian] | Any = None
    discriminator: Callable[..., jax.Array] | Any = None
    velocity: Callable[..., jax.Array] | Any = None


def encode_attributes(y: jax.Array, mask: jax.Array, kind: str) -> jax.Array:
    """Returns what networks see of attributes, [B, A] -> [B, 2A]: values, binary ones as -1 and 1, then the mask.

    A hole is a 0 in both halves.
    """
    values = 2 * y - 1 if kind == "binary" else y
    return jnp.concatenate([jnp.where(mask, values, 0), mask.astype(y.dtype)], -1)


def cmma(config: Architecture, spec: Spec) -> Model:
    """Returns the conditional multimodal autoencoder: y -> z -> x, with p(z|y) = f and p(x|z) = g (Table 1)."""
    count, binary = len(spec.attributes), spec.kind == "binary"
    f = PriorNetwork(config.latent_size, config.prior_hidden, config.linear_path)
    h = PosteriorNetwork(config.latent_size, config.width, config.linear_path, config.blocks, config.precision)
    g = LikelihoodNetwork(spec.image_shape, config.width, config.linear_path, blocks=config.blocks,
                          dtype=config.precision)
    h2 = AttributeNetwork(count, 1 if binary else 2, config.prior_hidden)
    x, a, z = _examples(config, spec)
    flow = _flow(config, spec)

    def init(key: jax.Array) -> Params:
        return _init(key, {"f": (f, a), "h": (h, x, a), "g": (g, z), "h2": (h2, z)} | flow)

    def prior(params: Params, y: jax.Array, mask: jax.Array) -> Gaussian:
        return Gaussian(*f.apply({"params": params["f"]}, encode_attributes(y, mask, spec.kind)))

    def posterior(params: Params, x: jax.Array, y: jax.Array, mask: jax.Array) -> Gaussian:
        return Gaussian(*h.apply({"params": params["h"]}, _scaled(x, spec), encode_attributes(y, mask, spec.kind)))

    def likelihood(params: Params, z: jax.Array, y: jax.Array, mask: jax.Array) -> Gaussian:
        del y, mask  # given z, a CMMA's face does not depend on the attributes
        return _pixel_gaussian(spec, config.variance, *g.apply({"params": params["g"]}, z))

    def attributes(params: Params, z: jax.Array) -> Bernoulli | Gaussian:
        heads = h2.apply({"params": params["h2"]}, z)
        return Bernoulli(*heads) if binary else Gaussian(heads[0], jnp.maximum(heads[1], ATTRIBUTE_LOGVAR_FLOOR))

    def encode(y: jax.Array, mask: jax.Array) -> jax.Array:
        return encode_attributes(y, mask, spec.kind)

    return Model(init, prior, likelihood, posterior, attributes, velocity=_velocity(flow, prior, encode))


def cvae(config: Architecture, spec: Spec) -> Model:
    """Returns the conditional VAE of Kingma et al. (2014): z ~ N(0, I), q(z|x, y), p(x|y, z) (Eq. 13)."""
    return _with_standard_prior(config, spec, lambda y, mask: encode_attributes(y, mask, spec.kind))


def vae(config: Architecture, spec: Spec) -> Model:
    """Returns the VAE of Kingma and Welling (2014): z ~ N(0, I), q(z|x), p(x|z); y is taken and not looked at."""
    return _with_standard_prior(config, spec, lambda y, mask: None)


def _with_standard_prior(config: Architecture, spec: Spec, encode: Callable[..., jax.Array | None]) -> Model:
    """Returns h and g under z ~ N(0, I); encode: (y, mask) -> what both see of the attributes, or None.

    There is neither f nor h2: as many parameters are at g's entrance instead.
    """
    h = PosteriorNetwork(config.latent_size, config.width, config.linear_path, config.blocks, config.precision)
    x, _, z = _examples(config, spec)
    none = jnp.zeros((1, len(spec.attributes)))
    a = encode(none, none)

    def networks(units: int) -> dict:
        g = LikelihoodNetwork(spec.image_shape, config.width, config.linear_path, units, blocks=config.blocks,
                              dtype=config.precision)
        return {"h": (h, x, a), "g": (g, z, a)}

    chosen = networks(_matching_units(config, spec, networks))
    g = chosen["g"][0]

    flow = _flow(config, spec)

    def init(key: jax.Array) -> Params:
        return _init(key, chosen | flow)

    def prior(params: Params, y: jax.Array, mask: jax.Array) -> Gaussian:
        return _standard_prior(config, y)

    def posterior(params: Params, x: jax.Array, y: jax.Array, mask: jax.Array) -> Gaussian:
        return Gaussian(*h.apply({"params": params["h"]}, _scaled(x, spec), encode(y, mask)))

    def likelihood(params: Params, z: jax.Array, y: jax.Array, mask: jax.Array) -> Gaussian:
        return _pixel_gaussian(spec, config.variance, *g.apply({"params": params["g"]}, z, encode(y, mask)))

    def nothing(y: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.zeros((len(y), 2 * len(spec.attributes)))

    return Model(init, prior, likelihood, posterior, velocity=_velocity(flow, prior, nothing))


def cgan(config: Architecture, spec: Spec) -> Model:
    """Returns the conditional GAN of Mirza and Osindero (2014): a generator like g, a discriminator like h.

    Both see the attributes. The generator's face is the mean face plus the network's word, through a sigmoid, so
    that no pixel leaves [0, 1]. All initial weights have `weight_variance` times their usual variance.
    """
    generator = LikelihoodNetwork(spec.image_shape, config.width, False, config.prior_hidden // 4, heads=1,
                                  head_init=nn.initializers.variance_scaling(0.4, "fan_in", "normal"), norm=True)
    network = DiscriminatorNetwork(config.width)
    x, a, z = _examples(config, spec)
    middle = jnp.clip(jnp.asarray(spec.mean_face)[None], 0.01, 0.99)

    def init(key: jax.Array) -> Params:
        group = tuple(jnp.repeat(each, GROUP, 0) for each in (x, a))
        params = _init(key, {"g": (generator, z, a), "discriminator": (network, *group)})
        return jax.tree.map(lambda leaf: leaf * config.weight_variance**0.5, params)  # biases are 0

    def prior(params: Params, y: jax.Array, mask: jax.Array) -> Gaussian:
        return _standard_prior(config, y)

    def likelihood(params: Params, z: jax.Array, y: jax.Array, mask: jax.Array) -> Gaussian:
        (face,) = generator.apply({"params": params["g"]}, z, encode_attributes(y, mask, spec.kind))
        face = jax.nn.sigmoid(jax.scipy.special.logit(middle) + face)
        return Gaussian(face, jnp.zeros_like(face))

    def discriminator(params: Params, x: jax.Array, y: jax.Array, mask: jax.Array, seen: jax.Array) -> jax.Array:
        x = jnp.where(seen, _scaled(x, spec), 0)  # an unseen value is at the mean face
        return network.apply({"params": params["discriminator"]}, x, encode_attributes(y, mask, spec.kind))

    return Model(init, prior, likelihood, discriminator=discriminator)


MODELS = {"cmma": cmma, "cvae": cvae, "vae": vae, "cgan": cgan}


def _examples(config: Architecture, spec: Spec) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns a face, encoded attributes and a latent, all zeros, from which the networks take their shapes."""
    return (jnp.zeros((1, *spec.image_shape)), jnp.zeros((1, 2 * len(spec.attributes))),
            jnp.zeros((1, config.latent_size)))


def _init(key: jax.Array, networks: dict[str, tuple]) -> Params:
    """networks: {name: (network, *example inputs)}."""
    keys = jax.random.split(key, len(networks))
    return {name: network.init(k, *inputs)["params"]
            for k, (name, (network, *inputs)) in zip(keys, networks.items(), strict=True)}


def _flow(config: Architecture, spec: Spec) -> dict[str, tuple]:
    """Returns the flow prior's network with its example inputs, for `_init`; nothing for a Gaussian prior."""
    if config.prior == "gaussian":
        return {}
    height, width, channels = spec.image_shape
    pictures = jnp.zeros((config.latent_size, height // 2, width // 2, channels))
    _, a, z = _examples(config, spec)
    return {"flow": (VelocityNetwork(config.width), z, jnp.zeros(1), a, pictures)}


def _velocity(flow: dict[str, tuple], prior: Callable[..., Gaussian], encode: Callable[..., jax.Array]):
    """Returns the velocity of `Model`, or None; encode: (y, mask) -> what it sees of the attributes."""
    if not flow:
        return None
    network, *_, pictures = flow["flow"]
    height, width, channels = pictures.shape[1:]

    def velocity(params: Params, z: jax.Array, t: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
        rows = params["g"]["linear"]["kernel"].reshape(-1, height, 2, width, 2, channels).mean((2, 4))
        said = network.apply({"params": params["flow"]}, z, t, encode(y, mask), rows)
        return jnp.exp(prior(params, y, mask).logvar / 2) * said

    return velocity


def _scaled(x: jax.Array, spec: Spec) -> jax.Array:
    return (x - jnp.asarray(spec.mean_face)[None]) / spec.pixel_std


def _pixel_gaussian(spec: Spec, variance: str, mean: jax.Array, logvar: jax.Array) -> Gaussian:
    shared = {"pixel": (), "channel": (1, 2), "shared": (1, 2, 3)}[variance]
    logvar = jnp.broadcast_to(logvar.mean(shared, keepdims=True), logvar.shape)
    mean = jnp.asarray(spec.mean_face)[None] + spec.pixel_std * mean
    return Gaussian(mean, jnp.maximum(2 * jnp.log(spec.pixel_std) + logvar, PIXEL_LOGVAR_FLOOR))


def _standard_prior(config: Architecture, y: jax.Array) -> Gaussian:
    zeros = jnp.zeros((len(y), config.latent_size))
    return Gaussian(zeros, zeros)


def _matching_units(config: Architecture, spec: Spec, networks: Callable[[int], dict]) -> int:
    """Returns the units at g's entrance with which networks come nearest to a CMMA's number of parameters."""
    def count(units: int) -> int:
        return count_parameters(jax.eval_shape(lambda key: _init(key, networks(units)), jax.random.key(0)))

    gaussian = dataclasses.replace(config, prior="gaussian")
    wanted = count_parameters(jax.eval_shape(cmma(gaussian, spec).init, jax.random.key(0)))
    few, more = count(1), count(2)
    return max(1, 1 + round((wanted - few) / (more - few)))


def make_model(config: Architecture, spec: Spec) -> Model:
    """Returns the model that a config names, for data as a spec describes them."""
    return MODELS[config.model](config, spec)


def count_parameters(params: Params) -> int:
    """Returns the number of values in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
