"""The flow prior: a linear velocity against its exact Gaussian, others against SciPy's solvers in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats

from cmma_jax.data.dataset import pixels
from cmma_jax.models import flow
from cmma_jax.models.distributions import Gaussian, sum_event
from cmma_jax.models.flow import Wanted
from cmma_jax.models.model import Model
from cmma_jax.models.objectives import make_flow_loss

J = 4  # two cells of two channels
A = np.asarray([[0.3, 0.7, 0.0, -0.4], [-0.2, -0.5, 0.6, 0.0], [0.5, 0.3, 0.2, -0.3], [0.1, 0.0, 0.4, -0.6]])
B = np.asarray([[0.8, -0.3, 0.0, 0.5], [-0.4, 0.9, 0.3, 0.0], [0.0, 0.2, -0.7, 0.6]])  # of three attributes
C = np.asarray([0.2, -0.5, 0.4, 0.1])  # times t
SCALE = {"mean": jnp.asarray([0.3, -0.6]), "deviation": jnp.asarray([0.5, 1.7])}
MEAN, DEVIATION = np.tile(np.float64(SCALE["mean"]), 2), np.tile(np.float64(SCALE["deviation"]), 2)
PARAMS = {"scale": SCALE}
Y = np.asarray([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
MASK = np.asarray([[True, True, True], [True, False, True], [False, False, False]])


def standard(params, y, mask):
    return Gaussian(jnp.zeros((len(y), J)), jnp.zeros((len(y), J)))


def with_velocity(velocity) -> Model:
    """velocity: (NumPy or its JAX, u [B, J], t [B, 1], seen attributes [B, 3]) -> [B, J]."""
    def of_model(params, u, t, y, mask, keys=None):
        return velocity(jnp, u, t[:, None], jnp.where(mask, y, 0))

    return Model(lambda key: None, J, standard, lambda *_: None, velocity=of_model)


def linear_velocity(xp, u, t, seen):
    a, b, c = (xp.asarray(each, u.dtype) for each in (A, B, C))
    return u @ a.T + seen @ b + t * c[None]


def bent_velocity(xp, u, t, seen):
    a, b, c = (xp.asarray(each, u.dtype) for each in (A, B, C))
    return 1.5 * xp.tanh(2 * (u @ a.T) + seen @ b + t * c[None])


LINEAR, BENT = with_velocity(linear_velocity), with_velocity(bent_velocity)


def exact_gaussian(seen) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of z under the linear velocity: by the exponential of the system of (u, t, 1)."""
    system = np.zeros((J + 2, J + 2))
    system[:J, :J], system[:J, J], system[:J, J + 1], system[J, J + 1] = A, C, seen @ B, 1
    whole = scipy.linalg.expm(system)
    scaled = DEVIATION[:, None] * whole[:J, :J]
    return MEAN + DEVIATION * whole[:J, J + 1], scaled @ scaled.T


def batch(n: int = 1):
    """Three sorts of attributes, n of each."""
    return jnp.asarray(np.repeat(Y, n, 0), jnp.float32), jnp.asarray(np.repeat(MASK, n, 0))


def some_z(n: int, spread: float = 1.0) -> np.ndarray:
    return MEAN + DEVIATION * spread * np.random.default_rng(3).normal(size=(n, J))


def as_jax(a) -> jax.Array:
    return jnp.asarray(a, jnp.float32)


