"""The flow prior: its density against numerical Jacobians and integrals, its paths, and what it is trained by."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmma_jax.data.dataset import pixels
from cmma_jax.models import flow
from cmma_jax.models.distributions import Gaussian
from cmma_jax.models.flow import Wanted
from cmma_jax.models.model import Model, cvae
from cmma_jax.models.model import cmma as make_cmma
from cmma_jax.models.objectives import elbo, importance_weighted_bound, make_flow_loss
from cmma_jax.sampling.faces import edit, generate

J = 6


class Flowing(NamedTuple):
    """A small CMMA with a flow; y, mask: attributes of 12 faces x."""

    model: Model
    params: dict
    x: jax.Array
    y: jax.Array
    mask: jax.Array


def shaken(params, scale=0.3):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(tree, [leaf + scale * jax.random.normal(key, leaf.shape) / max(1, len(leaf)) ** 0.5
                                     for leaf, key in zip(leaves, keys, strict=True)])


@pytest.fixture(scope="module")
def convolving(small) -> Flowing:
    """The flow is the model's own, of random weights."""
    config = dataclasses.replace(small.config, prior="flow")
    model = make_cmma(config, small.data.spec)
    fresh = jax.jit(model.init)(jax.random.key(0))
    params = small.params | {"flow": shaken(fresh["flow"])}
    few = jax.tree.map(lambda a: jnp.asarray(a[:12]), small.data.validation)
    return Flowing(model, params, pixels(few.x), few.y, few.mask)


@pytest.fixture(scope="module")
def flowing(convolving) -> Flowing:
    """The velocity is one small dense layer, which is soon differentiated."""
    a, b, c = (jax.random.normal(key, shape) for key, shape in zip(
        jax.random.split(jax.random.key(5), 3), [(J, J), (5, J), (J, J)], strict=True))

    def velocity(params, z, t, y, mask):
        return jnp.tanh(0.7 * z @ a + jnp.where(mask, y, 0) @ b + t[:, None]) @ c / 4

    return convolving._replace(model=convolving.model._replace(velocity=velocity))


def starts(f: Flowing, key=3):
    return f.model.prior(f.params, f.y, f.mask).sample(jax.random.key(key))


def test_a_fresh_flow_leaves_the_gaussian_prior_as_it_is(small, convolving):
    f = convolving
    params = small.params | {"flow": jax.jit(f.model.init)(jax.random.key(0))["flow"]}
    z = starts(f)
    np.testing.assert_array_equal(flow.to_latent(f.model, params, z, Wanted(f.y, f.mask)), z)
    np.testing.assert_array_equal(flow.log_ratio(f.model, params, z, f.y, f.mask), 0)
    made = generate(f.model, params, jax.random.key(5), f.y, f.mask)
    plain = generate(small.model, small.params, jax.random.key(5), f.y, f.mask)
    np.testing.assert_allclose(made, plain, atol=1e-6)  # another program, which rounds by itself


def test_a_model_without_a_flow_passes_through(small, flowing):
    z = starts(flowing)
    wanted = Wanted(flowing.y, flowing.mask)
    assert flow.to_latent(small.model, small.params, z, wanted) is z
    assert flow.to_gaussian(small.model, small.params, z, wanted) is z
    np.testing.assert_array_equal(flow.log_ratio(small.model, small.params, z, *wanted), 0)


def test_the_way_back_leads_where_one_came_from_and_the_way_is_no_short_one(flowing):
    f, z = flowing, starts(flowing)
    wanted = Wanted(f.y, f.mask)
    latent = flow.to_latent(f.model, f.params, z, wanted, steps=100)
    assert float(jnp.abs(latent - z).max()) > 0.3
    np.testing.assert_allclose(flow.to_gaussian(f.model, f.params, latent, wanted, steps=100), z, atol=2e-3)


def test_the_model_s_own_flow_is_no_short_one_either_and_leads_back(convolving):
    f, z = convolving, starts(convolving)
    wanted = Wanted(f.y, f.mask)
    latent = jax.jit(lambda z: flow.to_latent(f.model, f.params, z, wanted))(z)
    assert float(jnp.abs(latent - z).max()) > 0.1
    back = jax.jit(lambda z: flow.to_gaussian(f.model, f.params, z, wanted))(latent)
    assert float(jnp.abs(back - z).max()) < 0.05 * float(jnp.abs(latent - z).max())


