"""Steps: against a hand-written optimiser, on several devices, and stopped and started again."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from cmma_jax.data.dataset import Faces, mirror_some
from cmma_jax.errors import InputError
from cmma_jax.models.objectives import make_flow_loss, make_loss
from cmma_jax.training import parallel
from cmma_jax.training.config import Config
from cmma_jax.training.step import MUON_RMS, begin, fit, make_later_optimizer, make_optimizer, make_step

ROUNDING = 5e-6  # after some steps, which magnify it; other noise is seen at 1e-2


def settings(**more):
    """One epoch of Adagrad at a constant rate, unclipped, unless said otherwise."""
    return Config(**{"epochs": 1, "optimizer": "adagrad", "schedule": "constant", "warmup_steps": 0, "clip_norm": 0.0,
                     **more})


OPTIMIZER, _ = make_optimizer(settings(learning_rate=0.05, warmup_steps=4, clip_norm=1.0), 24)


def regression(params, keys, x, y, mask):
    """A loss that is soon compiled: noise, drawn from each example's key, and attributes from pixels."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)
    found = jnp.tanh(x.reshape(len(x), -1) @ params["pixels"] / 30 + jnp.where(mask, y, 0) @ params["attributes"])
    losses = jnp.square(found - noise).mean(-1) + jnp.square(params["pixels"]).sum()
    return losses, {"draws": noise[:, 0], "squares": jnp.square(noise[:, 0])}


def params():
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(0.1 * rng.normal(size=(size, 3)), jnp.float32)
            for name, size in (("pixels", 768), ("attributes", 5))}


@functools.cache
def compiled(devices, how):
    """A step of that, compiled once for all tests."""
    placement = parallel.place(devices, how, 16)
    return placement, make_step(regression, OPTIMIZER, 5, 16, True, placement)


def train(small, devices=1, how="pmap", epochs=4, state=None, loss=None, calls=3, faces=None, stop=24):
    """24 steps of training, or to `stop`, all but the first 4 at the full rate; given faces, they are streamed."""
    state = begin(params(), OPTIMIZER) if state is None else state
    placement, run = compiled(devices, how)
    if loss:
        run = make_step(loss, OPTIMIZER, 5, 16, True, placement)
    every = []
    steps = fit(run, state, faces or small.data.train, placement, 5, 16, epochs, calls, on_device=faces is None)
    with contextlib.closing(steps):
        for now, means in steps:
            last = jax.tree.map(np.array, placement.get(now))
            every.append(means)
            if last.step >= stop:
                break
    return last, {name: np.concatenate([means[name] for means in every]) for name in every[0]}


@pytest.fixture(scope="module")
def one_device(small):
    return train(small)


def assert_close(a, b, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance), a, b)


def test_training_lowers_the_loss(one_device):
    _, means = one_device
    assert means["loss"][-6:].mean() < means["loss"][:6].mean() / 2
    assert means["loss"].shape == (24,)


@pytest.mark.parametrize("how", ["pmap", "mesh"])
@pytest.mark.parametrize("devices", [2, 4])
def test_several_devices_train_the_same_model_as_one(small, one_device, how, devices):
    state, means = train(small, devices, how)
    assert_close(state.params, one_device[0].params, ROUNDING)
    np.testing.assert_allclose(means["loss"], one_device[1]["loss"], rtol=1e-5)


@pytest.fixture(scope="module")
def maps(small, tmp_path_factory):
    """The training faces as memory maps."""
    folder = tmp_path_factory.mktemp("maps")
    for name, a in small.data.train._asdict().items():
        np.save(folder / f"{name}.npy", a)
    return Faces(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in Faces._fields))


def test_streamed_faces_train_the_same_model_bit_for_bit(small, one_device, maps):
    state, means = train(small, faces=maps)
    assert_close(state, one_device[0], 0)
    jax.tree.map(np.testing.assert_array_equal, means, one_device[1])


@pytest.mark.parametrize("devices, how", [(2, "pmap"), (4, "mesh")])
def test_faces_streamed_to_several_devices_train_the_same_model(small, one_device, maps, devices, how):
    state, means = train(small, devices, how, faces=maps)
    assert_close(state.params, one_device[0].params, ROUNDING)
    np.testing.assert_allclose(means["loss"], one_device[1]["loss"], rtol=1e-5)


