"""p(x|z) group of pixels by group: each pixel once, given those before it alone; its draws are its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmma_jax.models import detail
from cmma_jax.models.distributions import fold_each, row_keys, sum_event
from cmma_jax.models.model import Model
from cmma_jax.models.networks import LEVELS
from cmma_jax.models.objectives import elbo, importance_weighted_bound, make_detail_loss

DETAIL = {"likelihood": "gaussian", "detail_width": 8, "detail_blocks": 1, "prior": "gaussian"}
GROUPS = [(level, group) for level in range(LEVELS) for group in range(0 if level == 0 else 1, 4)]


@pytest.fixture(scope="module")
def with_detail(small):
    """A CMMA with a detail, and [4] faces, latents, attributes and masks."""
    model, params = small.variant(**DETAIL)
    faces = small.data.train
    x, y, mask = jnp.asarray(faces.x[:4] / np.float32(255)), jnp.asarray(faces.y[:4]), jnp.asarray(faces.mask[:4])
    return model, params, x, model.posterior(params, x, y, mask).mean, y, mask


def places(level: int, group: int, size: int = 16) -> np.ndarray:
    """[size, size] bool: the pixels of a group, by the picture in Reed et al. (2017)."""
    stride = 2 ** (LEVELS - 1 - level)
    row, column = {0: (0, 0), 1: (1, 1), 2: (0, 1), 3: (1, 0)}[group]
    rows, columns = np.arange(size)[:, None], np.arange(size)[None]
    return ((rows // stride % 2 == row) & (columns // stride % 2 == column) & (rows % stride == 0)
            & (columns % stride == 0))


def test_every_pixel_is_in_one_group():
    assert len(GROUPS) == 1 + 3 * LEVELS
    np.testing.assert_array_equal(sum(places(*each).astype(int) for each in GROUPS), 1)


def test_the_likelihood_is_the_sum_over_groups_each_given_the_pixels_before_it_alone(with_detail):
    """By what moves where a group's pixels move: its own term and those behind it, and none before."""
    model, params, x, z, y, mask = with_detail
    picture = model.likelihood(params, z, y, mask)

    @jax.jit
    def terms(x):
        return jnp.stack([detail._group(model, params, x, picture, level, jnp.full(len(x), group))
                          for level, group in GROUPS])

    before = terms(x)
    whole = jax.jit(functools.partial(detail.log_prob, model))(params, x, z, y, mask)
    np.testing.assert_allclose(whole, before.sum(0), rtol=1e-6)
    for number, each in enumerate(GROUPS):
        moved = terms(jnp.where(jnp.asarray(places(*each))[None, :, :, None], 1 - x, x))
        np.testing.assert_array_equal(moved[:number], before[:number])
        assert (moved[number:] != before[number:]).any(1).all(), each


def test_one_random_group_a_level_is_an_unbiased_estimate(with_detail):
    model, params, x, z, y, mask = with_detail
    exact = jax.jit(functools.partial(detail.log_prob, model))(params, x, z, y, mask)

    many = [jnp.repeat(a, 400, 0) for a in (x, z, y, mask)]
    found = jax.jit(functools.partial(detail.log_prob, model))(params, *many, row_keys(0, jnp.arange(1600)))
    found = np.asarray(found, np.float64).reshape(4, 400).T
    error = found.std(0) / np.sqrt(len(found))
    assert (error > 0).all() and (np.abs(found.mean(0) - exact) < 4 * error).all()


def test_draws_are_those_of_the_likelihood(with_detail):
    """The mean over draws of a likelihood's gradient is 0 in every parameter if, and only if, they are its own."""
    model, params, _, z, y, mask = with_detail
    many = [jnp.repeat(a[:1], 16, 0) for a in (z, y, mask)]

    @jax.jit
    def gradient(key, temperature):
        x = detail.draw(model, params, key, *many, temperature)
        found = jax.grad(lambda own: detail.log_prob(model, {**params, "detail": own}, x, *many).mean())(
            params["detail"])
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(found)])

    def squares(temperature):
        """How many standard errors, squared, the mean is from 0, on average over parameters."""
        found = np.stack([np.asarray(gradient(jax.random.key(i), temperature), np.float64) for i in range(60)])
        found = found[:, found.std(0) > 1e-6 * found.std()]
        return np.square(found.mean(0) / found.std(0, ddof=1)).mean() * len(found), found.shape[1]

    mean, count = squares(1.0)
    assert count > 3000 and mean < 1.5
    assert squares(0.7)[0] > 3  # the test can fail


