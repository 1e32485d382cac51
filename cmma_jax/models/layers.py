"""The layers of the image networks: a 4x4 convolution of stride 2, its transposed form, and a 3x3 one of stride 1.

They equal Flax Linen's ``nn.Conv(O, (4, 4), strides=(2, 2), padding="SAME")``, ``nn.ConvTranspose`` of the same
arguments and ``nn.Conv(O, (3, 3))``, in value and in every gradient, and take the same parameters. On GPU and TPU
they are XLA's own convolutions. On CPU XLA's forward convolution is fast, but the two that its gradient needs are
not: inside a lax.scan the one with a dilated input took 3 to 5 times a forward one for most layers, the kernel's
gradient 30 to 250 times. So the linear maps below each have a CPU form built of what is fast there, and the layers'
gradients are written in these maps:

    down(x, k)[i, j]    = sum over s, t of  x[2i + s - 1, 2j + t - 1] k[s, t]      (x is 0 outside its bounds)
    up(., flip(k))      = the adjoint of down(., k),  where  flip(k)[s, t] = k[3 - s, 3 - t]^T
    kernel_gradient(., g) = the adjoint of down(x, .) at x

3x3 of stride 1 is its own kind of map, whose adjoint is a convolution again. Kernels' gradients are matrix products,
Winograd's where there are channels enough.

Shapes: b images, h x w pixels on the small side and 2h x 2w on the large one, c and o channels.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")


def conv(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Halve the image: x [b, 2h, 2w, c], kernel [4, 4, c, o], bias [o] -> [b, h, w, o]."""
    if x.ndim != 4 or x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"conv: expected images [b, H, W, c] with even H and W, got shape {x.shape}")
    return _conv(x, kernel) + bias.reshape(1, 1, 1, -1)


def conv_transpose(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Double the image: x [b, h, w, c], kernel [4, 4, c, o], bias [o] -> [b, 2h, 2w, o]."""
    return _conv_transpose(x, kernel) + bias.reshape(1, 1, 1, -1)


def conv3(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Keep the image's size: x [b, h, w, c], kernel [3, 3, c, o], bias [o] -> [b, h, w, o]."""
    return _conv3(x, kernel) + bias.reshape(1, 1, 1, -1)


@jax.custom_vjp
def _conv3(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_NHWC)


def _conv3_backward(saved, g):
    x, kernel = saved
    return _conv3(g, _flip(kernel)), lax.platform_dependent(x, g, cpu=_kernel_gradient3_cpu,
                                                            default=_kernel_gradient3_native)


_conv3.defvjp(lambda x, kernel: (_conv3(x, kernel), (x, kernel)), _conv3_backward)


@jax.custom_vjp
def _conv(x, kernel):
    return _down(x, kernel)


_conv.defvjp(
    lambda x, kernel: (_down(x, kernel), (x, kernel)),
    lambda saved, g: (_up(g, _flip(saved[1])), _kernel_gradient(saved[0], g)),
)


@jax.custom_vjp
def _conv_transpose(x, kernel):
    return _up(x, kernel)


_conv_transpose.defvjp(
    lambda x, kernel: (_up(x, kernel), (x, kernel)),
    lambda saved, g: (_down(g, _flip(saved[1])), _flip(_kernel_gradient(g, saved[0]))),
)


def _flip(kernel):
    """[k, k, c, o] -> [k, k, o, c], turned by half a turn: its own inverse, and its own adjoint."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _down(x, kernel):
    """x [b, 2h, 2w, c], kernel [4, 4, c, o] -> [b, h, w, o]."""
    return lax.platform_dependent(x, kernel, cpu=_down_cpu, default=_down_native)


def _up(x, kernel):
    """x [b, h, w, c], kernel [4, 4, c, o] -> [b, 2h, 2w, o]."""
    return lax.platform_dependent(x, kernel, cpu=_up_cpu, default=_up_native)


def _kernel_gradient(x, g):
    """x [b, 2h, 2w, c], g [b, h, w, o] -> [4, 4, c, o], the gradient of sum(g * down(x, kernel)) in kernel."""
    return lax.platform_dependent(x, g, cpu=_kernel_gradient_cpu, default=_kernel_gradient_native)


def _down_native(x, kernel):
    return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_NHWC)


def _up_native(x, kernel):
    return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=_NHWC)


def _kernel_gradient_native(x, g):
    kernel = jax.ShapeDtypeStruct((4, 4, x.shape[3], g.shape[3]), x.dtype)
    return jax.linear_transpose(functools.partial(_down_native, x), kernel)(g)[0]


def _kernel_gradient3_native(x, g):
    def convolve(kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_NHWC)

    return jax.linear_transpose(convolve, jax.ShapeDtypeStruct((3, 3, x.shape[3], g.shape[3]), x.dtype))(g)[0]


def _down_cpu(x, kernel):
    """XLA's own; but with 3 channels it took three times as long as with those 3 and a fourth of zeros."""
    more = max(0, 4 - x.shape[3])
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))
    return _down_native(x, jnp.pad(kernel, ((0, 0), (0, 0), (0, more), (0, 0))))


