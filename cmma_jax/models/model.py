"""The models, as NamedTuples of pure functions of (params, arrays)."""

import functools
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax.models import networks
from cmma_jax.models.architecture import Architecture, latent_shape
from cmma_jax.models.distributions import Gaussian, LogisticMixture, Mixed, fold_each, standard_uniform
from cmma_jax.models.spec import Spec
from cmma_jax.models.transformer import VelocityNetwork

Params = dict

# Variance of a pixel's rounding to 8 bits, (1/255)^2 / 12: a density sharper than that describes the rounding
# and not the face, and at a saturated pixel it could grow without end.
PIXEL_LOGVAR_FLOOR = -13.567
LOG_SCALE_FLOOR = math.log(1 / 255) - 2.5  # at which a value has all of its interval's mass but e^-6
START_LOG_SCALE = -2.0  # of a new mixture, of the data's own
START_LOGVAR = -2.0  # of a new Gaussian pixel where z is a map, which soon says more than the mean face
ATTRIBUTE_LOGVAR_FLOOR = -4.0  # a standardised attribute is not known better than to 0.135 of its deviation
FARTHEST = 10.0  # of g's deviations, from its mean, beyond which the detail's network sees no difference
DROPOUT = 0.1  # of the velocity's feed-forward units, while it is trained


class Model(NamedTuple):
    """What every objective, sampler and figure needs of a model, and all it needs; None is a part it has not.

    x: [B, H, W, 3] in [0, 1]; y, mask: [B, A] (`Faces`); z: [B, J], a map's cells one after another; t: [B] in [0, 1].

    Attributes:
      init: (key, names=()) -> params of all networks, or of those named; with the flow's, `flow`, go those of its
        standardisation, `scale`.
      latents: J.
      prior: (params, y, mask) -> p(z|y), or p(z), Gaussian over [B, J]; a CGAN's noise. With a flow it is the prior
        under which the other networks were trained, of which nothing is asked any more.
      likelihood: (params, z, y, mask) -> p(x|z), or a CVAE's p(x|y, z), whose mean is [B, H, W, 3]; of a CGAN only
        that is meant, the generator's face.
      posterior: (params, x, y, mask) -> q(z|x, y); with an empty mask it is q(z|x). None: a CGAN.
      attributes: (params, z) -> q(y|z), Bernoulli and Gaussian over [B, A]. None where z does not depend on y.
      discriminator: (params, x, y, mask, seen) -> [B] logits of x being real; a CGAN's alone; B a multiple of
        `networks.GROUP`, whose faces it compares. seen: [B, H, W, 3] bool, the pixel values that it looks at
        (dropout of its input).
      velocity: (params, u, t, y, mask, keys=None) -> [B, J], du/dt of the flow (`flow`), u: [B, J] standardised
        latents; keys: [B], one an example, by which units are dropped while it is trained. None: p(z|y) is Gaussian.
      detail: (params, residual, around, centre, group) -> the distribution of a group's pixels, [B, h, w, ...], given
        those of earlier groups (`detail`). residual: [B, h, w, 4, 3], from g's means, 0 where pixels are not known;
        around, centre: g's Gaussians of all four pixels of a block and of the group's own; group: [B, 4 LEVELS]
        one-hot. With it p(x|z) is `detail.log_prob`; None: it is `likelihood`.
      discrete: whether p(x|z) gives bytes their probability; if not it is a density.
    """

    init: Callable[..., Params]
    latents: int
    prior: Callable[..., Gaussian]
    likelihood: Callable[..., Gaussian | LogisticMixture]
    # "| Any" and not "| None": who calls a part knows by the model's kind, or has asked, that it is there.
    posterior: Callable[..., Gaussian] | Any = None
    attributes: Callable[..., Mixed] | Any = None
    discriminator: Callable[..., jax.Array] | Any = None
    velocity: Callable[..., jax.Array] | Any = None
    detail: Callable[..., LogisticMixture] | Any = None
    discrete: bool = False

    @property
    def guided(self) -> bool:
        """Whether there is a flow that sees attributes: a CVAE's and a VAE's z do not depend on y."""
        return self.velocity is not None and self.attributes is not None


