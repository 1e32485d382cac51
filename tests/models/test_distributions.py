"""Eqs. 7-10 against SciPy, float64 quadrature and Monte Carlo, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from cmma_jax.models.distributions import Bernoulli, Gaussian, fold_each, kl, split_each, standard_normal, sum_event

RNG = np.random.default_rng(0)
SHAPE = (5, 7)


def random_gaussian(spread: float = 1.5) -> Gaussian:
    return Gaussian(*(jnp.asarray(RNG.normal(0, spread, SHAPE), jnp.float32) for _ in range(2)))


def test_gaussian_log_prob_is_scipys():
    p, x = random_gaussian(), RNG.normal(0, 2, SHAPE)
    expected = scipy.stats.norm.logpdf(x, np.float64(p.mean), np.exp(np.float64(p.logvar) / 2))
    np.testing.assert_allclose(p.log_prob(jnp.asarray(x, jnp.float32)), expected, rtol=2e-5, atol=2e-5)


def test_gaussian_density_integrates_to_one():
    p = Gaussian(jnp.float32(0.3), jnp.float32(-1.0))
    total, _ = scipy.integrate.quad(lambda x: float(jnp.exp(p.log_prob(jnp.float32(x)))), -6, 6, limit=200)
    assert total == pytest.approx(1, abs=1e-5)


def test_kl_is_the_integral_of_the_log_ratio():
    q, p = random_gaussian(0.8), random_gaussian(0.8)

    def integral(qm, qv, pm, pv):
        qd, pd = scipy.stats.norm(qm, np.exp(qv / 2)), scipy.stats.norm(pm, np.exp(pv / 2))
        low, high = qm - 12 * np.exp(qv / 2), qm + 12 * np.exp(qv / 2)
        return scipy.integrate.quad(lambda z: qd.pdf(z) * (qd.logpdf(z) - pd.logpdf(z)), low, high)[0]

    expected = np.vectorize(integral)(*(np.float64(a) for a in (*q, *p)))
    np.testing.assert_allclose(kl(q, p), expected, rtol=1e-4, atol=1e-5)


def test_kl_of_a_distribution_to_itself_is_zero_and_otherwise_positive():
    q, p = random_gaussian(), random_gaussian()
    np.testing.assert_array_equal(kl(q, q), 0)
    assert (kl(q, p) > 0).all()


def test_kl_is_the_mean_log_ratio_of_samples_in_value_and_gradient():
    q, p = random_gaussian(0.5), random_gaussian(0.5)
    keys = jax.random.split(jax.random.key(1), 20_000)

    def estimate(q: Gaussian, key):
        z = q.sample(key)
        return (q.log_prob(z) - p.log_prob(z)).sum()

    values, gradients = jax.vmap(jax.value_and_grad(estimate), (None, 0))(q, keys)
    exact, exact_gradients = jax.value_and_grad(lambda q: kl(q, p).sum())(q)
    assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(len(keys))
    for drawn, closed in zip(gradients, exact_gradients, strict=True):
        errors = np.abs(drawn.mean(0) - closed) / (drawn.std(0) / np.sqrt(len(keys)) + 1e-6)
        assert errors.max() < 4.5  # the largest of 35


def test_samples_have_the_mean_and_the_deviation_of_the_distribution():
    p = Gaussian(jnp.asarray([[1.0, -2.0]]), jnp.asarray([[-2.0, 1.0]]))
    z = np.asarray(jax.vmap(p.sample)(jax.random.split(jax.random.key(0), 40_000)))[:, 0]
    deviation = np.exp([-1.0, 0.5])
    assert (np.abs(z.mean(0) - [1, -2]) < 4 * deviation / 200).all()
    assert (np.abs(z.std(0) / deviation - 1) < 4 / np.sqrt(2 * 40_000)).all()
    assert scipy.stats.kstest((z[:, 1] + 2) / deviation[1], "norm").pvalue > 1e-3


def test_an_examples_noise_does_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(3), 6)
    whole = standard_normal(keys, (6, 4))
    np.testing.assert_array_equal(standard_normal(keys[2:4], (2, 4)), whole[2:4])
    first, second = split_each(keys, 2)
    assert first.shape == second.shape == (6,)
    assert len(np.unique(jax.random.key_data(jnp.concatenate([first, second, keys])), axis=0)) == 18


def test_bernoulli_log_prob_is_scipys():
    logits = RNG.normal(0, 3, SHAPE).astype(np.float32)
    y = (RNG.random(SHAPE) < 0.5).astype(np.float32)
    expected = scipy.stats.bernoulli.logpmf(y, 1 / (1 + np.exp(-np.float64(logits))))
    np.testing.assert_allclose(Bernoulli(jnp.asarray(logits)).log_prob(jnp.asarray(y)), expected, rtol=1e-4, atol=1e-5)


def test_bernoulli_samples_have_its_mean():
    p = Bernoulli(jnp.full((50_000, 1), 0.7))
    sample = p.sample(jax.random.key(0))
    expected = 1 / (1 + np.exp(-0.7))
    assert set(np.unique(sample)) == {0.0, 1.0}
    assert abs(sample.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / 50_000)
    np.testing.assert_allclose(p.mean, expected, rtol=1e-6)


@pytest.mark.parametrize("q_logvar", [-30.0, 0.0, 30.0])
@pytest.mark.parametrize("p_logvar", [-30.0, 0.0, 30.0])
def test_extreme_log_variances_give_finite_values_and_gradients(q_logvar, p_logvar):
    def total(q_logvar, p_logvar):
        q, p = (Gaussian(jnp.zeros((1, 1)), jnp.full((1, 1), v)) for v in (q_logvar, p_logvar))
        return (kl(q, p) + p.log_prob(jnp.ones((1, 1))) + q.sample(jax.random.key(0))).sum()

    value, gradients = jax.value_and_grad(total, (0, 1))(q_logvar, p_logvar)
    assert np.isfinite(value) and np.isfinite(gradients).all()


def test_equal_extreme_log_variances_do_not_cancel():
    for logvar in (-30.0, 30.0):
        p = Gaussian(jnp.zeros((1, 1)), jnp.full((1, 1), logvar))
        assert float(kl(p, p)[0, 0]) == 0


def test_extreme_logits_give_finite_values_and_gradients():
    for logit in (-80.0, 80.0):
        value, gradient = jax.value_and_grad(lambda v: Bernoulli(v).log_prob(1.0))(logit)
        assert np.isfinite(value) and np.isfinite(gradient)


def test_sum_event_keeps_examples_apart():
    a = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)
    np.testing.assert_allclose(sum_event(jnp.asarray(a)), a.sum((1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_number_is_folded_into_each_key():
    keys = jax.random.split(jax.random.key(3), 6)
    folded = jax.random.key_data(fold_each(keys, 7))
    np.testing.assert_array_equal(folded[2], jax.random.key_data(fold_each(keys[2], 7)))
    assert len(np.unique(jnp.concatenate([folded, jax.random.key_data(fold_each(keys, 8))]), axis=0)) == 12
