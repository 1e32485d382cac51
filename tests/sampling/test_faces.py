"""Faces from attributes and from faces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmma_jax.data.dataset import pixels, spread
from cmma_jax.models.distributions import Mixed
from cmma_jax.models.model import make_model
from cmma_jax.sampling import pictures
from cmma_jax.sampling.faces import (
    EDIT_SIZE,
    EDIT_WEIGHTS,
    GUIDANCE,
    _on_circle,
    edit,
    generate,
    in_batches,
    infer_attributes,
    morph,
    reconstruct,
)
from tests.conftest import random_params


def arrays(small, n=4):
    faces = small.data.train
    return pixels(jnp.asarray(faces.x[:n])), jnp.asarray(faces.y[:n]), jnp.asarray(faces.mask[:n])


def drift(y, mask):
    """A constant velocity, of which attributes a face has."""
    return np.where(mask, np.asarray(y) * np.arange(1, y.shape[-1] + 1), 0).sum(-1, keepdims=True) / 10


@pytest.fixture(scope="module")
def drifting(small):
    """The small model with that velocity: what its flow does is known in closed form."""
    def velocity(params, u, t, y, mask, keys=None):
        return (jnp.where(mask, y * jnp.arange(1.0, 6)[None], 0).sum(-1, keepdims=True) / 10) + 0 * u

    return small._replace(model=small.model._replace(velocity=velocity))


def decode(model, params, z, y, mask):
    return jnp.clip(model.likelihood(params, z, y, mask).mean, 0, 1)


def flat(channels, z):
    return np.tile(channels, z.shape[1] // 2)[None]


def posterior_draw(small, x, y, mask):
    """The latents at which edits under a flow begin: one draw from q, of the same noise for each face."""
    q = small.model.posterior(small.params, x, y, mask)
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), q.mean.shape[1:])
    return np.asarray(q.mean + jnp.exp(q.logvar / 2) * noise[None])


def test_temperature_0_is_the_face_at_the_priors_mean(small):
    _, y, mask = arrays(small)
    model, params = small.gaussian, small.params
    expected = model.likelihood(params, model.prior(params, y, mask).mean, y, mask).mean
    for seed in (0, 1):
        faces = generate(model, params, jax.random.key(seed), y, mask, temperature=0.0)
        np.testing.assert_allclose(faces, np.clip(expected, 0, 1), atol=1e-6)


def test_temperature_0_of_a_flow_is_where_it_leads_the_noises_mean(drifting):
    _, y, mask = arrays(drifting)
    mean, deviation = drifting.params["scale"]["mean"], drifting.params["scale"]["deviation"]
    u = np.repeat(drift(y, mask), 32, 1)
    expected = decode(drifting.model, drifting.params, flat(mean, u) + flat(deviation, u) * u, y, mask)
    for guidance in (None, 1.0):
        found = generate(drifting.model, drifting.params, jax.random.key(3), y, mask, 0.0, guidance)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    u *= 2.5  # nothing asked for drifts nowhere
    guided = decode(drifting.model, drifting.params, flat(mean, u) + flat(deviation, u) * u, y, mask)
    np.testing.assert_allclose(generate(drifting.model, drifting.params, jax.random.key(3), y, mask, 0.0, 2.5), guided,
                               atol=1e-5)


def test_samples_spread_with_the_temperature(small):
    _, y, mask = arrays(small, 1)
    keys = jax.random.split(jax.random.key(0), 64)
    y, mask = jnp.repeat(y, 64, 0), jnp.repeat(mask, 64, 0)
    spread = [float(generate(small.gaussian, small.params, keys, y, mask, temperature=t).std(0).mean())
              for t in (0.25, 0.5, 1.0)]
    assert 0 < spread[0] < spread[1] < spread[2]


def test_a_reconstruction_is_the_face_at_the_posteriors_mean(small):
    x, y, mask = arrays(small)
    z = small.model.posterior(small.params, x, y, mask).mean
    expected = np.clip(small.model.likelihood(small.params, z, y, mask).mean, 0, 1)
    np.testing.assert_allclose(reconstruct(small.model, small.params, x, y, mask), expected, atol=1e-5)


def test_an_edit_adds_the_difference_of_the_priors_means(small):
    x, y, mask = arrays(small)
    new_y = y.at[:, 0].set(1 - y[:, 0])
    model, params = small.gaussian, small.params
    f = [model.prior(params, each, mask).mean for each in (y, new_y)]
    for literal, seen in ((False, y), (True, new_y)):
        z = model.posterior(params, x, seen, mask).mean + 2 * (f[1] - f[0])
        expected = np.clip(model.likelihood(params, z, y, mask).mean, 0, 1)
        found = edit(model, params, x, y, mask, new_y, mask, jnp.full(4, 2.0), literal=literal, keep_detail=False)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    each = edit(model, params, x, y, mask, new_y, mask, jnp.asarray([0.0, 0, 2, 2]), literal=True, keep_detail=False)
    unchanged = edit(model, params, x, y, mask, new_y, mask, jnp.zeros(4), literal=True, keep_detail=False)
    np.testing.assert_array_equal(each, jnp.concatenate([unchanged[:2], found[2:]]))


@pytest.mark.parametrize("intensity", (-0.5, 1.0))
def test_an_edit_under_a_flow_transports_a_draw_from_the_posterior(drifting, intensity):
    """All as far, but where that would take a weight out of its bounds: an example each has one below and above."""
    x, y, mask = arrays(drifting)
    new_y = y.at[0].set(1 - y[0]).at[1:, 0].set(1 - y[1:, 0]).at[2, 0].set(y[2, 0] + 0.1).at[3, 0].set(y[3, 0] + 0.5)
    new_mask, params = mask.at[:, 0].set(True), drifting.params
    way = drift(new_y, new_mask) - drift(y, mask)
    weights = EDIT_SIZE / np.abs(way)
    assert weights.min() < EDIT_WEIGHTS[0] < weights[3, 0] < EDIT_WEIGHTS[1] < weights.max()
    z = posterior_draw(drifting, x, y, mask)
    end = z + np.clip(weights, *EDIT_WEIGHTS) * intensity * way * flat(params["scale"]["deviation"], z)
    found = edit(drifting.model, params, x, y, mask, new_y, new_mask, jnp.full(4, intensity), keep_detail=False)
    np.testing.assert_allclose(found, decode(drifting.model, params, end, y, mask), atol=1e-5)


@pytest.mark.parametrize("kind", ("gaussian", "literal", "flow"))
def test_an_edit_with_detail_kept_is_the_face_and_the_change_of_its_reconstruction(small, drifting, kind):
    x, y, mask = arrays(small)
    new_y, params, literal = 1 - y, small.params, kind == "literal"
    model = drifting.model if kind == "flow" else small.gaussian
    z = posterior_draw(small, x, y, mask) if kind == "flow" else model.posterior(params, x, y, mask).mean
    before = model.likelihood(params, z, y, mask).mean
    how = {"literal": literal}
    plain = edit(model, params, x, y, mask, new_y, mask, jnp.full(4, 0.5), keep_detail=False, **how)
    inside = (plain > 0) & (plain < 1)
    kept = edit(model, params, x, y, mask, new_y, mask, jnp.full(4, 0.5), keep_detail=True, **how)
    np.testing.assert_allclose(np.where(inside, kept, 0), np.where(inside, np.clip(x + plain - before, 0, 1), 0),
                               atol=1e-5)
    assert float(np.abs(kept - x).max()) > 0.01


def test_where_nothing_changes_an_edit_returns_the_face_to_the_last_bit(small):
    """Under the flow itself: intensity 0, equal attributes, and what is unknown before and after."""
    x, y, mask = arrays(small)
    new_y = jnp.where(jnp.arange(4)[:, None] == 0, 1 - y, y)
    new_y = new_y.at[2].set(jnp.where(mask[2], y[2], 1 - y[2])).at[3, 0].set(1 - y[3, 0])
    found = edit(small.model, small.params, x, y, mask, new_y, mask.at[3, 0].set(True), jnp.asarray([0.0, 1, 2, 1]))
    np.testing.assert_array_equal(found[:3], x[:3])
    assert float(jnp.abs(found[3] - x[3]).max()) > 0.01


def test_a_negative_intensity_leads_the_other_way_and_a_faces_edit_does_not_depend_on_its_batch(small):
    x, y, mask = arrays(small)
    x = 0.4 + 0.2 * x  # away from the ends, where changes are cut off

    def change(rows, intensity):
        arrays = (a[rows] for a in (x, y, mask, 1 - y, mask))
        return np.asarray(edit(small.model, small.params, *arrays, jnp.full(4, intensity)) - x[rows])

    rows = jnp.arange(4)
    here, back = change(rows, 0.001), change(rows, -0.001)
    assert np.abs(here).max() > 1e-4 and np.linalg.norm(here + back) < 0.2 * np.linalg.norm(here)
    np.testing.assert_allclose(change(rows[::-1], 0.001)[::-1], here, atol=2e-6)


def test_a_cvaes_edit_is_what_its_likelihood_sees(small):
    """Under a flow too, which does not see attributes."""
    model = make_model(dataclasses.replace(small.config, model="cvae"), small.data.spec)
    params = random_params(model)
    x, y, mask = arrays(small)
    new_y = y.at[:, 0].set(1 - y[:, 0])
    z = posterior_draw(small._replace(model=model, params=params), x, y, mask)
    for intensity in (0.0, 0.5, -2.0):
        expected = np.clip(model.likelihood(params, z, y + intensity * (new_y - y), mask).mean, 0, 1)
        np.testing.assert_allclose(edit(model, params, x, y, mask, new_y, mask, jnp.full(4, intensity),
                                        keep_detail=False), expected, atol=1e-5)


def test_a_morph_is_straight_in_z_under_a_gaussian_prior(small):
    x, y, mask = arrays(small, 2)
    z = np.asarray(small.model.posterior(small.params, x, y, mask).mean)
    weights = np.float32([0, 0.25, 1])
    path = np.stack([z[0], 0.75 * z[0] + 0.25 * z[1], z[1]])
    expected = decode(small.model, small.params, path, *(jnp.repeat(a[:1], 3, 0) for a in (y, mask)))
    np.testing.assert_allclose(morph(small.gaussian, small.params, x, y, mask, weights), expected, atol=1e-5)


def test_a_morph_goes_through_the_noise_of_a_flow(drifting):
    """Each face's noise is its latent less the drift of its attributes; between, the drift is that between theirs."""
    x, y, mask = arrays(drifting, 2)
    params, known = drifting.params, np.ones_like(mask)
    mean, deviation = (np.asarray(params["scale"][name]) for name in ("mean", "deviation"))
    z, weights = posterior_draw(drifting, x, y, known), np.float32([0, 0.3, 1])
    noise = (z - flat(mean, z)) / flat(deviation, z) - drift(y, known)
    between = np.stack([y[0], 0.7 * y[0] + 0.3 * y[1], y[1]])
    u = _on_circle(noise, weights) + drift(between, np.ones_like(between, bool))
    expected = decode(drifting.model, params, flat(mean, u) + flat(deviation, u) * u,
                      *(np.repeat(np.asarray(a)[:1], 3, 0) for a in (y, known)))
    np.testing.assert_allclose(morph(drifting.model, params, x, y, known, weights), expected, atol=1e-4)


