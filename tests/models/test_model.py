"""Structure of the models, through gradients, and their behaviour at the edges."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmma_jax.data.dataset import pixels
from cmma_jax.errors import InputError
from cmma_jax.models.distributions import Gaussian, LogisticMixture, Mixed
from cmma_jax.models.model import (
    LOG_SCALE_FLOOR,
    PIXEL_LOGVAR_FLOOR,
    START_LOG_SCALE,
    START_LOGVAR,
    cmma,
    count_parameters,
    encode_attributes,
    make_model,
)
from cmma_jax.models.networks import GROUP, Up
from cmma_jax.models.objectives import elbo
from cmma_jax.models.spec import Spec
from cmma_jax.models.transformer import VelocityNetwork, product
from cmma_jax.training.config import Config, default, paper

MAP, VECTOR = {"prior": "gaussian"}, {"prior": "gaussian", "latent_size": 6}
KINDS = {"mixture": {"likelihood": "logistic_mixture"}, "gaussian": {"likelihood": "gaussian"}}


def grad(function, argnums=0):
    """The gradient, compiled: on a CPU one program is sooner made than each of its operations."""
    return jax.jit(jax.grad(function, argnums))


def arrays(small, n=4):
    faces = small.data.train
    return pixels(jnp.asarray(faces.x[:n])), jnp.asarray(faces.y[:n]), jnp.asarray(faces.mask[:n])



def total(tree):
    return sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree))


def z_for(config, n=4):
    size = config.latent_size or (config.latent_cells or config.image_size // 4)**2 * config.latent_channels
    return jax.random.normal(jax.random.key(4), (n, size))


@pytest.fixture(scope="module", params=["map", "vector"])
def shape(request):
    """What sets the latents' shape."""
    return {"map": {}, "vector": VECTOR}[request.param]


def of(small, **changes):
    """Returns (config, model, params) of a variant."""
    return dataclasses.replace(small.config, **changes), *small.variant(**changes)


def test_a_cmmas_likelihood_does_not_depend_on_attributes_given_z(small, shape):
    x, y, mask = arrays(small)
    config, model, params = of(small, **shape)
    z = z_for(config)
    by_z, by_y = grad(lambda z, y: total(model.likelihood(params, z, y, mask)), (0, 1))(z, y)
    np.testing.assert_array_equal(by_y, 0)
    assert (by_z != 0).all()


def test_prior_posterior_and_velocity_depend_on_attributes_and_posterior_on_the_face(small):
    x, y, mask = arrays(small)
    full, t = jnp.ones_like(mask), jnp.full(4, 0.4)
    assert (grad(lambda y: total(small.model.prior(small.params, y, full)))(y) != 0).all()
    by_x, by_y = grad(lambda x, y: total(small.model.posterior(small.params, x, y, full)), (0, 1))(x, y)
    assert (by_y != 0).all()
    assert (by_x != 0).mean() > 0.99
    by_u, by_y = grad(lambda u, y: total(small.model.velocity(small.params, u, t, y, full)), (0, 1))(
        z_for(small.config), y)
    assert (by_u != 0).all() and (by_y != 0).all()


def test_each_part_has_its_own_parameters_and_uses_no_others(small):
    x, y, mask = arrays(small)
    z, t, m = z_for(small.config), jnp.full(4, 0.4), small.model
    parts = {"f": lambda p: m.prior(p, y, mask), "h": lambda p: m.posterior(p, x, y, mask),
             "g": lambda p: m.likelihood(p, z, y, mask), "h2": lambda p: m.attributes(p, z),
             "flow": lambda p: m.velocity(p, z, t, y, mask)}

    @jax.jit
    def sizes(params):
        gradients = {part: jax.grad(lambda p, run=run: total(run(p)))(params) for part, run in parts.items()}
        return {part: {name: total(tree) for name, tree in found.items()} for part, found in gradients.items()}

    for part, found in sizes(small.params).items():
        assert {name for name, size in found.items() if size} == {part}


def test_holes_have_no_influence_and_being_known_does(small):
    x, y, _ = arrays(small)
    mask, t, z = jnp.ones((len(x), 5), bool).at[:, 2].set(False), jnp.full(4, 0.4), z_for(small.config)
    sees, params = small.variant(model="cvae", width=16)
    for part in (lambda y, m: small.model.prior(small.params, y, m).mean,
                 lambda y, m: small.model.posterior(small.params, x, y, m).mean,
                 lambda y, m: small.model.velocity(small.params, z, t, y, m),
                 lambda y, m: sees.likelihood(params, z, y, m).mean):
        part = jax.jit(part)
        np.testing.assert_array_equal(part(y, mask), part(y.at[:, 2].set(7.0), mask))
        moved = part(y, mask) != part(y, mask.at[:, 2].set(True))
        assert moved.reshape(len(x), -1).any(1).all()


