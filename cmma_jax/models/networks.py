"""The networks f, g, h, h2 and the discriminator in Flax Linen: they know shapes, not losses.

Attributes reach them encoded: `a`, [B, 2A], the values with holes at 0 beside the mask of the known ones.
Faces reach them centred on the mean face and scaled to unit deviation. Heads start at zero, so that a new
model says: mean face, the data's own spread, z ~ N(0, I); those of a map's mean, of its pixels and of a mixture nearly
so, as a map that says nothing would go on saying nothing for an epoch, and a mixture's parts would stay alike. All is
float32.

z is a map, [B, cells, cells, channels], or a vector, [B, J], whose networks are the paper's (Fig. 5).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

HE_NORMAL = nn.initializers.he_normal()
SMALL = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
PIXELS = nn.initializers.variance_scaling(0.04, "fan_in", "normal")
STAGES = 4  # of the networks of a vector: 64 x 64 -> 4 x 4
KNOWN = 64  # features of the attributes by which blocks are shifted and scaled
LEVELS = 4  # of the detail, by each of which the distance between pixels is halved
GROUP = 4  # faces that a discriminator compares with one another


def _down(features: int, x: jax.Array, name: str) -> jax.Array:
    """[B, H, W, C] -> [B, H/2, W/2, features] by 4x4 kernels of stride 2."""
    return nn.Conv(features, (4, 4), (2, 2), kernel_init=HE_NORMAL, name=name)(x)


def _conv3(features: int, x: jax.Array, name: str, kernel_init=HE_NORMAL) -> jax.Array:
    return nn.Conv(features, (3, 3), kernel_init=kernel_init, name=name)(x)


class Up(nn.Module):
    """The mirror image of `_down`: [B, H, W, C] -> [B, 2H, 2W, features], 4x4 kernels of stride 2, transposed.

    A block of 2x2 output pixels, a row and a column before those of an input pixel, sees just 2x2 inputs: it is a 2x2
    convolution to four times the channels, the border's outer half cut off. XLA's own transposed convolution takes
    ten times as long on a CPU for its gradient.
    """

    features: int
    kernel_init: nn.initializers.Initializer = HE_NORMAL

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # by the convolution itself the gradient takes far longer
        x = nn.Conv(4 * self.features, (2, 2), padding="VALID", use_bias=False, kernel_init=self.kernel_init,
                    name="blocks")(x)
        x = x.reshape(batch, height + 1, width + 1, 2, 2, self.features).swapaxes(2, 3)
        x = x.reshape(batch, 2 * height + 2, 2 * width + 2, self.features)[:, 1:-1, 1:-1]
        return x + bias.reshape(1, 1, 1, -1)


class Block(nn.Module):
    """Two 3x3 convolutions beside an identity, each of what was normalised, shifted and scaled by what is known; at the
    start the identity alone.
    """

    extra: int = 0  # channels that lie between the two beyond those of x, or below 0 fewer

    @nn.compact
    def __call__(self, x: jax.Array, known: jax.Array | None = None) -> jax.Array:
        """x: [B, H, W, C], known: [B, K] or None -> [B, H, W, C]."""
        size = x.shape[-1]
        features = _norm(x)
        if known is not None:
            scale, shift = jnp.split(zero_dense(2 * size, "known")(known)[:, None, None], 2, -1)
            features = (1 + scale) * features + shift
        features = nn.relu(_norm(_conv3(size + self.extra, nn.relu(features), "conv0"), "norm1"))
        return x + _conv3(size, features, "conv1", nn.initializers.zeros)


def _norm(x: jax.Array, name: str | None = None) -> jax.Array:
    return nn.GroupNorm(num_groups=math.gcd(8, x.shape[-1]), name=name)(x)


def zero_dense(features: int, name: str) -> nn.Dense:
    """Returns a layer that says 0 at the start."""
    return nn.Dense(features, kernel_init=nn.initializers.zeros, name=name)


def _known(a: jax.Array | None) -> jax.Array | None:
    return None if a is None else nn.relu(nn.Dense(KNOWN, name="attributes")(a))


class PriorNetwork(nn.Module):
    """f: attributes to the mean and log-variance of p(z|y); one layer of softplus units (section 4.1)."""

    latents: int
    hidden: int

    @nn.compact
    def __call__(self, a: jax.Array) -> tuple[jax.Array, jax.Array]:
        """a: [B, 2A] -> two [B, J]."""
        features = nn.softplus(nn.Dense(self.hidden, name="hidden")(a))
        return zero_dense(self.latents, "mean")(features), zero_dense(self.latents, "logvar")(features)


class MapEncoder(nn.Module):
    """h: a face and its attributes to the mean and log-variance of q(z|x, y), z a map."""

    cells: int
    channels: int  # of the map
    width: int  # channels of the first convolution; each stage doubles them
    blocks: int  # residual, at the map's own size, which the attributes enter

    @nn.compact
    def __call__(self, x: jax.Array, a: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """x: [B, H, W, 3] centred and scaled, a: [B, 2A], or None in a VAE -> two [B, cells, cells, channels]."""
        known, features = _known(a), x
        for stage in range(_stages(x.shape[1], self.cells)):
            features = features if stage == 0 else nn.relu(features)
            features = _down(self.width * 2**stage, features, f"conv{stage}")
        for block in range(self.blocks):
            features = Block(name=f"block{block}")(features, known)
        features = nn.relu(_norm(features, "norm"))
        mean = _conv3(self.channels, features, "mean", SMALL)
        return mean, _conv3(self.channels, features, "logvar", nn.initializers.zeros)


class MapDecoder(nn.Module):
    """g: a map to the parameters of p(x|z), `heads` values a pixel; h's mirror image."""

    image_shape: tuple[int, int, int]
    width: int  # as of `MapEncoder`
    blocks: int
    heads: int
    extra: int = 0  # of the blocks, by which capacities are matched
    head_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, z: jax.Array, a: jax.Array | None = None) -> jax.Array:
        """z: [B, cells, cells, channels], a: [B, 2A] where p(x|y, z) sees them -> [B, H, W, heads]."""
        stages, known = _stages(self.image_shape[0], z.shape[1]), _known(a)
        features = _conv3(self.width * 2 ** (stages - 1), z, "entrance")
        for block in range(self.blocks):
            features = Block(self.extra, name=f"block{block}")(features, known)
        features = nn.relu(_norm(features, "norm"))
        for stage in range(stages - 1):
            wider = 4 * self.width // 3  # than h's of that size: faces are harder to make than to tell apart
            features = nn.relu(Up(wider * 2 ** (stages - 2 - stage), name=f"conv{stage}")(features))
        return Up(self.heads, self.head_init, name="heads")(features)


