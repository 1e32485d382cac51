"""A run's stages: what each has of those before, which epochs may grow, and what a run without a later one is."""

import dataclasses
import json
import shutil
import zlib

import jax
import numpy as np
import pytest

from cmma_jax.errors import InputError, Interrupted
from cmma_jax.models.distributions import row_keys
from cmma_jax.training import parallel, stages
from cmma_jax.training.checkpoint import open_checkpoints
from cmma_jax.training.config import DETAIL, FIRST, FLOW, Config
from cmma_jax.training.records import read_metrics
from cmma_jax.training.runs import find_runs, load_run
from cmma_jax.training.stages import Watcher, train_run

THREE = {"likelihood": "gaussian", "detail_width": 8, "detail_blocks": 1, "detail_epochs": 2}


def train(small, run, asked=lambda: 0, **changes):
    """Trains a run on the small data, two epochs a stage unless said otherwise; returns what was said and warned."""
    told = []
    config = dataclasses.replace(small.config, **{"run_dir": str(run), "epochs": 2, "flow_epochs": 2, "batch_size": 24,
                                                  "warmup_steps": 2, **changes})
    run.mkdir(exist_ok=True)
    train_run(config, small.data, run, True, parallel.place(1, "pmap", config.batch_size),
              Watcher(told.append, told.append, asked, lambda *_: None, lambda *_: {}))
    return "\n".join(told)


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    run = tmp_path_factory.mktemp("stages") / "run"
    train(small, run)
    return run


@pytest.fixture(scope="module")
def detailed(small, tmp_path_factory):
    """A run of all three stages."""
    run = tmp_path_factory.mktemp("stages") / "three"
    train(small, run, **THREE)
    return run


@pytest.fixture(scope="module")
def without_flow(small, tmp_path_factory):
    run = tmp_path_factory.mktemp("stages") / "gaussian"
    train(small, run, prior="gaussian")
    return run


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def states(run, folder):
    with open_checkpoints(run / folder) as checkpoints:
        return {step: checkpoints.manager.restore(step)["state"] for step in checkpoints.steps()}


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def records(run):
    return [{name: value for name, value in record.items() if name not in ("seconds", "faces_per_second")}
            for record in read_metrics(run)]


def test_records_count_the_epochs_of_both_stages_and_name_them(finished):
    found = read_metrics(finished)
    assert [(record["epoch"], record["stage"], record["step"]) for record in found] == [
        (1, "autoencoder", 4), (2, "autoencoder", 8), (3, "flow", 4), (4, "flow", 8)]
    assert {"train_bound", "validation_bound", "validation_bits_per_dim"} <= found[0].keys()
    assert {"train_matching", "validation_matching"} <= found[2].keys()
    assert list((finished / "tensorboard").glob("events*"))


def test_each_stage_keeps_its_own_best(finished):
    """A bound of some hundred nats and a matching error are never compared."""
    for folder, name, sign, first in ((FIRST, "bound", 1, 0), (FLOW, "matching", -1, 2)):
        values = [sign * record[f"validation_{name}"] for record in read_metrics(finished)[first:first + 2]]
        with open_checkpoints(finished / folder) as checkpoints:
            assert checkpoints.steps() == [4, 8]
            assert [checkpoints.facts(step)[2] for step in (4, 8)] == [{"score": value} for value in values]
            assert checkpoints.best_step() == 4 * (1 + int(np.argmax(values)))


