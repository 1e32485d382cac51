"""train.py as a person runs it: to its end, hurt and started again, in two processes, and given bad input."""

import functools
import json
import os
import pathlib
import re
import shutil
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
from cmma_jax.training import parallel, stages
from cmma_jax.training.checkpoint import open_checkpoints
from cmma_jax.training.config import FIRST, FLOW, PRESETS, Config
from cmma_jax.training.records import read_metrics
from cmma_jax.training.runs import load_run

TINY = ["--dataset=folder", "--image_size=16", "--width=4", "--likelihood=logistic_mixture", "--components=1",
        "--prior_hidden=8", "--flow_width=64",
        "--flow_blocks=1", "--devices=1"]
CGAN = ["--model=cgan", "--preset=gauthier", "--latent_size=4", "--epochs=4"]
ROOT = pathlib.Path(__file__).parents[2]


LONG = ["--epochs=5", "--flow_epochs=3"]


def arguments(faces, run, *more):
    return [*TINY, f"--data_dir={faces}", f"--run_dir={run}", "--batch_size=8", *more]


def start(args, **env):
    return subprocess.Popen([sys.executable, "train.py", *args], cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, env={**os.environ, **env})


def last_state(run, folder=FIRST):
    with open_checkpoints(run / folder) as checkpoints:
        step = checkpoints.steps()[-1]
        return step, checkpoints.manager.restore(step)["state"]


def comparable(run):
    timing = ("seconds", "faces_per_second")
    return [{k: v for k, v in record.items() if k not in timing} for record in read_metrics(run)]


@pytest.fixture(scope="module")
def undisturbed(faces, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "whole"
    assert train.main(arguments(faces, run, *LONG)) == 0
    return run


def test_a_run_leaves_its_public_files(undisturbed, faces, capsys):
    before = comparable(undisturbed), (undisturbed / "metrics.jsonl").stat().st_mtime
    assert train.main(arguments(faces, undisturbed, *LONG)) == 0  # finished: it tells the figures, and does nothing
    said, bar = capsys.readouterr()
    for words in ("validation bound", "nats", "bits/dim (of the bytes", "matching error", f"{undisturbed / FLOW}"):
        assert words in said
    assert "going on" not in said and "faces/s" not in bar
    assert (comparable(undisturbed), (undisturbed / "metrics.jsonl").stat().st_mtime) == before
    records = read_metrics(undisturbed)
    assert [record["epoch"] for record in records] == list(range(1, 9))
    assert {"train_bound", "validation_bound", "validation_kl", "validation_reconstruction", "learning_rate", "stage",
            "faces_per_second", "validation_bound_stderr"} <= set(records[0])
    assert {"train_matching", "validation_matching", "learning_rate"} <= set(records[-1])
    assert Config.from_json((undisturbed / "config.json").read_text()).flow_epochs == 3
    assert sorted(p.name for p in (undisturbed / "grids").iterdir()) == [
        "epoch_0001.png", "epoch_0005.png", "epoch_0006.png", "epoch_0008.png"]
    with Image.open(undisturbed / "grids" / "epoch_0008.png") as grid:
        assert grid.size[0] == 2 + 10 * 18 and (grid.size[1] - 2) % 18 == 0
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
    assert load_run(undisturbed_cgan).epoch == 4 and not (undisturbed_cgan / FLOW).exists()
    with Image.open(undisturbed_cgan / "grids" / "epoch_0004.png") as grid:
        assert grid.size[0] == 2 + 10 * 18 and (grid.size[1] - 2) % 18 == 0


def test_a_cgan_stopped_and_resumed_is_the_same_bit_for_bit(undisturbed_cgan, faces, tmp_path):
    """SGD with a rising momentum, dropout in the discriminator, both players: all of it is in the state. Who follows
    the run is given the records of the epochs that it sees.
    """
    assert train.main(arguments(faces, tmp_path / "run", *CGAN[:-1], "--epochs=2")) == 0
    logged = []
    train.train(train.parse(arguments(faces, tmp_path / "run", *CGAN)), log=lambda *record: logged.append(record))
    assert logged == [(record.pop("epoch"), {name: value for name, value in record.items() if name != "stage"})
                      for record in read_metrics(tmp_path / "run")[2:]] and len(logged) == 2
    (step, state), (expected_step, expected) = last_state(tmp_path / "run"), last_state(undisturbed_cgan)
    assert step == expected_step == 20
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_several_seeds_are_several_runs(faces, tmp_path):
    """The first is the undisturbed one's, whose programs are there."""
    assert train.main(arguments(faces, tmp_path / "run", "--epochs=5", "--prior=gaussian", "--seeds=0,5")) == 0
    runs = [tmp_path / "run", tmp_path / "run-seed5"]
    assert [Config.from_json((run / "config.json").read_text()).seed for run in runs] == [0, 5]
    bounds = [read_metrics(run)[0]["validation_bound"] for run in runs]
    assert bounds[0] != bounds[1]


def test_streamed_from_memory_maps_a_run_is_the_same_bit_for_bit(faces, tmp_path, monkeypatch):
    """By XLA's own emitters, as it is promised: those that are sooner compiled fuse the choice of a batch's rows with
    what comes after it, and round otherwise.
    """
    place, cache = parallel.place, tmp_path / "cache"
    options = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 0}
    monkeypatch.setattr(parallel, "place", lambda *asked: place(*asked)._replace(
        compile=functools.partial(jax.jit, donate_argnums=0, compiler_options=options)))
    runs = [tmp_path / "whole", tmp_path / "streamed"]
    for run, more in zip(runs, ([], ["--data_on_device=false", f"--cache={cache}"]), strict=True):
        assert train.main(arguments(faces, run, "--epochs=2", "--flow_epochs=2", *more)) == 0
    assert len(list(cache.glob("*/train.x.npy"))) == 1
    for folder in (FIRST, FLOW):
        jax.tree.map(np.testing.assert_array_equal, *(last_state(run, folder) for run in runs))
    assert comparable(runs[0]) == comparable(runs[1])


