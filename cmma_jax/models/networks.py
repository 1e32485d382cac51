"""The networks f, h, g, h2 and the discriminator in Flax Linen: they know shapes, not the paper's losses.

Attributes reach them encoded: `a`, [B, 2A], the values with holes at 0 beside the mask of the known ones.
Faces reach them centred on the mean face and scaled to unit deviation. Heads start at zero, so that a new
model says: mean face, the data's own spread, z ~ N(0, I). Parameters are float32; with `dtype` bfloat16 the images
between entrance and heads are not, which halves their memory and their traffic.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from cmma_jax.models import layers

STAGES = 4  # 64 x 64 -> 4 x 4
BLOCKS = (1, 2, 1)  # of two 3x3 convolutions, at each of the velocity network's three sizes
TIMES = 6  # sines and cosines by which it is told the time
GROUP = 4  # faces that a discriminator compares with one another


class Conv(nn.Module):
    """The 4x4 stride-2 convolution: [B, H, W, C] -> [B, H/2, W/2, features]; parameters as nn.Conv's."""

    features: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.he_normal(), (4, 4, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return layers.conv(x, kernel.astype(x.dtype), bias.astype(x.dtype))


class ConvTranspose(nn.Module):
    """Its mirror image: [B, H, W, C] -> [B, 2H, 2W, features]; parameters as nn.ConvTranspose's."""

    features: int
    # 4 of the 16 taps meet in each output pixel, so that variance 2 over the fan-in wants four times as much.
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(8.0, "fan_in", "normal")

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (4, 4, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return layers.conv_transpose(x, kernel.astype(x.dtype), bias.astype(x.dtype))


class Conv3(nn.Module):
    """The 3x3 convolution of stride 1: [B, H, W, C] -> [B, H, W, features]; parameters as nn.Conv's."""

    features: int
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return layers.conv3(x, kernel.astype(x.dtype), bias.astype(x.dtype))


def _as(dtype: str, x: jax.Array) -> jax.Array:
    return x if dtype == "float32" else x.astype(dtype)  # float64 stays, in the tests that have it


def _head(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.zeros, name=name)


class PriorNetwork(nn.Module):
    """f: attributes to the mean and log-variance of p(z|y); one layer of softplus units (section 4.1).

    With `linear_path` a single matrix from the attributes to the mean stands beside them.
    """

    latent_size: int
    hidden: int
    linear_path: bool

    @nn.compact
    def __call__(self, a: jax.Array) -> tuple[jax.Array, jax.Array]:
        """a: [B, 2A] -> two [B, J]."""
        features = nn.softplus(nn.Dense(self.hidden, name="hidden")(a))
        mean, logvar = _head(self.latent_size, "mean")(features), _head(self.latent_size, "logvar")(features)
        if self.linear_path:
            mean += nn.Dense(self.latent_size, use_bias=False, name="linear")(a)
        return mean, logvar


def _image_features(x: jax.Array, a: jax.Array | None, width: int, activation, blocks: int = 0,
                    dtype: str = "float32") -> jax.Array:
    """x: [B, H, W, 3], a: [B, 2A] or None -> [B, features]; inside a compact method, whose layers these become."""
    features = _as(dtype, x)
    for stage in range(STAGES):
        features = activation(Conv(width * 2**stage, name=f"conv{stage}")(features))
        for block in range(blocks):
            features = Block(name=f"conv{stage}_block{block}")(features)
    features = features.reshape(len(x), -1).astype(x.dtype)
    if a is None:
        return features
    attributes = activation(nn.Dense(8 * width, name="attributes")(a))
    return jnp.concatenate([features, attributes], -1)


class PosteriorNetwork(nn.Module):
    """h: a face and its attributes to the mean and log-variance of q(z|x, y); convolutions (Fig. 5, top).

    With `linear_path` a single matrix from pixels and attributes to the mean stands beside the convolutions.
    """

    latent_size: int
    width: int
    linear_path: bool
    blocks: int = 0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, a: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """x: [B, H, W, 3] centred and scaled, a: [B, 2A], or None in a VAE -> two [B, J]."""
        features = _image_features(x, a, self.width, nn.relu, self.blocks, self.dtype)
        mean = _head(self.latent_size, "mean")(features)
        logvar = _head(self.latent_size, "logvar")(features)
        if self.linear_path:
            flat = x.reshape(len(x), -1)
            both = flat if a is None else jnp.concatenate([flat, a], -1)
            mean += nn.Dense(self.latent_size, use_bias=False, name="linear")(both)
        return mean, logvar


class DiscriminatorNetwork(nn.Module):
    """A CGAN's discriminator: h with one head, the logit of "this face is real, given these attributes".

    Beside a face's features it sees their deviations over a group of GROUP neighbours in the batch (minibatch
    discrimination, Salimans et al. 2016, in the form of Karras et al. 2018, a value a feature). Without it a
    generator whose samples are all alike is told only by each of them, and stays so.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, a: jax.Array) -> jax.Array:
        """x: [B, H, W, 3] centred and scaled, a: [B, 2A], B a multiple of GROUP -> [B] logits."""
        features = _image_features(x, a, self.width, lambda u: nn.leaky_relu(u, 0.2))
        groups = features.reshape(-1, GROUP, features.shape[-1])
        deviations = jnp.sqrt(groups.var(1, keepdims=True) + 1e-6)
        deviations = jnp.broadcast_to(deviations, groups.shape).reshape(features.shape)
        return nn.Dense(1, name="logit")(jnp.concatenate([features, deviations], -1))[:, 0]


class LikelihoodNetwork(nn.Module):
    """g: a latent to the mean and log-variance of p(x|z), a value a pixel; h's mirror image (Fig. 5, bottom).

    Attributes:
      image_shape: (H, W, 3).
      width: channels of the last stage before the heads.
      linear_path: whether a single matrix from z to the mean stands beside the convolutions; attributes join z
        before it by a matrix of their own.
      hidden: softplus units beside z at the entrance, which see the attributes, or z where there are none.
      heads: pictures that come out: mean and log-variance, or a generator's one.
      head_init: how the heads start.
      norm: whether each stage is normalised over its pixels and channels, which keeps a generator from saturating.
      blocks: residual blocks after each stage but the last.
      dtype: of the images between z and the heads.
    """

    image_shape: tuple[int, int, int]
    width: int
    linear_path: bool
    hidden: int = 0
    heads: int = 2
    head_init: nn.initializers.Initializer = nn.initializers.zeros
    norm: bool = False
    blocks: int = 0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, z: jax.Array, a: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """z: [B, J], a: [B, 2A] where p(x|y, z) sees them -> `heads` pictures [B, H, W, 3], centred and scaled."""
        height, width, channels = self.image_shape
        rows, columns = height // 2**STAGES, width // 2**STAGES
        depth = self.width * 2 ** (STAGES - 1)
        features = z
        if self.hidden:
            units = nn.softplus(nn.Dense(self.hidden, name="hidden")(z if a is None else a))
            features = jnp.concatenate([z, units], -1)
        features = nn.Dense(rows * columns * depth, name="features")(features)
        features = _as(self.dtype, features.reshape(len(z), rows, columns, depth))
        features = self._activate(features, "norm")
        for stage in range(STAGES - 1):
            features = ConvTranspose(depth // 2 ** (stage + 1), name=f"conv{stage}")(features)
            features = self._activate(features, f"norm{stage}")
            for block in range(self.blocks):
                features = Block(name=f"conv{stage}_block{block}")(features)
        features = features.astype(z.dtype)
        pictures = ConvTranspose(self.heads * channels, kernel_init=self.head_init, name="heads")(features)
        mean, *others = jnp.split(pictures, self.heads, -1)
        if self.linear_path:
            if a is not None:
                z += nn.Dense(z.shape[-1], use_bias=False, name="linear_attributes")(a)
            small = nn.initializers.normal(0.02)
            flat = nn.Dense(height * width * channels, use_bias=False, kernel_init=small, name="linear")(z)
            mean += flat.reshape(mean.shape)
        return mean, *others

    def _activate(self, features: jax.Array, name: str) -> jax.Array:
        return nn.relu(nn.GroupNorm(num_groups=1, name=name)(features) if self.norm else features)


class AttributeNetwork(nn.Module):
    """h2: a latent to the parameters of q(y|z): `heads` values an attribute (logit, or mean and log-variance)."""

    attributes: int
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, z: jax.Array) -> tuple[jax.Array, ...]:
        """z: [B, J] -> `heads` arrays [B, A]."""
        features = nn.softplus(nn.Dense(self.hidden, name="hidden")(z))
        return tuple(jnp.split(_head(self.heads * self.attributes, "heads")(features), self.heads, -1))


class Block(nn.Module):
    """Two 3x3 convolutions beside an identity, shifted and scaled by what is known; at the start the identity alone."""

    @nn.compact
    def __call__(self, x: jax.Array, known: jax.Array | None = None) -> jax.Array:
        """x: [B, H, W, C], known: [B, K] or None -> [B, H, W, C]."""
        size = x.shape[-1]
        features = _norm(size)(x).astype(x.dtype)
        if known is not None:
            scale, shift = jnp.split(_head(2 * size, "known")(known)[:, None, None], 2, -1)
            features = (1 + scale) * features + shift
        features = nn.relu(Conv3(size, name="conv0")(nn.relu(features)))
        return x + Conv3(size, nn.initializers.zeros, name="conv1")(features)


def _norm(size: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=math.gcd(8, size))


class VelocityNetwork(nn.Module):
    """The flow prior's velocity at a latent, a time and attributes, by convolutions over the latent's picture.

    A latent of faces is not an unordered vector: by a matrix, `pictures`, it is a picture of half the face's size, and
    the velocity is a picture too, taken back by the same rows. Thus the network sees neighbouring pixels as such; one
    of dense layers learns the 10,000 faces of LFW by heart instead. Three pictures are seen, with the matrix's rows at
    their lengths, at the roots of these, and at length 1, so that neither coarse nor fine detail drowns.
    Down to an eighth of the size and up again (Ronneberger, Fischer and Brox 2015).
    """

    width: int

    @nn.compact
    def __call__(self, z: jax.Array, t: jax.Array, a: jax.Array, pictures: jax.Array) -> jax.Array:
        """z: [B, J] of about unit deviation, t: [B] in [0, 1], a: [B, 2A], pictures: [J, H, W, 3] -> [B, J]."""
        turns = jnp.pi * t[:, None] * 2.0 ** jnp.arange(TIMES)[None]
        known = jnp.concatenate([jnp.sin(turns), jnp.cos(turns), a], -1)
        known = nn.silu(nn.Dense(8 * self.width, name="known0")(known))
        known = nn.silu(nn.Dense(8 * self.width, name="known1")(known))
        rows = pictures.reshape(len(pictures), -1)
        lengths = jnp.sqrt(jnp.square(rows).sum(1) + 1e-12)
        rows /= lengths[:, None]
        seen = []
        for power in (1.0, 0.5, 0.0):
            weights = lengths**power
            deviation = jnp.sqrt(jnp.square(weights).sum() / rows.shape[1])
            seen.append(((z * (weights / deviation)[None]) @ rows).reshape(len(z), *pictures.shape[1:]))
        features = jnp.concatenate(seen, -1)
        sizes, kept = [self.width, 3 * self.width, 8 * self.width], []
        for stage, size in enumerate(sizes):
            features = Conv(size, name=f"down{stage}")(features)
            for block in range(BLOCKS[stage]):
                features = Block(name=f"down{stage}_block{block}")(features, known)
            kept.append(features)
        whole = _norm(sizes[-1])(features).reshape(len(z), -1)
        whole = nn.relu(nn.Dense(16 * self.width, name="whole")(jnp.concatenate([whole, known], -1)))
        features += _head(features[0].size, "whole_back")(whole).reshape(features.shape)
        for stage in (1, 0):
            features = ConvTranspose(sizes[stage], name=f"up{stage}")(nn.relu(features)) + kept[stage]
            for block in range(BLOCKS[stage]):
                features = Block(name=f"up{stage}_block{block}")(features, known)
        features = nn.relu(_norm(self.width)(features))
        picture = ConvTranspose(pictures.shape[-1], kernel_init=nn.initializers.zeros, name="velocity")(features)
        return picture.reshape(len(z), -1) @ rows.T
