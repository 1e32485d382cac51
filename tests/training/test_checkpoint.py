"""Checkpoints hold everything, keep the right ones, and say what is wrong."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cmma_jax.errors import InputError
from cmma_jax.training import checkpoint
from cmma_jax.training.checkpoint import open_checkpoints
from cmma_jax.training.config import Config
from cmma_jax.training.step import TrainState, make_optimizer


@pytest.fixture
def state(small):
    optimizer, _ = make_optimizer(Config(epochs=1), 10)
    return TrainState(jnp.int32(0), small.params, optimizer.init(small.params))


def save_all(folder, state, small, bounds):
    with open_checkpoints(folder) as checkpoints:
        for step, bound in bounds.items():
            params = jax.tree.map(lambda a, step=step: a + step, state.params)
            checkpoints.save(state._replace(step=jnp.int32(step), params=params), small.config, small.data.spec,
                             {"score": bound})


def test_state_config_and_data_description_come_back_exactly(tmp_path, state, small):
    save_all(tmp_path / "c", state, small, {7: 1.5})
    with open_checkpoints(tmp_path / "c") as checkpoints:
        restored = checkpoints.restore(state)
        config, spec, metrics = checkpoints.facts()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    expected = state._replace(step=jnp.int32(7), params=jax.tree.map(lambda a: a + 7, state.params))
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    assert config == small.config and isinstance(config, Config) and metrics == {"score": 1.5}
    assert spec.to_json() == small.data.spec.to_json()
    np.testing.assert_array_equal(spec.mean_face, small.data.spec.mean_face)


def test_the_latest_two_and_the_best_are_kept(tmp_path, state, small):
    save_all(tmp_path / "c", state, small, {1: 0.0, 2: 9.0, 3: 5.0, 4: 6.0, 5: 7.0})
    with open_checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.best_step() == 2
        best = checkpoints.restore(state, 2)
    np.testing.assert_array_equal(best.params["f"]["mean"]["bias"], state.params["f"]["mean"]["bias"] + 2)


def test_no_checkpoint_says_to_train(tmp_path, state):
    with open_checkpoints(tmp_path / "c") as checkpoints, pytest.raises(InputError, match="train first"):
        checkpoints.restore(state)


def test_another_models_checkpoint_is_refused_by_name(tmp_path, state, small):
    save_all(tmp_path / "c", state, small, {1: 0.0})
    other = state._replace(params=state.params | {"extra": jnp.zeros(3)})
    with open_checkpoints(tmp_path / "c") as checkpoints, pytest.raises(InputError, match="cannot be restored"):
        checkpoints.restore(other)


def test_a_save_that_never_ends_is_given_up(tmp_path, state, small, monkeypatch):
    class Hangs:
        def result(self, timeout=None):
            assert not threading.Event().wait(10 if timeout is None else min(timeout, 10))
            raise TimeoutError

        def cancel(self):
            pass

    async def serialize(*_):
        return [Hangs()]

    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 1)
    monkeypatch.setattr(ocp.type_handlers.NumpyHandler, "serialize", serialize)
    with pytest.raises(InputError, match="timed out after [12].* give the same command again"):
        save_all(tmp_path / "c", state, small, {1: 0.0})
    monkeypatch.undo()
    save_all(tmp_path / "c", state, small, {2: 0.0})
    with open_checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps() == [2]


def test_a_save_is_never_left_out_because_its_step_is_not_above_the_last(tmp_path, state, small):
    save_all(tmp_path / "c", state, small, {5: 1.0})
    save_all(tmp_path / "c", state, small, {3: 2.0})
    with open_checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps() == [3, 5] and checkpoints.best_step() == 3
