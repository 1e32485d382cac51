"""Diversity against distances computed one pair at a time."""

import itertools

import numpy as np
import pytest

from cmma_jax.data.dataset import Faces
from cmma_jax.evaluation.diversity import diversity, generated_faces, mean_pair_distance


def test_mean_distance_is_over_all_pairs():
    x = np.random.default_rng(0).random((7, 4, 4, 3)).astype(np.float32)
    expected = np.mean([np.linalg.norm(a - b) for a, b in itertools.combinations(x, 2)])
    assert float(mean_pair_distance(x)) == pytest.approx(expected, rel=1e-5)
    assert diversity(x / 4, x) == pytest.approx(0.25, rel=1e-5)
    assert diversity(np.repeat(x[:1], 5, 0), x) == 0


def test_a_generated_face_depends_on_its_row_and_not_on_the_batch(small):
    faces = small.data.validation
    whole = generated_faces(small.model, small.params, faces, seed=3)
    few = Faces(*(np.asarray(a)[:5] for a in faces))
    pieces = generated_faces(small.model, small.params, few, seed=3)
    assert whole.shape == (30, 16, 16, 3) and 0 <= whole.min() and whole.max() <= 1
    np.testing.assert_allclose(pieces, whole[:5], atol=1e-5)
    assert np.abs(generated_faces(small.model, small.params, faces, seed=4) - whole).max() > 0.01


def test_cold_faces_need_no_seed(small):
    faces = small.data.validation
    cold = [generated_faces(small.model, small.params, faces, seed, temperature=0.0) for seed in (3, 4)]
    np.testing.assert_array_equal(*cold)
