"""Faces from attributes and from faces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax.data.dataset import pixels
from cmma_jax.models.distributions import Gaussian
from cmma_jax.models.model import cvae
from cmma_jax.sampling import pictures
from cmma_jax.sampling.faces import edit, generate, in_batches, infer_attributes, reconstruct


def arrays(small, n=4):
    faces = small.data.train
    return pixels(jnp.asarray(faces.x[:n])), jnp.asarray(faces.y[:n]), jnp.asarray(faces.mask[:n])


def test_temperature_0_is_the_face_at_the_priors_mean(small):
    _, y, mask = arrays(small)
    p = small.model.prior(small.params, y, mask)
    expected = small.model.likelihood(small.params, p.mean, y, mask).mean
    for seed in (0, 1):
        faces = generate(small.model, small.params, jax.random.key(seed), y, mask, temperature=0.0)
        np.testing.assert_allclose(faces, np.clip(expected, 0, 1), atol=1e-6)


def test_samples_spread_with_the_temperature(small):
    _, y, mask = arrays(small, 1)
    keys = jax.random.split(jax.random.key(0), 64)
    y, mask = jnp.repeat(y, 64, 0), jnp.repeat(mask, 64, 0)
    spread = [float(generate(small.model, small.params, keys, y, mask, temperature=t).std(0).mean())
              for t in (0.25, 0.5, 1.0)]
    assert 0 < spread[0] < spread[1] < spread[2]


def test_a_reconstruction_is_the_face_at_the_posteriors_mean(small):
    x, y, mask = arrays(small)
    z = small.model.posterior(small.params, x, y, mask).mean
    expected = np.clip(small.model.likelihood(small.params, z, y, mask).mean, 0, 1)
    np.testing.assert_allclose(reconstruct(small.model, small.params, x, y, mask), expected, atol=1e-6)

def test_an_edit_adds_the_difference_of_the_priors_means(small):
    x, y, mask = arrays(small)
    new_y = y.at[:, 0].set(1 - y[:, 0])
    model, params = small.model, small.params
    f = [model.prior(params, each, mask).mean for each in (y, new_y)]
    for literal, seen in ((False, y), (True, new_y)):
        z = model.posterior(params, x, seen, mask).mean + 2 * (f[1] - f[0])
        expected = np.clip(model.likelihood(params, z, y, mask).mean, 0, 1)
        found = edit(model, params, x, y, mask, new_y, mask, 2.0, literal=literal)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    each = edit(model, params, x, y, mask, new_y, mask, jnp.asarray([0.0, 0, 2, 2]))
    np.testing.assert_allclose(each[:2], reconstruct(model, params, x, y, mask)[:2], atol=1e-6)
    np.testing.assert_allclose(each[2:], edit(model, params, x, y, mask, new_y, mask, 2.0)[2:], atol=1e-6)


def test_an_edit_with_detail_kept_is_the_face_and_the_change_of_its_reconstruction(small):
    x, y, mask = arrays(small)
    new_y, model, params = 1 - y, small.model, small.params
    np.testing.assert_array_equal(edit(model, params, x, y, mask, y, mask, 3.0, keep_detail=True), x)
    for literal in (False, True):
        changed = edit(model, params, x, y, mask, new_y, mask, 0.5, literal=literal)
        change = changed - reconstruct(model, params, x, y, mask)
        inside = (changed > 0) & (changed < 1)
        kept = edit(model, params, x, y, mask, new_y, mask, 0.5, literal=literal, keep_detail=True)
        np.testing.assert_allclose(np.where(inside, kept, 0), np.where(inside, np.clip(x + change, 0, 1), 0), atol=1e-5)


def test_a_cvaes_edit_is_what_its_likelihood_sees(small):
    config = dataclasses.replace(small.config, linear_path=False)
    model = cvae(config, small.data.spec)
    params = jax.tree.map(lambda a: a + 0.05 * jax.random.normal(jax.random.key(a.size), a.shape),
                          jax.jit(model.init)(jax.random.key(0)))
    x, y, mask = arrays(small)
    new_y = y.at[:, 0].set(1 - y[:, 0])
    z = model.posterior(params, x, y, mask).mean
    for intensity in (0.0, 0.5, 2.0):
        expected = np.clip(model.likelihood(params, z, y + intensity * (new_y - y), mask).mean, 0, 1)
        np.testing.assert_allclose(edit(model, params, x, y, mask, new_y, mask, intensity), expected,
                                   atol=1e-6)


def test_told_attributes_are_the_mean_over_the_posterior(small):
    """Against q(y|z) at 4,000 other draws of z, in standard errors."""
    x, y, mask = arrays(small)
    unknown = jnp.zeros_like(mask)
    mean, deviation = infer_attributes(small.model, small.params, jax.random.key(0), x, y, unknown,
                                                samples=1000)
    q = small.model.posterior(small.params, x, y, unknown)
    z = q.mean[None] + jnp.exp(q.logvar / 2)[None] * jax.random.normal(jax.random.key(9), (4000, *q.mean.shape))
    p = jax.vmap(lambda z: small.model.attributes(small.params, z).mean)(z)
    error = np.asarray(p.std(0) * np.sqrt(1 / 4000 + 1 / 1000))
    assert (np.abs(mean - p.mean(0)) < 4 * error + 1e-6).all()
    np.testing.assert_allclose(deviation, p.std(0), rtol=0.15, atol=1e-5)


def test_a_gaussian_attributes_deviation_is_that_of_the_mixture(small):
    x, y, mask = arrays(small)
    model = small.model._replace(attributes=lambda params, z: Gaussian(z[:, :5], jnp.full((len(z), 5), np.log(4.0))))
    mean, deviation = infer_attributes(model, small.params, jax.random.key(0), x, y, mask, samples=2000)
    q = model.posterior(small.params, x, y, mask)
    np.testing.assert_allclose(mean, q.mean[:, :5], atol=4 * float(jnp.exp(q.logvar / 2).max()) / np.sqrt(2000))
    np.testing.assert_allclose(deviation, jnp.sqrt(4 + jnp.exp(q.logvar[:, :5])), rtol=0.05)


def test_the_chain_keeps_what_is_known_and_moves_the_rest(small):
    """The posterior's second look sees the drawn attributes: every known one as given, none unknown."""
    x, y, _ = arrays(small)
    known = jnp.zeros(y.shape, bool).at[:, 1].set(True)
    looks = []

    def posterior(params, x, seen, mask):
        jax.debug.callback(lambda *a: looks.append(tuple(map(np.asarray, a))), seen, mask)
        return small.model.posterior(params, x, seen, mask)

    found = infer_attributes(small.model._replace(posterior=posterior), small.params, jax.random.key(0), x, y,
                                      known, samples=4, steps=2)
    jax.block_until_ready(found)
    jax.effects_barrier()
    chain = [seen for seen, mask in looks if mask.all()]
    assert len(chain) == 8
    assert all((seen[:, 1] == np.asarray(y)[:, 1]).all() and set(np.unique(seen)) <= {0.0, 1.0} for seen in chain)
    assert len({seen.tobytes() for seen in chain}) > 1


