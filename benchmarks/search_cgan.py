"""Chooses a CGAN's hyper-parameters by the conditional log-likelihood of validation faces, as section 4.3 says.

    python -m benchmarks.search_cgan --dataset=lfw --data_dir=DIR --epochs=4 --width=16

Tried one setting after another, each at the best of those before it: the learning rate, the discriminator's share of
it, the variance of the initial weights. Each trial is a run of train.py in --runs_dir, which goes on if it was
stopped; its figure is the last epoch's Parzen estimate on 100 validation faces with 50 samples each. A trial whose
faces differ less than half as much as real ones do has collapsed, which Parzen rewards: it is recorded and not chosen.
The record goes to --out, and the best values into `cmma_jax.training.config.paper` by hand.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

from cmma_jax.cli import train
from cmma_jax.training.records import read_metrics

GRID = {"learning_rate": (0.003, 0.001, 0.01), "discriminator_rate": (1.0, 0.3), "weight_variance": (1.0, 0.25)}
LEAST_DIVERSITY = 0.5


def main(argv: list[str]) -> int:
    """Runs the search, prints each trial, writes the record; returns 0, or train.py's exit code where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--epochs", type=int, default=4, help="of each trial")
    parser.add_argument("--width", type=int, default=16, help="of the networks; half the preset's, a third of its time")
    parser.add_argument("--runs_dir", default="runs/search")
    parser.add_argument("--out", default="docs/records/cgan-search.json", help="where the record goes")
    options = parser.parse_args(argv)
    best = {name: values[0] for name, values in GRID.items()}
    trials: dict[str, dict[str, Any]] = {}
    for name, values in GRID.items():
        for value in values:
            setting = best | {name: value}
            label = "-".join(f"{v:g}" for v in setting.values())
            if label not in trials:
                run = pathlib.Path(options.runs_dir) / f"cgan-{label}"
                code = train.main(["--model=cgan", "--preset=paper", f"--dataset={options.dataset}", "--mirror",
                                   f"--data_dir={options.data_dir}", f"--epochs={options.epochs}", f"--run_dir={run}",
                                   f"--width={options.width}",
                                   *(f"--{k}={v}" for k, v in setting.items())])
                # A trial whose loss was not finite is a result too: it keeps the epochs before, or has none.
                records = read_metrics(run)
                if code not in (0, 2):
                    return code
                last = records[-1] if records else {}
                trials[label] = setting | {"epochs": len(records), "parzen": last.get("validation_parzen"),
                                           "diversity": last.get("validation_diversity")}
                print(json.dumps(trials[label]), flush=True)
        done = [trial for trial in trials.values() if (trial["diversity"] or 0) >= LEAST_DIVERSITY]
        if not done:
            print("search_cgan: error: no trial came through without collapsing; see above", file=sys.stderr)
            return 2
        best = {k: max(done, key=lambda trial: trial["parzen"])[k] for k in GRID}
    record = {"command": f"python -m benchmarks.search_cgan --dataset={options.dataset} --epochs={options.epochs} "
              f"--width={options.width}",
              "best": best, "trials": list(trials.values())}
    pathlib.Path(options.out).write_text(json.dumps(record, indent=1) + "\n")
    print(f"best: {best}; written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
