"""The layers equal Linen's in value and gradients, and compose with JAX's transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from cmma_jax.models import layers

SHAPES = [  # images, height and width on the layer's input side, channels in, channels out
    (1, 2, 2, 1, 1),
    (3, 4, 6, 3, 5),
    (20, 6, 2, 7, 4),
    (17, 4, 4, 2, 3),
    (4, 64, 64, 3, 8),
    (4, 8, 8, 16, 6),  # from 16 channels on the CPU's form is Winograd's; here conv's
    (6, 8, 4, 5, 16),  # and conv_transpose's
    (12, 32, 32, 16, 17),  # both, in groups of images
]
PAIRS = {"conv": (layers.conv, nn.Conv), "conv_transpose": (layers.conv_transpose, nn.ConvTranspose)}
both = pytest.mark.parametrize("name", list(PAIRS))


def arrays(*shapes):
    rng = np.random.default_rng(sum(map(sum, shapes)))
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


def inputs(b, h, w, c, o):
    return arrays((b, h, w, c), (4, 4, c, o), (o,))


def output_shape(name, b, h, w, c, o):
    return (b, h // 2, w // 2, o) if name == "conv" else (b, 2 * h, 2 * w, o)


def linen(name, x, kernel, bias):
    with jax.numpy_rank_promotion("allow"):
        module = PAIRS[name][1](kernel.shape[3], (4, 4), strides=(2, 2), padding="SAME")
        return module.apply({"params": {"kernel": kernel, "bias": bias}}, x)


def value_and_gradients(function, arguments, weights):
    """The output, and the gradients of its inner product with the weights in every argument."""
    value, pull = jax.vjp(function, *arguments)
    return value, *pull(weights)


def check_equal(actual, expected):
    """Equal but for rounding, which is in proportion to the largest element: each is a sum of many products."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * float(jnp.abs(e).max()))


@pytest.fixture(params=["cpu", "default"])
def form(request, monkeypatch):
    """Have the layers take this form of each of their maps, whatever the platform."""
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *arguments, **forms: forms[request.param](*arguments)
    )


@both
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("form")
def test_equals_linen_in_value_and_all_gradients(name, shape):
    arguments = inputs(*shape)
    (weights,) = arrays(output_shape(name, *shape))
    ours = jax.jit(functools.partial(value_and_gradients, PAIRS[name][0]))(arguments, weights)
    theirs = jax.jit(functools.partial(value_and_gradients, functools.partial(linen, name)))(arguments, weights)
    check_equal(ours, theirs)


@both
def test_equals_the_sum_of_its_definition(name):
    """In plain loops: conv joins output pixel (i, j) with input pixel (2i + s - 1, 2j + t - 1) by kernel[s, t]."""
    (x, kernel, bias) = inputs(2, 4, 6, 3, 5)
    expected = np.zeros(output_shape(name, 2, 4, 6, 3, 5)) + np.asarray(bias)
    large, small = (x, expected) if name == "conv" else (expected, x)
    for i, j, s, t in np.ndindex(*small.shape[1:3], 4, 4):
        m, n = 2 * i + s - 1, 2 * j + t - 1
        if not (0 <= m < large.shape[1] and 0 <= n < large.shape[2]):
            continue
        if name == "conv":
            expected[:, i, j] += np.asarray(x[:, m, n] @ kernel[s, t])
        else:  # Flax's transposed convolution does not turn its kernel
            expected[:, m, n] += np.asarray(x[:, i, j] @ kernel[3 - s, 3 - t])
    check_equal(PAIRS[name][0](x, kernel, bias), jnp.asarray(expected, jnp.float32))


def test_the_two_are_adjoint():
    """<conv(x, k), g> = <x, conv_transpose(g, k turned by half a turn, channels exchanged)> without biases."""
    x, kernel, g = arrays((3, 8, 12, 5), (4, 4, 5, 7), (3, 4, 6, 7))
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    left = jnp.vdot(layers.conv(x, kernel, jnp.zeros(7)), g)
    right = jnp.vdot(x, layers.conv_transpose(g, turned, jnp.zeros(5)))
    np.testing.assert_allclose(left, right, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (2, 4, 7, 3), (4, 4, 3)])