def test_a_circle_is_walked_evenly():
    ends = np.zeros((2, 7), np.float32)
    ends[0, 0], ends[1, :2] = 3, (3 * np.cos(2.0), 3 * np.sin(2.0))
    found = _on_circle(jnp.asarray(ends), jnp.linspace(0, 1, 5))
    angles = np.linspace(0, 2.0, 5)
    np.testing.assert_allclose(found[:, :2], 3 * np.stack([np.cos(angles), np.sin(angles)], 1), atol=1e-5)
    assert (np.asarray(found)[:, 2:] == 0).all()
    for second in (ends[:1], -ends[:1]):  # no plane to walk in
        assert np.isfinite(_on_circle(jnp.concatenate([ends[:1], second]), jnp.linspace(0, 1, 5))).all()


def test_a_morph_under_the_flow_itself_begins_and_ends_at_the_faces(small):
    x, y, _ = arrays(small, 2)
    known = jnp.ones_like(y, bool)
    z = posterior_draw(small, x, y, known)
    ends = decode(small.model, small.params, z, y, known)
    found = morph(small.model, small.params, x, y, known, np.float32([0, 0.5, 1]), steps=2)
    np.testing.assert_allclose(found[jnp.array([0, 2])], ends, atol=1e-4)
    same = morph(small.model, small.params, jnp.repeat(x[:1], 2, 0), *(jnp.repeat(a[:1], 2, 0) for a in (y, known)),
                 np.float32([0, 0.5, 1]), steps=2)
    np.testing.assert_allclose(same, jnp.repeat(ends[:1], 3, 0), atol=1e-3)


