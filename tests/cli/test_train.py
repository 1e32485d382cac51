"""train.py as a person runs it: to its end, hurt and started again, in two processes, and given bad input."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from cmma_jax.cli import train
from cmma_jax.errors import InputError
from cmma_jax.models.model import make_model
from cmma_jax.training.checkpoint import open_checkpoints
from cmma_jax.training.config import PRESETS, Config
from cmma_jax.training.records import read_metrics
from cmma_jax.training.runs import load_run
from cmma_jax.training.step import make_optimizer

TINY = ["--dataset=folder", "--image_size=16", "--latent_size=4", "--width=2", "--prior_hidden=8", "--devices=1"]
CGAN = ["--model=cgan", "--preset=gauthier", "--epochs=4"]
ROOT = pathlib.Path(__file__).parents[2]


def arguments(faces, run, *more):
    return [*TINY, f"--data_dir={faces}", f"--run_dir={run}", "--batch_size=8", *more]


def start(args, **env):
    return subprocess.Popen([sys.executable, "train.py", *args], cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, env={**os.environ, **env})


def last_state(run):
    with open_checkpoints(run / "checkpoints") as checkpoints:
        step = checkpoints.steps()[-1]
        config, spec, _ = checkpoints.facts(step)
        optimizer, _ = make_optimizer(config, 5)
        like = jax.eval_shape(lambda: train.fresh_state(make_model(config, spec), optimizer, 0))
        return step, checkpoints.restore(like, step)


def comparable(run):
    timing = ("seconds", "faces_per_second")
    return [{k: v for k, v in record.items() if k not in timing} for record in read_metrics(run)]


@pytest.fixture(scope="module")
def undisturbed(faces, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "whole"
    assert train.main(arguments(faces, run, "--epochs=8")) == 0
    return run


def test_a_run_leaves_its_public_files(undisturbed, faces, capsys):
    assert train.main(arguments(faces, undisturbed, "--epochs=8")) == 0  # finished: says so, and does nothing
    said = capsys.readouterr().out
    for words in ("validation bound", "nats", "bits/dim", "checkpoints", "next", "going on after epoch 8 of 8"):
        assert words in said
    records = read_metrics(undisturbed)
    assert [record["epoch"] for record in records] == list(range(1, 9))
    assert {"train_bound", "validation_bound", "validation_kl", "validation_reconstruction", "learning_rate",
            "validation_active_latents", "faces_per_second", "validation_bound_stderr"} <= set(records[0])
    assert Config.from_json((undisturbed / "config.json").read_text()).latent_size == 4
    assert sorted(p.name for p in (undisturbed / "grids").iterdir()) == [
        "epoch_0001.png", "epoch_0005.png", "epoch_0008.png"]
    with Image.open(undisturbed / "grids" / "epoch_0008.png") as grid:
        assert grid.size == (2 + 10 * 18, 2 + 5 * 18)
    assert list((undisturbed / "tensorboard").glob("events*"))


@pytest.fixture(scope="module")
def undisturbed_cgan(faces, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "cgan"
    assert train.main(arguments(faces, run, *CGAN)) == 0
    return run


def test_a_cgan_logs_both_players_and_draws_its_faces(undisturbed_cgan):
    records = read_metrics(undisturbed_cgan)
    assert {"train_generator", "train_discriminator", "train_accuracy", "validation_parzen",
            "validation_diversity"} <= set(records[0])
    assert all(0 <= record["train_accuracy"] <= 1 and record["train_generator"] > 0 for record in records)
    with Image.open(undisturbed_cgan / "grids" / "epoch_0004.png") as grid:
        assert grid.size == (2 + 10 * 18, 2 + 5 * 18)


def test_a_cgan_stopped_and_resumed_is_the_same_bit_for_bit(undisturbed_cgan, faces, tmp_path):
    """SGD with a rising momentum, dropout in the discriminator, both players: all of it is in the state."""
    assert train.main(arguments(faces, tmp_path / "run", *CGAN[:-1], "--epochs=2")) == 0
    assert train.main(arguments(faces, tmp_path / "run", *CGAN)) == 0
    (step, state), (expected_step, expected) = last_state(tmp_path / "run"), last_state(undisturbed_cgan)
    assert step == expected_step == 20
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_several_seeds_are_several_runs(faces, tmp_path):
    assert train.main(arguments(faces, tmp_path / "run", "--epochs=1", "--seeds=3,5")) == 0
    runs = [tmp_path / "run", tmp_path / "run-seed5"]
    assert [Config.from_json((run / "config.json").read_text()).seed for run in runs] == [3, 5]
    bounds = [read_metrics(run)[0]["validation_bound"] for run in runs]
    assert bounds[0] != bounds[1]


FLOW = ["--preset=best", "--epochs=4", "--grid_every=4"]


@pytest.fixture(scope="module")
def undisturbed_flow(undisturbed, faces, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "flow"
    assert train.main(arguments(faces, run, f"--start_from={undisturbed}", *FLOW)) == 0
    return run


def test_a_flow_is_trained_on_a_finished_run_whose_networks_stay(undisturbed, undisturbed_flow, capsys):
    before, after = load_run(undisturbed), load_run(undisturbed_flow)
    assert after.system == "cmma (best)" and before.model.velocity is None
    for name, tree in before.params.items():
        jax.tree.map(np.testing.assert_array_equal, tree, after.params[name])
    assert np.abs(after.params["flow"]["velocity"]["kernel"]).max() > 0
    records = read_metrics(undisturbed_flow)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert {"train_matching", "validation_matching"} <= set(records[0])
    best = min(record["validation_matching"] for record in records)
    with open_checkpoints(undisturbed_flow / "checkpoints") as checkpoints:
        assert checkpoints.facts(checkpoints.best_step())[2] == {"score": -best}


def test_a_flow_stopped_and_resumed_is_the_same_bit_for_bit(undisturbed, undisturbed_flow, faces, tmp_path):
    run = tmp_path / "halves"
    args = arguments(faces, run, f"--start_from={undisturbed}", *FLOW)
    process = start(args)
    waited = time.monotonic() + 240
    while not (run / "metrics.jsonl").exists() or not read_metrics(run):
        assert process.poll() is None and time.monotonic() < waited
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert train.main(args) == 0
    assert comparable(run) == comparable(undisturbed_flow)
    jax.tree.map(np.testing.assert_array_equal, last_state(run), last_state(undisturbed_flow))


@pytest.mark.parametrize("more, said", [
    (["--model=cgan", "--batch_size=8"], "--prior=flow is out of range"),
    (["--no-linear_path"], "--linear_path=False is out of range"),
    (["--start_from=nowhere"], "no run in nowhere"),
    (["--start_from=WHOLE", "--latent_size=5"], "has --latent_size=4, not 5"),
    (["--start_from=WHOLE", "--model=vae"], "has --model=cmma, not vae"),
    (["--start_from=FLOW"], "has a flow already")])
def test_a_flow_without_a_fitting_start_is_refused(more, said, undisturbed, undisturbed_flow, faces, tmp_path, capsys):
    more = [word.replace("WHOLE", str(undisturbed)).replace("FLOW", str(undisturbed_flow)) for word in more]
    assert train.main(arguments(faces, tmp_path / "run", "--preset=best", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and said in error[0]
    assert not (tmp_path / "run").exists()


def test_killed_and_started_again_a_run_ends_the_same_bit_for_bit(undisturbed, faces, tmp_path):
    run = tmp_path / "hurt"
    process = start(arguments(faces, run, "--epochs=8"))
    deadline = time.monotonic() + 120
    while len(read_metrics(run)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 3 <= len(read_metrics(run)) < 8, "it should have been killed midway"
    assert train.main(arguments(faces, run, "--epochs=8")) == 0
    (step, state), (expected_step, expected) = last_state(run), last_state(undisturbed)
    assert step == expected_step == 40
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert comparable(run) == comparable(undisturbed)


def test_streamed_from_memory_maps_a_run_is_the_same_bit_for_bit(undisturbed, faces, tmp_path):
    run, cache = tmp_path / "run", tmp_path / "cache"
    args = arguments(faces, run, "--epochs=8", "--data_on_device=false", f"--cache={cache}")
    assert train.main(args) == 0
    assert len(list(cache.glob("*/train.x.npy"))) == 1
    jax.tree.map(np.testing.assert_array_equal, last_state(run), last_state(undisturbed))
    assert comparable(run) == comparable(undisturbed)


def start_two(args):
    """Starts two processes that train together on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one_device = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=1")
    return [start([*args, f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"],
                  XLA_FLAGS=one_device) for i in range(2)]


@pytest.mark.parametrize("how, on_device", [("pmap", "true"), ("mesh", "false")])
def test_two_processes_are_killed_and_resume_as_one_and_as_two(undisturbed, faces, tmp_path, how, on_device):
    runs = [tmp_path / "two", tmp_path / "then-one"]
    args = [[*arguments(faces, run, "--epochs=8", f"--parallel={how}", f"--data_on_device={on_device}",
                        f"--cache={tmp_path / 'cache'}"), "--devices=0"] for run in runs]
    processes = start_two(args[0])
    deadline = time.monotonic() + 240
    while len(read_metrics(runs[0])) < 3 and processes[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in processes:
        process.kill()
    said = [process.communicate()[0] for process in processes]
    assert 3 <= len(read_metrics(runs[0])) < 8, ("they should have been killed midway", said)
    shutil.copytree(*runs)
    assert train.main([*args[1], "--devices=1"]) == 0
    processes = start_two(args[0])
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    expected = last_state(undisturbed)[1].params
    for run in runs:
        step, state = last_state(run)
        assert step == 40 and [record["epoch"] for record in read_metrics(run)] == list(range(1, 9))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-5), state.params, expected)
    assert list((runs[0] / "checkpoints" / "40" / "state" / "ocdbt.process_1" / "d").iterdir())  # both have written


