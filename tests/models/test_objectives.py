"""The bound against models whose likelihood is known exactly, and what each of its terms may touch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats

from cmma_jax.data.dataset import pixels
from cmma_jax.models.distributions import Bernoulli, Gaussian, split_each
from cmma_jax.models.flow import log_prior
from cmma_jax.models.model import Model
from cmma_jax.models.networks import GROUP
from cmma_jax.models.objectives import (
    adversarial,
    augment,
    elbo,
    hide_attributes,
    importance_weighted_bound,
    make_adversarial_loss,
    make_loss,
)

A = np.asarray([[0.7, -0.4], [0.2, 0.9], [-0.5, 0.3]], np.float32)  # attributes to z
W = np.asarray([[1.0, 0.5, 0.0, -0.5, 0.2, 0.0], [-0.5, 1.0, 0.4, 0.0, 0.0, 0.3]], np.float32)
W[1] -= W[0] * (W[0] @ W[1]) / (W[0] @ W[0])  # orthogonal rows: the exact posterior is then diagonal
PRIOR_VARIANCE, NOISE = np.asarray([0.8, 1.5], np.float32), 0.3


def grad(function, argnums=0):
    """The gradient, compiled: on a CPU one program is sooner made than each of its operations."""
    return jax.jit(jax.grad(function, argnums))


def linear_cmma() -> Model:
    """z|y ~ N(yA, diag), x|z ~ N(zW, noise); params shift and scale the exact posterior."""

    def prior(params, y, mask):
        mean = y @ A
        return Gaussian(mean, jnp.broadcast_to(jnp.log(PRIOR_VARIANCE)[None], mean.shape))

    def posterior(params, x, y, mask):
        precision = 1 / PRIOR_VARIANCE + (W**2).sum(1) / NOISE
        mean = (y @ A / PRIOR_VARIANCE[None] + x.reshape(len(x), -1) @ W.T / NOISE) / precision[None]
        logvar = jnp.broadcast_to(-jnp.log(precision)[None], mean.shape)
        return Gaussian(mean + params["shift"], logvar + params["log_scale"])

    def likelihood(params, z, y, mask):
        mean = (z @ W).reshape(-1, 1, 2, 3)
        return Gaussian(mean, jnp.full_like(mean, np.log(NOISE)))

    def attributes(params, z):
        return Bernoulli(z @ A.T)

    return Model(lambda key: None, len(W), prior, likelihood, posterior, attributes)


def exact_log_likelihood(x, y):
    covariance = np.float64(W).T @ np.diag(PRIOR_VARIANCE) @ W + NOISE * np.eye(6)
    means = np.float64(y) @ A @ W
    return np.array([scipy.stats.multivariate_normal.logpdf(row.ravel(), mean, covariance)
                     for row, mean in zip(np.float64(x), means, strict=True)])


def linear_data(n=8):
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.normal(0, 1.2, (n, 1, 2, 3)), jnp.float32),
            jnp.asarray(rng.random((n, 3)) < 0.5, jnp.float32), jnp.ones((n, 3), bool))


def many_bounds(shift, log_scale, draws=4000):
    x, y, mask = linear_data()
    params = {"shift": jnp.float32(shift), "log_scale": jnp.float32(log_scale)}
    model = linear_cmma()
    return jax.vmap(lambda key: elbo(model, params, key, x, y, mask).bound)(
        jax.random.split(jax.random.key(0), draws)), exact_log_likelihood(x, y)


def test_bound_touches_the_exact_likelihood_at_the_exact_posterior():
    bounds, exact = many_bounds(0.0, 0.0)
    standard_errors = np.abs(bounds.mean(0) - exact) / (bounds.std(0) / np.sqrt(len(bounds)))
    assert standard_errors.max() < 4
    assert bounds.std(0).max() > 0.1  # the test has something to tell apart


@pytest.mark.parametrize("shift, log_scale", [(0.3, 0.0), (0.0, 1.0), (0.0, -1.0), (-0.2, 0.5)])
def test_bound_never_exceeds_the_exact_likelihood(shift, log_scale):
    bounds, exact = many_bounds(shift, log_scale)
    gap = exact - bounds.mean(0)
    assert (gap > 4 * bounds.std(0) / np.sqrt(len(bounds))).all()


def test_bound_of_a_wrong_posterior_is_lower_by_its_kl_to_the_exact_one():
    shift, log_scale = 0.3, 0.5
    bounds, exact = many_bounds(shift, log_scale)
    precision = np.float64(1 / PRIOR_VARIANCE + (W**2).sum(1) / NOISE)
    divergence = 0.5 * np.sum(np.exp(log_scale) + shift**2 * precision - 1 - log_scale)
    standard_error = bounds.std(0) / np.sqrt(len(bounds))
    assert (np.abs(exact - bounds.mean(0) - divergence) < 4 * standard_error).all()


SWIRL = np.asarray([[0.2, 0.8], [-0.5, -0.3]])  # of the flow's velocity, linear in u
SCALE = {"mean": np.asarray([0.2, -0.4], np.float32), "deviation": np.asarray([0.7, 1.3], np.float32)}
POSTERIOR_PRECISION = np.asarray([6.0, 9.0])


def flowing_cmma() -> tuple[Model, np.ndarray, np.ndarray, np.ndarray]:
    """z|y by a flow whose velocity is linear, x|z ~ N(zV, noise), and the exact posterior, shifted and scaled by
    params as above; returned with what y adds to u(1), z's covariance, and V, by which the posterior is diagonal.
    """
    whole = SCALE["deviation"][:, None] * scipy.linalg.expm(SWIRL)
    covariance = whole @ whole.T
    # (u, 1) with the velocity uS' + yA, of which the integral carries what the attributes add
    added = np.stack([scipy.linalg.expm(np.block([[SWIRL, row[:, None]], [np.zeros((1, 3))]]))[:2, 2]
                      for row in np.float64(A)])
    v = np.zeros((2, 6))
    v[:, :2] = np.linalg.cholesky(NOISE * (np.diag(POSTERIOR_PRECISION) - np.linalg.inv(covariance)))
    v[:, 2:] = v[:, :2] @ np.asarray([[0.6, 0.8, 0.0, 0.0], [-0.8, 0.6, 0.0, 0.0]]) / 2**0.5
    v[:, :2] /= 2**0.5
    inverse, rows, back = (jnp.asarray(a, jnp.float32) for a in (np.linalg.inv(covariance), v, added))
    precision = jnp.asarray(POSTERIOR_PRECISION, jnp.float32)

    def velocity(params, u, t, y, mask, keys=None):
        return u @ SWIRL.T.astype(np.float32) + y @ A

    def posterior(params, x, y, mask):
        mean = SCALE["mean"][None] + SCALE["deviation"][None] * (y @ back)
        mean = (mean @ inverse + x.reshape(len(x), -1) @ rows.T / NOISE) / precision[None]
        return Gaussian(mean + params["shift"], jnp.broadcast_to(-jnp.log(precision)[None], mean.shape)
                        + params["log_scale"])

    def likelihood(params, z, y, mask):
        mean = (z @ rows).reshape(-1, 1, 2, 3)
        return Gaussian(mean, jnp.full_like(mean, np.log(NOISE)))

    model = linear_cmma()._replace(likelihood=likelihood, posterior=posterior, velocity=velocity)
    return model, added, covariance, v


@pytest.mark.parametrize("shift, log_scale", [(0.0, 0.0), (0.2, -0.4)])
def test_bound_of_a_linear_model_with_a_flow_is_the_exact_likelihood_less_its_kl(shift, log_scale):
    """At the exact posterior it touches it; log p(z|y) by the change of variables, its trace by random signs."""
    model, added, covariance, v = flowing_cmma()
    x, y, mask = linear_data()
    params = {"shift": jnp.float32(shift), "log_scale": jnp.float32(log_scale), "scale": SCALE}
    bounds = np.float64(jax.jit(jax.vmap(lambda key: elbo(model, params, key, x, y, mask, steps=50).bound))(
        jax.random.split(jax.random.key(0), 4000)))
    means = SCALE["mean"] + SCALE["deviation"] * (np.float64(y) @ added)
    spread = v.T @ covariance @ v + NOISE * np.eye(6)
    exact = np.array([scipy.stats.multivariate_normal.logpdf(row.ravel(), mean, spread)
                      for row, mean in zip(np.float64(x), means @ v, strict=True)])
    divergence = 0.5 * np.sum(np.exp(log_scale) + shift**2 * POSTERIOR_PRECISION - 1 - log_scale)
    error = bounds.std(0) / np.sqrt(len(bounds))
    assert (np.abs(exact - bounds.mean(0) - divergence) < 4 * error + 1e-3).all()
    assert error.max() < 0.05 and np.ptp(exact) > 1


compiled = jax.jit(elbo, static_argnums=0)


def example(small, n=6):
    faces = small.data.train
    return pixels(jnp.asarray(faces.x[:n])), jnp.asarray(faces.y[:n]), jnp.asarray(faces.mask[:n])


def test_each_term_trains_what_it_should(small):
    x, y, mask = example(small)
    trains = {"bound": {"f", "h", "g"}, "reconstruction": {"h", "g"}, "kl": {"f", "h"}, "attributes": {"h2"},
              "attributes_prior": {"f", "h2"}}

    @jax.jit
    def sizes(params):
        _, pull = jax.vjp(lambda p: (lambda t: [getattr(t, name).sum() for name in trains])(
            elbo(small.gaussian, p, jax.random.key(0), x, y, mask)), params)
        gradients = [pull([jnp.float32(name == other) for other in trains])[0] for name in trains]
        return [{part: sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(tree)) for part, tree in each.items()}
                for each in gradients]

    for name, found in zip(trains, sizes(small.params), strict=True):
        assert {part for part, size in found.items() if size} == trains[name], name


def test_attribute_terms_score_known_attributes_alone(small):
    x, y, _ = example(small)
    none, every = jnp.zeros((6, 5), bool), jnp.ones((6, 5), bool)
    key = jax.random.key(0)
    np.testing.assert_array_equal(compiled(small.gaussian, small.params, key, x, y, none).attributes, 0)
    hidden = compiled(small.gaussian, small.params, key, x, y, none, known=every)
    assert (hidden.attributes < 0).all()
    np.testing.assert_array_equal(hidden.attributes_prior, 0)  # the prior knows what the networks see, no more
    one = compiled(small.gaussian, small.params, key, x, y, none, known=every.at[:, 0].set(False))
    assert (one.attributes > hidden.attributes).all()


def test_examples_do_not_touch_each_other(small):
    x, y, mask = example(small)
    keys = jax.random.split(jax.random.key(0), 6)
    whole = compiled(small.gaussian, small.params, keys, x, y, mask)
    part = compiled(small.gaussian, small.params, keys[2:4], x[2:4], y[2:4], mask[2:4])
    for name, values in whole._asdict().items():
        assert values.shape == (6,)
        np.testing.assert_allclose(getattr(part, name), values[2:4], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kl_weight", [1.0, 3.0])
def test_loss_is_minus_the_bound_and_the_weighted_attribute_terms_per_pixel(small, kl_weight):
    """With another weight of the KL the recorded bound is the same."""
    x, y, mask = example(small)
    loss, terms = jax.jit(make_loss(small.gaussian, 0.0, 2.5, kl_weight))(small.params, jax.random.key(0), x, y, mask)
    gain = terms["bound"] - (kl_weight - 1) * terms["kl"] + 2.5 * (terms["attributes"] + terms["attributes_prior"])
    np.testing.assert_allclose(loss, -gain / (16 * 16 * 3), rtol=1e-6)
    np.testing.assert_allclose(terms["bound"], terms["reconstruction"] - terms["kl"], rtol=1e-6)


def test_with_a_flow_the_bounds_kl_is_the_posteriors_entropy_and_the_flows_density(small):
    """Nothing is asked of the Gaussian prior that was before it; log p(z|y) is estimated at the same z."""
    x, y, mask = example(small)
    keys = jax.random.split(jax.random.key(0), 6)
    with_flow, plain = (compiled(model, small.params, keys, x, y, mask) for model in (small.model, small.gaussian))
    for name in ("reconstruction", "attributes"):
        np.testing.assert_allclose(getattr(with_flow, name), getattr(plain, name), rtol=1e-5, atol=1e-5)
    without_f = {name: tree for name, tree in small.params.items() if name != "f"}
    np.testing.assert_array_equal(compiled(small.model, without_f, keys, x, y, mask), with_flow)
    assert (with_flow.attributes_prior == 0).all() and (plain.attributes_prior < 0).all()
    assert (np.abs(with_flow.kl - plain.kl) > 1).all()
    posterior_key, _, trace_key = split_each(keys, 3)
    q = jax.jit(small.gaussian.posterior)(small.params, x, y, mask)
    density = jax.jit(log_prior, static_argnums=0)(small.model, small.params, q.sample(posterior_key), y, mask,
                                                   trace_key)
    entropy = scipy.stats.norm(0, np.exp(np.float64(q.logvar) / 2)).entropy().sum(1)
    np.testing.assert_allclose(with_flow.kl, -entropy - density, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("wholly, partly", [(0.15, 0.15), (0.1, 0.3), (0.0, 1.0)])
def test_hidden_attributes_follow_the_rates(wholly, partly):
    mask = jnp.ones((40_000, 9), bool).at[:, 0].set(False)
    seen = np.asarray(hide_attributes(jax.random.key(0), mask, wholly, partly))
    assert not seen[:, 0].any()  # what is unknown stays unknown
    untouched, empty = seen[:, 1:].all(1).mean(), (~seen[:, 1:]).all(1).mean()
    # Some lose all; of others a keep probability v = u^3, u ~ U(0, 1), keeps all 8 with E[v^8], none with E[(1 - v)^8].
    none = scipy.special.beta(1 / 3, 9) / 3
    for share, expected in ((untouched, 1 - wholly - partly + partly / 25), (empty, wholly + partly * none)):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / len(seen))
    np.testing.assert_array_equal(hide_attributes(jax.random.key(0), mask, 0.0, 0.0), mask)


def test_training_hides_its_share_of_attributes_and_scores_all_that_are_known():
    (x, y, mask), seen = linear_data(400), []
    mask = mask.at[:, 1].set(False)
    linear = linear_cmma()

    def prior(params, y, mask):
        seen.append(np.asarray(mask))
        return linear.prior(params, y, mask)

    keys, params = jax.random.split(jax.random.key(0), 400), {"shift": jnp.float32(0), "log_scale": jnp.float32(0)}
    _, terms = make_loss(linear._replace(prior=prior), 0.5, 1.0)(params, keys, x, y, mask)
    assert not (seen[0] & ~np.asarray(mask)).any()
    # A half of a half loses all; of the other half u ~ U(0, 1) keeps neither of two with probability 1/3.
    assert abs((~seen[0]).all(1).mean() - (0.25 + 0.25 / 3)) < 4 * np.sqrt(0.33 * 0.67 / 400)
    assert (terms["attributes"] < 0).all() and (terms["attributes_prior"] == 0).mean() > 0.25


def weighted_bounds(samples, shift=0.4, log_scale=0.5, draws=3000):
    x, y, mask = linear_data()
    params = {"shift": jnp.float32(shift), "log_scale": jnp.float32(log_scale)}
    return np.asarray(jax.jit(jax.vmap(lambda key: importance_weighted_bound(
        linear_cmma(), params, key, x, y, mask, samples)))(jax.random.split(jax.random.key(3), draws)))


def test_importance_weighted_bound_rises_with_k_to_the_exact_likelihood():
    """A posterior that is off by a shift and a scale: K = 1 is the variational bound, K = 1,000 all but exact."""
    variational, exact = many_bounds(0.4, 0.5)
    estimates = [weighted_bounds(k) for k in (1, 5, 50)] + [weighted_bounds(1000, draws=100)]
    means = [estimate.mean(0) for estimate in estimates]
    errors = [estimate.std(0, ddof=1) / np.sqrt(len(estimate)) for estimate in estimates]
    both = np.hypot(errors[0], variational.std(0, ddof=1) / np.sqrt(len(variational)))
    assert (np.abs(means[0] - variational.mean(0)) < 4 * both).all()
    for k in range(3):
        assert (means[k + 1] > means[k] - 4 * np.hypot(errors[k], errors[k + 1])).all()
        assert (means[k] < exact + 4 * errors[k]).all()
    assert means[1].sum() > means[0].sum() + 1 and means[2].sum() > means[1].sum() + 0.1
    np.testing.assert_allclose(means[3], exact, atol=0.02)


def test_every_importance_weight_is_the_likelihood_where_the_posterior_is_exact():
    x, y, _ = linear_data()
    weights = weighted_bounds(3, shift=0.0, log_scale=0.0, draws=20)
    np.testing.assert_allclose(weights, np.broadcast_to(exact_log_likelihood(x, y), weights.shape), atol=1e-4)


def test_importance_weighted_noise_belongs_to_the_example(small):
    x, y, mask = example(small)
    keys = jax.random.split(jax.random.key(0), 6)
    weighted = jax.jit(functools.partial(importance_weighted_bound, small.gaussian, samples=3))
    whole = weighted(small.params, keys, x, y, mask)
    part = weighted(small.params, keys[2:4], x[2:4], y[2:4], mask[2:4])
    np.testing.assert_allclose(part, whole[2:4], rtol=1e-5)


@pytest.fixture(scope="module")
def gan(small):
    return small.variant(model="cgan", prior="gaussian", latent_size=6)


def size(tree):
    return sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))


def groups(small):
    return jax.tree.map(lambda each: each[jnp.arange(2 * GROUP) % len(each)], example(small))


@pytest.mark.parametrize("loss, trains, leaves", [("generator", "g", "discriminator"),
                                                  ("discriminator", "discriminator", "g"),
                                                  ("penalty", "discriminator", "g")])
@pytest.mark.parametrize("settings", [(0.0, 0.25), (0.5, 0.25), (0.0, 0.25, 0.5, True)])
def test_each_player_is_trained_by_its_own_loss_alone(small, gan, loss, trains, leaves, settings):
    model, params = gan
    x, y, mask = groups(small)
    gradient = grad(lambda p: getattr(adversarial(model, p, jax.random.key(0), x, y, mask, *settings), loss).sum()
                    )(params)
    assert size(gradient[leaves]) == 0 and size(gradient[trains]) > 0


def test_adversarial_losses_are_the_log_probabilities_of_goodfellow(small, gan):
    """By probabilities in float64, from the discriminator's own words on real and on generated faces."""
    model, params = gan
    x, y, mask = groups(small)
    keys = jax.random.split(jax.random.key(5), 2 * GROUP)
    noise_keys = jax.vmap(jax.random.split, (0, None), 1)(keys, 4)[0]

    @jax.jit
    def run(params):
        made = model.likelihood(params, model.prior(params, y, mask).sample(noise_keys), y, mask).mean
        logits = [model.discriminator(params, faces, y, mask, jnp.ones_like(x, bool)) for faces in (x, made)]
        return adversarial(model, params, keys, x, y, mask, 0.0, 0.25), logits

    terms, logits = run(params)
    real, fake = (1 / (1 + np.exp(-np.float64(logit))) for logit in logits)
    np.testing.assert_allclose(terms.generator, -np.log(fake), rtol=1e-5)
    np.testing.assert_allclose(terms.discriminator, -np.log(real) - np.log(1 - fake), rtol=1e-5)
    np.testing.assert_allclose(terms.accuracy, ((real > 0.5) * 1.0 + (fake < 0.5)) / 2)