def start_two(args):
    """Starts two processes that train together on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one_device = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=1")
    return [start([*args, f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"],
                  XLA_FLAGS=one_device) for i in range(2)]


def test_two_processes_are_killed_and_resume_as_one_and_as_two(undisturbed, faces, tmp_path):
    """They begin by pmap, with the faces on the devices, and go on by a mesh, with faces that are streamed."""
    runs, cache = [tmp_path / "two", tmp_path / "then-one"], f"--cache={tmp_path / 'cache'}"
    begun, resumed = ([f"--parallel={how}", f"--data_on_device={on_device}", cache, "--devices=0"]
                      for how, on_device in (("pmap", "true"), ("mesh", "false")))
    processes = start_two(arguments(faces, runs[0], *LONG, *begun))
    deadline = time.monotonic() + 240
    while len(read_metrics(runs[0])) < 3 and processes[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in processes:
        process.kill()
    said = [process.communicate()[0] for process in processes]
    assert 3 <= len(read_metrics(runs[0])) < 8, ("they should have been killed midway", said)
    shutil.copytree(*runs)
    assert train.main(arguments(faces, runs[1], *LONG)) == 0
    processes = start_two(arguments(faces, runs[0], *LONG, *resumed))
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    figures = ("train_loss", "validation_bound", "validation_kl", "validation_matching")
    for run in runs:
        for found, expected in zip(read_metrics(run), read_metrics(undisturbed), strict=True):
            assert (found["epoch"], found["step"]) == (expected["epoch"], expected["step"])
            for name in found.keys() & set(figures):
                assert found[name] == pytest.approx(expected[name], rel=1e-3), (found["epoch"], name)
        assert all((run / folder / f"{step}").is_dir() for folder, step in ((FIRST, 25), (FLOW, 15)))
    assert list((runs[0] / FLOW / "15" / "state" / "ocdbt.process_1" / "d").iterdir())  # both have written


BAD = {
    "unknown flag": (["--latent_siz=3"], ["latent_siz", "--latent-size"]),
    "unknown preset": (["--preset=papr"], ["papr", "did you mean 'paper'"]),
    "unknown model": (["--model=cmaa"], ["cmaa", "did you mean 'cmma'"]),
    "gauthier's settings for another model": (["--preset=gauthier"], ["--model=cgan"]),
    "a batch that is no groups": (["--model=cgan", "--batch_size=6"], ["--batch_size=6", "groups of 4",
                                                                              "try --batch_size=4"]),
    "a flow over a vector": (["--latent_size=4", "--prior=flow"], ["--prior=flow", "gaussian"]),
    "no epochs of the flow": (["--flow_epochs=0"], ["--flow_epochs=0", "--prior=gaussian"]),
    "cells that do not divide the image": (["--latent_cells=5"], ["--latent_cells=5", "such as 4"]),
    "seeds that are none": (["--seeds=1,b"], ["--seeds=1,b", "commas between"]),
    "not a number": (["--epochs=many"], ["many", "epochs"]),
    "out of range": (["--attribute_dropout=2"], ["--attribute_dropout=2", "0 to 1"]),
    "not a number at all": (["--learning_rate=nan"], ["--learning_rate=nan", "above 0"]),
    "unknown data set": (["--dataset=lwf"], ["lwf", "did you mean 'lfw'"]),
    "wrong folder": (["--dataset=folder", "--data_dir=/nowhere"], ["/nowhere"]),
    "fewer faces than a batch": (["--batch_size=41"], ["40 training faces", "--batch_size=41", "--batch_size=20"]),
    "batch that the devices do not divide": (["--devices=3"], ["--batch_size=8", "3 devices", "--batch_size=6"]),
    "and fewer faces": (["--devices=3", "--batch_size=42"], ["40 training faces", "give --batch_size=18"]),
    "fewer faces than a CGAN's groups": (["--model=cgan", "--preset=paper", "--devices=4", "--batch_size=64"],
                                         ["40 training faces", "give --batch_size=16"]),
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
    assert train.main(arguments(faces, undisturbed, *LONG, "--learning_rate=0.01")) == 2
    assert "--learning_rate=0.002, not 0.01" in capsys.readouterr().err


def test_a_run_on_other_data_is_refused(undisturbed, faces, tmp_path, capsys):
    text = (faces / "attributes.csv").read_text().replace("Striped", "Dotted")
    (tmp_path / "attributes.csv").write_text(text)
    for path in faces.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert train.main(arguments(tmp_path, undisturbed, *LONG)) == 2
    assert "trained on other data" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(undisturbed, faces, tmp_path, capsys,
                                                                            monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    step, before = last_state(run, FLOW)
    make_loss = stages.make_flow_loss

    def broken(*args, **more):
        loss = make_loss(*args, **more)
        return lambda *a: jax.tree.map(lambda v: v * np.nan, loss(*a))

    monkeypatch.setattr(stages, "make_flow_loss", broken)
    capsys.readouterr()
    assert train.main(arguments(faces, run, "--epochs=5", "--flow_epochs=4")) == 2
    error = capsys.readouterr().err
    assert "the loss was nan at step 16" in error and "--learning_rate" in error
    assert last_state(run, FLOW)[0] == step == 15
    jax.tree.map(np.testing.assert_array_equal, last_state(run, FLOW)[1], before)


def test_faces_of_another_size_train(faces, tmp_path):
    """The folder's pictures are resized; a token is 2x2 cells of a quarter of the size, and 48 is no power of two."""
    few = ["--epochs=1", "--flow_epochs=1", "--batch_size=20", "--image_size=48"]
    assert train.main(arguments(faces, tmp_path / "run", *few)) == 0
    run = load_run(tmp_path / "run")
    assert run.spec.image_shape == (48, 48, 3) and run.model.velocity is not None


