"""Parzen windows against a naive double loop in float64, in pieces, on several devices, and stopped midway."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmma_jax.errors import InputError
from cmma_jax.evaluation.parzen import SIGMAS, Sampler, choose_sigma, model_sampler, parzen, parzen_log_likelihood
from cmma_jax.models.flow import draw

SIGMA = np.asarray([0.05, 0.1, 0.3])


@pytest.fixture(scope="module")
def few(small):
    return jax.tree.map(lambda a: a[:5], small.data.validation)


def decoder_means(small, faces, row, samples, seed=0):
    """One at a time, each from its own key, in float64."""
    base = jax.random.fold_in(jax.random.key(seed), row)
    y, mask = jnp.asarray(faces.y[row])[None], jnp.asarray(faces.mask[row])[None]
    prior = small.gaussian.prior(small.params, y, mask)
    z = jnp.concatenate([prior.sample(jax.random.fold_in(base, j)[None]) for j in range(samples)])
    y, mask = (jnp.repeat(a, samples, 0) for a in (y, mask))
    return np.asarray(small.gaussian.likelihood(small.params, z, y, mask).mean, np.float64)


def naive(x, samples, sigma):
    """log of the mean of the windows' densities, by two loops."""
    logs = []
    for s in samples:
        total = 0.0
        for a, b in zip(x.ravel(), s.ravel(), strict=True):
            total += -(a - b) ** 2 / (2 * sigma**2) - 0.5 * np.log(2 * np.pi * sigma**2)
        logs.append(total)
    top = max(logs)
    return top + np.log(sum(np.exp(v - top) for v in logs) / len(logs))


@pytest.fixture(scope="module")
def estimate(small, few):
    return parzen_log_likelihood(model_sampler(small.gaussian, small.params), few, 7, SIGMA, chunk=3)


def test_a_naive_double_loop_gives_the_same(small, few, estimate):
    for row in (0, 3):
        samples = decoder_means(small, few, row, 7)
        expected = [naive(few.x[row] / 255.0, samples, sigma) for sigma in SIGMA]
        np.testing.assert_allclose(estimate[row], expected, atol=2e-3, rtol=2e-5)


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_the_size_of_a_chunk_changes_nothing(small, few, estimate, chunk):
    again = parzen_log_likelihood(model_sampler(small.gaussian, small.params), few, 7, SIGMA, chunk=chunk)
    np.testing.assert_allclose(again, estimate, atol=2e-3, rtol=1e-5)


def test_one_device_gives_what_four_give(small, few, estimate, monkeypatch):
    assert jax.local_device_count() == 4
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    alone = parzen_log_likelihood(model_sampler(small.gaussian, small.params), few, 7, SIGMA, chunk=3)
    np.testing.assert_allclose(alone, estimate, atol=2e-3, rtol=1e-6)


def test_a_flows_samples_are_its_own_unguided_and_by_as_many_steps_as_are_asked_for(small, few, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    face = jax.tree.map(lambda a: a[:1], few)
    found = parzen_log_likelihood(model_sampler(small.model, small.params, steps=2), face, 2, SIGMA, chunk=2)[0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(jax.random.key(0), 0), jnp.arange(2))
    y, mask = (np.repeat(a, 2, 0) for a in face[1:])

    def expected(steps):
        z = draw(small.model, small.params, keys, y, mask, steps=steps)
        samples = np.asarray(small.model.likelihood(small.params, z, y, mask).mean, np.float64)
        return [naive(face.x[0] / 255.0, samples, sigma) for sigma in SIGMA]

    np.testing.assert_allclose(found, expected(2), atol=2e-3, rtol=1e-4)
    assert np.abs(found - expected(1)).max() > 0.1


def plain_sample(params, keys, y, mask):
    del y, mask
    return params["mean"][None] + 0.1 * jax.vmap(lambda key: jax.random.normal(key, (16, 16, 3)))(keys)


def test_samples_that_do_not_depend_on_attributes_are_shared(small, few):
    """Each face sees the samples of row 0."""
    sampler = Sampler(plain_sample, {"mean": jnp.asarray(small.data.spec.mean_face)}, conditional=False)
    shared = parzen_log_likelihood(sampler, few, 6, SIGMA, chunk=4)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(jax.random.key(0), 0), jnp.arange(6))
    samples = np.asarray(plain_sample(sampler.params, keys, None, None), np.float64)
    for row in (0, 4):
        expected = [naive(few.x[row] / 255.0, samples, s) for s in SIGMA]
        np.testing.assert_allclose(shared[row], expected, atol=2e-3, rtol=2e-5)


