"""train.py hurt: killed, stopped, its disk full or damaged, its gradients poisoned, its partner lost."""

import itertools
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmma_jax.cli import train
from cmma_jax.models.distributions import split_each
from cmma_jax.training import stages
from cmma_jax.training.checkpoint import has_checkpoints, open_checkpoints, set_damaged_aside
from cmma_jax.training.config import FIRST, FLOW
from tests.faults.kill import EPOCHS, LONGEST, ROOT, TINY, TWO, check_same, lines, records, start, states, torment

STEPS = 20  # an epoch, in two calls: a look from outside comes in its middle
WHOLE = STEPS * EPOCHS  # of either stage


def arguments(faces, run, *more):
    return [*TINY, *TWO, f"--data_dir={faces}", f"--run_dir={run}", *more]


@pytest.fixture(scope="module", autouse=True)
def neither_pictures_nor_figures_at_the_end():
    """In this process: to compile them takes longer than the training, and they change nothing."""
    with pytest.MonkeyPatch.context() as patch:  # as of `kill.PROGRAM`
        patch.setattr(train, "draw_progress", lambda *_: None)
        patch.setattr(train, "report", lambda *_: None)
        patch.setattr(stages, "CPU_STEPS", STEPS // 2)
        yield


@pytest.fixture(scope="module")
def undisturbed(faces, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "whole"
    assert train.main(arguments(faces, run)) == 0
    return run


@pytest.fixture
def at_call(monkeypatch):
    """A function (n, act): act() once train.py's n-th call to the devices is done, those of both stages counted."""
    fit = stages.fit

    def install(n, act):
        calls = itertools.count(1)

        def hurt(*args):
            for each in fit(*args):
                if next(calls) == n:
                    act()
                yield each

        monkeypatch.setattr(stages, "fit", hurt)
        return lambda: monkeypatch.setattr(stages, "fit", fit)

    return install


def steps(run, folder=FIRST):
    with open_checkpoints(run / folder) as checkpoints:
        return checkpoints.steps()


def the_error(capsys):
    """Returns what train.py said on stderr but for its progress bar, which must be one line."""
    told = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines()
            if line.strip() and "faces/s" not in line]
    assert len(told) == 1, told
    return told[0]


def test_killed_inside_a_save_and_between_the_stages_it_ends_the_same_bit_for_bit(undisturbed, faces, tmp_path):
    said = torment(faces, tmp_path, undisturbed, 10, ["border", "save"])
    assert "1 runs ended" in said and "inside a save" in said and "at a border" in said


@pytest.mark.parametrize("number, call, folder, step", [
    (signal.SIGTERM, 3, FIRST, 30), (signal.SIGINT, 2 * EPOCHS, FIRST, WHOLE),
    (signal.SIGINT, 2 * EPOCHS + 3, FLOW, 30)])
def test_a_signal_in_either_stage_or_between_saves_all_and_the_next_start_goes_on(
        number, call, folder, step, undisturbed, faces, tmp_path, at_call, capsys):
    run, handlers = tmp_path / "run", [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    stop = at_call(call, lambda: os.kill(os.getpid(), number))
    began = time.monotonic()
    assert train.main(arguments(faces, run)) == 128 + number
    assert time.monotonic() - began < 60
    assert the_error(capsys).endswith(f"the same command goes on after step {step}")
    assert steps(run, folder)[-1] == step and len(records(run)) == call // 2
    assert (run / FLOW).exists() == (folder == FLOW)
    # As they were: a test that runs in the background has SIGINT ignored.
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    stop()
    assert train.main(arguments(faces, run)) == 0
    name = {FIRST: "autoencoder", FLOW: "flow"}[folder]
    assert (f"going on with the {name} after epoch 1 of 3 and 10 steps" in capsys.readouterr().out) == (step == 30)
    check_same(run, undisturbed)


def test_a_signal_at_an_epochs_end_saves_what_was_logged(undisturbed, faces, tmp_path, at_call):
    """With a checkpoint every fourth epoch, a line of each would be lost without one of its own."""
    stop = at_call(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train.main(arguments(faces, tmp_path / "run", "--checkpoint_every=4")) == 143
    assert steps(tmp_path / "run") == [40] and len(records(tmp_path / "run")) == 2
    stop()
    assert train.main(arguments(faces, tmp_path / "run", "--checkpoint_every=4")) == 0
    assert records(tmp_path / "run") == records(undisturbed)


def test_a_process_that_is_told_to_end_does_so_within_ten_seconds(undisturbed, faces, tmp_path):
    run = tmp_path / "run"
    process = start(arguments(faces, run), tmp_path / "log")
    deadline = time.monotonic() + LONGEST
    while not lines(run) and time.monotonic() < deadline:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.002)
    began, logged = time.monotonic(), len(lines(run))
    process.terminate()
    assert process.wait(LONGEST) == 143
    assert time.monotonic() - began < 10
    assert steps(run)[-1] >= logged * STEPS
    assert train.main(arguments(faces, run)) == 0
    check_same(run, undisturbed)


def test_in_the_middle_of_a_long_computation_the_program_ends_all_the_same():
    """Nobody asks whether a signal came, as while XLA compiles."""
    script = ("import os, signal, time\n"
              "from cmma_jax.cli import command_line\n"
              "command_line.GRACE_SECONDS = 0.5\n"
              "with command_line.signals_noted():\n"
              "    os.kill(os.getpid(), signal.SIGTERM)\n"
              "    time.sleep(100)\n")
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 143 and "in the middle of a long computation" in process.stderr


def copied(undisturbed, tmp_path, reached=FLOW):
    """A copy of the run, or with `reached` FIRST of its first stage."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    if reached == FIRST:
        shutil.rmtree(run / FLOW)
        (run / "metrics.jsonl").write_text("".join(lines(run)[:EPOCHS]))
    return run


def flip(path, where=0.5):
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0x10
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def arrays(checkpoint):
    """Returns the file with most of the arrays."""
    return max((checkpoint / "state").rglob("d/*"), key=lambda path: path.stat().st_size)


DAMAGES = {"a flipped byte": lambda checkpoint: flip(arrays(checkpoint)),
           "truncated JSON": lambda checkpoint: cut(checkpoint / "metrics" / "metrics")}


@pytest.mark.parametrize("damage, folder, name", [
    ("a flipped byte", FIRST, "autoencoder"), ("a flipped byte", FLOW, "flow"), ("truncated JSON", FLOW, "flow")])
def test_the_newest_whole_checkpoint_is_used_and_the_damage_named(damage, folder, name, undisturbed, faces, tmp_path,
                                                                    capsys):
    run = copied(undisturbed, tmp_path, folder)
    DAMAGES[damage](run / folder / str(WHOLE))
    assert train.main(arguments(faces, run)) == 0
    said = capsys.readouterr()
    assert f"going on with the {name} after epoch 2 of 3" in said.out
    named = [line for line in said.err.splitlines() if "is damaged" in line]
    assert len(named) == 1 and f"{folder}/{WHOLE} is damaged" in named[0]
    assert (run / "damaged" / folder / str(WHOLE)).is_dir()
    check_same(run, undisturbed)


def test_under_a_flow_that_has_begun_the_first_stage_is_not_trained_again(undisturbed, faces, tmp_path, capsys):
    """Its last checkpoint is damaged, and put aside; the flow has all that it needs."""
    run = copied(undisturbed, tmp_path)
    flip(arrays(run / FIRST / str(WHOLE)))
    shutil.rmtree(run / FLOW / str(WHOLE))
    assert train.main(arguments(faces, run)) == 0
    said = capsys.readouterr()
    assert f"{FIRST}/{WHOLE} is damaged" in said.err and "with the autoencoder" not in said.out
    found, expected = ({at: state for at, state in states(each).items() if at[0] == FLOW}
                       for each in (run, undisturbed))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert records(run) == records(undisturbed)


def test_any_damage_to_any_file_is_named_or_does_not_matter(undisturbed, tmp_path):
    """What is left unnamed is what no reader uses: the state then comes back bit for bit."""
    rng, expected, named = random.Random(0), states(undisturbed)[FLOW, WHOLE], 0
    newest = undisturbed / FLOW / str(WHOLE)
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    for i, path in enumerate(rng.sample(files, min(len(files), 8))):
        run = tmp_path / str(i)
        shutil.copytree(undisturbed, run)
        hurt = [pathlib.Path.unlink, cut, lambda path: flip(path, rng.random())][i % 3]
        hurt(run / FLOW / str(WHOLE) / path)
        if set_damaged_aside(run / FLOW):
            named += 1
            assert steps(run, FLOW)[-1] == WHOLE - STEPS
        else:
            jax.tree.map(np.testing.assert_array_equal, states(run)[FLOW, WHOLE], expected)
    assert named


def test_without_a_whole_checkpoint_nothing_begins_again(undisturbed, faces, tmp_path, capsys):
    run = copied(undisturbed, tmp_path)

    def content():
        return sorted(run.rglob("*")), (run / "metrics.jsonl").read_text()

    for folder in (FLOW, FIRST):
        for checkpoint in (run / folder).iterdir():
            flip(checkpoint / "facts" / "metadata")
        before = content()
        assert train.main(arguments(faces, run)) == 2
        error = the_error(capsys)
        assert f"{folder} is whole; the newest, {WHOLE}: " in error and content() == before
        shutil.rmtree(run / folder)
        if folder == FLOW:
            before = content()
            assert train.main(arguments(faces, run)) == 2
            error = the_error(capsys)
            assert f"3 epochs in metrics.jsonl but no checkpoint of them; restore {run / FLOW} from" in error
            assert content() == before
    (run / "metrics.jsonl").write_text("".join(lines(run)[:EPOCHS]))
    assert train.main(arguments(faces, run)) == 2
    assert f"3 epochs in metrics.jsonl but no checkpoint of them; restore {run / FIRST} from" in the_error(capsys)


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 1,500 kB, in which a flow has no room, and a function that mounts it anew with other
    options.
    """
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True).returncode

    if shutil.which("mount") is None or mount("size=1500k"):
        pytest.skip("needs the right to mount a tmpfs")
    yield place, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "-l", place], check=True)


