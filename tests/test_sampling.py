"""Faces from attributes and from faces."""

import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax import figures, sampling
from cmma_jax.data.dataset import pixels


def arrays(small, n=4):
    faces = small.data.train
    return pixels(jnp.asarray(faces.x[:n])), jnp.asarray(faces.y[:n]), jnp.asarray(faces.mask[:n])


def test_temperature_0_is_the_face_at_the_priors_mean(small):
    _, y, mask = arrays(small)
    p = small.model.prior(small.params, y, mask)
    expected = small.model.likelihood(small.params, p.mean, y, mask).mean
    for seed in (0, 1):
        faces = sampling.generate(small.model, small.params, jax.random.key(seed), y, mask, temperature=0.0)
        np.testing.assert_allclose(faces, np.clip(expected, 0, 1), atol=1e-6)


def test_samples_spread_with_the_temperature(small):
    _, y, mask = arrays(small, 1)
    keys = jax.random.split(jax.random.key(0), 64)
    y, mask = jnp.repeat(y, 64, 0), jnp.repeat(mask, 64, 0)
    spread = [float(sampling.generate(small.model, small.params, keys, y, mask, temperature=t).std(0).mean())
              for t in (0.25, 0.5, 1.0)]
    assert 0 < spread[0] < spread[1] < spread[2]


def test_a_reconstruction_is_the_face_at_the_posteriors_mean(small):
    x, y, mask = arrays(small)
    z = small.model.posterior(small.params, x, y, mask).mean
    expected = np.clip(small.model.likelihood(small.params, z, y, mask).mean, 0, 1)
    np.testing.assert_allclose(sampling.reconstruct(small.model, small.params, x, y, mask), expected, atol=1e-6)


def test_grid_places_faces_in_rows_and_columns():
    faces = [np.full((3, 8, 8, 3), value) for value in (0.0, 1.0)]
    picture = np.asarray(figures.grid(faces))
    assert picture.shape == (2 + 2 * 10, 2 + 3 * 10, 3)
    assert (picture[2:10, 2:10] == 0).all() and (picture[12:20, 22:30] == 255).all()


def test_progress_picture_shows_the_originals_first(small):
    faces = small.data.validation
    picture = np.asarray(figures.progress(small.model, small.params, faces, columns=3))
    assert picture.shape == (2 + 5 * 18, 2 + 3 * 18, 3)
    np.testing.assert_array_equal(picture[2:18, 2:18], faces.x[0])
    np.testing.assert_array_equal(picture[2:18, 38:54], faces.x[-1])
