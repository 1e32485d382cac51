"""What measuring a flow takes: the solver's error where the solution is known, and a bound that was stopped."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from cmma_jax.data.dataset import Faces, pixels, spread
from cmma_jax.evaluation import flows
from cmma_jax.models.distributions import Gaussian, row_keys, split_each, standard_normal
from cmma_jax.training import bounds
from cmma_jax.training.bounds import variational_bound

RATE = -1.5


def linear(model):
    """The model with du/dt = RATE u, and pixels that are latents: both solutions are known."""
    def likelihood(params, z, y, mask):
        return Gaussian(0.5 + 0.01 * z, jnp.zeros_like(z))

    return model._replace(velocity=lambda params, u, t, y, mask, keys=None: RATE * u, likelihood=likelihood)


def growth(steps):
    """What a unit becomes by Heun's method, from 0 to 1 and from 1 to 0."""
    a = RATE / steps
    return (1 + a + a**2 / 2) ** steps, (1 - a + a**2 / 2) ** steps


def test_the_solvers_error_is_that_of_heuns_method_on_a_linear_flow(small):
    pixel_error, nats = flows.solver_error(linear(small.model), small.params, small.data.validation, 2)
    z, noise = draws(small, spread(small.data.validation, 4))
    deviation = np.tile([0.8, 1.3], 16)
    forward, backward = (np.array([growth(steps)[i] for steps in (2, 8)]) for i in range(2))
    moved = 0.01 * np.abs(forward[0] - forward[1]) * np.abs(deviation * noise)
    assert pixel_error == pytest.approx(moved.mean(), rel=1e-4)  # none is beyond [0, 1]
    u = (z - np.tile([0.3, -0.2], 16)) / deviation
    squares = np.square(u).sum(1) * (backward[0] ** 2 - backward[1] ** 2) / 2
    assert nats == pytest.approx(np.abs(squares).mean(), rel=1e-3)  # the trace of both is the same


def draws(small, few):
    """The latents of faces and the noise of samples, of keys that are a row's alone: [4, J] each."""
    noise_key, latent_key, _ = split_each(row_keys(0, np.arange(4)), 3)
    q = small.model.posterior(small.params, pixels(jnp.asarray(few.x)), few.y, few.mask)
    return np.asarray(q.sample(latent_key), np.float64), np.asarray(standard_normal(noise_key, (4, 32)), np.float64)


def test_a_stopped_bound_goes_on_and_ends_the_same(small, tmp_path, monkeypatch):
    """Ten faces in batches of four: a line cut short is done again, the others are not, and the figures are equal."""
    faces, save = Faces(*(a[:10] for a in small.data.validation)), tmp_path / "bound.jsonl"
    how = {"batch_size": 4, "steps": 2}
    whole = variational_bound(small.model, small.params, faces, **how)
    assert variational_bound(small.model, small.params, faces, save=save, **how) == whole
    lines = save.read_text().splitlines(keepends=True)
    assert len(lines) == 10
    measured, real = [], bounds._batch_terms
    monkeypatch.setattr(bounds, "_batch_terms", lambda *a: measured.append(a[5][0]) or real(*a))
    save.write_text("".join(lines[8:] + lines[:4]) + lines[4][:40])
    assert variational_bound(small.model, small.params, faces, save=save, **how) == whole
    assert measured == [4]
    assert variational_bound(small.model, small.params, faces, save=save, **how) == whole and measured == [4]
    save.write_text(lines[0].replace("[0, [", "[0, [1.0, "))  # of another number of figures: not taken for these
    assert variational_bound(small.model, small.params, faces, save=save, **how) == whole


def test_bits_are_those_of_the_bytes_probability(small):
    """From the reconstruction and the KL by hand: log P = bound - D ln 255, in bits a value."""
    found = variational_bound(small.gaussian, small.params, small.data.validation)
    log_mass = found["bound"] - 768 * math.log(255)
    assert found["bits_per_dim"] == pytest.approx(-log_mass / 768 / math.log(2), rel=1e-9)
    assert found["bits_per_dim_stderr"] == pytest.approx(found["bound_stderr"] / 768 / math.log(2), rel=1e-9)


@pytest.mark.parametrize("seconds, words", [(0.4, "0 s"), (99, "99 s"), (720, "12 min"), (5999, "100 min"),
                                            (12600, "3.5 h")])
def test_a_time_in_words(seconds, words):
    assert flows.in_words(seconds) == words