def test_the_log_density_is_that_of_the_change_of_variables(flowing):
    f, z, steps = flowing, starts(flowing), 200

    def place(one, y, mask):
        return flow.to_gaussian(f.model, f.params, one[None], Wanted(y[None], mask[None]), steps)[0]

    jacobians = np.asarray(jax.vmap(jax.jacrev(place))(z, f.y, f.mask), np.float64)
    p = f.model.prior(f.params, f.y, f.mask)
    places = jax.vmap(place)(z, f.y, f.mask)
    expected = np.asarray(p.log_prob(places).sum(-1)) + np.linalg.slogdet(jacobians)[1]
    actual = flow.log_ratio(f.model, f.params, z, f.y, f.mask, steps=steps).sum(-1) + p.log_prob(z).sum(-1)
    assert np.ptp(expected - np.asarray(p.log_prob(z).sum(-1))) > 0.3
    np.testing.assert_allclose(actual, expected, atol=5e-3)


def test_the_density_integrates_to_one(flowing):
    f, n = flowing, 4000
    y, mask = jnp.repeat(f.y[:1], n, 0), jnp.repeat(f.mask[:1], n, 0)
    p = f.model.prior(f.params, y, mask)
    wide = Gaussian(p.mean, p.logvar + 0.8)
    z = wide.sample(jax.random.key(1))
    log_p = p.log_prob(z) + flow.log_ratio(f.model, f.params, z, y, mask, steps=40)
    weights = np.exp(np.asarray((log_p - wide.log_prob(z)).sum(-1), np.float64))
    assert abs(weights.mean() - 1) < 4 * weights.std() / n**0.5
    assert weights.std() / n**0.5 < 0.1


def test_the_estimated_density_is_unbiased(flowing):
    f, z, n = flowing, starts(flowing)[:2], 1000
    y, mask = f.y[:2], f.mask[:2]
    exact = np.asarray(flow.log_ratio(f.model, f.params, z, y, mask).sum(-1))
    keys = jax.random.split(jax.random.key(4), n)
    drawn = jax.jit(lambda keys: jax.lax.map(
        lambda key: flow.log_ratio(f.model, f.params, z, y, mask, key).sum(-1), keys, batch_size=100))(keys)
    error = np.asarray(drawn).std(0) / n**0.5
    assert (error > 0).all()
    assert (np.abs(np.asarray(drawn).mean(0) - exact) < 4 * error).all()


def test_the_matching_error_of_a_flow_that_says_nothing_is_one_for_gaussian_latents(small, convolving):
    f, n = convolving, 500
    params = small.params | {"flow": jax.jit(f.model.init)(jax.random.key(0))["flow"]}
    y, mask = (jnp.repeat(a[:1], n, 0) for a in (f.y, f.mask))
    errors = flow.matching(f.model, params, jax.random.split(jax.random.key(0), n), f.model.prior(params, y, mask), y,
                           mask)
    assert errors.shape == (n,)
    assert abs(float(errors.mean()) - 1) < 4 * float(errors.std()) / n**0.5


def test_the_least_matching_error_is_that_of_the_path_s_own_velocity(flowing):
    """For latents that all lie at c deviations, the velocity is known: it leads straight there along the path."""
    f, n, c = flowing, 500, 1.5
    y, mask = (jnp.repeat(a[:1], n, 0) for a in (f.y, f.mask))
    p = f.model.prior(f.params, y, mask)
    point = Gaussian(p.mean + c * jnp.exp(p.logvar / 2), jnp.full_like(p.logvar, -60.0))

    def velocity(params, z, t, y, mask):
        p = f.model.prior(params, y, mask)
        deviation = jnp.exp(p.logvar / 2)
        cos, sin = (g(jnp.pi / 2 * t)[:, None] for g in (jnp.cos, jnp.sin))
        e = ((z - p.mean) / deviation - c * sin) / cos
        return jnp.pi / 2 * deviation * (c * cos - e * sin)

    known = f.model._replace(velocity=velocity)
    keys = jax.random.split(jax.random.key(0), n)
    assert float(jnp.median(flow.matching(known, f.params, keys, point, y, mask))) < 1e-6
    assert float(flow.matching(f.model, f.params, keys, point, y, mask).mean()) > 0.3


def test_guidance_of_zero_changes_nothing_and_more_leads_away_from_the_unknown(flowing):
    f, key = flowing, jax.random.key(1)
    plain = flow.draw(f.model, f.params, key, f.y, f.mask)
    np.testing.assert_allclose(flow.draw(f.model, f.params, key, f.y, f.mask, guidance=0.0), plain, atol=1e-5)
    assert float(jnp.abs(flow.draw(f.model, f.params, key, f.y, f.mask, guidance=2.0) - plain).max()) > 0.01
    wanted, other = Wanted(f.y, f.mask), Wanted(1 - f.y, f.mask)
    z = starts(f)
    np.testing.assert_allclose(flow.to_latent(f.model, f.params, z, wanted, other=other, weight=0.0),
                               flow.to_latent(f.model, f.params, z, other), atol=1e-5)