def test_inferred_attributes_are_the_mean_over_the_posterior(small):
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
    real = np.zeros(5, bool)
    model = small.model._replace(
        attributes=lambda params, z: Mixed(real, z[:, :5], jnp.full((len(z), 5), np.log(4.0))))
    mean, deviation = infer_attributes(model, small.params, jax.random.key(0), x, y, mask, samples=2000)
    q = model.posterior(small.params, x, y, mask)
    np.testing.assert_allclose(mean, q.mean[:, :5], atol=4 * float(jnp.exp(q.logvar / 2).max()) / np.sqrt(2000))
    np.testing.assert_allclose(deviation, jnp.sqrt(4 + jnp.exp(q.logvar[:, :5])), rtol=0.05)


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
    picture = np.asarray(pictures.progress(small.gaussian, small.params, faces, columns=3))
    assert picture.shape == (2 + 5 * 18, 2 + 3 * 18, 3)
    np.testing.assert_array_equal(picture[2:18, 2:18], faces.x[0])
    np.testing.assert_array_equal(picture[2:18, 38:54], faces.x[-1])


@pytest.mark.parametrize("prior", ["flow", "gaussian"])
def test_the_last_rows_of_a_progress_picture_are_samples_as_they_are_shown_elsewhere(small, prior):
    """Of a flow two, guided; a Gaussian prior's mean, which is a face, and one."""
    model, params, faces = small.model if prior == "flow" else small.gaussian, small.params, small.data.validation
    few = spread(faces, 3)
    made = [generate(model, params, jax.random.key(i), jnp.asarray(few.y), jnp.asarray(few.mask),
                     0.0 if prior == "gaussian" and i == 0 else 1.0, GUIDANCE if prior == "flow" else None)
            for i in range(2)]
    picture = np.asarray(pictures.progress(model, params, faces, columns=3))
    expected = np.asarray(pictures.grid([np.asarray(row) for row in made]))
    assert (np.abs(picture[56:].astype(int)[:, :, :] - expected[2:].astype(int)) <= 1).all()