def test_a_stopped_estimate_goes_on_and_ends_the_same(small, few, estimate, tmp_path):
    save, sampler = tmp_path / "parzen.jsonl", model_sampler(small.gaussian, small.params)
    parzen_log_likelihood(sampler, few, 7, SIGMA, chunk=3, save=save)
    whole = save.read_text().splitlines(keepends=True)
    assert len(whole) == 5
    save.write_text("".join(whole[1:3]) + whole[3][:20])  # a line cut short, two missing
    again = parzen_log_likelihood(sampler, few, 7, SIGMA, chunk=3, save=save)
    np.testing.assert_allclose(again, estimate, atol=2e-3, rtol=1e-6)
    assert len(save.read_text().splitlines()) == 5
    save.write_text("[0, [1.0, 2.0, 3.0]]\n" + "".join(whole[1:]))  # what is done is not done again
    np.testing.assert_array_equal(parzen_log_likelihood(sampler, few, 7, SIGMA, save=save)[0], [1.0, 2.0, 3.0])


def test_sigma_is_the_best_of_validation_faces_and_never_at_the_grids_edge():
    grid = np.geomspace(0.05, 0.5, 47)
    curve = -1e4 * np.square(np.log(grid / 0.123))[None] * np.asarray([[1.0], [3.0]])
    assert choose_sigma(curve, grid) == pytest.approx(0.123, rel=1e-6)  # a parabola in log sigma: exact
    for edge in (grid[0], grid[-1]):
        with pytest.raises(InputError, match="no best Parzen sigma"):
            choose_sigma(-np.square(np.log(grid / edge))[None], grid)
    with pytest.raises(InputError, match="look at the run's grids"):
        choose_sigma(np.full((2, 47), -np.inf), grid)


def test_a_window_of_the_right_size_for_a_known_density(small, few):
    """Samples at one point: the best sigma is the faces' own deviation from it, and the figure is a Gaussian's."""
    mean = small.data.spec.mean_face
    sampler = Sampler(constant_sample, {"mean": jnp.asarray(mean)}, conditional=False)
    found = parzen(sampler, few, few, 10, chunk=5)
    squares = np.square(few.x / 255.0 - mean).sum((1, 2, 3))
    sigma2 = squares.mean() / mean.size
    assert found["parzen_sigma"] == pytest.approx(np.sqrt(sigma2), rel=1e-3)
    logs = -squares / (2 * sigma2) - mean.size / 2 * np.log(2 * np.pi * sigma2)
    assert found["parzen"] == pytest.approx(logs.mean(), abs=0.05)
    assert found["parzen_stderr"] == pytest.approx(logs.std(ddof=1) / np.sqrt(5), rel=2e-2)
    assert (found["parzen_samples"], found["parzen_faces"]) == (10, 5)


def constant_sample(params, keys, y, mask):
    del y, mask
    return jnp.broadcast_to(params["mean"][None], (len(keys), 16, 16, 3))


def test_more_samples_of_a_good_model_raise_the_figure(small):
    sampler = model_sampler(small.gaussian, small.params)
    few, many = (parzen(sampler, small.data.validation, small.data.test, n, chunk=50)["parzen"] for n in (2, 100))
    assert many > few


def test_no_samples_is_an_error(small, few):
    with pytest.raises(InputError, match="--samples=0"):
        parzen_log_likelihood(model_sampler(small.gaussian, small.params), few, 0, SIGMAS)
