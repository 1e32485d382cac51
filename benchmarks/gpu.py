"""All that is to be measured on a GPU, one after another, each with its seconds.

    pip install -r requirements.txt -r benchmarks/requirements.txt
    python -m benchmarks.gpu --data_dir=DIR [--runs_dir=runs/gpu] [--skip large]

Faces/s of both stages beside PyTorch's, plain and compiled; a run of the default on LFW from nothing, in float32 and in
bfloat16; one of --preset=large; and the bounds of all of them on validation faces. What is trained goes on when the
command is given again.
"""

import argparse
import subprocess
import sys
import time


def main() -> int:
    """Runs each part in a process of its own, which has the GPU's memory to itself, and prints its seconds; returns the
    first exit code that is not 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="LFW's folder")
    parser.add_argument("--runs_dir", default="runs/gpu")
    parser.add_argument("--skip", default="", help="parts left out, with commas between them")
    options = parser.parse_args()
    train = ["train.py", "--model=cmma", "--dataset=lfw", f"--data_dir={options.data_dir}"]
    parts = {"rates": ["-m", "benchmarks.train_step", "--steps=20", "--compile"],
             "float32": [*train, f"--run_dir={options.runs_dir}/float32"],
             "bfloat16": [*train, f"--run_dir={options.runs_dir}/bfloat16", "--precision=bfloat16"],
             "large": [*train, f"--run_dir={options.runs_dir}/large", "--preset=large"]}
    for name in [name for name in parts if name not in options.skip.split(",")]:
        commands = [parts[name]]
        if name != "rates":
            commands.append(["evaluate.py", f"--run={options.runs_dir}/{name}", "--split=validation",
                             f"--picture={options.runs_dir}/{name}.png"])
        for command in commands:
            began = time.perf_counter()
            code = subprocess.run([sys.executable, *command]).returncode
            print(f"{name}: {time.perf_counter() - began:.0f} s, exit code {code}: python {' '.join(command)}",
                  flush=True)
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