def test_with_no_attribute_known_none_has_a_gradient(small):
    x, y, mask = arrays(small)
    empty, t, z = jnp.zeros_like(mask), jnp.full(4, 0.4), z_for(small.config)

    def everything(y):
        return total([small.model.posterior(small.params, x, y, empty), small.model.prior(small.params, y, empty),
                      small.model.velocity(small.params, z, t, y, empty)])

    np.testing.assert_array_equal(grad(everything)(y), 0)


def test_encoding_tells_no_from_unknown():
    y, mask = jnp.asarray([[0.0, 1.0, 0.0]]), jnp.asarray([[True, True, False]])
    for binary, wanted in (([True] * 3, [-1, 1, 0]), ([False] * 3, [0, 1, 0]), ([False, True, True], [0, 1, 0])):
        np.testing.assert_array_equal(encode_attributes(y, mask, np.array(binary)), [[*wanted, 1, 1, 0]])


@pytest.mark.parametrize("likelihood", ["logistic_mixture", "gaussian"])
def test_a_new_model_has_the_mean_face_the_datas_spread_a_standard_prior_and_no_velocity(small, likelihood):
    spec = small.data.spec
    model = cmma(dataclasses.replace(small.config, likelihood=likelihood), spec)
    params = jax.jit(model.init)(jax.random.key(0))
    x, y, mask = arrays(small)
    z = z_for(small.config)
    p, prior, q, velocity = jax.jit(lambda z: (
        model.likelihood(params, z, y, mask), model.prior(params, y, mask), model.posterior(params, x, y, mask),
        model.velocity(params, z, jnp.full(4, 0.4), y, mask)))(z)
    face, near = jnp.broadcast_to(spec.mean_face[None], x.shape), 1.0 if likelihood == "gaussian" else 0.3
    np.testing.assert_allclose(p.mean, face, rtol=1e-6, atol=near * spec.pixel_std)
    if likelihood == "gaussian":
        np.testing.assert_allclose(p.logvar, 2 * np.log(spec.pixel_std) + START_LOGVAR, atol=1)
    else:  # a logistic's deviation is pi / sqrt(3) times its scale
        deviation = np.exp(p.log_scales - START_LOG_SCALE) * np.pi / 3**0.5
        np.testing.assert_allclose(deviation, spec.pixel_std, rtol=0.5)
        assert (np.ptp(p.means, -1) > 0).mean() > 0.9  # no two logistics are alike, but where no unit is awake
    assert not prior.mean.any() and not prior.logvar.any() and not velocity.any()
    assert 1e-3 < float(q.mean.std()) < 0.3 and not q.logvar.any()  # a mean that says nothing would go on so


def test_pixels_are_no_sharper_than_their_rounding(small):
    _, y, mask = arrays(small)
    for likelihood, name, floor in (("gaussian", "logvar", PIXEL_LOGVAR_FLOOR),
                                    ("logistic_mixture", "log_scales", LOG_SCALE_FLOOR)):
        model, params = small.variant(likelihood=likelihood)
        far = params | {"g": jax.tree.map(lambda a: 10 * a, params["g"])}
        found = getattr(jax.jit(model.likelihood)(far, z_for(small.config), y, mask), name)
        assert float(found.min()) == np.float32(floor)
    assert np.log(1 / 255**2 / 12) == pytest.approx(PIXEL_LOGVAR_FLOOR, abs=1e-3)
    inside = np.tanh(np.exp(-np.log(255) - LOG_SCALE_FLOOR) / 4)  # a logistic's mass half an interval either way
    assert 1 - inside == pytest.approx(2 * np.exp(-6), rel=0.1)


@pytest.mark.parametrize("name, kind, latent, likelihood", [
    ("cmma", "binary", "map", "mixture"), ("cmma", "real", "map", "gaussian"),
    ("cmma", "mixed", "vector", "mixture"), ("cmma", "binary", "vector", "gaussian"),
    ("cvae", "binary", "map", "mixture"), ("cvae", "real", "vector", "gaussian"),
    ("vae", "binary", "map", "gaussian"), ("vae", "binary", "vector", "mixture")])
