"""Conditional PPCA against an exact eigen-decomposition, and the CMMA that starts from it against its density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cmma_jax.data.dataset import mirrored, pixels
from cmma_jax.models.model import MODELS
from cmma_jax.models.objectives import elbo, importance_weighted_bound
from cmma_jax.training.ppca import fit_conditional_ppca, start_from_ppca


@pytest.fixture(scope="module")
def ppca(small):
    return fit_conditional_ppca(small.data.train, small.data.spec, small.config.latent_size)


def centred_attributes(faces, train):
    known = train.mask.sum(0)
    mean = (np.where(train.mask, 2 * train.y - 1, 0)).sum(0) / known
    return np.where(faces.mask, 2 * faces.y - 1 - mean, 0)


def scaled(faces, spec):
    return ((faces.x / 255.0 - spec.mean_face) / spec.pixel_std).reshape(faces.size, -1)


def test_axes_and_noise_are_those_of_the_exact_eigen_decomposition(small, ppca):
    train, spec = small.data.train, small.data.spec
    a, x = centred_attributes(train, train), scaled(train, spec)
    slopes = np.linalg.solve(a.T @ a + 10 * np.eye(5), a.T @ x)
    residuals = x - a @ slopes
    values, vectors = np.linalg.eigh(residuals.T @ residuals / len(x))
    values, vectors = values[::-1][:6], vectors.T[::-1][:6]
    sigma2 = ((residuals**2).sum() / len(x) - values.sum()) / (x.shape[1] - 6)
    assert float(ppca.sigma2) == pytest.approx(sigma2, rel=1e-3)
    expected = vectors.T @ np.diag(values - sigma2) @ vectors  # does not depend on the signs of the axes
    np.testing.assert_allclose(ppca.z_to_x.T @ ppca.z_to_x, expected, atol=2e-3 * np.abs(expected).max())
    predicted = np.concatenate([np.where(train.mask, 2 * train.y - 1, 0), train.mask], 1) @ ppca.attributes_to_z
    np.testing.assert_allclose(predicted @ ppca.z_to_x, a @ slopes @ vectors.T @ vectors, atol=2e-2)


@pytest.mark.parametrize("name", ["cmma", "cvae", "vae"])
def test_a_fresh_model_started_from_it_has_its_exact_likelihood_as_the_bound(small, ppca, name):
    """The whole model against a multivariate normal: networks, prior, posterior, likelihood and elbo at once."""
    spec, faces, train = small.data.spec, small.data.validation, small.data.train
    if name == "vae":
        ppca = fit_conditional_ppca(train._replace(mask=np.zeros_like(train.mask)), spec, small.config.latent_size)
    model = MODELS[name](small.config, spec)
    params = start_from_ppca(jax.jit(model.init)(jax.random.key(0)), ppca)
    x, y, mask = pixels(jnp.asarray(faces.x)), jnp.asarray(faces.y), jnp.asarray(faces.mask)
    bounds = jax.jit(jax.vmap(lambda key: elbo(model, params, key, x, y, mask).bound))(
        jax.random.split(jax.random.key(0), 300))
    w, sigma2 = np.float64(ppca.z_to_x), float(ppca.sigma2)
    a = np.concatenate([np.where(faces.mask, 2 * faces.y - 1, 0), faces.mask], 1)
    density = scipy.stats.multivariate_normal(np.zeros(w.shape[1]), w.T @ w + sigma2 * np.eye(w.shape[1]))
    difference = scaled(faces, spec) - a @ np.float64(ppca.attributes_to_z) @ w
    exact = density.logpdf(difference) - w.shape[1] * np.log(spec.pixel_std)  # density of pixels, not scaled ones
    standard_error = bounds.std(0) / np.sqrt(len(bounds))
    assert (np.abs(bounds.mean(0) - exact) < 4.5 * standard_error + 1e-5 * np.abs(exact)).all()
    # the posterior is exact, so that every importance weight is p(x|y) itself
    weighted = importance_weighted_bound(model, params, jax.random.key(1), x, y, mask, 3)
    np.testing.assert_allclose(weighted, exact, rtol=1e-4)


def test_unknown_attributes_count_as_their_mean(small, ppca):
    train = small.data.train
    mean = np.where(train.mask, 2 * train.y - 1, 0).sum(0) / train.mask.sum(0)
    unknown, average = np.zeros(10), np.concatenate([mean, np.ones(5)])
    np.testing.assert_allclose(average @ ppca.attributes_to_z, unknown @ ppca.attributes_to_z, atol=1e-4)


def test_mirrored_faces_are_the_faces_and_their_mirror_images(small):
    train = small.data.train
    both = mirrored(train)
    assert both.size == 2 * train.size
    np.testing.assert_array_equal(both.x[train.size:, :, 0], train.x[:, :, -1])
    np.testing.assert_array_equal(both.y[train.size:], train.y)