def ended(arguments, log, act=lambda: None, limit=None):
    """Returns train.py's exit code and its lines of errors; act() after it began; limit: on the size of files.

    In a process of its own: the threads of a failed write may wait for one another, and would keep this one alive.
    """
    log.unlink(missing_ok=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        process = start(arguments, log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    try:
        act()
        code = process.wait(LONGEST)
    finally:
        process.kill()
    said = log.read_text().replace("\r", "\n").splitlines()
    assert "Traceback" not in "".join(said), said
    return code, [line for line in said if ": error: " in line]


def test_a_full_disk_ends_the_run_with_one_line_and_room_lets_it_go_on(undisturbed, faces, disk, tmp_path, capsys):
    (_, mount), run = disk, disk[0] / "run"
    code, (error,) = ended(arguments(faces, run), tmp_path / "log")
    assert code == 2 and "No space left on device" in error
    assert steps(run)[-1] == WHOLE and steps(run, FLOW) == []
    assert mount("size=40m") == 0
    assert train.main(arguments(faces, run)) == 0
    assert "stopped before the flow's first checkpoint; its " in the_error(capsys)
    check_same(run, undisturbed)


def test_a_disk_that_becomes_read_only_ends_the_run_with_one_line(faces, disk, tmp_path):
    """The disk is that of the checkpoints: the other one has files open, and cannot become so under them."""
    (place, mount), run = disk, tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(place)
    mount("size=20m")

    def make_read_only():
        deadline = time.monotonic() + 100
        while not has_checkpoints(run / FIRST) or mount("ro"):  # busy with the last checkpoint
            assert time.monotonic() < deadline
            time.sleep(0.002)

    code, (error,) = ended(arguments(faces, run, "--epochs=300"), tmp_path / "log", make_read_only)
    assert code == 2 and "Read-only file system" in error
    code, (error,) = ended(arguments(faces, run, "--epochs=300"), tmp_path / "log")
    assert code == 2 and "Read-only file system" in error
    mount("rw")
    assert set_damaged_aside(run / "checkpoints") == [] and steps(run)[-1] >= STEPS


def test_files_that_may_not_grow_leave_the_last_checkpoint_whole(undisturbed, faces, tmp_path):
    """Another full disk, which needs no rights: a limit on the size of files."""
    run = copied(undisturbed, tmp_path)
    shutil.rmtree(run / FLOW / str(WHOLE))
    code, (error,) = ended(arguments(faces, run), tmp_path / "log", limit=20_000)
    assert code == 2 and "File too large" in error
    assert set_damaged_aside(run / FLOW) == [] and steps(run, FLOW)[-1] == WHOLE - STEPS
    assert train.main(arguments(faces, run)) == 0
    check_same(run, undisturbed)


@jax.custom_vjp
def poisoned(params, factor):
    """Returns params, whose gradient is multiplied by the factor."""
    return params


poisoned.defvjp(lambda params, factor: (params, factor),
                lambda factor, gradient: (jax.tree.map(lambda g: g * factor, gradient), jnp.zeros_like(factor)))


def test_a_gradient_that_is_not_a_number_stops_the_run_at_its_step(undisturbed, faces, tmp_path, at_call, capsys,
                                                                      monkeypatch):
    """The loss of that step is finite, and so would be a look at it alone."""
    step, make_loss = 27, stages.make_loss
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), step - 1), 0)
    chosen = jax.random.key_data(split_each(key[None], 2)[0][0])

    def make_poisoned(*args):
        loss = make_loss(*args)

        def hurt(params, keys, *data):
            hit = (jax.random.key_data(keys[0]) == chosen).all()
            return loss(poisoned(params, jnp.where(hit, jnp.nan, 1.0)), keys, *data)

        return hurt

    stop = at_call(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train.main(arguments(faces, tmp_path / "run")) == 143
    stop()
    capsys.readouterr()
    monkeypatch.setattr(stages, "make_loss", make_poisoned)
    assert train.main(arguments(faces, tmp_path / "run")) == 2
    assert f"the gradient's norm was nan at step {step}" in the_error(capsys)
    assert steps(tmp_path / "run") == [STEPS]
    monkeypatch.undo()
    assert train.main(arguments(faces, tmp_path / "run")) == 0
    check_same(tmp_path / "run", undisturbed)


def test_of_two_processes_one_is_killed_and_the_other_says_so(faces, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = arguments(faces, tmp_path / "run", f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--epochs=10000")
    args.remove("--devices=1")
    logs = [tmp_path / "log0", tmp_path / "log1"]
    processes = [start([*args, f"--process_id={i}"], log) for i, log in enumerate(logs)]
    try:
        deadline = time.monotonic() + LONGEST
        while not lines(tmp_path / "run") and time.monotonic() < deadline:
            assert [process.poll() for process in processes] == [None, None], [log.read_text() for log in logs]
            time.sleep(0.1)
        processes[1].kill()
        began = time.monotonic()
        code = processes[0].wait(LONGEST)
        assert time.monotonic() - began < 60
        said = logs[0].read_text()
        assert code and ("process 0 of 2 lost another one" in said or "another task died" in said)
    finally:
        for process in processes:
            process.kill()
            process.wait()