def test_a_flow_stands_on_the_first_stages_best_epoch_and_leaves_it_as_it_is(finished, small):
    with open_checkpoints(finished / FIRST) as checkpoints:
        best = checkpoints.best_step()
    expected = states(finished, FIRST)[best]["params"]
    for state in states(finished, FLOW).values():
        assert state["params"].keys() == {"flow"} == state["moving"].keys()
        scale = state["frozen"].pop("scale")
        same(state["frozen"], expected)
    # The standardisation, against draws: the faces and their mirror images, 20 latents each.
    faces, z = small.data.train, []
    for x in (faces.x, faces.x[:, :, ::-1]):
        q = small.gaussian.posterior(expected, jax.numpy.asarray(x / 255, np.float32), faces.y, faces.mask)
        z += [q.sample(row_keys(i, np.arange(faces.size))) for i in range(20)]
    z = np.concatenate(z, dtype=np.float64).reshape(-1, small.config.latent_channels)
    error = z.std(0) / np.sqrt(2 * faces.size * 16)  # as if the draws of a face said no more than one
    assert (np.abs(scale["mean"] - z.mean(0)) < 4 * error).all()
    assert (np.abs(scale["deviation"] - z.std(0)) < 4 * error).all()
    run = load_run(finished)
    assert run.model.velocity is not None and run.epoch == 4 and run.path == finished
    same(run.params["scale"], scale)
    same(run.params["h"], expected["h"])


def test_the_average_of_a_flow_counts_its_memory_from_the_flows_own_first_step(finished, small, monkeypatch, tmp_path):
    """A short flow has left its start: with the decay from the first step on it would still have 0.996 of it."""
    seen = []

    def fit(run_step, state, *args):
        if "flow" in state.params:
            seen.append(state.params)
        for now, means in real(run_step, state, *args):
            if "flow" in now.params:
                seen.append(jax.tree.map(np.array, now.moving))
            yield now, means

    real = stages.fit
    monkeypatch.setattr(stages, "fit", fit)
    monkeypatch.setattr(stages, "CPU_STEPS", 1)
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / FLOW)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records(finished)[:2]))
    train(small, tmp_path / "run")
    assert records(tmp_path / "run") == records(finished)
    expected = seen[0]
    for i, moving in enumerate(seen[1:]):
        keep = (1 + i) / (10 + i)
        expected = jax.tree.map(lambda old, new, keep=keep: keep * old + (1 - keep) * new, expected, moving)
    assert len(seen) == 9
    state = states(tmp_path / "run", FLOW)[8]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state["params"], expected)

    def distance(one, other):
        return np.sqrt(sum(np.square(a - b).sum() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)))

    assert distance(state["params"], state["moving"]) < distance(seen[0], state["moving"]) / 2


def test_more_epochs_under_a_flow_are_refused_or_the_flow_is_trained_again(small, copy, finished):
    with pytest.raises(InputError, match=r"trained on what --epochs=2 left, not 3, .* or delete .*flow to train"):
        train(small, copy, epochs=3)
    same(states(copy, FIRST), states(finished, FIRST))
    shutil.rmtree(copy / FLOW)
    with pytest.raises(InputError, match=r"stopped after epoch 4 of 4, without a checkpoint of its flow"):
        load_run(copy)
    told = train(small, copy, epochs=3, flow_epochs=1)
    assert "the 2 logged epochs of the flow" in told and "are done again, on the latents of --epochs=3, not 2" in told
    assert "from here on it is that of 3 epochs" in told
    assert [record["stage"] for record in read_metrics(copy)] == ["autoencoder"] * 3 + ["flow"]
    with open_checkpoints(copy / FIRST) as checkpoints:
        expected = states(copy, FIRST)[checkpoints.best_step()]["params"]
    frozen = states(copy, FLOW)[4]["frozen"]
    assert frozen.pop("scale").keys() == {"mean", "deviation"}
    same(frozen, expected)


def test_a_flow_goes_on_to_more_epochs_and_says_that_its_learning_rate_is_another(small, copy, finished):
    told = train(small, copy, flow_epochs=3).splitlines()
    assert told[:2] == ["going on with the flow after epoch 2 of 3",
                        "its learning rate fell over --flow_epochs=2; from here on it is that of 3 epochs"]
    assert records(copy)[:4] == records(finished) and len(records(copy)) == 5
    assert Config.from_json((copy / "config.json").read_text()).flow_epochs == 3
    assert not train(small, copy, flow_epochs=3)  # finished: nothing is done, and nothing said
    with pytest.raises(InputError, match="3 epochs of the flow .* than --flow_epochs=1; give --flow_epochs=3"):
        train(small, copy, flow_epochs=1)


