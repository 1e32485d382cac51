"""Eqs. 7-10 and the mixture of logistics against SciPy, float64 quadrature and Monte Carlo, in value and gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from cmma_jax.models.distributions import (
    Bernoulli,
    Gaussian,
    LogisticMixture,
    Mixed,
    fold_each,
    kl,
    split_each,
    standard_normal,
    sum_event,
)
from cmma_jax.models.model import LOG_SCALE_FLOOR

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


def test_gaussian_entropy_is_scipys():
    p = random_gaussian()
    expected = scipy.stats.norm(np.float64(p.mean), np.exp(np.float64(p.logvar) / 2)).entropy()
    np.testing.assert_allclose(p.entropy, expected, rtol=1e-5, atol=1e-5)


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


def test_of_mixed_variables_each_has_scipys_log_prob():
    binary = np.array([True, False, True, False])
    heads, logvar = (RNG.normal(0, 1, (400, 4)).astype(np.float32)[:1].repeat(400, 0) for _ in range(2))
    p = Mixed(binary, jnp.asarray(heads), jnp.asarray(logvar))
    y = np.where(binary, RNG.random((400, 4)) < 0.5, RNG.normal(0, 2, (400, 4))).astype(np.float32)
    probability, deviation = 1 / (1 + np.exp(-np.float64(heads))), np.exp(np.float64(logvar) / 2)
    expected = np.where(binary, scipy.stats.bernoulli.logpmf(np.where(binary, y, 0), probability),
                        scipy.stats.norm.logpdf(y, heads, deviation))
    np.testing.assert_allclose(p.log_prob(jnp.asarray(y)), expected, rtol=1e-4, atol=1e-4)
    means = np.where(binary, probability, heads)
    np.testing.assert_allclose(p.mean, means, rtol=1e-5)
    np.testing.assert_allclose(p.variance, np.where(binary, 0, deviation**2), rtol=1e-5)


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


K = 3
CENTRE = np.asarray([0.5, 0.3, 0.7], np.float32)


def random_mixture(pixels: int, log_scale: float = math.log(0.1)) -> LogisticMixture:
    """A mixture for a row of pixels, [1, 1, pixels, ...]."""
    rng, shape = np.random.default_rng(2), (1, 1, pixels, 3, K)
    weights = rng.dirichlet(np.ones(K), (1, 1, pixels))
    parts = (np.log(weights), rng.uniform(0, 1, shape), log_scale + rng.normal(0, 0.7, shape),
             rng.uniform(-1, 1, shape), np.broadcast_to(CENTRE, (1, 1, pixels, 3)))
    return LogisticMixture(*(jnp.asarray(part, jnp.float32) for part in parts))


def interval_log_mass(value, mean, scale):
    """log of a logistic's mass in the interval around a byte, in float64, the tails to 0 and 255; arrays alike."""
    mean, scale = (np.asarray(a, np.float64) for a in (mean, scale))
    low = np.where(value == 0, -np.inf, (value - 0.5) / 255)
    high = np.where(value == 255, np.inf, (value + 0.5) / 255)
    right = value / 255 > mean  # from the side where the two do not cancel
    logistic = scipy.stats.logistic(mean, scale)
    large = np.where(right, logistic.logsf(low), logistic.logcdf(high))
    little = np.where(right, logistic.logsf(high), logistic.logcdf(low))
    return large + np.log1p(-np.exp(little - large))


def log_masses(p: LogisticMixture, x: np.ndarray) -> np.ndarray:
    """log P of bytes x [1, 1, N, 3] by the chain of conditional logistics in each component, in float64."""
    red, green = (((x[..., i] / 255) - np.float64(p.centre)[..., i])[..., None] for i in (0, 1))
    means, slopes, scales = np.float64(p.means), np.float64(p.slopes), np.exp(np.float64(p.log_scales))
    moved = [means[..., 0, :], means[..., 1, :] + slopes[..., 0, :] * red,
             means[..., 2, :] + slopes[..., 1, :] * red + slopes[..., 2, :] * green]
    parts = sum(interval_log_mass(x[..., i, None], moved[i], scales[..., i, :]) for i in range(3))
    return scipy.special.logsumexp(np.float64(p.log_weights) + parts, axis=-1)


