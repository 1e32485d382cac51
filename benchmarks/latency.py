"""How long a person waits: for one face, an edit, a preview, and from a process's start to its first face.

    python -m benchmarks.latency --run RUN [--calls 100] [--preview 4] [--starts 7]

Warm: `FaceModel.generate` of one face and `FaceModel.edit` of one face, the latter with attributes that q(y|z) must
infer and with all of them given, as they are and as previews while a slider moves, with fewer solver steps, take
turns, and each call is timed. Start: a fresh `python -m cmma_jax generate` until it has ended, its picture written; one
before them fills the compilation cache. Beside the time that passed stands the processor time, which other work on the
machine stretches less.
"""

import argparse
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

import cmma_jax
from cmma_jax.training import parallel


def calls(run: str, count: int, preview: int) -> dict[str, tuple[np.ndarray, float]]:
    """Returns {what: ([count] seconds a call, processor seconds a call)}."""
    model = cmma_jax.load(run)
    face = model.generate({}, seed=1)[0]
    known = {name: 0 for name in model.attributes}
    changed = model.attributes[0]
    actions = {"one face": lambda i: model.generate({changed: 1}, seed=i),
               "one edit": lambda i: model.edit(face, {changed: 1}),
               "one edit, attributes given": lambda i: model.edit(face, {changed: 1}, known),
               f"one face, {preview} steps": lambda i: model.generate({changed: 1}, seed=i, steps=preview),
               f"one edit, attributes given, {preview} steps": lambda i: model.edit(face, {changed: 1}, known,
                                                                                     steps=preview)}
    taken: dict[str, list[float]] = {name: [] for name in actions}
    processor = dict.fromkeys(actions, 0.0)
    for i in range(-3, count):  # the first three compile and warm up
        for name, action in actions.items():
            began, used = time.perf_counter(), time.process_time()
            action(max(i, 0))
            if i >= 0:
                taken[name].append(time.perf_counter() - began)
                processor[name] += (time.process_time() - used) / count
    return {name: (np.asarray(taken[name]), processor[name]) for name in actions}


def start(run: str) -> tuple[float, float]:
    """Returns the seconds, and the processor seconds, of a process that makes one face."""
    with tempfile.TemporaryDirectory() as folder:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "cmma_jax", "generate", "--run", run, "--out",
                        str(pathlib.Path(folder) / "face.png")], check=True, stdout=subprocess.DEVNULL)
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a finished run's folder")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--preview", type=int, default=4, help="solver steps of a preview")
    parser.add_argument("--starts", type=int, default=7)
    options = parser.parse_args()
    parallel.prepare()
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}; load average before "
          f"{os.getloadavg()[0]:.1f}")
    print("| | p50 | p99 | fastest | processor time a call |\n|---|---|---|---|---|")
    for name, (seconds, processor) in calls(options.run, options.calls, options.preview).items():
        p50, p99 = 1e3 * np.quantile(seconds, (0.5, 0.99))
        print(f"| {name} | {p50:.1f} ms | {p99:.1f} ms | {1e3 * seconds.min():.1f} ms | {1e3 * processor:.1f} ms |")
    start(options.run)
    took, processor = np.asarray([start(options.run) for _ in range(options.starts)]).T
    print(f"start to first face: median {np.median(took):.2f} s (fastest {took.min():.2f} s), processor time "
          f"{np.median(processor):.2f} s; load average after {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