def test_every_model_has_its_shapes_and_is_finite_at_extremes(small, name, kind, latent, likelihood):
    """Faces all black and all white, latents and attributes far out, none, all and some attributes, a batch of one.
    Between them the cases have every pair of a model, a shape of z and a likelihood.
    """
    latent = {"map": MAP, "vector": VECTOR}[latent]
    config = dataclasses.replace(small.config, **latent)
    model, params = small.variant(kind, model=name, **latent, **KINDS[likelihood])
    x = pixels(jnp.asarray(small.data.train.x[:4])).at[0].set(0.0).at[1].set(1.0)
    binary = np.array({"binary": [True] * 5, "real": [False] * 5, "mixed": [True, False] * 2 + [True]}[kind])
    y = jnp.asarray(small.data.train.y[:4]).at[3].set(np.where(binary, 1.0, 50.0))
    mask = jnp.asarray([[False] * 5, [True] * 5, [True, False, True, False, False], [True] * 5])
    z = z_for(config).at[1].multiply(1e3)

    def bound(params, keys, x, y, mask):
        return elbo(model, params, keys, x, y, mask, known=jnp.ones_like(mask))

    @jax.jit
    def everything(params, keys, x, y, mask, z):
        def value(params):
            terms = bound(params, keys, x, y, mask)
            return (terms.bound + terms.attributes + terms.attributes_prior).sum(), terms

        (_, terms), gradients = jax.value_and_grad(value, has_aux=True)(params)
        p = model.likelihood(params, z, y, mask)
        named = model.attributes(params, z) if model.attributes else None
        return terms, (model.prior(params, y, mask), model.posterior(params, x, y, mask), p, p.mean, named), gradients

    keys = jax.random.split(jax.random.key(0), 4)
    terms, (prior, posterior, p, mean, named), gradients = everything(params, keys, x, y, mask, z)
    assert prior.mean.shape == posterior.mean.shape == z.shape and mean.shape == x.shape
    assert isinstance(p, LogisticMixture if likelihood == "mixture" else Gaussian)
    assert model.discrete == (likelihood == "mixture")
    assert isinstance(named, Mixed if name == "cmma" else type(None))
    if named is not None:
        assert named.mean.shape == y.shape and named.binary.tolist() == binary.tolist()
        assert ((0 <= named.mean) & (named.mean <= 1))[:, named.binary].all()
    whole = terms, prior, posterior, p, mean, named, gradients
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole))
    one = jax.jit(bound)(params, *(a[2:3] for a in (keys, x, y, mask)))
    for found, of_many in zip(one, terms, strict=True):
        np.testing.assert_allclose(found, of_many[2:3], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [16, 32, 48])