def test_streaming_goes_on_from_any_step_bit_for_bit(small, one_device, maps):
    """Step 9 is in the middle of an epoch of 6, and the steps after it are streamed, or those before it."""
    for before, after in ((None, maps), (maps, None), (maps, maps)):
        part, first = train(small, faces=before, stop=9)
        assert int(part.step) == 9
        whole, second = train(small, faces=after, state=part)
        assert_close(whole, one_device[0], 0)
        np.testing.assert_array_equal(np.concatenate([first["loss"], second["loss"]]), one_device[1]["loss"])


def test_calls_of_any_length_take_the_same_steps(small, one_device):
    state, means = train(small, calls=2)
    assert_close(state.params, one_device[0].params, 0)
    np.testing.assert_array_equal(means["loss"], one_device[1]["loss"])


def test_half_the_epochs_and_then_the_rest_are_the_whole_bit_for_bit(small, one_device):
    half, first = train(small, epochs=2)
    whole, second = train(small, epochs=4, state=half)
    assert int(half.step) == 12 and int(whole.step) == 24
    assert_close(whole, one_device[0], 0)
    np.testing.assert_array_equal(np.concatenate([first["loss"], second["loss"]]), one_device[1]["loss"])


@pytest.mark.parametrize("stage, devices, how", [(1, 4, "mesh"), (2, 2, "pmap")])
def test_several_devices_train_the_same_networks_as_one(small, stage, devices, how):
    """Both stages' losses; the second's with its average, and the first's parameters, of which no bit changes.

    Not by adam: where a gradient is 0 but for rounding, as of a bias before a norm, its first steps are of full length.
    """
    first = {name: small.params[name] for name in ("f", "g", "h", "h2")}
    start, frozen, average, loss = {
        1: (first, (), 0.0, make_loss(small.gaussian, 0.3, 1.0)),
        2: ({"flow": small.params["flow"]}, first | {"scale": small.params["scale"]}, 0.9995,
            make_flow_loss(small.model, 0.1, 0.3, dropout=True))}[stage]
    optimizer, results = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.5)), []
    for count in (1, devices):
        placement = parallel.place(count, how, 16)
        state = jax.tree.map(np.array, begin(start, optimizer, average, frozen))
        step = make_step(loss, optimizer, 5, 16, True, placement, average, stage)
        for now, means in fit(step, state, small.data.train, placement, 5, 16, 1, 3):
            last = jax.tree.map(np.array, placement.get(now)), means["loss"]
        results.append(last)
    (one, losses), (several, others) = results
    assert int(one.step) == 6 and one.whole.keys() == (first if stage == 1 else small.params).keys()
    jax.tree.map(np.testing.assert_array_equal, several.frozen, frozen)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one.params, start)), strict=True)) > 1e-3
    for a, b in ((several.params, one.params), (several.moving, one.moving)):
        assert_close(a, b, ROUNDING)
    np.testing.assert_allclose(others, losses, rtol=1e-5)


def test_another_stage_has_other_noise(small):
    placement, seen = parallel.place(1, "pmap", 16), []

    def loss(params, keys, x, y, mask):
        return jnp.zeros(16), {"draws": jax.vmap(jax.random.uniform)(keys)}

    for stage in (1, 2):
        step = make_step(loss, optax.sgd(0.0), 5, 16, False, placement, 0.0, stage)
        state = begin({"a": jnp.zeros(1)}, optax.sgd(0.0))
        for _, means in fit(step, state, small.data.train, placement, 5, 16, 1, 6):
            seen.extend(means["draws"])
    assert len(seen) == len(set(seen)) == 12


def test_a_loss_that_is_not_finite_names_its_step(small):
    def loss(moving, *args):
        losses, terms = regression(moving, *args)
        return jnp.where((moving["pixels"] == params()["pixels"]).all(), losses, jnp.nan), terms

    with pytest.raises(InputError, match=r"nan at step 2.*--learning_rate"):
        train(small, loss=loss)


