"""What each part of the default preset gives: one after another, the same budget and measures, validation faces.

    python -m benchmarks.ablation --dataset=lfw --data_dir=DIR --classifier=runs/classifier-lfw

LADDER begins with the paper's networks and optimiser; every rung adds to all below it, up to the default preset.
ASIDE holds single changes of the default, each beside it. A rung is a run of train.py in --runs_dir, which goes on
if it was stopped, and is measured as by evaluate.py at its best epoch. The table is printed, and written
with the command to --out.
"""

import argparse
import json
import pathlib
import sys

import jax
import numpy as np

from cmma_jax.cli import evaluate, train
from cmma_jax.data.dataset import Dataset
from cmma_jax.evaluation.diversity import diversity, generated_faces, reconstructed_faces
from cmma_jax.evaluation.embeddings import embed_dlib, frechet_distance
from cmma_jax.models.model import count_parameters
from cmma_jax.training.bounds import variational_bound
from cmma_jax.training.records import read_metrics
from cmma_jax.training.runs import load_data, load_run

LADDER = {"the paper's": ("--preset=paper",),
          "Adam, a falling rate": ("--optimizer=adam", "--learning_rate=0.001", "--schedule=cosine",
                                   "--warmup_steps=100"),
          "linear paths": ("--linear_path",),
          "mirrored faces": ("--mirror",),
          "hidden attributes (default)": ("--attribute_dropout=0.25",)}
ASIDE = {"moving average": ("--average=0.99",),
         "weight decay": ("--weight_decay=0.5",),
         "a variance a channel": ("--variance=channel",),
         "one variance": ("--variance=shared",),
         "residual blocks": ("--blocks=1",)}


def main(argv: list[str]) -> int:
    """Trains and measures every rung, prints and writes the table; returns 0, or train.py's exit code if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--epochs", type=int, default=5, help="of each rung")
    parser.add_argument("--classifier", default="", help="a classifier's folder; empty: none")
    parser.add_argument("--runs_dir", default="runs/ablation")
    parser.add_argument("--out", default="docs/ablation.json", help="where the record goes")
    options = parser.parse_args(argv)
    flags: list[str] = []
    rungs = {}
    for name, added in LADDER.items():
        flags.extend(added)
        rungs[name] = list(flags)
    rungs |= {name: flags + list(added) for name, added in ASIDE.items()}
    tools, rows = None, {}
    for name, chosen in rungs.items():
        run_dir = pathlib.Path(options.runs_dir) / name.replace(" ", "-").replace("'", "").replace(",", "")
        code = train.main(["--model=cmma", *chosen, f"--dataset={options.dataset}", f"--data_dir={options.data_dir}",
                           f"--epochs={options.epochs}", f"--run_dir={run_dir}"])
        if code:
            return code
        data = load_data(load_run(run_dir))
        looks = evaluate.Arguments(parzen=True, classifier=options.classifier, runs_dir=options.runs_dir)
        tools = tools or evaluate.find_tools(looks, data, data.validation)
        rows[name] = measure(run_dir, data, tools)
        print(f"{name}: {json.dumps(rows[name])}", flush=True)
        record = {"command": f"python -m benchmarks.ablation --dataset={options.dataset} --epochs={options.epochs}",
                  "device": jax.devices()[0].device_kind, "rows": rows}
        pathlib.Path(options.out).write_text(json.dumps(record, indent=1) + "\n")
    print("\n" + to_markdown(rows) + f"\n\nwritten to {options.out}")
    return 0


def measure(run_dir: pathlib.Path, data: Dataset, tools: evaluate.Tools) -> dict[str, float]:
    """Returns a rung's figures on validation faces, at its best epoch, with training's means of that epoch."""
    run, faces = load_run(run_dir), data.validation
    records = read_metrics(run_dir)
    best = next(record for record in records if record["step"] == run.step)
    bound = variational_bound(run.model, run.params, faces)
    real, made = faces.x / np.float32(255), generated_faces(run.model, run.params, faces)
    found = {"parameters": count_parameters(run.params), "bound": bound["bound"], "bound_stderr": bound["bound_stderr"],
             "train_bound": best["train_bound"], "kl": bound["kl"], "train_kl": best["train_kl"],
             "diversity": diversity(made, real), "minutes": sum(record["seconds"] for record in records) / 60}
    found |= {name: value for name, (value, _) in evaluate.look(made, faces, tools).items() if " " not in name}
    if tools.embedded is not None:
        again = reconstructed_faces(run.model, run.params, faces)
        found["fd_reconstructions"] = frechet_distance(embed_dlib(again[::2]), tools.embedded[1::2])
    return {name: float(value) for name, value in found.items()}


def to_markdown(rows: dict[str, dict[str, float]]) -> str:
    """Returns the table."""
    columns = {"bound": ",.0f", "bound_stderr": ",.0f", "train_bound": ",.0f", "kl": ",.0f", "train_kl": ",.0f",
               "accuracy": ".3f", "fd_dlib": ".3f", "fd_reconstructions": ".3f", "diversity": ".2f",
               "minutes": ".1f"}
    columns = {name: form for name, form in columns.items() if any(name in row for row in rows.values())}
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [format(row[column], form) if column in row else "" for column, form in columns.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
