"""Baselines against least squares, an exact eigen-decomposition, scipy's densities, and draws in standard errors."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest
import scipy.stats

from cmma_jax.data.dataset import Dataset, Faces
from cmma_jax.evaluation.baselines import ROUNDING, Baseline, fit_baselines, log_likelihood

NAMES = ["mean face", "linear regression", "linear regression, a variance a pixel",
         "conditional PPCA, 5 components", "conditional PPCA, 20 components"]


class Fitted(NamedTuple):
    """Baselines, and an oracle: errors of its regression by part, eigenvalues and axes of the training ones."""

    data: Dataset
    baselines: list[Baseline]
    errors: dict[str, np.ndarray]
    values: np.ndarray
    vectors: np.ndarray


def rows(faces):
    return faces.x.reshape(faces.size, -1) / 255.0


def design(faces, data):
    """[N, A + 1]: attributes as -1 and 1 (real-valued ones as they are), a hole being the known ones' mean, and 1."""
    def coded(y):
        return np.where(data.spec.binary, 2.0 * y - 1, y)

    y, mask = coded(data.train.y), data.train.mask
    mean = np.array([y[mask[:, i], i].mean() for i in range(y.shape[1])])
    return np.concatenate([np.where(faces.mask, coded(faces.y), mean), np.ones((faces.size, 1))], 1)


@pytest.fixture(scope="module", params=["binary", "real", "mixed"])
def fitted(request, small):
    """Faces whose first pixel is always 0; ridge regression as least squares with rows for the penalty."""
    kinds = {"mixed": ("real", "binary", "binary", "real", "binary")}.get(request.param, (request.param,) * 5)
    spec = dataclasses.replace(small.data.spec, kinds=kinds)
    parts = {name: getattr(small.data, name) for name in ("train", "validation", "test")}
    parts = {name: part._replace(x=part.x * (np.arange(768) > 0).reshape(16, 16, 3)) for name, part in parts.items()}
    data = Dataset(**parts, spec=spec)
    penalty = np.sqrt(10) * np.eye(6)[:5]  # none on the intercept
    weights = np.linalg.lstsq(np.concatenate([design(data.train, data), penalty]),
                              np.concatenate([rows(data.train), np.zeros((5, 768))]))[0]
    errors = {name: rows(part) - design(part, data) @ weights for name, part in parts.items()}
    values, vectors = np.linalg.eigh(errors["train"].T @ errors["train"] / 96)
    return Fitted(data, fit_baselines(data, (5, 20, 96, 500)), errors, values[::-1], vectors.T[::-1])


def test_names_and_numbers_of_fitted_values(fitted):
    """D = 768, A = 5, whose means stand in for unknown ones; 96 training faces have no 96 components."""
    assert [baseline.name for baseline in fitted.baselines] == NAMES
    regression = 768 * 6 + 5
    assert [baseline.parameters for baseline in fitted.baselines] == [
        768 + 1, regression + 1, regression + 768, regression + 5 * 769 + 1, regression + 20 * 769 + 1]


def test_one_variance_and_a_variance_a_pixel(fitted):
    """The pixel that never changes has the variance of rounding, not none."""
    data, baselines, errors, _, _ = fitted
    mean, one = rows(data.train).mean(0), np.ones(768)
    oracles = [(rows(data.test) - mean, (rows(data.train) - mean).std() * one),
               (errors["test"], np.sqrt(np.square(errors["train"]).mean()) * one),
               (errors["test"], np.sqrt(np.maximum(np.square(errors["train"]).mean(0), ROUNDING)))]
    for baseline, (difference, deviations) in zip(baselines[:3], oracles, strict=True):
        expected = scipy.stats.norm.logpdf(difference, 0, deviations).sum(1)
        np.testing.assert_allclose(baseline.log_likelihood(data.test), expected, rtol=1e-5, atol=1e-3)
        assert baseline.sample is None


