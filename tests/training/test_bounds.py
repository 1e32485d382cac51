"""The bound of a set of faces: padding, standard error, bits of bytes and of a density."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmma_jax.data.dataset import pixels
from cmma_jax.errors import InputError
from cmma_jax.models.distributions import kl, sum_event
from cmma_jax.models.model import START_LOGVAR, make_model
from cmma_jax.models.objectives import elbo
from cmma_jax.training.bounds import bits, dequantised_bits, dequantised_pixels, importance_weighted, variational_bound


def test_padding_of_the_last_batch_counts_for_nothing(small):
    """30 faces in batches of 7, 30 and 64: the same figure, and that of faces one by one."""
    faces = small.data.validation
    results = [variational_bound(small.gaussian, small.params, faces, batch_size=b) for b in (7, 30, 64)]
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(30))
    one_by_one = [float(elbo(small.gaussian, small.params, jax.random.split(keys[i])[1][None],
                             pixels(jnp.asarray(faces.x[i:i + 1])), jnp.asarray(faces.y[i:i + 1]),
                             jnp.asarray(faces.mask[i:i + 1])).bound[0]) for i in range(3)]
    few = jax.tree.map(lambda a: a[:3], faces)
    assert variational_bound(small.gaussian, small.params, few)["bound"] == pytest.approx(np.mean(one_by_one), rel=1e-5)
    expected = np.std(one_by_one, ddof=1) / np.sqrt(3)
    assert variational_bound(small.gaussian, small.params, few)["bound_stderr"] == pytest.approx(expected, rel=1e-3)


def test_padding_counts_for_nothing_under_a_flow(small):
    results = [variational_bound(small.model, small.params, jax.tree.map(lambda a: a[:5], small.data.validation),
                                 batch_size=b, steps=2) for b in (3, 5)]
    assert results[1] == pytest.approx(results[0], rel=1e-4)


def test_bound_is_reconstruction_minus_kl_and_no_attribute_term(small):
    result = variational_bound(small.gaussian, small.params, small.data.validation)
    assert result["bound"] == pytest.approx(result["reconstruction"] - result["kl"], rel=1e-6)
    changed = small.params | {"h2": jax.tree.map(lambda a: a + 1, small.params["h2"])}
    other = variational_bound(small.gaussian, changed, small.data.validation)
    assert other["bound"] == result["bound"] and other["attributes"] != result["attributes"]


def test_the_kl_is_that_of_the_latents_which_the_posterior_moves(small):
    """Without h's and f's say the posterior is the prior; then one channel's mean is moved apart, in its 16 cells."""
    zero = small.params | {name: jax.tree.map(jnp.zeros_like, small.params[name]) for name in ("f", "h")}
    assert variational_bound(small.gaussian, zero, small.data.validation)["kl"] == 0
    zero["h"]["mean"]["bias"] = zero["h"]["mean"]["bias"].at[1].set(1.0)
    result = variational_bound(small.gaussian, zero, small.data.validation)
    assert result["kl"] == pytest.approx(16 * 0.5, rel=1e-5)


def test_dequantised_pixels_spread_each_level_over_its_own_bin():
    x = jnp.asarray(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(50, 0))
    smooth = np.asarray(dequantised_pixels(jax.random.split(jax.random.key(0), 50), x))
    np.testing.assert_array_equal(np.floor(smooth * 256).astype(int), x)
    inside = smooth * 256 - np.floor(smooth * 256)
    assert abs(inside.mean() - 0.5) < 4 * np.sqrt(1 / 12 / inside.size)


def test_bits_per_dimension_of_a_uniform_density_is_8():
    assert bits(0.0, 12288, 256) == 8
    assert bits(12288 * np.log(2), 12288, 256) == pytest.approx(7)
    uniform = 768 * (np.log(1 / 256) + np.log(255))  # of bytes, in nats on the scale of the bounds
    assert bits(uniform, 768, 255) == pytest.approx(8) and bits(768 * np.log(255), 768, 255) == pytest.approx(0)


def test_bits_of_bytes_are_those_of_their_probabilities(small):
    """From the masses of three faces and the KL, one after another."""
    bits = []
    for i in range(3):
        x, y, mask = (jnp.asarray(a[i:i + 1]) for a in small.data.validation)
        key = jax.random.split(jax.random.fold_in(jax.random.key(0), i))[1]
        q, p = (part(small.params, *given, y, mask) for part, given in
                ((small.gaussian.posterior, (x / 255,)), (small.gaussian.prior, ())))
        z = q.sample(jax.random.split(key, 3)[0][None])
        mass = small.gaussian.likelihood(small.params, z, y, mask).log_mass(x / 255)
        bits.append(float(sum_event(kl(q, p))[0] - mass.sum()) / np.log(2) / (16 * 16 * 3))
    few = jax.tree.map(lambda a: a[:3], small.data.validation)
    result = variational_bound(small.gaussian, small.params, few)
    assert result["bits_per_dim"] == pytest.approx(np.mean(bits), rel=1e-5)
    assert result["bits_per_dim_stderr"] == pytest.approx(np.std(bits, ddof=1) / np.sqrt(3), rel=1e-3)


def test_bits_of_a_density_are_its_integral_over_each_byte(small):
    """A Gaussian model of zeros says mean face and a share of the data's deviation; the integral of its log by
    quadrature.
    """
    config = dataclasses.replace(small.config, likelihood="gaussian", prior="gaussian")
    model, spec, faces = make_model(config, small.data.spec), small.data.spec, small.data.validation
    zeros = jax.tree.map(lambda like: jnp.zeros(like.shape), jax.eval_shape(model.init, jax.random.key(0)))
    assert "bits_per_dim" not in variational_bound(model, zeros, faces)
    deviation = spec.pixel_std * np.exp(START_LOGVAR / 2)
    nodes, weights = np.polynomial.legendre.leggauss(5)
    bits = 0.0
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        off = ((faces.x + node) / 256 - np.float64(spec.mean_face)) / deviation
        bits += weight * (8 - (-0.5 * off**2 - np.log(deviation * np.sqrt(2 * np.pi))).mean() / np.log(2))
    found, error = dequantised_bits(model, zeros, faces)
    assert found == pytest.approx(bits, abs=1e-3) and 0 < error < 0.3


def test_importance_weighted_bound_of_a_set_pads_nothing_and_is_no_lower(small):
    faces = small.data.validation
    results = [importance_weighted(small.gaussian, small.params, faces, 5, batch_size=b) for b in (7, 30)]
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    plain = variational_bound(small.gaussian, small.params, faces)
    assert results[0]["iwae"] > plain["bound"] - 4 * plain["bound_stderr"]
    more = importance_weighted(small.gaussian, small.params, faces, 50)
    assert more["iwae"] > results[0]["iwae"] and more["iwae_samples"] == 50
    with pytest.raises(InputError, match="--iwae=0"):
        importance_weighted(small.gaussian, small.params, faces, 0)