def densities(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """log p(z|y) of 8 z for each sort of attributes, as built and exact."""
    z, (y, mask) = some_z(24), batch(8)
    found = jax.jit(lambda z: flow.log_prior(LINEAR, PARAMS, z, y, mask, steps=steps))(as_jax(z))
    exact = [scipy.stats.multivariate_normal.logpdf(z[i], *exact_gaussian(np.where(MASK, Y, 0)[i // 8]))
             for i in range(24)]
    return np.float64(found), np.asarray(exact)


def test_the_density_of_a_linear_velocity_is_its_gaussian():
    found, exact = densities(100)
    np.testing.assert_allclose(found, exact, atol=2e-3)
    assert np.ptp(exact) > 3


def test_the_solvers_error_falls_with_the_square_of_its_step():
    errors = [np.abs(np.subtract(*densities(steps))).max() for steps in (3, 6, 12)]
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3


def test_the_estimated_density_is_unbiased():
    z, (y, mask), n = as_jax(some_z(3)), batch(), 40_000
    keys = jax.random.split(jax.random.key(4), n)
    drawn = np.float64(jax.jit(jax.vmap(lambda key: flow.log_prior(LINEAR, PARAMS, z, y, mask, key)))(keys))
    exact = jax.jit(lambda: flow.log_prior(LINEAR, PARAMS, z, y, mask))()
    error = drawn.std(0) / n**0.5
    assert (error > 1e-3).all() and (error < 0.01).all() and (np.abs(drawn.mean(0) - exact) < 4 * error).all()


def test_the_density_of_a_bent_velocity_is_that_of_the_change_of_variables():
    """The way and its Jacobian by SciPy's solver, in float64."""
    z, (y, mask) = some_z(3), batch()
    expected = []
    for point, seen in zip(z, np.where(MASK, Y, 0), strict=True):
        def slope(t, state, seen=seen):
            u, jacobian = state[:J], state[J:].reshape(J, J)
            v = bent_velocity(np, u[None], np.full((1, 1), t), seen[None])[0]
            by_u = (1.5 - v**2 / 1.5)[:, None] * 2 * A
            return np.concatenate([v, (by_u @ jacobian).ravel()])

        u = (point - MEAN) / DEVIATION
        way = scipy.integrate.solve_ivp(slope, (1, 0), np.concatenate([u, np.eye(J).ravel()]), rtol=1e-9, atol=1e-9)
        start, jacobian = way.y[:J, -1], way.y[J:, -1].reshape(J, J)
        expected.append(scipy.stats.norm.logpdf(start).sum() + np.linalg.slogdet(jacobian / DEVIATION)[1])
    found = jax.jit(lambda z: flow.log_prior(BENT, PARAMS, z, y, mask, steps=100))(as_jax(z))
    np.testing.assert_allclose(found, expected, atol=3e-3)


def test_without_a_velocity_the_density_is_the_gaussian_priors(small):
    x, y, mask = faces(small)
    p = small.gaussian.prior(small.params, y, mask)
    z = p.sample(jax.random.key(1))
    expected = scipy.stats.norm.logpdf(z, p.mean, np.exp(p.logvar / 2)).sum(1)
    np.testing.assert_allclose(flow.log_prior(small.gaussian, small.params, z, y, mask), expected, rtol=1e-4)
    drawn = flow.draw(small.gaussian, small.params, jax.random.key(0), y, mask)
    np.testing.assert_allclose(drawn, p.sample(jax.random.key(0)), rtol=1e-5, atol=1e-5)


@functools.partial(jax.jit, static_argnames=("n", "steps", "own"))
def drawn(n, temperature=1.0, guidance=None, steps=30, own=False):
    y, mask = batch(n)
    return flow.draw(LINEAR, PARAMS, jax.random.key(2), y, mask, temperature, guidance, steps).reshape(3, n, J)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("guidance", [None, 2.5])
def test_draws_have_the_mean_and_the_covariance_of_the_exact_gaussian(temperature, guidance):
    """Guidance of scale w is the flow of w times what the attributes add to this velocity."""
    n = 20_000
    for found, seen in zip(np.float64(drawn(n, temperature, guidance)), np.where(MASK, Y, 0), strict=True):
        mean, covariance = exact_gaussian((guidance or 1) * seen)
        covariance = temperature**2 * covariance
        variances = np.diag(covariance)
        assert (np.abs(found.mean(0) - mean) < 4 * np.sqrt(variances / n) + 1e-3).all()
        error = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
        assert (np.abs(np.cov(found.T) - covariance) < 4 * error + 1e-3).all()


def test_a_temperature_of_0_is_where_the_noises_mean_is_carried():
    found = drawn(2, 0.0, steps=100)
    for each, seen in zip(found, np.where(MASK, Y, 0), strict=True):
        np.testing.assert_allclose(each, np.broadcast_to(exact_gaussian(seen)[0], (2, J)), atol=1e-3)


def test_guidance_of_1_is_the_plain_velocity_to_the_bit(small):
    x, y, mask = faces(small, 12)
    keys = jax.random.split(jax.random.key(1), 12)
    draw = jax.jit(lambda guidance: flow.draw(small.model, small.params, keys, y, mask, guidance=guidance))
    plain = draw(None)
    np.testing.assert_array_equal(draw(jnp.float32(1.0)), plain)
    assert (jnp.abs(draw(jnp.float32(2.0)) - plain).max(1) > 1e-3).sum() >= 11


def test_each_example_has_its_own_guidance(small):
    x, y, mask = faces(small, 3)
    keys = jax.random.split(jax.random.key(1), 3)
    draw = jax.jit(lambda guidance: flow.draw(small.model, small.params, keys, y, mask, guidance=guidance))
    scales = jnp.array([1.0, 2.0, 4.0])
    found = draw(scales)
    for i, scale in enumerate(scales):
        np.testing.assert_allclose(found[i], draw(scale)[i], rtol=1e-4, atol=1e-5)


def test_guidance_of_0_forgets_the_attributes(small):
    x, y, mask = faces(small, 6)
    draw = jax.jit(lambda y, mask, guidance: flow.draw(small.model, small.params, jax.random.key(1), y, mask,
                                                       guidance=guidance))
    np.testing.assert_allclose(draw(y, mask, 0.0), draw(y, mask & False, 1.0), rtol=1e-4, atol=1e-5)


def test_a_faces_draw_does_not_depend_on_its_batch(small):
    x, y, mask = faces(small, 6)
    keys = jax.random.split(jax.random.key(0), 6)
    draw = jax.jit(functools.partial(flow.draw, small.model, small.params))
    np.testing.assert_allclose(draw(keys[2:4], y[2:4], mask[2:4]), draw(keys, y, mask)[2:4], rtol=1e-4, atol=1e-5)


def test_a_transport_under_equal_attributes_or_of_weight_0_returns_where_it_began(small):
    x, y, mask = faces(small, 6)
    z = small.model.prior(small.params, y, mask).sample(jax.random.key(0))
    old, new = Wanted(y, mask), Wanted(1 - y, jnp.ones_like(mask))

    @jax.jit
    def transport(new, weight):
        return flow.transport(small.model, small.params, z, old, new, lambda _: jnp.full((6, 1), weight))

    np.testing.assert_allclose(transport(new, 0.0), z, atol=1e-5)
    np.testing.assert_allclose(transport(old, 3.0), z, atol=1e-5)
    assert (jnp.abs(transport(new, 3.0) - z).max(1) > 0.01).all()


@pytest.mark.parametrize("weight", [lambda _: 0.5, lambda _: 1.0, lambda _: 3.0, lambda change: 2 * change])
def test_a_transport_is_the_way_to_the_noise_and_back_by_the_weighted_velocity(weight):
    """The weight is one of how far apart, halfway, the velocities under new and old attributes are."""
    z, (_, mask) = some_z(3), batch()
    old, new = (Wanted(as_jax(a), m) for a, m in ((Y, mask), (1 - Y, ~mask)))
    seen, wanted = np.where(MASK, Y, 0), np.where(~MASK, 1 - Y, 0)

    def under_old(t, u):
        return bent_velocity(np, u.reshape(3, J), np.full((3, 1), t), seen).ravel()

    def apart(t, u):
        return (bent_velocity(np, u.reshape(3, J), np.full((3, 1), t), wanted).ravel() - under_old(t, u)).reshape(3, J)

    def solve(slope, times, u):
        return scipy.integrate.solve_ivp(slope, times, u, rtol=1e-9, atol=1e-9, dense_output=True)

    there = solve(under_old, (1, 0), ((z - MEAN) / DEVIATION).ravel())
    scale = np.broadcast_to(weight(np.sqrt(np.square(apart(0.5, there.sol(0.5))).mean(1, keepdims=True))), (3, 1))
    back = solve(lambda t, u: under_old(t, u) + (scale * apart(t, u)).ravel(), (0, 1), there.y[:, -1])
    u = back.y[:, -1]
    expected = MEAN + DEVIATION * u.reshape(3, J)
    found = jax.jit(lambda z: flow.transport(BENT, PARAMS, z, old, new, weight, steps=200))(as_jax(z))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(expected - z).max() > 0.1


def test_the_noise_of_a_latent_is_scipys_and_leads_back_to_it():
    z, (y, mask) = some_z(3), batch()
    wanted, seen = Wanted(y, mask), np.where(MASK, Y, 0)
    way = scipy.integrate.solve_ivp(
        lambda t, u: bent_velocity(np, u.reshape(3, J), np.full((3, 1), t), seen).ravel(), (1, 0),
        ((z - MEAN) / DEVIATION).ravel(), rtol=1e-9, atol=1e-9)
    noise = jax.jit(lambda z: flow.to_noise(BENT, PARAMS, z, wanted, steps=200))(as_jax(z))
    np.testing.assert_allclose(noise, way.y[:, -1].reshape(3, J), atol=2e-3)
    back = jax.jit(lambda noise: flow.from_noise(BENT, PARAMS, noise, wanted, steps=200))(noise)
    np.testing.assert_allclose(back, z, atol=2e-3)


COVARIANCE = np.asarray([[0.6, 0.3, 0.0, 0.1], [0.3, 0.9, -0.2, 0.0], [0.0, -0.2, 0.4, 0.1], [0.1, 0.0, 0.1, 1.2]])
SHIFT = np.asarray([0.4, -0.3, 0.2, 0.0])


def test_the_exact_conditional_velocity_has_the_least_matching_error():
    """Of Gaussian latents u it is E[u - e | (1 - t) e + t u]: there the mean gradient is zero, nearby it is not."""
    n = 20_000
    rng = np.random.default_rng(5)
    z = as_jax(MEAN + DEVIATION * rng.multivariate_normal(SHIFT, COVARIANCE, n))
    y, mask, keys = jnp.zeros((1, 3)), jnp.ones((1, 3), bool), jax.random.split(jax.random.key(6), n)

    def velocity(params, u, t, y, mask, keys=None):
        t, cov, eye = t[0], as_jax(COVARIANCE), jnp.eye(J)
        gain = (t * cov - (1 - t) * eye) @ jnp.linalg.inv((1 - t)**2 * eye + t**2 * cov)
        exact = as_jax(SHIFT)[None] + (u - t * as_jax(SHIFT)[None]) @ gain.T
        return exact + u @ params["matrix"] + params["shift"][None]

    model = LINEAR._replace(velocity=velocity)

    @jax.jit
    def gradients(matrix, shift):
        def error(moved, key, z):
            return flow.matching(model, PARAMS | moved, key[None], z[None], y, mask)[0]

        found = jax.vmap(jax.grad(error), (None, 0, 0))({"matrix": matrix, "shift": shift}, keys, z)
        return jnp.concatenate([found["matrix"].reshape(n, -1), found["shift"]], 1)

    found = np.float64(gradients(jnp.zeros((J, J)), jnp.zeros(J)))
    assert (np.abs(found.mean(0)) < 4.5 * found.std(0) / n**0.5).all()
    off = np.float64(gradients(0.1 * jnp.eye(J), jnp.full(J, 0.1)))
    assert (np.abs(off.mean(0)) > 4.5 * off.std(0) / n**0.5).sum() >= 6


def test_the_matching_error_is_the_mean_square_over_latents_at_logit_normal_times():
    n, seen = 4000, {}
    z, y, mask = as_jax(some_z(n)), jnp.zeros((n, 3)), jnp.ones((n, 3), bool)

    def velocity(params, u, t, y, mask, keys=None):
        seen.update(t=t, u=u, keys=keys)
        return jnp.zeros_like(u)

    keys = jax.random.split(jax.random.key(0), n)
    errors = flow.matching(LINEAR._replace(velocity=velocity), PARAMS, keys, z, y, mask)
    t = np.float64(seen["t"])
    assert t.shape == (n,) and seen["keys"] is None
    assert scipy.stats.kstest(np.log(t / (1 - t)), "norm").pvalue > 1e-3
    ends = (np.float64(z) - MEAN) / DEVIATION
    noise = (np.float64(seen["u"]) - t[:, None] * ends) / (1 - t[:, None])
    assert scipy.stats.kstest(noise[t < 0.9].ravel(), "norm").pvalue > 1e-3
    np.testing.assert_allclose(errors[t < 0.9], np.square(ends - noise).mean(1)[t < 0.9], rtol=1e-3)
    flow.matching(LINEAR._replace(velocity=velocity), PARAMS, keys, z, y, mask, dropout=True)
    assert seen["keys"].shape == (n,)


def faces(small, n=6):
    few = small.data.validation
    return pixels(jnp.asarray(few.x[:n])), jnp.asarray(few.y[:n]), jnp.asarray(few.mask[:n])


def test_the_flows_loss_trains_the_flow_alone(small):
    x, y, mask = faces(small)
    keys, loss = jax.random.split(jax.random.key(0), len(x)), make_flow_loss(small.model, 0.1, 0.3)
    gradients = jax.jit(jax.grad(lambda params: loss(params, keys, x, y, mask)[0].mean()))(small.params)
    for name, tree in gradients.items():
        moved = [float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(tree)]
        assert all(moved) if name == "flow" else name == "scale" or not any(moved), name


def test_attributes_are_hidden_from_the_flow_alone_and_units_dropped_where_asked():
    n, seen = 300, []

    def posterior(params, x, y, mask):
        return Gaussian(jnp.where(mask, y, 9.0), jnp.full_like(y, -1.0))

    def velocity(params, u, t, y, mask, keys=None):
        seen.append((u, mask, keys))
        return jnp.zeros_like(u)

    model = LINEAR._replace(posterior=posterior, velocity=velocity)
    params = {"scale": {"mean": jnp.zeros(1), "deviation": jnp.ones(1)}}
    y, mask = batch(n // 3)
    keys = jax.random.split(jax.random.key(0), n)
    errors = [make_flow_loss(model, *hidden)(params, keys, y, y, mask)[0] for hidden in ((), (0.2, 0.5, True))]
    np.testing.assert_array_equal(errors[0], errors[1])  # the encoder sees the same, so that z is the same
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    np.testing.assert_array_equal(seen[0][1], mask)
    assert seen[0][2] is None and seen[1][2].shape == (n,)
    assert not (seen[1][1] & ~mask).any()
    kept, known = float(seen[1][1].sum() / mask.sum()), int(mask.sum())
    assert abs(kept - (1 - 0.2 - 0.5 / 2)) < 8 * (0.25 / known)**0.5  # of some faces a uniform share is kept


def test_the_solver_keeps_float32_whatever_the_networks_precision(small):
    half, _ = small.variant(precision="bfloat16")
    x, y, mask = faces(small)
    dtypes = set()

    def velocity(params, u, t, y, mask, keys=None):
        dtypes.update((u.dtype, t.dtype))
        found = half.velocity(params, u, t, y, mask)
        dtypes.add(found.dtype)
        return found

    model = half._replace(velocity=velocity)
    z = half.prior(small.params, y, mask).mean
    old, new = Wanted(y, mask), Wanted(1 - y, mask)
    made = jax.eval_shape(lambda: (
        flow.draw(model, small.params, jax.random.key(0), y, mask, guidance=2.0, steps=200),
        flow.transport(model, small.params, z, old, new, jnp.ones_like, steps=200),
        flow.log_prior(model, small.params, z, y, mask, jax.random.key(0), steps=200)))
    assert dtypes == {np.dtype("float32")} == {a.dtype for a in made}
    assert sum_event(z).dtype == np.float32