def test_conv_refuses_what_it_cannot_halve(shape):
    with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        layers.conv(jnp.zeros(shape), jnp.zeros((4, 4, 3, 2)), jnp.zeros(2))


def conv3_inputs(b=18, h=5, w=4, c=3, o=6):
    return arrays((b, h, w, c), (3, 3, c, o), (o,))


@pytest.mark.parametrize("shape", [(18, 5, 4, 3), (6, 4, 6, 16), (12, 16, 32, 16)])
@pytest.mark.usefixtures("form")
def test_conv3_equals_linens_in_value_and_gradients(shape):
    def linen(x, kernel, bias):
        with jax.numpy_rank_promotion("allow"):
            return nn.Conv(6, (3, 3)).apply({"params": {"kernel": kernel, "bias": bias}}, x)

    arguments, weights = conv3_inputs(*shape), arrays((*shape[:3], 6))[0]
    check_equal(value_and_gradients(layers.conv3, arguments, weights),
                value_and_gradients(linen, arguments, weights))


def test_conv3_under_vmap_and_scan_is_the_same_as_one_by_one():
    arguments = arrays((3, 2, 4, 4, 3), (3, 3, 3, 3, 5), (3, 5))
    gradient = jax.grad(lambda *a: jnp.sum(jnp.sin(layers.conv3(*a))), argnums=(0, 1, 2))
    single = [gradient(*(a[i] for a in arguments)) for i in range(3)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    check_equal(jax.jit(jax.vmap(gradient))(*arguments), expected)
    check_equal(jax.jit(lambda a: jax.lax.scan(lambda c, a: (c, gradient(*a)), None, a))(arguments)[1], expected)


def gradients(name, x, kernel, bias):
    """Of a loss that is not linear in the layer's output."""
    return jax.grad(lambda *a: jnp.sum(jnp.sin(PAIRS[name][0](*a))), argnums=(0, 1, 2))(x, kernel, bias)


def stacked(n):
    return arrays((n, 4, 4, 6, 3), (n, 4, 4, 3, 5), (n, 5))


def one_by_one(name, arguments):
    results = [gradients(name, *(a[i] for a in arguments)) for i in range(len(arguments[0]))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


@both
def test_vmap(name):
    arguments = stacked(3)
    check_equal(jax.jit(jax.vmap(functools.partial(gradients, name)))(*arguments), one_by_one(name, arguments))


@both
def test_scan(name):
    arguments = stacked(3)
    _, result = jax.jit(lambda a: jax.lax.scan(lambda c, a: (c, gradients(name, *a)), None, a))(arguments)
    check_equal(result, one_by_one(name, arguments))


@both
def test_pmap_with_a_scan_inside(name):
    devices = jax.local_device_count()
    arguments = stacked(2 * devices)
    split = jax.tree.map(lambda a: a.reshape(devices, 2, *a.shape[1:]), arguments)
    steps = jax.pmap(lambda *a: jax.lax.scan(lambda c, a: (c, gradients(name, *a)), None, a)[1])
    joined = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), steps(*split))
    check_equal(jax.device_get(joined), one_by_one(name, arguments))


@both
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_off_the_cpu_there_are_only_whole_convolutions(name, platform):
    exported = export.export(jax.jit(functools.partial(gradients, name)), platforms=[platform])
    text = exported(*inputs(4, 8, 8, 3, 5)).mlir_module()
    assert text.count("stablehlo.convolution") == 3
    for one in ("stride = [2, 2]", "lhs_dilate = [2, 2]", "rhs_dilate = [2, 2]"):  # down, up, kernel_gradient
        assert text.count(one) == 1
    assert "stablehlo.dot_general" not in text and "stablehlo.while" not in text


@both
def test_on_the_cpu_no_choice_is_left_at_run_time(name):
    text = jax.jit(functools.partial(gradients, name)).lower(*inputs(4, 8, 8, 3, 5)).compile().as_text()
    assert " dot(" in text and "conditional(" not in text


@both
def test_export_for_several_platforms_runs_here(name):
    arguments = inputs(4, 8, 8, 3, 5)
    function = jax.jit(functools.partial(gradients, name))
    exported = export.export(function, platforms=["cpu", "cuda"])(*arguments)
    check_equal(exported.call(*arguments), function(*arguments))