def encode_attributes(y: jax.Array, mask: jax.Array, binary: np.ndarray) -> jax.Array:
    """Returns what networks see of attributes, [B, A] -> [B, 2A]: values, binary ones as -1 and 1, then the mask.

    A hole is a 0 in both halves. binary: [A], which of them are.
    """
    values = jnp.where(binary[None], 2 * y - 1, y)
    return jnp.concatenate([jnp.where(mask, values, 0), mask.astype(y.dtype)], -1)


def cmma(architecture: Architecture, spec: Spec) -> Model:
    """Returns the conditional multimodal autoencoder: y -> z -> x, with p(z|y) = f and p(x|z) = g (Table 1)."""
    count, binary = len(spec.attributes), spec.binary
    shape, example = _latents(architecture, spec)
    encode = functools.partial(encode_attributes, binary=spec.binary)
    a = jnp.zeros((1, 2 * count))
    f = networks.PriorNetwork(example[0].size, architecture.prior_hidden)
    heads = 1 if binary.all() else 2
    h2 = (networks.VectorAttributes(count, heads, architecture.prior_hidden) if len(shape) == 1 else
          networks.MapAttributes(count, heads, architecture.width))
    parts = {"f": (f, a), "h2": (h2, example), **_autoencoder(architecture, spec, sees_x=True),
             **_later(architecture, spec)}

    def prior(params: Params, y: jax.Array, mask: jax.Array) -> Gaussian:
        return Gaussian(*f.apply({"params": params["f"]}, encode(y, mask)))

    def attributes(params: Params, z: jax.Array) -> Mixed:
        heads, *others = h2.apply({"params": params["h2"]}, z.reshape(len(z), *shape))
        logvar = jnp.maximum(others[0], ATTRIBUTE_LOGVAR_FLOOR) if others else jnp.zeros_like(heads)
        return Mixed(binary, heads, logvar)

    return Model(functools.partial(_init, parts), example.size, prior, _likelihood(architecture, spec, parts, None),
                 _posterior(spec, parts, encode), attributes, None, _velocity(parts, encode), _detail(spec, parts),
                 _discrete(architecture))


def cvae(architecture: Architecture, spec: Spec) -> Model:
    """Returns the conditional VAE of Kingma et al. (2014): z ~ N(0, I), q(z|x, y), p(x|y, z) (Eq. 13)."""
    encode = functools.partial(encode_attributes, binary=spec.binary)
    parts = _autoencoder(architecture, spec, sees_x=True, sees_z=True)
    return _with_standard_prior(architecture, spec, parts, encode)


def vae(architecture: Architecture, spec: Spec) -> Model:
    """Returns the VAE of Kingma and Welling (2014): z ~ N(0, I), q(z|x), p(x|z); y is taken and not looked at."""
    return _with_standard_prior(architecture, spec, _autoencoder(architecture, spec), None)