def test_a_drawn_face_has_bytes_and_depends_on_its_own_key_alone(with_detail):
    model, params, x, z, y, mask = with_detail
    keys = row_keys(0, jnp.arange(4))
    draw = jax.jit(functools.partial(detail.draw, model))
    found = draw(params, keys, z, y, mask)
    np.testing.assert_allclose(found * 255, np.round(found * 255), atol=1e-4)
    assert found.shape == x.shape and (found >= 0).all() and (found <= 1).all()
    np.testing.assert_allclose(draw(params, keys[2:], z[2:], y[2:], mask[2:]), found[2:], atol=1.5 / 255)
    still = draw(params, keys, z, y, mask, 0.0)
    np.testing.assert_array_equal(still, draw(params, row_keys(1, jnp.arange(4)), z, y, mask, 0.0))
    assert np.abs(still - found).mean() > 0.01


def test_a_new_detail_says_what_the_decoder_says(small, with_detail):
    """Its heads start nearly at 0: each pixel is near g's mean, and its deviation is g's."""
    model, params, x, z, y, mask = with_detail
    fresh = {**params, **model.init(jax.random.key(0), ("detail",))}
    picture = model.likelihood(params, z, y, mask)
    blocks = detail._blocks(x, 3)
    found = detail._mixture(model, fresh, blocks, picture, 3, jnp.full(4, 2))
    mean, deviation = picture.mean[:, ::2, 1::2], jnp.exp(picture.logvar / 2)[:, ::2, 1::2]
    assert float((jnp.abs(found.mean - mean) / deviation).mean()) < 0.5
    ratio = jnp.exp(found.log_scales) * np.pi / np.sqrt(3) / deviation[..., None]
    assert 0.5 < float(ratio.min()) and float(ratio.max()) < 2


def test_the_bound_has_the_details_likelihood_and_stays_blind_to_attributes_given_z(small, with_detail):
    model, params, x, z, y, mask = with_detail
    assert model.discrete
    keys = row_keys(3, jnp.arange(4))
    terms = jax.jit(functools.partial(elbo, model))(params, keys, x, y, mask)
    latent = model.posterior(params, x, y, mask).sample(jax.vmap(lambda key: jax.random.split(key, 3)[0])(keys))
    expected = jax.jit(functools.partial(detail.log_prob, model))(params, x, latent, y, mask)
    np.testing.assert_allclose(terms.reconstruction, expected, rtol=1e-5)
    full = jnp.ones_like(mask)

    def by_y(model, params):  # one group a level stands for all
        return jax.jit(jax.grad(lambda y: detail.log_prob(model, params, x, z, y, full, keys).sum()))(y)

    np.testing.assert_array_equal(by_y(model, params), 0)
    assert (by_y(*small.variant(model="cvae", **DETAIL | {"width": 16})) != 0).all()


def test_importance_weights_have_the_details_likelihood(with_detail):
    model, params, x, _, y, mask = with_detail
    key = row_keys(2, jnp.arange(4))
    one = jax.jit(lambda: importance_weighted_bound(model, params, key, x, y, mask, 1))()
    q, p = model.posterior(params, x, y, mask), model.prior(params, y, mask)
    z = q.sample(fold_each(key, 0))
    expected = (jax.jit(functools.partial(detail.log_prob, model))(params, x, z, y, mask)
                + sum_event(p.log_prob(z)) - sum_event(q.log_prob(z)))
    np.testing.assert_allclose(one, expected, rtol=1e-5)


def test_its_loss_is_minus_the_likelihood_a_pixel_value_and_trains_it_alone(with_detail):
    model, params, x, _, y, mask = with_detail
    loss = jax.jit(make_detail_loss(model))
    found = [loss(params, row_keys(i, jnp.arange(4)), x, y, mask) for i in range(2)]
    assert (found[0][0] != found[1][0]).all()
    for value, terms in found:
        np.testing.assert_allclose(value, -terms["reconstruction"] / x[0].size, rtol=1e-6)
    own = jax.jit(jax.grad(lambda own: loss({**params, "detail": own}, row_keys(0, jnp.arange(4)), x, y,
                                            mask)[0].sum()))(params["detail"])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(own))


def only(model: Model) -> dict:
    return jax.eval_shape(lambda key: model.init(key, ("detail",)), jax.random.key(0))


def test_without_a_width_there_is_none(small):
    model, params = small.variant(**DETAIL | {"detail_width": 0})
    assert model.detail is None and not model.discrete and "detail" not in params
    model, params = small.variant(**DETAIL)
    assert only(model).keys() == {"detail"} and params["detail"].keys() == only(model)["detail"].keys()
