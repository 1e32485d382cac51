"""The bound of a set of faces: padding, standard error, dequantisation, active latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmma_jax.errors import InputError
from cmma_jax.models.objectives import elbo
from cmma_jax.training.bounds import (
    bits_per_dimension,
    dequantised_pixels,
    exact_pixels,
    importance_weighted,
    variational_bound,
)


def test_padding_of_the_last_batch_counts_for_nothing(small):
    """30 faces in batches of 7, 30 and 64: the same figure, and that of faces one by one."""
    faces = small.data.validation
    results = [variational_bound(small.model, small.params, faces, batch_size=b) for b in (7, 30, 64)]
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(30))
    one_by_one = [float(elbo(small.model, small.params, jax.random.split(keys[i])[1][None],
                             exact_pixels(None, jnp.asarray(faces.x[i:i + 1])), jnp.asarray(faces.y[i:i + 1]),
                             jnp.asarray(faces.mask[i:i + 1])).bound[0]) for i in range(3)]
    few = jax.tree.map(lambda a: a[:3], faces)
    assert variational_bound(small.model, small.params, few)["bound"] == pytest.approx(np.mean(one_by_one), rel=1e-5)
    expected = np.std(one_by_one, ddof=1) / np.sqrt(3)
    assert variational_bound(small.model, small.params, few)["bound_stderr"] == pytest.approx(expected, rel=1e-3)


def test_bound_is_reconstruction_minus_kl_and_no_attribute_term(small):
    result = variational_bound(small.model, small.params, small.data.validation)
    assert result["bound"] == pytest.approx(result["reconstruction"] - result["kl"], rel=1e-6)
    changed = small.params | {"h2": jax.tree.map(lambda a: a + 1, small.params["h2"])}
    other = variational_bound(small.model, changed, small.data.validation)
    assert other["bound"] == result["bound"] and other["attributes"] != result["attributes"]


def test_a_latent_that_the_posterior_ignores_is_not_active(small):
    """Without h's and f's say the posterior is the prior; one latent's mean moved apart makes it active."""
    zero = small.params | {name: jax.tree.map(jnp.zeros_like, small.params[name]) for name in ("f", "h")}
    assert variational_bound(small.model, zero, small.data.validation)["active_latents"] == 0
    zero["h"]["mean"]["bias"] = zero["h"]["mean"]["bias"].at[3].set(1.0)
    result = variational_bound(small.model, zero, small.data.validation)
    assert result["active_latents"] == 1 and result["kl"] == pytest.approx(0.5, rel=1e-5)


def test_dequantised_pixels_spread_each_level_over_its_own_bin():
    x = jnp.asarray(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(50, 0))
    smooth = np.asarray(dequantised_pixels(jax.random.split(jax.random.key(0), 50), x))
    np.testing.assert_array_equal(np.floor(smooth * 256).astype(int), x)
    inside = smooth * 256 - np.floor(smooth * 256)
    assert abs(inside.mean() - 0.5) < 4 * np.sqrt(1 / 12 / inside.size)


def test_bits_per_dimension_of_a_uniform_density_is_8():
    assert bits_per_dimension(0.0, 12288) == 8
    assert bits_per_dimension(12288 * np.log(2), 12288) == pytest.approx(7)


def test_importance_weighted_bound_of_a_set_pads_nothing_and_is_no_lower(small):
    faces = small.data.validation
    results = [importance_weighted(small.model, small.params, faces, 5, batch_size=b) for b in (7, 30)]
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    plain = variational_bound(small.model, small.params, faces)
    assert results[0]["iwae"] > plain["bound"] - 4 * plain["bound_stderr"]
    more = importance_weighted(small.model, small.params, faces, 50)
    assert more["iwae"] > results[0]["iwae"] and more["iwae_samples"] == 50
    with pytest.raises(InputError, match="--iwae=0"):
        importance_weighted(small.model, small.params, faces, 0)