def test_every_step_and_every_example_has_its_own_noise(one_device):
    _, means = one_device
    assert len(np.unique(means["draws"])) == 24
    assert (means["squares"] - means["draws"]**2 > 0.01).all()


def test_adagrad_is_torchs():
    """Accumulator from 0, update g / (sqrt(sum of g^2) + eps): the first step is the learning rate itself."""
    optimizer, rate = make_optimizer(settings(learning_rate=0.1), 100)
    params, total = jnp.asarray([1.0, -2.0]), np.zeros(2)
    state, expected = optimizer.init(params), np.asarray([1.0, -2.0])
    for i in range(5):
        gradient = np.asarray([0.01 * (i + 1), -3.0])
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        total += gradient**2
        expected = expected - 0.1 * gradient / (np.sqrt(total) + 1e-10)
        np.testing.assert_allclose(params, expected, rtol=1e-5)
        assert float(rate(i)) == pytest.approx(0.1)


def test_learning_rate_warms_up_and_falls():
    _, rate = make_optimizer(settings(optimizer="adam", learning_rate=1e-3, schedule="cosine", warmup_steps=10), 110)
    values = np.asarray([float(rate(i)) for i in range(111)])
    np.testing.assert_allclose(values[:10], 1e-4 + np.arange(10) * 9e-5, rtol=1e-5)
    assert values.argmax() == 10 and values[10] == pytest.approx(1e-3) and values[110] == pytest.approx(0, abs=1e-9)
    assert values[60] == pytest.approx(5e-4, rel=1e-3)


def test_the_flows_optimiser_moves_matrices_of_blocks_along_the_nearest_orthogonal_one():
    """Against SciPy's polar factor; whatever else there is makes Adam's first step, with Nesterov's momentum."""
    optimizer, rate = make_later_optimizer(settings(warmup_steps=2), 0.1, 10)
    assert float(rate(0)) == pytest.approx(0.05) and float(rate(9)) == pytest.approx(0.1)
    rng = np.random.default_rng(0)
    shapes = {"flow": {"block0": {"heard": {"kernel": (12, 20)}, "modulation": {"bias": (20,)}}, "places": (4, 8)},
              "detail": {"block0": {"known": {"kernel": (6, 6)}}}}
    gradients = jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32) * 1e-3, shapes,
                             is_leaf=lambda shape: isinstance(shape, tuple))
    params = jax.tree.map(jnp.zeros_like, gradients)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    matrix, bias = updates["flow"]["block0"]["heard"]["kernel"], updates["flow"]["block0"]["modulation"]["bias"]
    nearest = -scipy.linalg.polar(np.asarray(gradients["flow"]["block0"]["heard"]["kernel"], np.float64))[0]
    assert (matrix * nearest).sum() / (np.linalg.norm(matrix) * np.linalg.norm(nearest)) > 0.97
    values = np.linalg.svd(matrix, compute_uv=False) / (0.05 * MUON_RMS * np.sqrt(20))
    assert values.min() > 0.6 and values.max() < 1.3  # five steps of Newton and Schulz leave them about 1
    for name, found, gradient in (("bias", bias, gradients["flow"]["block0"]["modulation"]["bias"]),
                                  ("places", updates["flow"]["places"], gradients["flow"]["places"]),
                                  ("detail", *(tree["detail"]["block0"]["known"]["kernel"]
                                               for tree in (updates, gradients)))):
        np.testing.assert_allclose(found, -0.05 * (1 + 0.9 / 1.9) * np.sign(gradient), rtol=1e-3, err_msg=name)


