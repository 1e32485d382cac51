"""What each choice of the default does: small configurations, of the same budget and measures, on validation faces.

    python -m benchmarks.ablation --dataset=lfw --data_dir=DIR --classifier=runs/classifier-lfw --flow_epochs=10

A row of CONFIGURATIONS is the default with some flags changed, a run of train.py in --runs_dir, which goes on if it was
stopped, and is measured as by evaluate.py: unguided random faces for the attributes of the validation faces, the
unweighted bound (a flow's on --bound_faces of them), and the reconstructions. The table is printed, and written with
the command to --out.
"""

import argparse
import json
import pathlib
import sys

import jax
import numpy as np

from benchmarks.samples import reconstructed_faces
from cmma_jax.cli import evaluate, train
from cmma_jax.data.dataset import Dataset
from cmma_jax.evaluation.diversity import diversity, generated_faces
from cmma_jax.evaluation.embeddings import embed_dlib, frechet_distance
from cmma_jax.evaluation.tools import Tools, look
from cmma_jax.models.model import count_parameters
from cmma_jax.training.records import read_metrics
from cmma_jax.training.runs import load_data, load_run

CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "default": (),
    "without the detail": ("--detail_width=0",),
    "mixture of logistics": ("--likelihood=logistic_mixture", "--detail_width=0"),
    "mixture of logistics, KL weighted by 2": ("--likelihood=logistic_mixture", "--detail_width=0", "--kl_weight=2"),
    "mixture of logistics, KL weighted by 4": ("--likelihood=logistic_mixture", "--detail_width=0", "--kl_weight=4"),
    "2 channels": ("--latent_channels=2",),
    "8 channels": ("--latent_channels=8",),
    "8x8 cells, 16 channels": ("--latent_cells=8", "--latent_channels=16"),
    "KL weighted by 2": ("--kl_weight=2",),
    "KL weighted by 4": ("--kl_weight=4",),
    "Gaussian prior": ("--prior=gaussian",)}
COLUMNS = {"minutes": ".1f", "parameters": ",.0f", "bits_per_dim": ".3f", "bits_per_dim_dequantised": ".3f",
           "kl": ",.0f", "fd_dlib": ".3f", "fd_reconstructions": ".3f", "accuracy": ".3f", "detected": ".3f",
           "diversity": ".2f"}


def main(argv: list[str]) -> int:
    """Trains and measures every row, prints and writes the table; returns 0, or train.py's exit code if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--rows", nargs="+", choices=list(CONFIGURATIONS), default=list(CONFIGURATIONS), metavar="ROW",
                        help="which, in this order: " + ", ".join(map(repr, CONFIGURATIONS)))
    parser.add_argument("--epochs", type=int, default=5, help="of each row's first stage")
    parser.add_argument("--detail_epochs", type=int, default=2, help="of its detail")
    parser.add_argument("--flow_epochs", type=int, default=10, help="of its flow")
    parser.add_argument("--bound_faces", type=int, default=100, help="of a flow's bound")
    parser.add_argument("--classifier", default="", help="a classifier's folder; empty: none")
    parser.add_argument("--runs_dir", default="runs/ablation")
    parser.add_argument("--out", default="docs/ablation.json", help="where the record goes")
    options = parser.parse_args(argv)
    tools, rows = None, {}
    for name in options.rows:
        flags = CONFIGURATIONS[name]
        run_dir = pathlib.Path(options.runs_dir) / name.replace(" ", "-").replace(",", "")
        code = train.main(["--model=cmma", *flags, f"--dataset={options.dataset}", f"--data_dir={options.data_dir}",
                           f"--epochs={options.epochs}", f"--detail_epochs={options.detail_epochs}",
                           f"--flow_epochs={options.flow_epochs}", f"--run_dir={run_dir}"])
        if code:
            return code
        data = load_data(load_run(run_dir))
        arguments = evaluate.Arguments(parzen=True, classifier=options.classifier, runs_dir=options.runs_dir,
                                       split="validation", bound_faces=options.bound_faces, iwae=1)
        tools = tools or evaluate.tools_of(arguments, data, data.validation)
        rows[name] = measure(run_dir, data, tools, arguments)
        print(f"{name}: {json.dumps(rows[name])}", flush=True)
        command = ("python -m benchmarks.ablation " + " ".join(
            f"--{flag}={getattr(options, flag)}" for flag in (
                "dataset", "epochs", "detail_epochs", "flow_epochs", "bound_faces")))
        record = {"command": command, "device": jax.devices()[0].device_kind, "rows": rows}
        pathlib.Path(options.out).write_text(json.dumps(record, indent=1) + "\n")
    print("\n" + to_markdown(rows) + f"\n\nwritten to {options.out}")
    return 0


def measure(run_dir: pathlib.Path, data: Dataset, tools: Tools,
            arguments: evaluate.Arguments) -> dict[str, float]:
    """Returns a row's figures on validation faces, with the minutes of its training."""
    run, faces = load_run(run_dir), data.validation
    real, made = faces.x / np.float32(255), generated_faces(run.model, run.params, faces)
    figures = evaluate.measure_bound(run, faces, arguments) | look(made, faces, tools)
    found = {name: value for name, (value, _) in figures.items() if " " not in name}
    found |= {"parameters": count_parameters(run.params), "diversity": diversity(made, real),
              "minutes": sum(record["seconds"] for record in read_metrics(run_dir)) / 60}
    if tools.embedded is not None:
        again = reconstructed_faces(run.model, run.params, faces)
        found["fd_reconstructions"] = frechet_distance(embed_dlib(again[::2]), tools.embedded[1::2])
    return {name: float(value) for name, value in found.items()}


def to_markdown(rows: dict[str, dict[str, float]]) -> str:
    """Returns the table."""
    columns = {name: form for name, form in COLUMNS.items() if any(name in row for row in rows.values())}
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [format(row[column], form) if column in row else "" for column, form in columns.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
