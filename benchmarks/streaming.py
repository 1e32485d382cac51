"""What streaming costs: faces/s from memory and from memory maps, and memory against the number of faces.

    python -m benchmarks.streaming [--rounds 9] [--faces 10000,100000,1000000] [--folder DIR]

First, at LFW's size, a training that has its faces in the device's memory, one that streams them from the host's and
one that streams them from memory maps take turns, two calls each a round; the median of a round's ratios is printed.
Then, for each number of faces, a fresh process writes random ones to memory maps, 12,288 bytes each and 365 for
73 attributes, and trains on them; its anonymous memory (pages of the maps, which are the kernel's to drop, are not part
of it) is printed after the first call and at the end. Networks are the default's, in the first stage.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.noise import as_dataset, noise, training
from cmma_jax.data.dataset import Dataset, Faces
from cmma_jax.data.disk import _open_map
from cmma_jax.training import parallel
from cmma_jax.training.config import FIRST, Config
from cmma_jax.training.step import fit

LFW, STEPS = 10_000, 5  # training faces; steps a call
BLOCK = 10_000  # faces written at a time


def write_maps(folder: pathlib.Path, count: int) -> Faces:
    """Returns faces of noise in memory maps, one block of them again and again."""
    block = noise(min(count, BLOCK))
    for name, part in block._asdict().items():
        out = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", part.dtype, (count, *part.shape[1:]))
        for start in range(0, count, BLOCK):
            out[start:start + BLOCK] = part[:count - start]
        out.flush()
        del out
    return Faces(*(_open_map(folder / f"{name}.npy") for name in Faces._fields))


def trained(faces: Faces, data: Dataset, on_device: bool) -> Iterator[None]:
    """Trains without end; yields after every call."""
    config = Config()
    run, state, placement, _ = training(FIRST, config, data)
    for now, _ in fit(run, state, faces, placement, 0, config.batch_size, 10**6, STEPS, on_device):
        jax.block_until_ready(now)
        yield


def anonymous() -> int:
    """Returns the process's memory in MiB but for pages of files."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024


def compare(folder: pathlib.Path, rounds: int) -> None:
    """Prints the rates of the three ways at LFW's size."""
    maps = write_maps(folder, LFW)
    memory, data = Faces(*(np.array(a) for a in maps)), as_dataset(maps)
    ways = {"in the device's memory": trained(memory, data, True),
            "from the host's memory": trained(memory, data, False), "from memory maps": trained(maps, data, False)}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, rounds):  # the first one compiles
        for name, way in ways.items():
            began = time.perf_counter()
            for _ in range(2):
                next(way)
            if turn >= 0:
                rates[name].append(2 * STEPS * Config().batch_size / (time.perf_counter() - began))
    base = np.array(rates["in the device's memory"])
    print("| faces | faces/s, median (min to max) | of the rate in memory, median of rounds |\n|---|---|---|")
    for name, each in rates.items():
        print(f"| {name} | {np.median(each):.0f} ({min(each):.0f} to {max(each):.0f}) | {np.median(each / base):.1%} |")


def grow(folder: pathlib.Path, count: int, calls: int) -> None:
    """Prints one process's memory while it trains on so many faces in memory maps."""
    began = time.perf_counter()
    faces = write_maps(folder, count)
    written, way = time.perf_counter() - began, trained(faces, as_dataset(faces), False)
    next(way)
    first, began = anonymous(), time.perf_counter()
    for _ in range(calls):
        next(way)
    rate = calls * STEPS * Config().batch_size / (time.perf_counter() - began)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**30
    print(f"| {count:,} | {size:.2f} GiB, {written:.0f} s | {first:,} MiB | {anonymous():,} MiB | {rate:.0f} |",
          flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--faces", default="10000,100000,1000000", help="numbers of faces in memory maps")
    parser.add_argument("--calls", type=int, default=40, help="of 500 faces each, for every number of faces")
    parser.add_argument("--folder", help="where the maps go for the while; default: the system's for temporary files")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # what a fresh process is started with
    options = parser.parse_args()
    parallel.prepare()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        if options.one:
            return grow(pathlib.Path(scratch), options.one, options.calls)
        print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}; load average "
              f"{os.getloadavg()[0]:.1f}\n", flush=True)
        compare(pathlib.Path(scratch), options.rounds)
    print("\n| faces | maps, and the time to write them | memory after a call | memory at the end | faces/s |\n"
          "|---|---|---|---|---|", flush=True)
    for count in map(int, options.faces.split(",")):
        where = ["--folder", options.folder] if options.folder else []
        subprocess.run([sys.executable, "-m", "benchmarks.streaming", "--one", str(count),
                        "--calls", str(options.calls), *where], check=True)


if __name__ == "__main__":
    main()
