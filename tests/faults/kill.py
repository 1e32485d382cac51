"""Kills train.py with SIGKILL, again and again, and compares where it ends with a run that was left alone.

  python -m tests.faults.kill --times=50

A fifth of the kills come at any moment, a fifth while a checkpoint is being written, a fifth between the stages, the
rest shortly after a line of metrics.jsonl. A run is killed and started again until it ends; then the checkpoints of
all of its stages and its records are compared.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from cmma_jax.training.checkpoint import has_checkpoints, open_checkpoints
from cmma_jax.training.config import DETAIL, FIRST, FLOW

ROOT = pathlib.Path(__file__).parent.parent.parent
EPOCHS = 3  # of each stage
TINY = ["--dataset=folder", "--image_size=16", "--width=4", "--components=1", "--prior_hidden=8", "--flow_width=64",
        "--flow_blocks=1", "--devices=1", "--batch_size=2", f"--epochs={EPOCHS}", f"--flow_epochs={EPOCHS}"]
TWO = ["--detail_width=0"]
THREE = ["--detail_width=8", "--detail_blocks=1", f"--detail_epochs={EPOCHS}"]
TIMING = ("seconds", "faces_per_second")
LONGEST = 300  # seconds that a start may take
# train.py without its pictures and its last figures: to compile them takes longer than all else, and changes nothing.
PROGRAM = ("import sys; from cmma_jax.cli import train; train.draw_progress = train.report = lambda *_: None; "
           "train.program(sys.argv[1:])")


def start(arguments: list[str], log: pathlib.Path) -> subprocess.Popen:
    """Starts train.py on one device, compiled as here, so that bits agree; what it says is appended to the log."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    with log.open("a") as file:
        return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, stdout=file, stderr=file,
                                env={**os.environ, "XLA_FLAGS": " ".join(flags)})


def lines(run: pathlib.Path) -> list[str]:
    """Returns the whole lines of a run's metrics.jsonl."""
    path = run / "metrics.jsonl"
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def inside_a_save(run: pathlib.Path) -> bool:
    """Returns whether a checkpoint is being written: it has another name until it is whole."""
    return any("tmp" in path.name for folder in (FIRST, DETAIL, FLOW) for path in (run / folder).glob("*"))


def stage(run: pathlib.Path) -> str:
    """Returns in which stage a run is, or that it is at a border: one's epochs are done, the next has no checkpoint."""
    begun = sum(has_checkpoints(run / folder) for folder in (FIRST, DETAIL, FLOW))
    return "a border" if len(lines(run)) >= EPOCHS * max(begun, 1) else ("one", "two", "three")[max(begun, 1) - 1]


