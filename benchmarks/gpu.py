"""What is to be trained and measured on a GPU.

    pip install -r requirements.txt -r benchmarks/requirements.txt
    python -m benchmarks.gpu --data_dir=DIR [--runs_dir=runs/gpu] [--parts large cvae] [--seconds=540]

First, each alone: faces/s of both stages beside PyTorch's, plain and compiled (rates), and a run of the default on LFW
from nothing (default). Then all the others side by side, since small networks leave most of a large GPU idle: its
memory is divided, and where NVIDIA's nvidia-cuda-mps-control runs, their kernels share it at once. Each is a plain
train.py, which goes on when the command is given again; what it prints is in --runs_dir/NAME.log. In the end comes a
table of what their records say: of each stage the median of an epoch's faces/s and all its seconds.
"""

import argparse
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

from cmma_jax.training.records import read_metrics

# The stages of a longer run that the default's decoder and flow have room for, below 20 MiB in half precision.
LONG = ("--batch_size=250", "--epochs=40", "--kl_weight=2", "--detail_width=128", "--detail_blocks=4",
        "--detail_epochs=90", "--flow_epochs=260")
FEW = ("--checkpoint_every=20", "--grid_every=50")  # each takes about as long as an epoch
ALONE = ("rates", "default")
PARTS: dict[str, tuple[str, ...]] = {
    "rates": (), "default": ("--model=cmma",), "float32": ("--model=cmma", "--precision=float32", *FEW),
    "long": ("--model=cmma", *LONG, *FEW), "large": ("--model=cmma", "--preset=large", *FEW),
    "cvae": ("--model=cvae", *FEW), "vae": ("--model=vae", *FEW),
    "projection": ("--model=cgan", "--preset=projection", *FEW)}


def main() -> int:
    """Runs the parts, prints what they took; returns the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="LFW's folder")
    parser.add_argument("--runs_dir", type=pathlib.Path, default=pathlib.Path("runs/gpu"))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=float("inf"),
                        help="after which what still trains is asked to stop, with a checkpoint")
    options = parser.parse_args()
    options.runs_dir.mkdir(parents=True, exist_ok=True)
    end, codes = time.monotonic() + options.seconds, {}
    beside = [name for name in options.parts if name not in ALONE]
    for names in [[name] for name in ALONE if name in options.parts] + [beside]:
        if time.monotonic() > end:
            break
        running, asked = {name: start(name, options, 0.9 / len(names)) for name in names}, False
        while running:
            time.sleep(0.2)
            if time.monotonic() > end and not asked:
                asked = True
                for process in running.values():
                    process.send_signal(signal.SIGTERM)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                codes[name] = running.pop(name).returncode
                print(f"{name}: exit code {codes[name]}", flush=True)
    print("\n| | stage | epochs | faces/s | seconds |\n|---|---|---|---|---|")
    print("\n".join(row for name in options.parts for row in rows(name, options.runs_dir / name)))
    return next((code for code in codes.values() if code), 0)


def start(name: str, options: argparse.Namespace, share: float) -> subprocess.Popen:
    """Starts a part, with a share of the GPU's memory."""
    command = (["-m", "benchmarks.train_step", "--steps=20", "--compile"] if name == "rates" else
               ["train.py", "--dataset=lfw", f"--data_dir={options.data_dir}", "--precision=bfloat16", *PARTS[name],
                f"--run_dir={options.runs_dir / name}"])
    print(f"{name}: python {' '.join(command)}", flush=True)
    with open(options.runs_dir / f"{name}.log", "a") as log:
        return subprocess.Popen([sys.executable, *command], stdout=log, stderr=subprocess.STDOUT,
                                env=os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.3f}"})


def rows(name: str, run: pathlib.Path) -> list[str]:
    """Returns a run's rows of the table, a stage each; the first epoch, in which is compiled, counts in the seconds."""
    records, found = read_metrics(run), []
    for stage in dict.fromkeys(record["stage"] for record in records):
        of_stage = [record for record in records if record["stage"] == stage]
        rate = statistics.median([record["faces_per_second"] for record in of_stage[1:] or of_stage])
        found.append(f"| {name} | {stage} | {len(of_stage)} | {rate:,.0f} | "
                     f"{sum(record['seconds'] for record in of_stage):.0f} |")
    return found


if __name__ == "__main__":
    sys.exit(main())