def as_pixels(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x / 255, jnp.float32)


@pytest.mark.parametrize("log_scale, tolerance", [(math.log(0.1), 1e-4), (LOG_SCALE_FLOOR, 3e-2), (3.0, 1e-4)])
def test_the_mass_of_a_byte_is_the_integral_of_the_logistics_over_its_interval(log_scale, tolerance):
    """At the sharpest scales, too, where a rounded mean moves a mass of e^-1000 by some of its digits."""
    p = random_mixture(2000, log_scale)
    x = np.random.default_rng(3).integers(0, 256, (1, 1, 2000, 3))
    x[:, :, :300], x[:, :, 300:600] = x[:, :, :300] // 200 * 255, x[:, :, 300:600] // 254 * 255
    expected = log_masses(p, x)
    mass, density = jax.jit(lambda p, x: (p.log_mass(x), p.log_prob(x)))(p, as_pixels(x))
    np.testing.assert_allclose(mass, expected, rtol=1e-4, atol=tolerance)
    np.testing.assert_allclose(density, expected + 3 * np.log(255), rtol=1e-4, atol=tolerance)


def certain(p: LogisticMixture, x: np.ndarray, channels: tuple[int, ...]) -> LogisticMixture:
    """The mixture with all mass of some channels at the bytes x, [3]."""
    where = np.isin(np.arange(3), channels)[None, None, None, :, None]
    return p._replace(means=jnp.where(where, as_pixels(x)[None, None, None, :, None], p.means),
                      log_scales=jnp.where(where, -9.5, p.log_scales))


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("log_scale", [LOG_SCALE_FLOOR, math.log(0.1), 0.0, 5.0])
def test_the_masses_of_a_channels_256_values_sum_to_one_given_the_others(channel, log_scale):
    """Those before it at a byte of which the model is certain, on which it is regressed; those behind as well."""
    at = np.asarray([200, 31, 90])
    p = certain(random_mixture(1, log_scale), at, tuple(i for i in range(3) if i != channel))
    keep = np.tril(np.ones((3, 3)), -1)[channel][[0, 0, 1]] * (np.asarray([1, 2, 2]) == channel)
    p = p._replace(slopes=p.slopes * jnp.asarray(keep, jnp.float32)[None, None, None, :, None])
    x = np.broadcast_to(at, (256, 3)).copy()
    x[:, channel] = np.arange(256)
    found = jax.jit(jax.vmap(LogisticMixture.log_mass, (None, 0)))(p, as_pixels(x)[:, None, None, None])
    masses = np.exp(np.float64(found))
    assert masses.sum() == pytest.approx(1, abs=2e-4)
    assert channel == 0 or float(jnp.abs(p.slopes).max()) > 0.1


def test_the_masses_of_all_greens_and_blues_sum_to_that_of_the_red():
    p = random_mixture(1, math.log(0.05))
    green, blue = np.meshgrid(np.arange(256), np.arange(256))

    def plane(red):
        x = jnp.stack([jnp.full(65536, red), green.ravel() / 255, blue.ravel() / 255], -1).astype(jnp.float32)
        return jnp.exp(jax.vmap(p.log_mass)(x[:, None, None, None])).sum()

    reds = np.asarray([0, 30, 100, 128, 180, 255])
    sums = jax.jit(lambda: jax.lax.map(plane, jnp.asarray(reds / 255, jnp.float32)))()
    first = interval_log_mass(reds[:, None], p.means[0, 0, 0, 0], np.exp(np.float64(p.log_scales[0, 0, 0, 0])))
    np.testing.assert_allclose(sums, (np.exp(np.float64(p.log_weights[0, 0, 0]) + first)).sum(-1), rtol=1e-3)


