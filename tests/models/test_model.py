"""Structure of the models, through gradients, and their behaviour at the edges."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmma_jax.data.dataset import Faces, make_dataset, pixels
from cmma_jax.models import layers
from cmma_jax.models.distributions import Bernoulli, Gaussian
from cmma_jax.models.model import MODELS, PIXEL_LOGVAR_FLOOR, cgan, cmma, count_parameters, cvae, encode_attributes, vae
from cmma_jax.models.networks import GROUP
from cmma_jax.models.objectives import elbo
from cmma_jax.training.config import Config


def grad(function, argnums=0):
    """The gradient, compiled: on a CPU one program is sooner made than each of its operations."""
    return jax.jit(jax.grad(function, argnums))


def arrays(small, n=4):
    faces = small.data.train
    return pixels(jnp.asarray(faces.x[:n])), jnp.asarray(faces.y[:n]), jnp.asarray(faces.mask[:n])


def total(tree):
    return sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree))


def test_likelihood_does_not_depend_on_attributes_given_z(small):
    x, y, mask = arrays(small)
    z = jnp.ones((len(x), small.config.latent_size))
    gradient = grad(lambda y: total(small.model.likelihood(small.params, z, y, mask)))(y)
    np.testing.assert_array_equal(gradient, 0)


def test_prior_and_posterior_depend_on_attributes_and_posterior_on_the_face(small):
    x, y, mask = arrays(small)
    full = jnp.ones_like(mask)
    assert (grad(lambda y: total(small.model.prior(small.params, y, full)))(y) != 0).all()
    by_x, by_y = grad(lambda x, y: total(small.model.posterior(small.params, x, y, full)), (0, 1))(x, y)
    assert (by_y != 0).all()
    assert (by_x != 0).mean() > 0.99


def test_an_unknown_attributes_value_changes_nothing_and_being_known_does(small):
    x, y, _ = arrays(small)
    mask = jnp.ones((len(x), 5), bool).at[:, 2].set(False)
    for part in (lambda y, m: small.model.prior(small.params, y, m),
                 lambda y, m: small.model.posterior(small.params, x, y, m)):
        np.testing.assert_array_equal(part(y, mask).mean, part(y.at[:, 2].set(7.0), mask).mean)
        assert (part(y, mask).mean != part(y, mask.at[:, 2].set(True)).mean).all()


def test_encoding_tells_no_from_unknown():
    y, mask = jnp.asarray([[0.0, 1.0, 0.0]]), jnp.asarray([[True, True, False]])
    np.testing.assert_array_equal(encode_attributes(y, mask, "binary"), [[-1, 1, 0, 1, 1, 0]])
    np.testing.assert_array_equal(encode_attributes(y, mask, "real"), [[0, 1, 0, 1, 1, 0]])


def test_a_new_model_says_mean_face_data_spread_and_a_standard_prior(small):
    spec = small.data.spec
    config = Config(latent_size=6, width=4, prior_hidden=8, linear_path=False)
    model = cmma(config, spec)
    params = jax.jit(model.init)(jax.random.key(0))
    x, y, mask = arrays(small)
    p = model.likelihood(params, jnp.ones((len(x), 6)), y, mask)
    np.testing.assert_allclose(p.mean, jnp.broadcast_to(spec.mean_face[None], x.shape), rtol=1e-6)
    np.testing.assert_allclose(p.logvar, 2 * np.log(spec.pixel_std), rtol=1e-5)
    np.testing.assert_array_equal(model.prior(params, y, mask), 0)
    assert "linear" not in params["f"] | params["g"] | params["h"]


def test_pixel_variance_has_the_floor_of_8_bit_rounding(small):
    x, y, mask = arrays(small)
    p = small.model.likelihood(small.params, 1e4 * jnp.ones((len(x), 6)), y, mask)
    assert float(p.logvar.min()) >= np.float32(PIXEL_LOGVAR_FLOOR)
    assert np.log(1 / 255**2 / 12) == pytest.approx(PIXEL_LOGVAR_FLOOR, abs=1e-3)


@pytest.mark.parametrize("variance, alike", [("pixel", ()), ("channel", (1, 2)), ("shared", (1, 2, 3))])
def test_a_shared_variance_is_one_for_its_pixels_and_another_for_another_face(small, variance, alike):
    x, y, mask = arrays(small)
    z = jax.random.normal(jax.random.key(0), (len(x), 6))
    model = cmma(dataclasses.replace(small.config, variance=variance), small.data.spec)
    p, plain = model.likelihood(small.params, z, y, mask), small.model.likelihood(small.params, z, y, mask)
    np.testing.assert_array_equal(p.mean, plain.mean)
    for axes in ((1, 2), (1, 2, 3)):
        assert (np.ptp(p.logvar, axes).max() < 1e-5) == (set(axes) <= set(alike))
    assert np.ptp(p.logvar, 0).min() > 1e-4
    np.testing.assert_allclose(p.logvar.mean(alike), plain.logvar.mean(alike), rtol=1e-5)


def test_residual_blocks_begin_as_nothing_and_stand_in_both_networks(small):
    x, y, mask = arrays(small)
    model = cmma(dataclasses.replace(small.config, blocks=2), small.data.spec)
    fresh = jax.jit(model.init)(jax.random.key(0))
    added = {name for part in ("h", "g") for name in fresh[part] if name not in small.params[part]}
    assert added == {f"conv{stage}_block{block}" for stage in range(4) for block in range(2)}

    def without(params):
        return params | {part: {name: leaf for name, leaf in params[part].items() if name not in added}
                         for part in ("h", "g")}

    params = jax.tree.map(lambda leaf: leaf, fresh)
    for part in ("h", "g"):
        params[part] |= {name: leaf for name, leaf in small.params[part].items()}
    q, plain = model.posterior(params, x, y, mask), small.model.posterior(without(params), x, y, mask)
    assert_same(q, plain)
    z = plain.mean
    assert_same(model.likelihood(params, z, y, mask), small.model.likelihood(without(params), z, y, mask))
    gradients = jax.grad(lambda p: elbo(model, p, jax.random.key(0), x, y, mask).bound.sum())(params)
    assert all(np.abs(gradients[part][name]["conv1"]["kernel"]).max() > 0
               for part in ("h", "g") for name in added & set(fresh[part]))


def assert_same(a, b):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-5), a, b)


@pytest.mark.parametrize("kind, distribution", [("binary", Bernoulli), ("real", Gaussian)])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_all_or_no_attributes_and_a_batch_of_one_give_finite_values_and_gradients(small, kind, distribution, known, n):
    train = small.data.train
    data = make_dataset("small", small.data.spec.attributes, kind, train, small.data.validation, small.data.test)
    model = cmma(small.config, data.spec)
    params = jax.jit(model.init)(jax.random.key(0))
    assert isinstance(model.attributes(params, jnp.zeros((1, 6))), distribution)
    x, y, mask = pixels(jnp.asarray(train.x[:n])), jnp.asarray(data.train.y[:n]), jnp.full((n, 5), known)

    def value(params):
        terms = elbo(model, params, jax.random.key(0), x, y, mask, known=jnp.ones_like(mask))
        return (terms.bound + terms.attributes + terms.attributes_prior).sum()

    result, gradients = jax.jit(jax.value_and_grad(value))(params)
    assert np.isfinite(result)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_image_networks_are_linens_layers(small):
    """h's convolutions, computed once more with nn.Conv on the same parameters."""
    import flax.linen as nn
    x, *_ = arrays(small)
    params = small.params["h"]["conv0"]
    expected = nn.Conv(small.config.width, (4, 4), (2, 2)).apply({"params": params}, x)
    np.testing.assert_allclose(layers.conv(x, params["kernel"], params["bias"]), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def lfw_like():
    """A spec of LFW's sizes: 64x64 faces with 73 attributes."""
    mean_face = np.zeros((64, 64, 3), np.uint8)
    faces = Faces(np.stack([mean_face, mean_face + 255]), np.zeros((2, 73), np.float32), np.ones((2, 73), bool))
    return make_dataset("zeros", tuple(f"a{i}" for i in range(73)), "binary", faces, faces, faces).spec


@pytest.mark.parametrize("name", ["cvae", "vae"])
@pytest.mark.parametrize("linear_path", [False, True])
def test_capacities_match_a_cmmas(lfw_like, name, linear_path):
    config = Config(linear_path=linear_path)
    counts = [count_parameters(jax.eval_shape(MODELS[m](config, lfw_like).init, jax.random.key(0)))
              for m in ("cmma", name)]
    assert counts[1] == pytest.approx(counts[0], rel=0.02)


def random_params(model, spread=0.05):
    leaves, tree = jax.tree.flatten(jax.jit(model.init)(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [leaf + spread * jax.random.normal(key, leaf.shape)
                                     for leaf, key in zip(leaves, keys, strict=True)])


def test_a_cvaes_prior_has_no_parameters_and_its_likelihood_sees_attributes(small):
    model = cvae(small.config, small.data.spec)
    params = random_params(model)
    x, y, mask = arrays(small)
    full, z = jnp.ones_like(mask), jnp.ones((len(x), small.config.latent_size))
    assert total(grad(lambda p: total(model.prior(p, y, full)))(params)) == 0
    assert total(grad(lambda y: total(model.prior(params, y, full)))(y)) == 0
    assert (grad(lambda y: total(model.likelihood(params, z, y, full)))(y) != 0).all()
    assert (grad(lambda y: total(model.posterior(params, x, y, full)))(y) != 0).all()
    np.testing.assert_array_equal(model.prior(params, y, full), 0)


def test_a_vae_looks_at_no_attribute(small):
    model = vae(small.config, small.data.spec)
    params = random_params(model)
    x, y, mask = arrays(small)

    def bound(y):
        return elbo(model, params, jax.random.key(0), x, y, jnp.ones_like(mask)).bound.sum()

    np.testing.assert_array_equal(grad(bound)(y), 0)
    assert model.attributes is None and model.discriminator is None


def test_a_cgan_sees_attributes_in_both_networks_and_stays_within_the_pixels_range(small):
    model = cgan(small.config, small.data.spec)
    params = random_params(model)
    x, y, mask = (each[jnp.arange(GROUP) % len(each)] for each in arrays(small))
    full, seen, z = jnp.ones_like(mask), jnp.ones_like(x, bool), jnp.full((len(x), small.config.latent_size), 3.0)
    assert (grad(lambda y: model.discriminator(params, x, y, full, seen).sum())(y) != 0).all()
    assert (grad(lambda y: total(model.likelihood(params, z, y, full).mean))(y) != 0).all()
    face = model.likelihood(params, 100 * z, y, full).mean
    assert 0 <= float(face.min()) and float(face.max()) <= 1
    hidden = seen.at[:, 3, 5].set(False)
    change = x.at[:, 3, 5].add(0.3)
    np.testing.assert_array_equal(model.discriminator(params, x, y, full, hidden),
                                  model.discriminator(params, change, y, full, hidden))


def test_weight_variance_scales_a_cgans_initial_weights(small):
    params = [jax.jit(cgan(dataclasses.replace(small.config, weight_variance=v), small.data.spec).init)(
        jax.random.key(0)) for v in (1.0, 0.25)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a / 2, rtol=1e-6), *params)


def test_paper_model_has_the_papers_sizes(lfw_like):
    """f: 73 attributes and their mask -> 800 -> two heads of 500; h and g: 64 -> 4 in four stages."""
    shapes = jax.eval_shape(cmma(Config(linear_path=False), lfw_like).init, jax.random.key(0))
    f, h, g = shapes["f"], shapes["h"], shapes["g"]
    assert f["hidden"]["kernel"].shape == (146, 800) and f["mean"]["kernel"].shape == (800, 500)
    assert [h[f"conv{i}"]["kernel"].shape for i in range(4)] == [(4, 4, 3, 32), (4, 4, 32, 64), (4, 4, 64, 128),
                                                                (4, 4, 128, 256)]
    assert h["mean"]["kernel"].shape == (4 * 4 * 256 + 256, 500) and g["features"]["kernel"].shape == (500, 4096)
    assert g["heads"]["kernel"].shape == (4, 4, 32, 6)
    assert count_parameters(shapes) == sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_with_half_precision_images_the_bound_is_the_same_and_parameters_stay_float32(small):
    """The CVAE's networks are the CMMA's with attributes at one more place."""
    x, y, mask = arrays(small, 16)
    config = dataclasses.replace(small.config, blocks=1)
    model = cvae(config, small.data.spec)
    half = cvae(dataclasses.replace(config, precision="bfloat16"), small.data.spec)
    leaves, tree = jax.tree.flatten(jax.jit(half.init)(jax.random.key(0)))
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten([leaf + 0.05 * jax.random.normal(key, leaf.shape)
                             for leaf, key in zip(leaves, keys, strict=True)])
    each = jax.random.split(jax.random.key(2), len(x))

    def bound(model):
        return jax.jit(jax.value_and_grad(lambda params: elbo(model, params, each, x, y, mask).bound.mean()))(params)

    (one, slope), (other, other_slope) = bound(model), bound(half)
    assert one != other and other.dtype == np.float32
    np.testing.assert_allclose(other, one, rtol=0.005)
    flat, other_flat = (jax.flatten_util.ravel_pytree(tree)[0] for tree in (slope, other_slope))
    assert other_flat.dtype == np.float32
    cosine = flat @ other_flat / jnp.linalg.norm(flat) / jnp.linalg.norm(other_flat)
    assert cosine > 0.995