BAD = {
    "unknown flag": (["--latent_siz=3"], ["latent_siz", "--latent-size"]),
    "unknown preset": (["--preset=papr"], ["papr", "did you mean 'paper'"]),
    "unknown model": (["--model=cmaa"], ["cmaa", "did you mean 'cmma'"]),
    "gauthier's settings for another model": (["--preset=gauthier"], ["--model=cgan"]),
    "a batch that is no groups": (["--model=cgan", "--batch_size=6"], ["--batch_size=6", "multiple of 4"]),
    "seeds that are none": (["--seeds=1,b"], ["--seeds=1,b", "commas between"]),
    "not a number": (["--epochs=many"], ["many", "epochs"]),
    "out of range": (["--attribute_dropout=2"], ["--attribute_dropout=2", "0 to 1"]),
    "not a number at all": (["--learning_rate=nan"], ["--learning_rate=nan", "above 0"]),
    "unknown data set": (["--dataset=lwf"], ["lwf", "did you mean 'lfw'"]),
    "wrong folder": (["--dataset=folder", "--data_dir=/nowhere"], ["/nowhere"]),
    "fewer faces than a batch": (["--batch_size=41"], ["40 training faces", "--batch_size=41", "--batch_size=20"]),
    "batch that the devices do not divide": (["--devices=3"], ["--batch_size=8", "3 devices", "--batch_size=6"]),
    "more devices than there are": (["--devices=64", "--batch_size=64"], ["--devices=64", "sees 4"]),
    "processes without a coordinator": (["--num_processes=2"], ["--coordinator"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(name, faces, tmp_path, capsys):
    flags, words = BAD[name]
    run = tmp_path / "run"
    assert train.main(arguments(faces, run, *flags)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("train.py: error: "), error
    for word in words:
        assert word in error[0]
    assert not run.exists()


def test_a_run_folder_that_cannot_be_written_to(faces, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert train.main(arguments(faces, tmp_path / "file" / "run")) == 2
    assert "cannot write to the run's folder" in capsys.readouterr().err


def test_no_resume_refuses_to_touch_a_run(undisturbed, faces, capsys):
    before = comparable(undisturbed)
    assert train.main(arguments(faces, undisturbed, "--no-resume")) == 2
    assert "--no-resume will not overwrite" in capsys.readouterr().err
    assert comparable(undisturbed) == before


def test_a_run_of_other_settings_is_named(undisturbed, faces, capsys):
    assert train.main(arguments(faces, undisturbed, "--learning_rate=0.01")) == 2
    assert "--learning_rate=0.001, not 0.01" in capsys.readouterr().err


def test_a_run_on_other_data_is_refused(undisturbed, faces, tmp_path, capsys):
    text = (faces / "attributes.csv").read_text().replace("Striped", "Dotted")
    (tmp_path / "attributes.csv").write_text(text)
    for path in faces.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert train.main(arguments(tmp_path, undisturbed, "--epochs=8")) == 2
    assert "trained on other data" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(undisturbed, faces, tmp_path, capsys,
                                                                            monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    step, before = last_state(run)
    make_loss = train.make_loss

    def broken(*args):
        loss = make_loss(*args)
        return lambda *a: jax.tree.map(lambda v: v * np.nan, loss(*a))

    monkeypatch.setattr(train, "make_loss", broken)
    capsys.readouterr()
    assert train.main(arguments(faces, run, "--epochs=9")) == 2
    error = capsys.readouterr().err
    assert "the loss was nan at step 41" in error and "--learning_rate" in error
    assert last_state(run)[0] == step == 40
    jax.tree.map(np.testing.assert_array_equal, last_state(run)[1], before)


def test_presets_and_flags():
    assert train.parse([]) == PRESETS["default"]("cmma", "synthetic")
    paper = train.parse(["--preset=paper", "--dataset", "lfw", "--learning_rate=0.03"])
    assert (paper.optimizer, paper.epochs, paper.learning_rate, paper.linear_path) == ("adagrad", 500, 0.03, False)
    assert paper.run_path() == "runs/cmma-lfw"
    gan = train.parse(["--model=cgan", "--preset=gauthier"])
    assert (gan.optimizer, gan.batch_size, gan.learning_rate, gan.momentum, gan.final_momentum, gan.latent_size,
            gan.discriminator_dropout) == ("sgd", 128, 0.004, 0.5, 0.7, 100, 0.5)
    assert train.parse(["--model=cvae"]).linear_path and not train.parse(["--model=cgan"]).linear_path
    assert Config.from_json(paper.to_json()) == paper


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"latent_sise": 3}), json.dumps({"epochs": -1})])
def test_a_damaged_config_is_named(text):
    with pytest.raises(InputError):
        Config.from_json(text)


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        train.parse(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    for flag in ("model", "preset", "dataset", "data", "run", "epochs", "batch", "learning", "latent", "width", "seed",
                 "devices", "resume"):
        assert f"--{flag}" in said