def test_the_details_kernels_move_as_matrices_from_all_that_an_output_sees():
    """A kernel [3, 3, C, C] of a block as [9 C, C]; those outside blocks, and a layer of what is known, do not."""
    optimizer, _ = make_later_optimizer(settings(warmup_steps=2), 0.1, 10)
    rng = np.random.default_rng(0)
    shapes = {"entrance": {"kernel": (3, 3, 4, 6)}, "block0": {"conv0": {"kernel": (3, 3, 6, 6)},
                                                               "known": {"kernel": (5, 12)}}}
    gradients = {"detail": jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32) * 1e-3, shapes,
                                        is_leaf=lambda shape: isinstance(shape, tuple))}
    params = jax.tree.map(jnp.zeros_like, gradients)
    updates = optimizer.update(gradients, optimizer.init(params), params)[0]["detail"]
    kernel = np.asarray(updates["block0"]["conv0"]["kernel"], np.float64).reshape(54, 6)
    flat = np.asarray(gradients["detail"]["block0"]["conv0"]["kernel"], np.float64).reshape(54, 6)
    nearest = -scipy.linalg.polar(flat)[0]
    assert (kernel * nearest).sum() / (np.linalg.norm(kernel) * np.linalg.norm(nearest)) > 0.97
    values = np.linalg.svd(kernel, compute_uv=False) / (0.05 * MUON_RMS * np.sqrt(54))
    assert values.min() > 0.6 and values.max() < 1.3
    for name in (("entrance",), ("block0", "known")):
        found, gradient = updates, gradients["detail"]
        for key in (*name, "kernel"):
            found, gradient = found[key], gradient[key]
        np.testing.assert_allclose(found, -0.05 * (1 + 0.9 / 1.9) * np.sign(gradient), rtol=1e-2, err_msg=str(name))


def test_weight_decay_is_of_those_matrices_alone():
    optimizer, _ = make_later_optimizer(settings(warmup_steps=2), 0.1, 10)
    params = {"flow": {"block0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "places": jnp.ones((2, 2))}}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["flow"]["block0"]["kernel"], -0.05 * 0.01, rtol=1e-5)
    np.testing.assert_array_equal(updates["flow"]["block0"]["bias"], 0)
    np.testing.assert_array_equal(updates["flow"]["places"], 0)


def test_the_average_is_of_the_parameters_that_the_steps_move(small):
    """Against the steps without it, which are the same, and the sum of the weights written out."""
    optimizer, _ = make_optimizer(settings(learning_rate=0.05), 24)
    placement = parallel.place(1, "pmap", 16)
    states = {}
    for average in (0.0, 0.6):
        state = jax.tree.map(np.array, begin(params(), optimizer, average))
        run = make_step(regression, optimizer, 5, 16, True, placement, average)
        states[average] = [jax.tree.map(np.asarray, placement.get(now)) for now, _ in
                           fit(run, state, small.data.train, placement, 5, 16, 2, 1)]
    expected = params()
    for i, (plain, averaged) in enumerate(zip(states[0.0], states[0.6], strict=True)):
        assert_close(averaged.moving, plain.params, 1e-6)
        keep = min(0.6, (1 + i) / (10 + i))
        expected = jax.tree.map(lambda old, new, keep=keep: keep * old + (1 - keep) * new, expected, plain.params)
        assert_close(averaged.params, expected, 1e-5)
    assert i == 11 and keep == 12 / 21 and states[0.0][0].moving == ()


def test_gradients_are_clipped_before_the_optimiser_sees_them():
    optimizer, _ = make_optimizer(settings(learning_rate=1.0, clip_norm=1.0), 10)
    params = jnp.zeros(2)
    _, state = optimizer.update(jnp.asarray([3e5, 4e5]), optimizer.init(params), params)
    sums = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2,)]
    np.testing.assert_allclose(sums[0], [0.36, 0.64], rtol=1e-5)


def test_half_of_the_faces_are_mirrored():
    x = jnp.arange(2.0)[None, None, :, None] * jnp.ones((4000, 1, 1, 3))
    turned = np.asarray(mirror_some(jax.random.split(jax.random.key(0), 4000), x))[:, 0, 0, 0]
    assert set(turned) == {0.0, 1.0}
    assert abs(turned.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize("devices, batch, group, words", [
    (8, 16, 1, "sees 4"), (3, 16, 1, "not divided by 3 devices; try --batch_size=15"),
    (3, 100, 4, "into the groups of 4 faces .*; try --batch_size=96"), (3, 9, 4, "try --batch_size=12")])
def test_devices_that_are_not_there_or_do_not_divide_the_batch(devices, batch, group, words):
    with pytest.raises(InputError, match=words):
        parallel.place(devices, "pmap", batch, group)