def test_the_discriminator_is_shown_real_faces_with_their_neighbours_attributes(small, gan):
    """Against its own words on them; each group's attributes go round within the group."""
    model, params = gan
    x, y, mask = groups(small)
    keys, seen = jax.random.split(jax.random.key(5), 2 * GROUP), jnp.ones_like(x, bool)
    terms = [jax.jit(lambda w=w: adversarial(model, params, keys, x, y, mask, 0.0, 0.25, w))() for w in (0.0, 0.5)]
    rows = np.asarray([3, 0, 1, 2, 7, 4, 5, 6])
    wrong = np.float64(jax.jit(model.discriminator)(params, x, y[rows], mask[rows], seen))
    more = terms[1].discriminator - terms[0].discriminator
    np.testing.assert_allclose(more, 0.5 * np.log1p(np.exp(wrong)), rtol=1e-4)
    np.testing.assert_array_equal(terms[1].generator, terms[0].generator)


def test_augmented_faces_are_what_loops_make_of_them():
    """In float64, pixel by pixel, from the same draws; the faces of a group are changed alike."""
    x = np.random.default_rng(0).uniform(size=(2 * GROUP, 16, 24, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), len(x))
    found = jax.jit(augment)(keys, x)
    for b in range(len(x)):
        draws = np.float64(jax.random.uniform(keys[b // GROUP * GROUP], (7,)))
        face = np.float64(x[b]) + 0.25 * (2 * draws[0] - 1)
        grey = face.mean(-1, keepdims=True)
        face = grey + 2 * draws[1] * (face - grey)
        face = face.mean() + (draws[2] + 0.5) * (face - face.mean())
        down, right = int(draws[3] * 5) - 2, int(draws[4] * 7) - 3
        expected = np.empty_like(face)
        for i in range(16):
            for j in range(24):
                inside = abs(i - draws[5] * 16) < 4 and abs(j - draws[6] * 24) < 6
                expected[i, j] = 0.5 if inside else face[min(max(i + down, 0), 15), min(max(j + right, 0), 23)]
        np.testing.assert_allclose(found[b], expected, atol=1e-5)


def test_dropout_hides_its_share_of_the_pixels(small, gan):
    model, params = gan
    x, y, mask = groups(small)
    shares = []

    def discriminator(params, x, y, mask, seen):
        shares.append(float(seen.mean()))
        in_groups = np.asarray(seen).reshape(-1, GROUP, *seen.shape[1:])
        assert (in_groups == in_groups[:, :1]).all() and (in_groups[0] != in_groups[1]).any()
        return jnp.zeros(len(x))

    plain = model._replace(discriminator=discriminator, likelihood=lambda params, z, y, mask: Gaussian(x, x))
    adversarial(plain, params, jax.random.key(0), x, y, mask, 0.3, 0.25)
    assert len(shares) == 4 and np.abs(np.asarray(shares) - 0.7).max() < 4 * np.sqrt(0.21 * GROUP / x.size)


def test_the_penalty_is_the_squared_gradient_at_real_faces(small, gan):
    """A linear discriminator's, w.x: its gradient is w, in units of the pixels' deviation 0.25."""
    model, params = gan
    x, y, mask = groups(small)
    w = jax.random.normal(jax.random.key(1), x.shape[1:])
    linear = model._replace(discriminator=lambda params, x, y, mask, seen: (x * w[None]).sum((1, 2, 3)))
    penalty = jax.jit(lambda key: adversarial(linear, params, key, x, y, mask, 0.0, 0.25).penalty)
    draws = np.concatenate([penalty(jax.random.key(i)) for i in range(200)])
    expected = 0.25**2 * float(jnp.square(w).sum())
    assert abs(draws.mean() - expected) < 4 * draws.std() / np.sqrt(len(draws))
    assert draws.std() / np.sqrt(len(draws)) < 0.1 * expected


def test_faces_touch_each_other_within_their_group_alone(small, gan):
    model, params = gan
    x, y, mask = groups(small)
    keys = jax.random.split(jax.random.key(0), 2 * GROUP)
    loss = jax.jit(make_adversarial_loss(model, 0.5, 0.25, 3.0))
    whole, terms = loss(params, keys, x, y, mask)
    np.testing.assert_allclose(loss(params, keys[GROUP:], x[GROUP:], y[GROUP:], mask[GROUP:])[0], whole[GROUP:],
                               rtol=1e-4)
    np.testing.assert_allclose(whole, terms["generator"] + terms["discriminator"] + 1.5 * terms["penalty"], rtol=1e-6)
    assert set(terms) == {"generator", "discriminator", "penalty", "accuracy"}
    seen = jnp.ones_like(x, bool)
    discriminator = jax.jit(model.discriminator)
    moved = discriminator(params, x.at[1].set(1 - x[1]), y, mask, seen) != discriminator(params, x, y, mask, seen)
    np.testing.assert_array_equal(moved, jnp.arange(2 * GROUP) < GROUP)