@pytest.mark.parametrize("index, count", [(3, 5), (4, 20)])
def test_ppca_is_the_multivariate_normal_of_its_covariance(fitted, index, count):
    axes = fitted.vectors[:count]
    off_axes = np.eye(768) - axes.T @ axes
    variance = np.square(fitted.errors["validation"] @ off_axes).sum() / (30 * (768 - count))
    covariance = (axes.T * fitted.values[:count]) @ axes + variance * off_axes
    expected = scipy.stats.multivariate_normal(np.zeros(768), covariance).logpdf(fitted.errors["test"])
    result = fitted.baselines[index].log_likelihood(fitted.data.test)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=5e-3)


def test_no_other_factor_suits_the_validation_faces_better(fitted):
    for baseline in fitted.baselines[3:]:
        variance, count = baseline.params["variance"], len(baseline.params["axes"])
        of_training = fitted.values[count:].sum() / (768 - count)
        chosen, *others = (log_likelihood(baseline.params | {"variance": v}, fitted.data.validation).mean()
                           for v in (variance, 0.98 * variance, 1.02 * variance, of_training))
        assert chosen > max(others)


def test_samples_have_the_mean_and_covariance_of_the_decoder_means(fitted):
    """20,000 draws with one face's attributes: nothing off the axes, and along them independent, less the noise.

    The noise is set so high that it shows, and that the last axis has nothing beyond it.
    """
    data, baselines, errors, values, vectors = fitted
    params = baselines[3].params | {"variance": values[3:5].mean()}
    sample, axes, n = jax.jit(baselines[3].sample), vectors[:5], 20_000
    y, mask = (np.repeat(a[:1], n, 0) for a in (data.test.y, data.test.mask))
    keys = jax.random.split(jax.random.key(3), n)
    x = np.asarray(sample(params, keys, y, mask))
    assert x.shape == (n, 16, 16, 3)
    np.testing.assert_allclose(sample(params, keys[5:7], y[:2], mask[:2]), x[5:7], atol=1e-5)  # a key, a face
    drawn = x.reshape(n, -1) - (rows(data.test) - errors["test"])[:1]
    along = drawn @ axes.T
    np.testing.assert_allclose(along @ axes, drawn, atol=1e-4)
    variances = np.maximum(values[:5] - params["variance"], 0)
    assert (np.abs(along.mean(0)) < 4.5 * np.sqrt(variances / n) + 1e-5).all()
    standard_errors = np.sqrt(np.outer(variances, variances) * (1 + np.eye(5)) / n)
    assert (np.abs(np.cov(along.T) - np.diag(variances)) < 4.5 * standard_errors + 1e-6).all()


def test_unknown_attributes_count_as_their_mean_whatever_y_holds(fitted):
    x, y, mask = fitted.data.test
    y_train, known = fitted.data.train.y, fitted.data.train.mask
    mean = np.array([y_train[known[:, i], i].mean() for i in range(5)])
    same = [fitted.data.test, Faces(x, np.where(mask, y, mean), np.ones_like(mask)),
            Faces(x, np.where(mask, y, 7), mask)]
    for baseline in fitted.baselines:
        expected, *others = (baseline.log_likelihood(faces) for faces in same)
        for other in others:
            np.testing.assert_allclose(other, expected, atol=1e-3)
    keys = jax.random.split(jax.random.key(0), len(y))
    expected, *others = (fitted.baselines[4].sample(fitted.baselines[4].params, keys, *faces[1:]) for faces in same)
    for other in others:
        np.testing.assert_allclose(other, expected, atol=1e-5)


def test_faces_in_batches_have_the_densities_they_have_alone(fitted):
    """1,020 faces are more than two batches."""
    many = Faces(*(np.concatenate([a] * 34) for a in fitted.data.test))
    for baseline in fitted.baselines:
        np.testing.assert_allclose(baseline.log_likelihood(many),
                                   np.tile(baseline.log_likelihood(fitted.data.test), 34), rtol=1e-9)
