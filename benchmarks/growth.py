"""How time and memory of training grow: with the batch, the number of faces, the latents and the devices.

    python -m benchmarks.growth [--out docs/figures/growth.png]

Each point is a fresh process that trains the default's last stage, the flow, or where its latents grow the first, on
noise of 64x64 with 73 attributes: the median time of a step (of an epoch, where the number of faces grows), and the
most memory that the process took; one before it fills the compilation cache, because compiling takes memory too. One of
batch 100, 1,200 faces, 4 channels of latents, 1 device is changed at a time. The line is the least-squares fit; for
devices none is drawn: those of one CPU share its cores.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import jax
import numpy as np

from benchmarks.noise import as_dataset, noise, training
from cmma_jax.training import parallel
from cmma_jax.training.config import FIRST, FLOW, Config
from cmma_jax.training.step import fit

BASE = {"batch": 100, "faces": 1_200, "channels": 4, "devices": 1}
POINTS = {"batch": (25, 50, 100, 200, 400), "faces": (1_200, 2_400, 4_800), "channels": (2, 4, 8, 16),
          "devices": (1, 2, 4)}
STEPS = 2


def measure(batch: int, faces: int, channels: int, devices: int, grows: str, warm: bool) -> dict[str, float]:
    """Returns {"seconds", "MiB"} of this process; without `warm` nothing but what compiling left in the cache."""
    train, config, whole_epoch = noise(faces), Config(batch_size=batch, latent_channels=channels), grows == "faces"
    run, state, placement, _ = training(FIRST if grows == "channels" else FLOW, config, as_dataset(train), devices)
    calls = fit(run, state, train, placement, 0, batch, 10**6, STEPS)
    next(calls)
    if not warm:
        return {}
    took = []
    for _ in range(1 if whole_epoch else 5):
        began, steps = time.perf_counter(), 0
        while steps < (faces // batch if whole_epoch else STEPS):
            now, means = next(calls)
            jax.block_until_ready(now)
            steps += len(means["loss"])
        took.append((time.perf_counter() - began) / (steps / (faces // batch) if whole_epoch else steps))
    return {"seconds": float(np.median(took)), "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def draw(results: dict[str, list[dict[str, float]]], path: pathlib.Path) -> None:
    """Draws two plots for each thing that grew, above time and below memory, with the fitted lines."""
    from matplotlib.figure import Figure

    picture = Figure((4 * len(results), 6))
    axes = picture.subplots(2, len(results), squeeze=False)
    for column, (name, points) in zip(axes.T, results.items(), strict=True):
        x = np.array([point[name] for point in points])
        labels = f"seconds a{'n epoch' if name == 'faces' else ' step'}", "memory, MiB"
        for ax, figure, label in zip(column, ("seconds", "MiB"), labels, strict=True):
            y = np.array([point[figure] for point in points])
            ax.plot(x, y, "o")
            if name != "devices":
                slope, start = np.polyfit(x, y, 1)
                ax.plot([0, x[-1]], [start, start + slope * x[-1]], "-", color="0.6", zorder=0)
            ax.set(xlabel=name, ylabel=label, xlim=(0, None), ylim=(0, None))
    picture.tight_layout()
    picture.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="growth.png", help="the picture")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a fresh process is started with, as JSON
    options = parser.parse_args()
    parallel.prepare()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}; load average "
          f"{os.getloadavg()[0]:.1f}")
    results: dict[str, list[dict[str, float]]] = {}
    for name, values in POINTS.items():
        print(f"\n| {name} | seconds a{'n epoch' if name == 'faces' else ' step'} | MiB |\n|---|---|---|", flush=True)
        for value in values:
            point = {**BASE, name: value}
            flags = (f"{os.environ.get('XLA_FLAGS', '')} "  # the package's own among them
                     f"--xla_force_host_platform_device_count={point['devices']}")
            for warm in (False, True):
                asked = json.dumps({**point, "grows": name, "warm": warm})
                ended = subprocess.run([sys.executable, "-m", "benchmarks.growth", "--one", asked], check=True,
                                       text=True, stdout=subprocess.PIPE, env={**os.environ, "XLA_FLAGS": flags})
            results.setdefault(name, []).append({**point, **json.loads(ended.stdout)})
            took = results[name][-1]
            print(f"| {value:,} | {took['seconds']:.3f} | {took['MiB']:,.0f} |", flush=True)
    draw(results, pathlib.Path(options.out))
    print(f"\nwrote {options.out}")


if __name__ == "__main__":
    main()
