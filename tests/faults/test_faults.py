"""train.py hurt: killed, stopped, its disk full or damaged, its gradients poisoned, its partner lost."""

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
from cmma_jax.training.checkpoint import open_checkpoints, set_damaged_aside
from tests.faults.kill import LONGEST, ROOT, TINY, check_same, lines, records, start, states, torment

STEPS = 20  # an epoch, in two calls: a look from outside comes in its middle
WHOLE = STEPS * 6


def arguments(faces, run, *more):
    return [*TINY, f"--data_dir={faces}", f"--run_dir={run}", *more]


@pytest.fixture(scope="module")
def undisturbed(faces, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "whole"
    assert train.main(arguments(faces, run)) == 0
    return run


@pytest.fixture
def at_call(monkeypatch):
    """A function (n, act): act() once train.py's n-th call to the devices is done."""
    fit = train.fit

    def install(n, act):
        def hurt(*args):
            for i, each in enumerate(fit(*args), 1):
                if i == n:
                    act()
                yield each

        monkeypatch.setattr(train, "fit", hurt)
        return lambda: monkeypatch.setattr(train, "fit", fit)

    return install


def steps(run):
    with open_checkpoints(run / "checkpoints") as checkpoints:
        return checkpoints.steps()


def the_error(capsys):
    """Returns what train.py said on stderr but for its progress bar, which must be one line."""
    told = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line and "faces/s" not in line]
    assert len(told) == 1, told
    return told[0]


def test_killed_twice_once_inside_a_save_it_ends_the_same_bit_for_bit(undisturbed, faces, tmp_path):
    said = torment(faces, tmp_path, undisturbed, 10, ["save", "line"])
    assert "1 runs ended" in said and "0 kills inside a save" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_inside_an_epoch_saves_all_and_the_next_start_goes_on(number, undisturbed, faces, tmp_path, at_call,
                                                                       capsys):
    stop = at_call(3, lambda: os.kill(os.getpid(), number))
    began = time.monotonic()
    assert train.main(arguments(faces, tmp_path / "run")) == 128 + number
    assert time.monotonic() - began < 60
    assert the_error(capsys).endswith("the same command goes on after step 30")
    assert steps(tmp_path / "run")[-1] == 30 and len(records(tmp_path / "run")) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    stop()
    assert train.main(arguments(faces, tmp_path / "run")) == 0
    assert "going on after epoch 1 of 6 and 10 steps" in capsys.readouterr().out
    check_same(tmp_path / "run", undisturbed)


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


def copied(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    return tmp_path / "run"


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


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_checkpoint_is_used_and_the_damage_named(damage, undisturbed, faces, tmp_path, capsys):
    run = copied(undisturbed, tmp_path)
    DAMAGES[damage](run / "checkpoints" / str(WHOLE))
    assert train.main(arguments(faces, run)) == 0
    said = capsys.readouterr()
    assert "going on after epoch 5 of 6" in said.out
    named = [line for line in said.err.splitlines() if "is damaged" in line]
    assert len(named) == 1 and f"checkpoints/{WHOLE} is damaged" in named[0]
    assert (run / "damaged" / str(WHOLE)).is_dir()
    check_same(run, undisturbed)


def test_any_damage_to_any_file_is_named_or_does_not_matter(undisturbed, tmp_path):
    """What is left unnamed is what no reader uses: the state then comes back bit for bit."""
    rng, expected, named = random.Random(0), states(undisturbed)[WHOLE], 0
    newest = undisturbed / "checkpoints" / str(WHOLE)
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    for i, path in enumerate(rng.sample(files, min(len(files), 8))):
        run = tmp_path / str(i)
        shutil.copytree(undisturbed, run)
        hurt = [pathlib.Path.unlink, cut, lambda path: flip(path, rng.random())][i % 3]
        hurt(run / "checkpoints" / str(WHOLE) / path)
        if set_damaged_aside(run / "checkpoints"):
            named += 1
            assert steps(run)[-1] == WHOLE - STEPS
        else:
            jax.tree.map(np.testing.assert_array_equal, states(run)[WHOLE], expected)
    assert named


def test_without_a_whole_checkpoint_nothing_begins_again(undisturbed, faces, tmp_path, capsys):
    run = copied(undisturbed, tmp_path)
    for checkpoint in (run / "checkpoints").iterdir():
        flip(checkpoint / "facts" / "metadata")
    before = sorted((run / "checkpoints").iterdir()), (run / "metrics.jsonl").read_text()
    assert train.main(arguments(faces, run)) == 2
    assert f"is whole; the newest, {WHOLE}: " in the_error(capsys)
    assert (sorted((run / "checkpoints").iterdir()), (run / "metrics.jsonl").read_text()) == before
    shutil.rmtree(run / "checkpoints")
    assert train.main(arguments(faces, run)) == 2
    assert "6 epochs in metrics.jsonl but no checkpoint" in the_error(capsys)


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 700 kB, and a function that mounts it anew with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True).returncode

    if shutil.which("mount") is None or mount("size=700k"):
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


def test_a_full_disk_ends_the_run_with_one_line_and_room_lets_it_go_on(undisturbed, faces, disk, tmp_path):
    (_, mount), run = disk, disk[0] / "run"
    code, (error,) = ended(arguments(faces, run), tmp_path / "log")
    assert code == 2 and "No space left on device" in error
    reached = steps(run)[-1]
    assert STEPS <= reached < WHOLE
    assert mount("size=20m") == 0
    assert ended(arguments(faces, run), tmp_path / "log") == (0, [])
    assert f"going on after epoch {reached // STEPS} of 6" in (tmp_path / "log").read_text()
    check_same(run, undisturbed)


def test_a_disk_that_becomes_read_only_ends_the_run_with_one_line(faces, disk, tmp_path):
    """The disk is that of the checkpoints: the other one has files open, and cannot become so under them."""
    (place, mount), run = disk, tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(place)
    mount("size=20m")

    def make_read_only():
        deadline = time.monotonic() + 100
        while len(lines(run)) < 2 or mount("ro"):  # busy with the last checkpoint
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
    shutil.rmtree(run / "checkpoints" / str(WHOLE))
    code, (error,) = ended(arguments(faces, run), tmp_path / "log", limit=20_000)
    assert code == 2 and "File too large" in error
    assert set_damaged_aside(run / "checkpoints") == [] and steps(run)[-1] == WHOLE - STEPS
    assert ended(arguments(faces, run), tmp_path / "log") == (0, [])
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
    step, make_loss = 27, train.make_loss
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
    monkeypatch.setattr(train, "make_loss", make_poisoned)
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