def test_the_bound_s_kl_is_the_mean_log_ratio_of_posterior_and_flow(flowing):
    f, n = flowing, 3000
    x, y, mask = (jnp.repeat(a[:1], n, 0) for a in (f.x, f.y, f.mask))
    terms = elbo(f.model, f.params, jax.random.split(jax.random.key(0), n), x, y, mask)
    q = f.model.posterior(f.params, x, y, mask)
    z = q.sample(jax.random.split(jax.random.key(9), n))
    p = f.model.prior(f.params, y, mask)
    exact = flow.log_ratio(f.model, f.params, z, y, mask)
    direct = np.asarray((q.log_prob(z) - p.log_prob(z) - exact).sum(-1), np.float64)
    kl = np.asarray(terms.kl, np.float64)
    assert abs(kl.mean() - direct.mean()) < 4 * (kl.var() / n + direct.var() / n) ** 0.5
    assert abs(float(exact.sum(-1).mean())) > 0.05


def test_the_importance_weighted_bound_has_the_flow_s_exact_density(flowing, small):
    f, key = flowing, jax.random.key(0)
    bounds = [importance_weighted_bound(model, f.params, key, f.x, f.y, f.mask, 1) for model in (f.model, small.model)]
    z = f.model.posterior(f.params, f.x, f.y, f.mask).sample(jax.random.fold_in(key, 0))
    gain = flow.log_ratio(f.model, f.params, z, f.y, f.mask).sum(-1)
    assert float(jnp.abs(gain).min()) > 0.01
    np.testing.assert_allclose(bounds[0] - bounds[1], gain, atol=0.02)


def test_the_flow_s_loss_trains_the_flow_alone(convolving):
    f = convolving
    loss = make_flow_loss(f.model, 0.3)
    keys = jax.random.split(jax.random.key(0), len(f.x))
    gradients = jax.jit(jax.grad(lambda params: loss(params, keys, f.x, f.y, f.mask)[0].mean()))(f.params)
    for name, tree in gradients.items():
        moved = [float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(tree)]
        assert any(moved) if name == "flow" else not any(moved), name


def test_a_cvae_s_flow_sees_no_attributes_and_a_cmma_s_does(small, convolving):
    f, z, t = convolving, starts(convolving), jnp.full(12, 0.5)
    config = dataclasses.replace(small.config, prior="flow", model="cvae")
    other = cvae(config, small.data.spec)
    params = shaken(jax.jit(other.init)(jax.random.key(0)))
    gradient = jax.grad(lambda y: other.velocity(params, z, t, y, f.mask).sum())(f.y)
    assert float(jnp.abs(gradient).max()) == 0
    assert float(jnp.abs(jax.grad(lambda y: f.model.velocity(f.params, z, t, y, f.mask).sum())(f.y)).max()) > 0
    plain = jax.eval_shape(cvae(dataclasses.replace(config, prior="gaussian"), small.data.spec).init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, plain) == {k: jax.tree.map(jnp.shape, v) for k, v in params.items() if k != "flow"}


def test_an_edit_goes_to_the_gaussian_under_the_old_attributes_and_back_under_the_new(flowing):
    f = flowing
    new = 1 - f.y
    z = flow.to_gaussian(f.model, f.params, f.model.posterior(f.params, f.x, f.y, f.mask).mean, Wanted(f.y, f.mask))
    f_old, f_new = (f.model.prior(f.params, y, f.mask).mean for y in (f.y, new))
    latent = flow.to_latent(f.model, f.params, z + f_new - f_old, Wanted(new, f.mask))
    expected = jnp.clip(f.model.likelihood(f.params, latent, new, f.mask).mean, 0, 1)
    edited = edit(f.model, f.params, f.x, f.y, f.mask, new, f.mask)
    np.testing.assert_allclose(edited, expected, atol=1e-5)
    for other in (edit(f.model, f.params, f.x, f.y, f.mask, f.y, f.mask, keep_detail=True),
                  edit(f.model, f.params, f.x, f.y, f.mask, new, f.mask, 0.0, keep_detail=True)):
        np.testing.assert_array_equal(other, f.x)