def _stages(size: int, cells: int) -> int:
    return int(math.log2(size // cells))


class MapAttributes(nn.Module):
    """h2: a map to the parameters of q(y|z): `heads` values an attribute (logit, or mean and log-variance)."""

    attributes: int
    heads: int
    width: int

    @nn.compact
    def __call__(self, z: jax.Array) -> tuple[jax.Array, ...]:
        """z: [B, cells, cells, channels] -> `heads` arrays [B, A]."""
        features = z
        for stage in range(2):
            if features.shape[1] % 2 == 0:
                features = nn.relu(_down(self.width * 2**stage, features, f"conv{stage}"))
        features = nn.relu(nn.Dense(4 * self.width, name="hidden")(features.reshape(len(z), -1)))
        return tuple(jnp.split(zero_dense(self.heads * self.attributes, "heads")(features), self.heads, -1))


class DetailNetwork(nn.Module):
    """The parameters of a group of pixels' distribution, from the pixels before it and what z says of all: residual
    blocks, which the group's number enters, and beside them a linear interpolation of those pixels.
    """

    width: int  # channels
    blocks: int  # residual
    components: int  # K

    @nn.compact
    def __call__(self, residual: jax.Array, picture: jax.Array, group: jax.Array
                 ) -> tuple[jax.Array, jax.Array]:
        """residual: [B, h, w, 12], how far a block's known pixels are from g's means, in g's deviations; picture:
        [B, h, w, 24], those means and deviations; group: [B, G] one-hot -> a mixture's heads, [B, h, w, 10 K], and by
        how much its means move, [B, h, w, 3].
        """
        known = _known(group)
        features = _conv3(self.width, jnp.concatenate([residual, picture], -1), "entrance")
        for block in range(self.blocks):
            features = Block(name=f"block{block}")(features, known)
        heads = _conv3(10 * self.components, nn.relu(_norm(features, "norm")), "heads", SMALL)
        moves = _conv3(3 * group.shape[-1], residual, "linear", nn.initializers.zeros)
        moves = moves.reshape(*moves.shape[:3], group.shape[-1], 3)
        return heads, (group[:, None, None, :, None] * moves).sum(-2)


def _image_features(x: jax.Array, a: jax.Array | None, width: int, activation) -> jax.Array:
    """x: [B, H, W, 3], a: [B, 2A] or None -> [B, features]; inside a compact method, whose layers these become."""
    features = x
    for stage in range(STAGES):
        features = activation(_down(width * 2**stage, features, f"conv{stage}"))
    features = features.reshape(len(x), -1)
    if a is None:
        return features
    attributes = activation(nn.Dense(8 * width, name="attributes")(a))
    return jnp.concatenate([features, attributes], -1)


class VectorEncoder(nn.Module):
    """h: a face and its attributes to the mean and log-variance of q(z|x, y), z a vector (Fig. 5, top)."""

    latents: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array, a: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """x: [B, H, W, 3] centred and scaled, a: [B, 2A], or None in a VAE -> two [B, J]."""
        features = _image_features(x, a, self.width, nn.relu)
        return zero_dense(self.latents, "mean")(features), zero_dense(self.latents, "logvar")(features)


class DiscriminatorNetwork(nn.Module):
    """A CGAN's discriminator: h with one head, the logit of "this face is real, given these attributes".

    Beside a face's features it sees their deviations over a group of GROUP neighbours in the batch (minibatch
    discrimination, Salimans et al. 2016, in the form of Karras et al. 2018, a value a feature). Without it a
    generator whose samples are all alike is told only by each of them, and stays so. By projection the logit also has
    the inner product of the face's features and the attributes' (Miyato and Koyama 2018).
    """

    width: int  # channels of the first convolution
    projection: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, a: jax.Array) -> jax.Array:
        """x: [B, H, W, 3] centred and scaled, a: [B, 2A], B a multiple of GROUP -> [B] logits."""
        features = _image_features(x, None if self.projection else a, self.width, lambda u: nn.leaky_relu(u, 0.2))
        groups = features.reshape(-1, GROUP, features.shape[-1])
        deviations = jnp.sqrt(groups.var(1, keepdims=True) + 1e-6)
        deviations = jnp.broadcast_to(deviations, groups.shape).reshape(features.shape)
        logit = nn.Dense(1, name="logit")(jnp.concatenate([features, deviations], -1))[:, 0]
        if self.projection:
            logit += (nn.Dense(a.shape[1], name="sought")(features) * a).sum(-1) / jnp.sqrt(a.shape[1])
        return logit


class VectorDecoder(nn.Module):
    """g: a vector to the parameters of p(x|z), `heads` values a pixel; h's mirror image (Fig. 5, bottom)."""

    image_shape: tuple[int, int, int]
    width: int  # channels of the last stage before the heads
    heads: int
    hidden: int = 0  # softplus units beside z at the entrance, which see the attributes, or z where there are none
    head_init: nn.initializers.Initializer = nn.initializers.zeros
    norm: bool = False  # each stage is normalised over pixels and channels, which keeps a generator from saturating

    @nn.compact
    def __call__(self, z: jax.Array, a: jax.Array | None = None) -> jax.Array:
        """z: [B, J], a: [B, 2A] where p(x|y, z) sees them -> [B, H, W, heads]."""
        height, width, _ = self.image_shape
        rows, columns = height // 2**STAGES, width // 2**STAGES
        depth = self.width * 2 ** (STAGES - 1)
        features = z
        if self.hidden:
            units = nn.softplus(nn.Dense(self.hidden, name="hidden")(z if a is None else a))
            features = jnp.concatenate([z, units], -1)
        features = nn.Dense(rows * columns * depth, name="features")(features)
        features = features.reshape(len(z), rows, columns, depth)
        features = self._activate(features, "norm")
        for stage in range(STAGES - 1):
            features = Up(depth // 2 ** (stage + 1), name=f"conv{stage}")(features)
            features = self._activate(features, f"norm{stage}")
        return Up(self.heads, self.head_init, name="heads")(features)

    def _activate(self, features: jax.Array, name: str) -> jax.Array:
        return nn.relu(nn.GroupNorm(num_groups=1, name=name)(features) if self.norm else features)


class VectorAttributes(nn.Module):
    """h2: a vector to the parameters of q(y|z): `heads` values an attribute (logit, or mean and log-variance)."""

    attributes: int
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, z: jax.Array) -> tuple[jax.Array, ...]:
        """z: [B, J] -> `heads` arrays [B, A]."""
        features = nn.softplus(nn.Dense(self.hidden, name="hidden")(z))
        return tuple(jnp.split(zero_dense(self.heads * self.attributes, "heads")(features), self.heads, -1))