def test_in_batches_is_the_function_row_by_row():
    sizes = []

    def function(a, b):
        sizes.append(len(a))
        return {"sum": a + b, "rows": a}

    a, b = np.arange(600), np.arange(600) * 2.0
    for n in (1, 3, 256, 257, 600):
        found = in_batches(function, a[:n], b[:n])
        np.testing.assert_array_equal(found["sum"], 3 * a[:n])
        np.testing.assert_array_equal(found["rows"], a[:n])
    assert sizes == [1, 4, 256, 256, 1, 256, 256, 128]


def test_grid_places_faces_in_rows_and_columns():
    faces = [np.full((3, 8, 8, 3), value) for value in (0.0, 1.0)]
    picture = np.asarray(pictures.grid(faces))
    assert picture.shape == (2 + 2 * 10, 2 + 3 * 10, 3)
    assert (picture[2:10, 2:10] == 0).all() and (picture[12:20, 22:30] == 255).all()


def test_progress_picture_shows_the_originals_first(small):
    faces = small.data.validation
    picture = np.asarray(pictures.progress(small.model, small.params, faces, columns=3))
    assert picture.shape == (2 + 5 * 18, 2 + 3 * 18, 3)
    np.testing.assert_array_equal(picture[2:18, 2:18], faces.x[0])
    np.testing.assert_array_equal(picture[2:18, 38:54], faces.x[-1])