def test_a_mixtures_mean_is_that_of_its_draws():
    p, n = random_mixture(2), 400_000
    rng, mean = np.random.default_rng(4), np.asarray(p.mean, np.float64)[0, 0]
    for i in range(2):
        chosen = rng.choice(K, n, p=scipy.special.softmax(np.float64(p.log_weights[0, 0, i])))
        means, scales, slopes = (np.float64(a[0, 0, i])[:, chosen] for a in (p.means, np.exp(p.log_scales), p.slopes))
        noise = scales * rng.logistic(size=(3, n))
        red = means[0] + noise[0]
        green = means[1] + slopes[0] * (red - CENTRE[0]) + noise[1]
        blue = means[2] + slopes[1] * (red - CENTRE[0]) + slopes[2] * (green - CENTRE[1]) + noise[2]
        draws = np.stack([red, green, blue])
        assert (np.abs(draws.mean(1) - mean[i]) < 4 * draws.std(1) / np.sqrt(n)).all()


def test_extreme_logistics_give_finite_masses_and_gradients():
    """A pixel each of means far beyond and within, sharp and wide, at 0, in the middle and at 255."""
    mean, log_scale, byte = (jnp.asarray(a.reshape(1, 1, -1)) for a in np.meshgrid(
        np.float32([-1e4, 0.5, 1e4]), np.float32([LOG_SCALE_FLOOR, 0, 30, 1e4]), np.float32([0, 128, 255])))
    shape = (*mean.shape, 3, K)
    p = LogisticMixture(jnp.full((*mean.shape, K), -math.log(K)), jnp.broadcast_to(mean[..., None, None], shape),
                        jnp.broadcast_to(log_scale[..., None, None], shape), jnp.full(shape, 0.9),
                        jnp.full((*mean.shape, 3), 0.5))

    @jax.jit
    def masses(p):
        value, pull = jax.vjp(lambda p: p.log_mass(jnp.repeat(byte[..., None], 3, -1) / 255), p)
        return value, pull(jnp.ones_like(value))[0]

    value, gradients = masses(p)
    assert value.size == 36 and np.isfinite(value).all() and (value <= 0).all()
    assert all(np.isfinite(leaf).all() for leaf in gradients)


@pytest.mark.parametrize("byte", [0, 77, 255])
def test_a_perfect_model_of_constants_needs_no_bits(byte):
    """At the sharpest scale that a model has."""
    shape = (1, 1, 1, 3, 1)
    p = LogisticMixture(jnp.zeros((1, 1, 1, 1)), jnp.full(shape, byte / 255), jnp.full(shape, LOG_SCALE_FLOOR),
                        jnp.zeros(shape), jnp.zeros((1, 1, 1, 3)))
    bits = -float(p.log_mass(jnp.full((1, 1, 1, 3), byte / 255))[0, 0, 0]) / 3 / math.log(2)
    assert 0 <= bits < 0.01


def test_a_perfect_model_of_even_bytes_needs_8_bits():
    """256 logistics, one at each value of red; green and blue are constant."""
    shape = (1, 1, 1, 3, 256)
    means = jnp.full(shape, 0.5).at[..., 0, :].set(jnp.arange(256) / 255)
    p = LogisticMixture(jnp.full((1, 1, 1, 256), -8 * math.log(2)), means, jnp.full(shape, -10.0), jnp.zeros(shape),
                        jnp.zeros((1, 1, 1, 3)))
    red = jnp.arange(256)[:, None, None, None, None] / 255
    x = jnp.concatenate([red, jnp.full((256, 1, 1, 1, 2), 0.5)], -1)
    np.testing.assert_allclose(jax.jit(jax.vmap(p.log_mass))(x), -8 * math.log(2), atol=1e-4)