def a_few_faces(folder, parts, attribute=lambda i: i % 2, picture=None):
    """Writes a folder of as many pictures of 16x16 as parts say, {split: number}."""
    rng, rows = np.random.default_rng(0), ["file,Red,split"]
    for part, count in parts.items():
        for _ in range(count):
            i = len(rows) - 1
            x = rng.integers(0, 256, (16, 16, 3), np.uint8) if picture is None else picture
            Image.fromarray(x).save(folder / f"{i:02d}.png")
            rows.append(f"{i:02d}.png,{attribute(i)},{part}")
    (folder / "attributes.csv").write_text("\n".join(rows) + "\n")


FEW = {
    "one face": ({"train": 1, "validation": 1, "test": 1}, {}, "is 0 in all of the 1 training rows"),
    "fewer than a batch": ({"train": 32, "validation": 1, "test": 1}, {},
                           "32 training faces are fewer than --batch_size=100; give --batch_size=16"),
    "nine": ({"train": 9, "validation": 1, "test": 1}, {}, "give --batch_size=4"),
    "a part empty": ({"train": 9, "validation": 0, "test": 1}, {}, "has no row with split 'validation'"),
    "one class alone": ({"train": 9, "validation": 1, "test": 1}, {"attribute": lambda i: 1}, "is 1 in all of the 9"),
    "equal faces": ({"train": 100, "validation": 1, "test": 1}, {"picture": np.full((16, 16, 3), 7, np.uint8)},
                    "the 100 training faces are all equal"),
}