def _up_cpu(x, kernel):
    """A 2x2 convolution of stride 1 to 4 o channels, one group for each pixel of a 2x2 block of the output.

    The block of rows (2p - 1, 2p), p = 0 ... h, sees just the rows p - 1 and p of x: its row a takes the row
    p - 1 + d of x by the kernel's row 2d + 1 - a. Likewise the columns. So no product is with a zero, but for
    the border, whose outer half is cut off.
    """
    b, h, w, c = x.shape
    o = kernel.shape[3]
    k = kernel.reshape(2, 2, 2, 2, c, o)[:, ::-1, :, ::-1]  # [d, a, d', a', c, o]
    k = k.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, c, 4 * o)
    y = lax.conv_general_dilated(x, k, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_NHWC)
    y = y.reshape(b, h + 1, w + 1, 2, 2, o).transpose(0, 1, 3, 2, 4, 5)  # [b, p, a, p', a', o]
    return y.reshape(b, 2 * h + 2, 2 * w + 2, o)[:, 1:-1, 1:-1]


def _kernel_gradient_cpu(x, g):
    """A 4x4 kernel of stride 2 is one of 2x2 and stride 1 over the blocks of 2x2 pixels, whose channels are theirs."""
    if not _worth_tiles(x, g):
        return _shifted_products(x, g, size=4, stride=2)
    b, height, width, c = x.shape

    def blocks(x):
        x = _bordered(x).reshape(-1, height // 2 + 1, 2, width // 2 + 1, 2, c)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height // 2 + 1, width // 2 + 1, 4 * c)

    gradient = _tile_products(blocks, 4 * c, x, g, 2).reshape(2, 2, 2, 2, c, -1)  # [d, d', a, a', c, o]
    return gradient.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, c, -1)


def _kernel_gradient3_cpu(x, g):
    if not _worth_tiles(x, g):
        return _shifted_products(x, g, size=3, stride=1)
    return _tile_products(_bordered, x.shape[3], x, g, 3)


# Winograd's minimal filtering F(2, r) (Lavin and Gray 2016): two neighbouring outputs of a filter of r taps are linear
# in r + 1 products, of as many combinations of inputs (_INPUT) with combinations of taps (_FILTER); _OUTPUT combines
# the products. In two dimensions 9 products do the work of 16 (r = 2), and 16 that of 36 (r = 3). Convolutions
# themselves were slower by it than XLA's own.
_INPUT = {2: ((1, -1, 0), (0, 1, 0), (0, -1, 1)), 3: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))}
_FILTER = {2: ((1, 0), (1, 1), (0, 1)), 3: ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))}
_OUTPUT = {2: ((1, 1, 0), (0, 1, 1)), 3: ((1, 1, 1, 0), (0, 1, -1, -1))}
TILES = 400  # of 2x2 outputs at a time: their combinations are still in the cache when they are multiplied


def _worth_tiles(x, g):
    return x.shape[3] >= 16 and g.shape[1] % 2 == 0 and g.shape[2] % 2 == 0


def _tile_products(prepare, channels, x, g, r):
    """Returns [r, r, channels, o], the gradient of sum(g * c(prepare(x), kernel)), c an r x r convolution of stride 1.

    It is Winograd's form of c, transposed: combinations of inputs times combinations of g, summed over tiles of 2x2
    outputs, and the sums combined. As many images at a time as have TILES tiles.
    """
    b, h, w, o = g.shape
    few = max(n for n in range(1, b + 1) if b % n == 0 and (n == 1 or n * h * w // 4 <= TILES))

    def add(total, images):
        x, g = images
        x = prepare(x)
        inputs = _both_ways(_INPUT[r], [[x[:, s : s + h : 2, t : t + w : 2] for s in range(r + 1)]
                                        for t in range(r + 1)])
        outputs = _both_ways(_transposed(_OUTPUT[r]), [[g[:, s::2, t::2] for s in range(2)] for t in range(2)])
        return total + jnp.stack([u.reshape(-1, channels).T @ v.reshape(-1, o)
                                  for u, v in zip(inputs, outputs, strict=True)]), None

    groups = x.reshape(b // few, few, *x.shape[1:]), g.reshape(b // few, few, h, w, o)
    total = lax.scan(add, jnp.zeros(((r + 1) ** 2, channels, o), g.dtype), groups)[0]
    total = total.reshape(r + 1, r + 1, channels, o)
    taps = _both_ways(_transposed(_FILTER[r]), [[total[s, t] for s in range(r + 1)] for t in range(r + 1)])
    return jnp.stack(taps).reshape(r, r, channels, o)


def _both_ways(matrix, parts):
    """parts[t][s] -> a flat list: the matrix's combinations over s, and of each of them those over t."""
    return [each for row in zip(*(_combine(matrix, row) for row in parts), strict=True)
            for each in _combine(matrix, row)]


def _combine(matrix, parts):
    return [sum(weight * part for weight, part in zip(row, parts, strict=True) if weight) for row in matrix]


def _transposed(matrix):
    return tuple(zip(*matrix, strict=True))


def _bordered(x):
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _shifted_products(x, g, size, stride):
    """For each of the kernel's places one matrix product [c, n] x [n, o] over the n = b h w places of g.

    A few images at a time (16, or the next smaller divisor of b), added up: the shifted copies of x are then
    still in the cache when they are multiplied.
    """
    b, h, w, o = g.shape
    c = x.shape[3]
    few = max(n for n in range(1, 17) if b % n == 0)

    def add(total, images):
        x, g = images
        x = _bordered(x)
        g = g.reshape(-1, o)
        at = [x[:, s : s + stride * h : stride, t : t + stride * w : stride].reshape(-1, c)
              for s in range(size) for t in range(size)]
        return total + jnp.stack([a.T @ g for a in at]), None

    groups = x.reshape(b // few, few, *x.shape[1:]), g.reshape(b // few, few, h, w, o)
    return lax.scan(add, jnp.zeros((size**2, c, o), g.dtype), groups)[0].reshape(size, size, c, o)
