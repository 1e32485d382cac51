"""The flow's velocity, a transformer over tokens of a map, and the matrix product of its layers.

Parameters and features are float32; the factors of the products may be rounded to bfloat16 (`product`).
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cmma_jax.models.networks import zero_dense

PATCH = 2  # cells on a side of a token
HEAD = 64  # features of an attention head
TIMES = 32  # frequencies by which the velocity sees the time
LOWEST_TIME, HIGHEST_TIME = 1.0, 1000.0  # radians over the unit of time


class VelocityNetwork(nn.Module):
    """The flow's velocity: a transformer over tokens of PATCH x PATCH cells (Peebles and Xie 2023, adaLN-zero).

    Time and attributes shift, scale and gate each block, whose own layers need no bias beside a shift. At the start it
    says 0. The units of a feed-forward layer are squared ReLUs (So et al. 2021), of which dropout leaves out some of a
    face's, the same in all of its tokens.
    """

    width: int  # features of a token, a multiple of HEAD
    blocks: int  # of attention and a feed-forward layer
    precision: str = "float32"  # of the factors of the blocks' products (`product`)

    @nn.compact
    def __call__(self, z: jax.Array, t: jax.Array, a: jax.Array, keep: Sequence[jax.Array] | None = None) -> jax.Array:
        """z: [B, cells, cells, C] of unit deviation, t: [B] in [0, 1], a: [B, 2A] -> [B, cells, cells, C].

        keep: `blocks` arrays [B, 4 width], factors on the feed-forward units: dropout's; None: all are kept.
        """
        batch, rows, columns, channels = z.shape
        steps = jnp.linspace(math.log(LOWEST_TIME), math.log(HIGHEST_TIME), TIMES)
        angles = t[:, None] * jnp.exp(steps)[None]
        known = nn.Dense(self.width, name="time")(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1))
        known = nn.silu(known + nn.Dense(self.width, name="attributes")(a))
        known = nn.silu(nn.Dense(self.width, name="known")(known))
        tokens = z.reshape(batch, rows // PATCH, PATCH, columns // PATCH, PATCH, channels).swapaxes(2, 3)
        tokens = tokens.reshape(batch, -1, PATCH * PATCH * channels)
        places = self.param("places", nn.initializers.normal(0.02), (1, tokens.shape[1], self.width))
        tokens = nn.Dense(self.width, name="entrance")(tokens) + places
        for block in range(self.blocks):
            tokens = TransformerBlock(self.precision, name=f"block{block}")(
                tokens, known, None if keep is None else keep[block])
        shift, scale = jnp.split(zero_dense(2 * self.width, "modulation")(known)[:, None], 2, -1)
        tokens = _layer_norm(tokens) * (1 + scale) + shift
        tokens = zero_dense(PATCH * PATCH * channels, "velocity")(tokens)
        tokens = tokens.reshape(batch, rows // PATCH, columns // PATCH, PATCH, PATCH, channels).swapaxes(2, 3)
        return tokens.reshape(z.shape)


class TransformerBlock(nn.Module):
    """Attention, then a feed-forward layer, each beside an identity, shifted, scaled and gated by what is known."""

    precision: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, known: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """tokens: [B, N, D], known: [B, D], keep: [B, 4D] or None -> [B, N, D]."""
        batch, count, width = tokens.shape

        def dense(features: int, tokens: jax.Array, name: str) -> jax.Array:
            layer = nn.Dense(features, use_bias=False, dot_general=_FACTORS[self.precision], name=name)
            # As one product of two matrices: its gradient is two more.
            return layer(tokens.reshape(batch * count, -1)).reshape(batch, count, features)

        modulation = zero_dense(6 * width, "modulation")(known)[:, None]
        shift0, scale0, gate0, shift1, scale1, gate1 = jnp.split(modulation, 6, -1)
        features = _layer_norm(tokens) * (1 + scale0) + shift0
        mixed = dense(3 * width, features, "queries_keys_values")
        query, key, value = jnp.split(mixed.reshape(batch, count, 3 * width // HEAD, HEAD), 3, 2)
        heard = jax.nn.dot_product_attention(query, key, value).reshape(tokens.shape)
        tokens += gate0 * dense(width, heard, "heard")
        features = _layer_norm(tokens) * (1 + scale1) + shift1
        features = jnp.square(nn.relu(dense(4 * width, features, "forward0")))
        if keep is not None:
            features *= keep[:, None]
        return tokens + gate1 * dense(width, features, "forward1")


def _layer_norm(x: jax.Array) -> jax.Array:
    return nn.LayerNorm(use_bias=False, use_scale=False)(x)


@jax.custom_vjp
def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a: [M, K], b: [K, N] -> [M, N] float32, the factors rounded to bfloat16, of gradients too, the sums float32.

    Processors that multiply bfloat16 do so up to several times as fast. By XLA's own rule for the gradient the factors
    of its two products would be one of each type, for which they have no instruction.
    """
    return _product_forward(a, b)[0]


def _contract(a: jax.Array, b: jax.Array, axis: int, other: int) -> jax.Array:
    return jax.lax.dot_general(a, b, (((axis,), (other,)), ((), ())), preferred_element_type=jnp.float32)


def _product_forward(a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return _contract(a, b, 1, 0), (a, b)


def _product_backward(factors: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    (a, b), slope = factors, slope.astype(jnp.bfloat16)
    return _contract(slope, b, 1, 1), _contract(a, slope, 0, 0)


product.defvjp(_product_forward, _product_backward)
_FACTORS = {"float32": None, "bfloat16": lambda a, b, *_, **__: product(a, b)}  # as nn.Dense takes a product