@pytest.mark.parametrize("name", FEW)
def test_too_few_faces_are_told_in_one_line(name, tmp_path, capsys):
    """With default settings."""
    parts, how, words = FEW[name]
    a_few_faces(tmp_path, parts, **how)
    run = ["--dataset=folder", "--image_size=16", f"--data_dir={tmp_path}", f"--run_dir={tmp_path / 'run'}"]
    assert train.main([*run, "--devices=1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and words in error[0], error
    assert not (tmp_path / "run").exists()


def test_two_faces_train_both_stages(tmp_path):
    a_few_faces(tmp_path, {"train": 2, "validation": 1, "test": 1})
    assert train.main([*arguments(tmp_path, tmp_path / "run"), "--batch_size=1", "--epochs=1", "--flow_epochs=1"]) == 0
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [2, 2]


def test_presets_and_flags():
    assert train.parse([]) == PRESETS["default"]("cmma", "synthetic")
    assert train.parse([]).prior == "flow" and train.parse(["--latent_size=2"]).prior == "gaussian"
    assert train.parse(["--epochs=3", "--detail_epochs=2", "--flow_epochs=4"]).all_epochs == 9
    assert train.parse(["--epochs=3", "--flow_epochs=4", "--detail_width=0"]).all_epochs == 7
    assert train.parse(["--likelihood=logistic_mixture"]).detail_width == 0
    assert train.parse(["--epochs=3", "--prior=gaussian", "--detail_width=0"]).all_epochs == 3
    paper = train.parse(["--preset=paper", "--dataset", "lfw", "--learning_rate=0.03"])
    assert (paper.optimizer, paper.epochs, paper.learning_rate, paper.likelihood, paper.latent_size, paper.prior) == (
        "adagrad", 500, 0.03, "gaussian", 500, "gaussian")
    assert paper.run_path() == "runs/cmma-lfw"
    gan = train.parse(["--model=cgan", "--preset=gauthier"])
    assert (gan.optimizer, gan.batch_size, gan.learning_rate, gan.momentum, gan.final_momentum, gan.latent_size,
            gan.discriminator_dropout) == ("sgd", 128, 0.004, 0.5, 0.7, 100, 0.5)
    assert Config.from_json(paper.to_json()) == paper


@pytest.mark.parametrize("name", PRESETS)
def test_the_commands_in_a_presets_docstring_are_its_own(name):
    commands = re.findall(r"python train\.py (.*)", PRESETS[name].__doc__)
    assert commands or name == "gauthier"
    for command in commands:
        assert train.parse(command.split()).preset == name


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
