"""What a machine may be like: its variables, its terminal, its disks, and another training in the same folder."""

import io
import os
import pathlib
import subprocess
import sys

import pytest

from cmma_jax.cli import command_line, commands, evaluate, train
from cmma_jax.data import load_dataset
from cmma_jax.data.files import held

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("name, value", [("JAX_ENABLE_X64", "1"), ("JAX_PLATFORMS", "cuda"),
                                         ("JAX_PLATFORMS", "metal"), ("JAX_PLATFORM_NAME", "gpu")])
@pytest.mark.parametrize("command", [["train.py", "--run_dir=run"], ["-m", "cmma_jax", "generate", "--run=lfw"]],
                         ids=["train", "generate"])
def test_a_variable_that_asks_for_what_is_not_there_is_named_in_one_line(name, value, command, tmp_path):
    if name.startswith("JAX_PLATFORM") and command[0] == "train.py":
        pytest.skip("what is asked of every command, at the same place")
    command = [str(ROOT / "train.py"), *command[1:]] if command[0] == "train.py" else command
    ended = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                           env={**{each: said for each, said in os.environ.items() if each != "JAX_PLATFORMS"},
                                "PYTHONPATH": str(ROOT), name: value})
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert f"error: {name}" in line and "unset that variable" in line and not list(tmp_path.iterdir())


def test_the_home_folder_stands_for_a_tilde_in_every_flag(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    found = train.parse(["--data_dir=~/faces", "--run_dir=~/runs/x", "--cache=/tmp/~x"])
    assert (found.data_dir, found.run_dir, found.cache) == ("/home/somebody/faces", "/home/somebody/runs/x", "/tmp/~x")
    assert evaluate.parse(["--run=~"]).run == "/home/somebody"
    assert train.parse(["--data_dir", "~/faces"]).data_dir == "/home/somebody/faces"
    edit = command_line.parse(commands.Edit, ["~/a.jpg", "--out", "~/b.png"], "edit", "")
    assert (edit.photo, edit.out) == ("/home/somebody/a.jpg", "/home/somebody/b.png")


def test_where_the_terminal_knows_ascii_alone_other_signs_are_marks(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", errors="strict"))
    assert command_line.run("program", lambda: print("L\u00e4chelt \u2588", flush=True), "") == 0
    assert written.getvalue() == b"L?chelt ?\n"


def test_a_cache_that_cannot_be_there_is_told_once(tmp_path):
    (tmp_path / "file").touch()
    code = ("import jax; from cmma_jax.training import parallel; parallel.prepare(); "
            "print([float(jax.jit(f)(2.0)) for f in (jax.numpy.sin, jax.numpy.cos)])")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={
        **os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "file")})
    assert ended.returncode == 0 and ended.stderr.count("Warning") == 1 and "are not kept" in ended.stderr, ended.stderr


def test_results_of_a_run_that_cannot_be_written_to_go_to_runs_dir(monkeypatch, tmp_path):
    """Root can write to what is read-only for others: so the question is answered for it."""
    run = tmp_path / "run"
    run.mkdir()
    arguments = evaluate.Arguments(run=str(run), runs_dir=str(tmp_path / "results"))
    assert evaluate.results_folder(arguments) == run and not (tmp_path / "results").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert evaluate.results_folder(arguments) == tmp_path / "results"
    (tmp_path / "file").touch()
    monkeypatch.undo()
    assert evaluate.main([f"--run={tmp_path / 'none'}", f"--runs_dir={tmp_path / 'file'}"]) == 2


def test_a_second_training_in_the_same_folder_is_refused_at_once(faces, tmp_path, capsys):
    run, flags = tmp_path / "run", ["--dataset=folder", f"--data_dir={faces}", "--image_size=16", "--batch_size=8"]
    run.mkdir()
    with held(run, "run_dir"):
        for seed in (0, 1):
            assert train.main([*flags, f"--run_dir={run}", f"--seed={seed}"]) == 2
            assert f"{run} is in use by process {os.getpid()}" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == ["lock"]


def test_a_table_is_described_by_a_line_a_column(faces):
    heading, *lines = train.describe(load_dataset("folder", str(faces), image_size=16)).splitlines()
    assert heading.split() == ["attribute", "kind", "known"]
    assert [line.split() for line in lines] == [["Red", "binary", "100%", "50.0%", "are", "1"],
                                                ["Striped", "binary", "100%", "50.0%", "are", "1"]]


@pytest.mark.parametrize("bad", ["-1x", "inf", "nan"])
def test_a_mark_of_the_unknown_is_a_number(bad, faces, capsys, tmp_path):
    assert train.main(["--dataset=folder", f"--data_dir={faces}", f"--unknown={bad}", f"--run_dir={tmp_path}"]) == 2
    assert "--unknown=" in capsys.readouterr().err