def moments(how: str, run: pathlib.Path, rng: random.Random, seconds: float) -> Iterator[bool]:
    """Yields, as often as it is asked, whether the moment to kill has come.

    Args:
      how: "any", "save", "line" or "border".
      run: the run's folder.
      rng: of the moment.
      seconds: what a whole start takes.
    """
    wait, before, more = rng.uniform(0, seconds if how == "any" else 0.3), len(lines(run)), rng.randint(1, 3)
    border = EPOCHS * (1 + before // EPOCHS)
    while how == "save":
        yield len(lines(run)) >= before + more - 1 and inside_a_save(run)
    while how == "line" and len(lines(run)) < before + more:
        yield False
    while how == "border" and len(lines(run)) < border:
        yield False
    began = time.monotonic()
    while True:
        yield time.monotonic() - began > wait


def killed(process: subprocess.Popen, moment: Iterator[bool]) -> bool:
    """Kills a process when the moment has come; returns whether it had not ended before."""
    deadline = time.monotonic() + LONGEST
    while process.poll() is None and not next(moment):
        assert time.monotonic() < deadline, "train.py neither ends nor comes to the moment"
        time.sleep(0.0005)
    process.kill()
    return process.wait() < 0


def records(run: pathlib.Path) -> list[dict]:
    """Returns metrics.jsonl but for times, every line of which must be whole."""
    return [{name: value for name, value in json.loads(line).items() if name not in TIMING}
            for line in (run / "metrics.jsonl").read_text().splitlines()]


def states(run: pathlib.Path) -> dict[tuple[str, int], dict]:
    """Returns the state of each checkpoint of all stages: step, parameters, their average, optimiser."""
    found = {}
    for folder in (FIRST, DETAIL, FLOW):
        if not has_checkpoints(run / folder):
            continue
        with open_checkpoints(run / folder) as checkpoints:
            found |= {(folder, step): checkpoints.manager.restore(step)["state"] for step in checkpoints.steps()}
    return found


def check_same(run: pathlib.Path, undisturbed: pathlib.Path) -> None:
    """Raises AssertionError unless a run ended as the undisturbed one did, bit for bit."""
    assert records(run) == records(undisturbed)
    assert [record["epoch"] for record in records(run)] == list(range(1, len(records(run)) + 1))
    mine, theirs = states(run), states(undisturbed)
    assert list(mine) == list(theirs) and {folder for folder, _ in mine} >= {FIRST, FLOW}
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    configs = [json.loads((path / "config.json").read_text()) | {"run_dir": ""} for path in (run, undisturbed)]
    assert configs[0] == configs[1]
    assert not inside_a_save(run), "an unfinished checkpoint was left behind"


def torment(faces: pathlib.Path, folder: pathlib.Path, undisturbed: pathlib.Path, seconds: float, hows: list[str],
            seed: int = 0, stages: list[str] = TWO) -> str:
    """Kills as often as hows say, starting anew what ends before; returns a sentence on what was done.

    Args:
      faces: the data set.
      folder: where the runs go.
      undisturbed: a finished run.
      seconds: what it took.
      hows: of each kill, as of `moments`.
      seed: of the moments.
      stages: flags that say which there are.
    """
    rng, began, runs, hows = random.Random(seed), time.monotonic(), 1, list(hows)
    at: collections.Counter[str] = collections.Counter()
    while True:
        run = folder / f"hurt{runs}"
        process = start([*TINY, *stages, f"--data_dir={faces}", f"--run_dir={run}"], folder / f"hurt{runs}.log")
        if hows and killed(process, moments(hows[0], run, rng, seconds)):
            at.update([f"in stage {stage(run)}".replace("in stage a", "at a")] + ["inside a save"] * inside_a_save(run))
            print(f"{len(hows)} to go: killed at {hows[0]}, epoch {len(lines(run))}, {stage(run)}"
                  + (", inside a save" if inside_a_save(run) else ""), flush=True)
            hows = hows[1:]
            continue
        assert process.wait(LONGEST) == 0, (folder / f"hurt{runs}.log").read_text()
        check_same(run, undisturbed)
        if not hows:
            return (f"{runs} runs ended with parameters, averages, optimiser and metrics equal to the undisturbed "
                    f"run's, bit for bit, no line twice or missing; kills: "
                    + ", ".join(f"{at[where]} {where}" for where in sorted(at)) +
                    f"; {time.monotonic() - began:.0f} s")
        runs += 1


def main() -> None:
    """Runs the long version."""
    from tests.conftest import write_faces

    parser = argparse.ArgumentParser("python -m tests.faults.kill", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    hows = ["any", "save", "line", "border", "line"] * (options.times // 5 + 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        faces, undisturbed = folder / "faces", folder / "undisturbed"
        faces.mkdir()
        write_faces(faces)
        for _ in range(2):  # the second one is timed, with everything compiled
            began = time.monotonic()
            run = undisturbed if not undisturbed.exists() else folder / "timed"
            assert start([*TINY, *THREE, f"--data_dir={faces}", f"--run_dir={run}"],
                         folder / "log").wait(LONGEST) == 0
        print(f"{options.times} kills;", torment(faces, folder, undisturbed, time.monotonic() - began,
                                                 hows[:options.times], options.seed, THREE))


if __name__ == "__main__":
    main()