def test_a_run_without_a_flow_stops_after_its_first_stage_and_may_be_given_one_later(small, without_flow, finished,
                                                                                         tmp_path):
    run = tmp_path / "run"
    shutil.copytree(without_flow, run)
    assert not (run / FLOW).exists() and records(run) == records(finished)[:2]
    assert load_run(run).model.velocity is None and load_run(run).epoch == 2
    train(small, run, prior="flow")
    same(states(run, FIRST), states(finished, FIRST))
    same(states(run, FLOW), states(finished, FLOW))
    assert records(run) == records(finished) and load_run(run).model.velocity is not None
    with pytest.raises(InputError, match="--prior=flow, not gaussian"):
        train(small, run, prior="gaussian")
    with pytest.raises(InputError, match="--flow_blocks=1, not 2"):
        train(small, run, flow_blocks=2)


def test_a_run_without_a_flow_goes_on_to_more_epochs(small, without_flow, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(without_flow, run)
    told = train(small, run, prior="gaussian", epochs=3)
    assert "going on with the autoencoder after epoch 2 of 3" in told and "that of 3 epochs" in told
    assert len(read_metrics(run)) == 3 and load_run(run).epoch == 3
    for changes, words in (({"epochs": 2}, "3 epochs of the autoencoder behind it, more than --epochs=2"),
                           ({"epochs": 3, "width": 8}, "--width=4, not 8"),
                           ({"epochs": 3, "prior": "flow", "learning_rate": 1.0}, "--learning_rate=")):
        with pytest.raises(InputError, match=words):
            train(small, run, **({"prior": "gaussian"} | changes))


def test_a_run_that_has_not_reached_its_flow_says_so_and_loads_with_the_gaussian_prior(copy, finished, monkeypatch):
    """As it is after a kill between the stages."""
    shutil.rmtree(copy / FLOW)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records(finished)[:2]))
    with pytest.raises(InputError, match=r"stopped after epoch 2 of 4, without a checkpoint of its flow; the command "
                                         r"that began it .* give --unfinished .*, with a Gaussian prior"):
        load_run(copy)
    run = load_run(copy, unfinished=True)
    assert run.config.prior == "gaussian" and run.model.velocity is None and run.epoch == 2
    assert run.params.keys() == {"f", "g", "h", "h2"}
    with pytest.raises(InputError, match="no finished run"):
        find_runs(copy.parent)
    assert find_runs(copy.parent, unfinished=True) == [copy]


def test_a_flow_stands_alone_where_the_first_stages_checkpoints_are_gone(small, copy, finished):
    shutil.rmtree(copy / FIRST)
    same(load_run(copy).params, load_run(finished).params)
    assert not train(small, copy)
    train(small, copy, flow_epochs=3)
    assert not list((copy / FIRST).glob("*")) and len(read_metrics(copy)) == 5


def test_a_detail_stands_between_the_two_and_each_stage_leaves_those_before_as_they_are(detailed):
    assert [(record["epoch"], record["stage"], record["step"]) for record in read_metrics(detailed)] == [
        (1, "autoencoder", 4), (2, "autoencoder", 8), (3, "detail", 4), (4, "detail", 8),
        (5, "flow", 4), (6, "flow", 8)]
    assert {"train_reconstruction", "validation_bits_per_dim", "validation_bound"} <= read_metrics(detailed)[2].keys()
    assert "validation_bits_per_dim" not in read_metrics(detailed)[0]
    best = {}
    for folder in (FIRST, DETAIL):
        with open_checkpoints(detailed / folder) as checkpoints:
            best[folder] = states(detailed, folder)[checkpoints.best_step()]
    for state in states(detailed, DETAIL).values():
        assert state["params"].keys() == {"detail"} == state["moving"].keys()
        same(state["frozen"], best[FIRST]["params"])
    for state in states(detailed, FLOW).values():
        assert state["params"].keys() == {"flow"} and state["frozen"].pop("scale")
        same(state["frozen"], best[FIRST]["params"] | best[DETAIL]["params"])
    run = load_run(detailed)
    assert run.model.detail is not None and run.model.velocity is not None and run.epoch == 6
    same(run.params["detail"], best[DETAIL]["params"]["detail"])