@pytest.mark.parametrize("part", [2, 4, 8])
def test_any_image_whose_side_is_a_multiple_of_16_and_cells_of_a_half_a_quarter_or_an_eighth(size, part):
    spec = Spec("zeros", ("a", "b"), ("binary",) * 2, (0, 0), (1, 1), np.zeros((size, size, 3), np.float32), 1.0,
                ((),) * 2)
    architecture = Config(latent_channels=3, latent_cells=size // part, width=4, prior_hidden=8, flow_width=64,
                          flow_blocks=1)
    if part == 4:
        assert jax.eval_shape(cmma(architecture, spec).init, jax.random.key(0)) == jax.eval_shape(
            cmma(dataclasses.replace(architecture, latent_cells=0), spec).init, jax.random.key(0))

    def everything(key):
        model = cmma(architecture, spec)
        params, x = model.init(key), jnp.zeros((2, size, size, 3))
        y, mask = jnp.zeros((2, 2)), jnp.ones((2, 2), bool)
        z = model.posterior(params, x, y, mask).sample(key)
        return (z, model.prior(params, y, mask).mean, model.velocity(params, z, y[:, 0], y, mask),
                model.likelihood(params, z, y, mask).mean, model.attributes(params, z).mean)

    *z, x, y = (a.shape for a in jax.eval_shape(everything, jax.random.key(0)))
    assert z == 3 * [(2, (size // part)**2 * 3)] and x == (2, size, size, 3) and y == (2, 2)


@pytest.mark.parametrize("size, cells", [*((32, cells) for cells in (1, 2, 3, 7, 12, 15, 32)), (24, 3)])
def test_latents_that_do_not_divide_the_image_are_refused(size, cells):
    """Nor may a token's two cells on a side leave one over."""
    with pytest.raises(InputError, match=f"--latent_cells={cells} .* of the image's {size}, such as {size // 4}"):
        make_model(Config(latent_cells=cells),
                   Spec("zeros", ("a",), ("binary",), (0,), (1,), np.zeros((size, size, 3), np.float32), 1.0, ((),)))


@pytest.mark.parametrize("settings, words", [
    ({"latent_size": 5}, "--prior=flow is out of range; give gaussian"),
    ({"model": "cgan", "latent_size": 5}, "--prior=flow"), ({"flow_width": 96}, "--flow_width=96"),
    ({"model": "cgan", "prior": "gaussian"}, "--latent_size=0"), ({"blocks": 0}, "--blocks=0"),
    ({"latent_channels": 0}, "--latent_channels=0"), ({"components": 0}, "--components=0"),
    ({"flow_blocks": 0}, "--flow_blocks=0"), ({"latent_cells": -4}, "--latent_cells=-4")])
def test_settings_out_of_range_are_named(settings, words):
    with pytest.raises(InputError, match=words):
        Config(**settings)


@pytest.fixture(scope="module")
def lfw_like():
    """A spec of LFW's sizes: 64x64 faces with 73 attributes."""
    names = tuple(f"a{i}" for i in range(73))
    return Spec("zeros", names, ("binary",) * 73, (0.0,) * 73, (1.0,) * 73, np.zeros((64, 64, 3), np.float32), 1.0,
                ((),) * 73)


def counts(config, spec, kept):
    model = make_model(config, spec)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return count_parameters({name: tree for name, tree in shapes.items() if name in kept})


@pytest.mark.parametrize("dataset", ["lfw", "synthetic"])
@pytest.mark.parametrize("likelihood", ["logistic_mixture", "gaussian"])
def test_capacities_of_g_h_and_flow_are_alike(lfw_like, dataset, likelihood):
    """Those of g and h by themselves, too, which are few beside the flow's."""
    for kept in (("g", "h"), ("g", "h", "flow")):
        changes = {"likelihood": likelihood, "detail_width": 0}
        one, *others = (counts(dataclasses.replace(default(name, dataset), **changes), lfw_like, kept)
                        for name in ("cmma", "cvae", "vae"))
        assert others == pytest.approx([one, one], rel=0.005)


def test_capacities_of_vector_models_are_alike_with_f_and_h2(lfw_like):
    one, *others = (counts(paper(name, "lfw"), lfw_like, ("f", "g", "h", "h2")) for name in ("cmma", "cvae", "vae"))
    assert others == pytest.approx([one, one], rel=0.005)


def test_a_cvae_too_narrow_for_its_attributes_keeps_a_channel_in_each_block(small):
    _, params = small.variant(model="cvae", **MAP | {"width": 4})
    assert params["g"]["block0"]["conv0"]["kernel"].shape[-1] == 1


@pytest.mark.parametrize("latent", [{"width": 16}, VECTOR], ids=["map", "vector"])
def test_a_cvaes_prior_has_no_parameters_and_its_likelihood_sees_attributes(small, latent):
    config, model, params = of(small, model="cvae", **latent)
    x, y, mask = arrays(small)
    full, z, t = jnp.ones_like(mask), z_for(config), jnp.full(4, 0.4)
    np.testing.assert_array_equal(grad(lambda y: total(model.prior(params, y, full)))(y), 0)
    np.testing.assert_array_equal(model.prior(params, y, full), 0)
    assert "f" not in params and model.attributes is None
    assert (grad(lambda y: total(model.likelihood(params, z, y, full)))(y) != 0).all()
    assert (grad(lambda y: total(model.posterior(params, x, y, full)))(y) != 0).all()
    if model.velocity:
        np.testing.assert_array_equal(grad(lambda y: total(model.velocity(params, z, t, y, full)))(y), 0)


def test_a_vae_looks_at_no_attribute(small):
    config, model, params = of(small, model="vae")
    x, y, mask = arrays(small)
    z, t, full = z_for(config), jnp.full(4, 0.4), jnp.ones_like(mask)

    def everything(y):
        return total([model.posterior(params, x, y, full), model.prior(params, y, full),
                      model.likelihood(params, z, y, full), model.velocity(params, z, t, y, full)])

    np.testing.assert_array_equal(grad(everything)(y), 0)
    assert model.attributes is None and model.discriminator is None
    assert (model.velocity(params, z, t, y, full) != 0).all()


def test_a_cgan_sees_attributes_in_both_networks_and_stays_within_the_pixels_range(small):
    model, params = small.variant(model="cgan", **VECTOR)
    x, y, mask = (each[jnp.arange(GROUP) % len(each)] for each in arrays(small))
    full, seen, z = jnp.ones_like(mask), jnp.ones_like(x, bool), jnp.full((len(x), 6), 3.0)
    assert (grad(lambda y: model.discriminator(params, x, y, full, seen).sum())(y) != 0).all()
    assert (grad(lambda y: total(model.likelihood(params, z, y, full).mean))(y) != 0).all()
    face = jax.jit(lambda z: model.likelihood(params, z, y, full).mean)(100 * z)
    assert 0 <= float(face.min()) and float(face.max()) <= 1
    hidden = seen.at[:, 3, 5].set(False)
    change = x.at[:, 3, 5].add(0.3)
    discriminator = jax.jit(model.discriminator)
    np.testing.assert_array_equal(discriminator(params, x, y, full, hidden),
                                  discriminator(params, change, y, full, hidden))
    assert model.posterior is None and model.velocity is None and not model.discrete


def test_a_projecting_discriminator_asks_for_each_attribute_apart(small):
    """Its logit is affine in every attribute, whatever the others are; of one that hears them beside, it is not."""
    bends = {}
    for projection in (False, True):
        model, params = small.variant(model="cgan", projection=projection, **VECTOR)
        x, y, mask = (each[jnp.arange(GROUP) % len(each)] for each in arrays(small))
        logit = jax.jit(lambda y, model=model, params=params, x=x, mask=mask: model.discriminator(
            params, x, y, jnp.ones_like(mask), jnp.ones_like(x, bool)))
        low, middle, high = (logit(y.at[:, 0].set(value)) for value in (0.0, 0.5, 1.0))
        assert float(jnp.abs(high - low).min()) > 1e-4
        bends[projection] = float(jnp.abs(low + high - 2 * middle).max())
    assert bends[True] < 1e-5 < 1e-3 < bends[False]


def test_paper_model_has_the_papers_sizes(lfw_like):
    """f: 73 attributes and their mask -> 800 -> two heads of 500; h and g: 64 -> 4 in four stages."""
    shapes = jax.eval_shape(cmma(paper("cmma", "lfw"), lfw_like).init, jax.random.key(0))
    f, h, g = shapes["f"], shapes["h"], shapes["g"]
    assert f["hidden"]["kernel"].shape == (146, 800) and f["mean"]["kernel"].shape == (800, 500)
    assert [h[f"conv{i}"]["kernel"].shape for i in range(4)] == [(4, 4, 3, 32), (4, 4, 32, 64), (4, 4, 64, 128),
                                                                (4, 4, 128, 256)]
    assert h["mean"]["kernel"].shape == (4 * 4 * 256 + 256, 500) and g["features"]["kernel"].shape == (500, 4096)
    assert g["heads"]["blocks"]["kernel"].shape == (2, 2, 32, 4 * 6)
    assert count_parameters(shapes) == sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_up_is_a_transposed_convolution(small):
    """Flax's own, of 4x4 and stride 2, with the kernel that ours is another order of; value and gradients."""
    rng = np.random.default_rng(0)
    x, kernel, bias, back = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (
        (2, 5, 3, 3), (4, 4, 3, 7), (7,), (2, 10, 6, 7)))

    def ordered(kernel):
        """A row of 4x4 is 2 (input row) times 2 (output row of the block, the last first); columns alike."""
        parts = kernel.reshape(2, 2, 2, 2, 3, 7)[:, ::-1, :, ::-1]
        return parts.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, 3, 28)

    def ours(x, kernel, bias):
        params = {"blocks": {"kernel": ordered(kernel)}, "bias": bias}
        return (Up(7).apply({"params": params}, x) * back).sum(), Up(7).apply({"params": params}, x)

    def theirs(x, kernel, bias):
        made = nn.ConvTranspose(7, (4, 4), (2, 2)).apply({"params": {"kernel": kernel, "bias": bias}}, x)
        return (made * back).sum(), made

    (found, expected) = (jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(x, kernel, bias)
                         for f in (ours, theirs))
    for a, b in zip(jax.tree.leaves((found[0][1], found[1])), jax.tree.leaves((expected[0][1], expected[1])),
                    strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def jacobian(params, blind=False):
    """By cells, [8, 6, 8, 6]: whether the velocity's of one depends on what is in the other."""
    network = VelocityNetwork(64, 1)
    z, t, a = jax.random.normal(jax.random.key(1), (1, 8, 6, 2)), jnp.full(1, 0.4), jnp.ones((1, 4))
    found = jax.jit(jax.jacrev(lambda z: network.apply({"params": params}, z, t, a)))(z)
    return np.abs(found[0, :, :, :, 0]).sum((2, 5)) > 0


@pytest.fixture(scope="module")
def velocity_params():
    shapes = jax.eval_shape(VelocityNetwork(64, 1).init, jax.random.key(0), jnp.zeros((1, 8, 6, 2)), jnp.zeros(1),
                            jnp.zeros((1, 4)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.1, a.shape), jnp.float32), shapes)


def test_every_cells_velocity_depends_on_every_cell(velocity_params):
    assert jacobian(velocity_params).all()


def test_a_token_is_four_neighbouring_cells_and_goes_back_where_it_came_from(velocity_params):
    """Where attention has no gate, a cell's velocity depends on its own token alone."""
    gated = velocity_params["block0"]["modulation"]
    closed = jax.tree.map(lambda a: a.at[..., 128:192].set(0), gated)
    block = velocity_params["block0"] | {"modulation": closed}
    row, column = np.arange(8) // 2, np.arange(6) // 2
    same = (row[:, None, None, None] == row[None, None, :, None]) & (column[None, :, None, None] == column)
    np.testing.assert_array_equal(jacobian(velocity_params | {"block0": block}), same)


def test_an_examples_velocity_and_its_dropped_units_depend_on_itself_alone(small):
    x, y, mask = arrays(small)
    u, t, keys = z_for(small.config), jnp.asarray([0.1, 0.4, 0.7, 0.9]), jax.random.split(jax.random.key(0), 4)
    velocity = jax.jit(functools.partial(small.model.velocity, small.params))
    whole, dropped = velocity(u, t, y, mask), velocity(u, t, y, mask, keys)
    assert (whole != dropped).any(1).all()
    np.testing.assert_allclose(velocity(u[2:], t[2:], y[2:], mask[2:]), whole[2:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(velocity(u[2:], t[2:], y[2:], mask[2:], keys[2:]), dropped[2:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 64, 500])
def test_a_product_in_bfloat16_rounds_factors_and_sums_in_float32(rows):
    """Alone, in a batch of them, and its two gradients, against float64 products of rounded factors."""
    keys = jax.random.split(jax.random.key(rows), 3)
    a, b, slope = (jax.random.normal(key, shape) for key, shape in
                   zip(keys, ((rows, 128), (128, 192), (rows, 192)), strict=True))
    rounded = [np.asarray(each.astype(jnp.bfloat16), np.float64) for each in (a, b, slope)]
    found, pull = jax.vjp(jax.jit(product), a, b)
    wanted = rounded[0] @ rounded[1], rounded[2] @ rounded[1].T, rounded[0].T @ rounded[2]
    for value, exact in zip((found, *jax.jit(pull)(slope)), wanted, strict=True):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, exact, atol=1e-4)
    assert np.abs(found - np.asarray(a, np.float64) @ np.asarray(b, np.float64)).max() > 1e-2
    each = jax.jit(jax.vmap(product, (0, None)))(jnp.stack([a, 2 * a]), b)
    np.testing.assert_allclose(each, np.stack([found, 2 * found]), rtol=1e-6)


def test_in_bfloat16_the_solvers_neighbouring_times_stay_apart(small):
    """Of 1,000 steps, which bfloat16 rounds to 256 between 1/2 and 1."""
    half, _ = small.variant(precision="bfloat16")
    t = jnp.linspace(0, 1, 1001)
    u, y, mask = (jnp.repeat(a[:1], 1001, 0) for a in (z_for(small.config), *arrays(small)[1:]))
    full, found = (np.asarray(jax.jit(model.velocity)(small.params, u, t, y, mask)) for model in (small.model, half))
    assert found.dtype == np.float32
    assert (np.abs(np.diff(found, axis=0)).max(1) > 0).all()
    assert 0 < np.abs(found - full).max() < 0.05 * np.abs(full).max()