def _with_standard_prior(architecture: Architecture, spec: Spec, parts: dict[str, tuple],
                         encode: Callable[..., jax.Array] | None) -> Model:
    """Returns h and g under z ~ N(0, I); encode: (y, mask) -> what both see of the attributes, or None."""
    parts = parts | _later(architecture, spec)

    def nothing(y: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.zeros((len(y), 2 * len(spec.attributes)))

    return Model(functools.partial(_init, parts), _latents(architecture, spec)[1].size,
                 _standard_prior(architecture, spec), _likelihood(architecture, spec, parts, encode),
                 _posterior(spec, parts, encode), None, None, _velocity(parts, nothing), _detail(spec, parts),
                 _discrete(architecture))


def cgan(architecture: Architecture, spec: Spec) -> Model:
    """Returns the conditional GAN of Mirza and Osindero (2014): a generator like g, a discriminator like h.

    Both see the attributes. The generator's face is the mean face plus the network's output, through a sigmoid, so
    that no pixel leaves [0, 1].
    """
    generator = networks.VectorDecoder(
        spec.image_shape, architecture.width, 3, architecture.prior_hidden // 4,
        head_init=nn.initializers.variance_scaling(0.1, "fan_in", "normal"), norm=True)
    network = networks.DiscriminatorNetwork(architecture.width, architecture.projection)
    _, z = _latents(architecture, spec)
    a, x = jnp.zeros((1, 2 * len(spec.attributes))), jnp.zeros((1, *spec.image_shape))
    middle = jnp.clip(jnp.asarray(spec.mean_face)[None], 0.01, 0.99)
    group = tuple(jnp.repeat(each, networks.GROUP, 0) for each in (x, a))

    def likelihood(params: Params, z: jax.Array, y: jax.Array, mask: jax.Array) -> Gaussian:
        face = generator.apply({"params": params["g"]}, z, encode_attributes(y, mask, spec.binary))
        face = jax.nn.sigmoid(jax.scipy.special.logit(middle) + face)
        return Gaussian(face, jnp.zeros_like(face))

    def discriminator(params: Params, x: jax.Array, y: jax.Array, mask: jax.Array, seen: jax.Array) -> jax.Array:
        x = jnp.where(seen, _scaled(x, spec), 0)  # an unseen value is at the mean face
        return network.apply({"params": params["discriminator"]}, x, encode_attributes(y, mask, spec.binary))

    parts = {"g": (generator, z, a), "discriminator": (network, *group)}
    return Model(functools.partial(_init, parts), z.size, _standard_prior(architecture, spec), likelihood,
                 discriminator=discriminator)


MODELS = {"cmma": cmma, "cvae": cvae, "vae": vae, "cgan": cgan}


def make_model(architecture: Architecture, spec: Spec) -> Model:
    """Returns the model that an architecture names, for data as a spec describes them."""
    return MODELS[architecture.model](architecture, spec)


def count_parameters(params: Params) -> int:
    """Returns the number of values in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _init(parts: dict[str, tuple], key: jax.Array, names: Collection[str] = ()) -> Params:
    """parts: {name: (network, *example inputs)}; names: of those that are wanted, if not all."""
    names = names or parts
    params = {name: parts[name][0].init(k, *parts[name][1:])["params"]
              for k, name in zip(jax.random.split(key, len(names)), names, strict=True)}
    if "flow" in params:
        channels = parts["flow"][1].shape[-1]
        params["scale"] = {"mean": jnp.zeros(channels), "deviation": jnp.ones(channels)}
    return params


def _latents(architecture: Architecture, spec: Spec) -> tuple[tuple[int, ...], jax.Array]:
    """Returns the shape in which networks see a latent, a vector's or a map's, and one of zeros."""
    if architecture.latent_size:
        shape: tuple[int, ...] = (architecture.latent_size,)
    else:
        shape = latent_shape(architecture, spec.image_shape[0])
    return shape, jnp.zeros((1, *shape))


def _autoencoder(architecture: Architecture, spec: Spec, sees_x: bool = False, sees_z: bool = False
                 ) -> dict[str, tuple]:
    """Returns h and g with their example inputs; sees_x, sees_z: whether h, g see attributes beside x, z.

    Their parameters are as many as a CMMA's, whose h alone does: of maps by the channels inside g's blocks; of vectors
    by units at g's entrance, which stand for f and h2 as well.
    """
    shape, z = _latents(architecture, spec)
    a, x = jnp.zeros((1, 2 * len(spec.attributes))), jnp.zeros((1, *spec.image_shape))
    width = architecture.width
    mixture = architecture.likelihood == "logistic_mixture"
    heads = 10 * architecture.components if mixture else 6
    head_init = networks.SMALL if mixture else nn.initializers.zeros if len(shape) == 1 else networks.PIXELS

    def parts(more: int, sees_x: bool, sees_z: bool) -> dict[str, tuple]:
        if len(shape) == 1:
            h: nn.Module = networks.VectorEncoder(shape[0], width)
            g: nn.Module = networks.VectorDecoder(spec.image_shape, width, heads, more, head_init)
        else:
            h = networks.MapEncoder(shape[0], shape[2], width, architecture.blocks)
            g = networks.MapDecoder(spec.image_shape, width, architecture.blocks, heads, more, head_init)
        return {"h": (h, x, a if sees_x else None), "g": (g, z, a if sees_z else None)}

    def count(parts: dict[str, tuple]) -> int:
        return count_parameters(jax.eval_shape(functools.partial(_init, parts), jax.random.key(0)))

    if sees_x and not sees_z:
        return parts(0, True, False)
    wanted = count(parts(0, True, False))
    if len(shape) == 1:
        f = networks.PriorNetwork(shape[0], architecture.prior_hidden)
        h2 = networks.VectorAttributes(len(spec.attributes), 1 if spec.binary.all() else 2, architecture.prior_hidden)
        wanted += count({"f": (f, a), "h2": (h2, z)})
        few, more = (count(parts(units, sees_x, sees_z)) for units in (1, 2))
        return parts(max(1, 1 + round((wanted - few) / (more - few))), sees_x, sees_z)
    few, more = (count(parts(extra, sees_x, sees_z)) for extra in (0, 1))
    extra = round((wanted - few) / max(1, more - few))
    channels = width * spec.image_shape[0] // shape[0] // 2
    return parts(max(1 - channels, extra), sees_x, sees_z)  # a channel at least is left inside a block


def _posterior(spec: Spec, parts: dict[str, tuple], encode: Callable[..., jax.Array] | None) -> Callable:
    h = parts["h"][0]

    def posterior(params: Params, x: jax.Array, y: jax.Array, mask: jax.Array) -> Gaussian:
        heads = h.apply({"params": params["h"]}, _scaled(x, spec), None if encode is None else encode(y, mask))
        return Gaussian(*(head.reshape(len(x), -1) for head in heads))

    return posterior


def _likelihood(architecture: Architecture, spec: Spec, parts: dict[str, tuple],
                encode: Callable[..., jax.Array] | None) -> Callable:
    """Returns p(x|z), which sees y where there is an encode: given z, a CMMA's face does not depend on it."""
    g, example, _ = parts["g"]
    start = 0.0 if architecture.latent_size else START_LOGVAR
    pixels = (_mixture if architecture.likelihood == "logistic_mixture" else
              functools.partial(_pixel_gaussian, start=start))

    def likelihood(params: Params, z: jax.Array, y: jax.Array, mask: jax.Array) -> Gaussian | LogisticMixture:
        z = z.reshape(len(z), *example.shape[1:])
        return pixels(spec, g.apply({"params": params["g"]}, z, None if encode is None else encode(y, mask)))

    return likelihood


def _later(architecture: Architecture, spec: Spec) -> dict[str, tuple]:
    """Returns the networks of later stages, those that the architecture has, with their example inputs."""
    parts: dict[str, tuple] = {}
    if architecture.prior == "flow":
        network = VelocityNetwork(architecture.flow_width, architecture.flow_blocks, architecture.precision)
        z, a = _latents(architecture, spec)[1], jnp.zeros((1, 2 * len(spec.attributes)))
        parts["flow"] = network, z, jnp.zeros(1), a
    if architecture.detail_width:
        parts["detail"] = (
            networks.DetailNetwork(architecture.detail_width, architecture.detail_blocks, architecture.components),
            jnp.zeros((1, 4, 4, 12)), jnp.zeros((1, 4, 4, 24)), jnp.zeros((1, 4 * networks.LEVELS)))
    return parts


def _velocity(parts: dict[str, tuple], encode: Callable[..., jax.Array]) -> Callable | None:
    """Returns the velocity, if there is a flow; encode: (y, mask) -> what it sees of the attributes."""
    if "flow" not in parts:
        return None
    network, example = parts["flow"][:2]

    def velocity(params: Params, u: jax.Array, t: jax.Array, y: jax.Array, mask: jax.Array,
                 keys: jax.Array | None = None) -> jax.Array:
        keep = None if keys is None else [
            (standard_uniform(fold_each(keys, block), (len(u), 4 * network.width)) >= DROPOUT) / (1 - DROPOUT)
            for block in range(network.blocks)]
        u = u.reshape(len(u), *example.shape[1:])
        return network.apply({"params": params["flow"]}, u, t, encode(y, mask), keep).reshape(len(u), -1)

    return velocity


def _detail(spec: Spec, parts: dict[str, tuple]) -> Callable | None:
    """Returns the distribution of a group of pixels, if there is a detail."""
    if "detail" not in parts:
        return None
    network = parts["detail"][0]

    def detail(params: Params, residual: jax.Array, around: Gaussian, centre: Gaussian, group: jax.Array
               ) -> LogisticMixture:
        residual, mean, deviation = (each.reshape(*each.shape[:3], -1) for each in (
            jnp.clip(residual * jnp.exp(-around.logvar / 2), -FARTHEST, FARTHEST),
            (around.mean - 0.5) / spec.pixel_std, around.logvar / 2 - jnp.log(spec.pixel_std)))
        heads, moves = network.apply({"params": params["detail"]}, residual, jnp.concatenate([mean, deviation], -1),
                                     group)
        deviation = jnp.exp(centre.logvar / 2)
        found = _mixture_around(heads, centre.mean, deviation, 0.0)
        return found._replace(means=found.means + (deviation * moves)[..., None])

    return detail


def _discrete(architecture: Architecture) -> bool:
    return architecture.likelihood == "logistic_mixture" or architecture.detail_width > 0


def _scaled(x: jax.Array, spec: Spec) -> jax.Array:
    return (x - jnp.asarray(spec.mean_face)[None]) / spec.pixel_std


def _pixel_gaussian(spec: Spec, heads: jax.Array, start: float) -> Gaussian:
    """heads: [B, H, W, 6]; start: log-variance, of the data's own, where they are 0."""
    mean, logvar = jnp.split(heads, 2, -1)
    mean = jnp.asarray(spec.mean_face)[None] + spec.pixel_std * mean
    return Gaussian(mean, jnp.maximum(2 * jnp.log(spec.pixel_std) + start + logvar, PIXEL_LOGVAR_FLOOR))


def _mixture(spec: Spec, heads: jax.Array) -> LogisticMixture:
    """heads: [B, H, W, 10 K]. Narrow at the start, it has its means learnt first."""
    return _mixture_around(heads, jnp.asarray(spec.mean_face)[None], jnp.full((1, 1, 1, 3), spec.pixel_std),
                           START_LOG_SCALE)


def _mixture_around(heads: jax.Array, centre: jax.Array, deviation: jax.Array, start: float) -> LogisticMixture:
    """heads: [B, H, W, 10 K]; where they are 0: centre, [B or 1, H, W, 3], and deviation times exp(start)."""
    count = heads.shape[-1] // 10
    weights, others = heads[..., :count], heads[..., count:].reshape(*heads.shape[:-1], 3, 3, count)
    means = centre[..., None] + deviation[..., None] * others[..., 0, :, :]
    # A logistic's deviation is pi / sqrt(3) times its scale.
    log_scales = jnp.log(deviation * math.sqrt(3) / math.pi)[..., None] + start + others[..., 1, :, :]
    return LogisticMixture(jax.nn.log_softmax(weights), means, jnp.maximum(log_scales, LOG_SCALE_FLOOR),
                           jnp.tanh(others[..., 2, :, :]), centre)


def _standard_prior(architecture: Architecture, spec: Spec) -> Callable[..., Gaussian]:
    _, example = _latents(architecture, spec)

    def prior(params: Params, y: jax.Array, mask: jax.Array) -> Gaussian:
        zeros = jnp.zeros((len(y), example.size))
        return Gaussian(zeros, zeros)

    return prior