@pytest.mark.parametrize("looks", [2, 3, 4])
def test_a_run_stopped_in_its_detail_or_beside_it_goes_on_to_equal_bits(small, detailed, tmp_path, looks):
    """At the end of the first stage, after an epoch of the detail, and at the detail's end."""
    run, asked = tmp_path / "run", iter([0] * (looks - 1) + [15])
    with pytest.raises(Interrupted):
        train(small, run, asked=lambda: next(asked), **THREE)
    assert len(records(run)) == looks and not (run / FLOW).exists()
    early = load_run(run, unfinished=True)
    assert early.model.velocity is None and (early.model.detail is not None) == (looks > 2)
    with pytest.raises(InputError, match=f"stopped after epoch {looks} of 6, without a checkpoint of its flow"):
        load_run(run)
    train(small, run, **THREE)
    assert records(run) == records(detailed)
    for folder in (FIRST, DETAIL, FLOW):
        same(states(run, folder), states(detailed, folder))


def test_later_stages_may_be_given_to_a_run_that_was_to_do_without(small, detailed, tmp_path):
    run = tmp_path / "run"
    train(small, run, **THREE | {"detail_width": 0}, prior="gaussian")
    assert load_run(run).model.detail is None
    train(small, run, **THREE, prior="gaussian")
    assert load_run(run).model.detail is not None and load_run(run).model.velocity is None
    with pytest.raises(InputError, match="--detail_width=8, not 0"):
        train(small, run, **THREE | {"detail_width": 0}, prior="gaussian")
    train(small, run, **THREE)
    assert records(run) == records(detailed)
    for folder in (FIRST, DETAIL, FLOW):
        same(states(run, folder), states(detailed, folder))
    with pytest.raises(InputError, match=r"the flow in .* what --detail_epochs=2 left, not 3, .* or delete .*flow to"):
        train(small, run, **THREE | {"detail_epochs": 3})
    with pytest.raises(InputError, match="--detail_blocks=1, not 2"):
        train(small, run, **THREE | {"detail_blocks": 2})
    with pytest.raises(InputError, match="the flow in .* what --epochs=2 left, not 3"):
        train(small, run, **THREE, epochs=3)


def test_a_detail_cannot_be_given_to_a_run_under_its_flow(small, tmp_path):
    run = tmp_path / "run"
    train(small, run, **THREE | {"detail_width": 0})
    with pytest.raises(InputError, match="--detail_width=0, not 8; give --detail_width=0 to go on"):
        train(small, run, **THREE)


OLD = json.dumps({"model": "cmma", "dataset": "small", "latent_size": 4, "linear_path": True, "epochs": 1})


def test_a_run_of_version_0_1_is_refused_by_name_and_passed_over(small, copy, finished, tmp_path):
    """Its settings are in config.json, and in every checkpoint."""
    runs, words = tmp_path / "runs", r"was made by cmma_jax 0\.1, .*train it again .* new --run_dir, or install"
    shutil.copytree(finished, runs / "new")
    shutil.move(copy, runs / "old")
    (runs / "old" / "config.json").write_text(OLD)
    assert find_runs(runs) == [runs / "new"]
    with pytest.raises(InputError, match=f"the run in {runs / 'old'} {words}"):
        train(small, runs / "old")
    shutil.rmtree(runs / "old" / FLOW)
    for checkpoint in (runs / "old" / FIRST).iterdir():
        path = checkpoint / "facts" / "metadata"
        facts = json.loads(path.read_text())["facts"] | {"config": json.loads(OLD)}
        path.write_text(json.dumps({"facts": facts, "sum": zlib.crc32(json.dumps(facts, sort_keys=True).encode())}))
    for unfinished in (False, True):
        with pytest.raises(InputError, match=f"the run in {runs / 'old'} {words}"):
            load_run(runs / "old", unfinished)
    (runs / "old" / "config.json").unlink()
    with pytest.raises(InputError, match=f"the run in {runs / 'old'} {words}"):
        train(small, runs / "old")
