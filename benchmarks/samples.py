"""What temperature and guidance do to a run's random samples, on validation faces, beside its reconstructions.

    python -m benchmarks.samples --run=runs/cmma-lfw-flow --judge=runs/judge-lfw

A row of the table is a random face for the attributes of each of the first --limit validation faces, from the same
noise in every row, seen by the judges of evaluate.py. The reconstructions' row is the best that any prior could do
with this decoder; real faces' row is the judges' own floor.
"""

import argparse
import json
import pathlib
import sys

import jax
import numpy as np

import evaluate
from cmma_jax import sampling
from cmma_jax.data.dataset import Faces
from cmma_jax.evaluation.diversity import diversity, generated_faces
from cmma_jax.runs import load_data, load_run

ROWS = {"temperature 1": (1.0, None), "temperature 0.85": (0.85, None), "temperature 0.7": (0.7, None),
        "guidance 1": (1.0, 1.0), "guidance 3": (1.0, 3.0)}
COLUMNS = {"balanced_accuracy": "judged accuracy", "fd_dlib": "FD-dlib", "identities": "identity diversity",
           "detected": "detector finds a face", "diversity": "diversity"}


def main(argv: list[str]) -> int:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="lfw", help="a run's folder, or the name of a shipped model")
    parser.add_argument("--data_dir", default="", help="empty: the run's own")
    parser.add_argument("--judge", default="", help="a judge's folder; empty: none")
    parser.add_argument("--limit", type=int, default=1000, help="validation faces")
    parser.add_argument("--out", default="", help="where a JSON record goes; empty: nowhere")
    options = parser.parse_args(argv)
    run = load_run(options.run)
    data = load_data(run, options.data_dir)
    faces = Faces(*(a[:options.limit] for a in data.validation))
    tools = evaluate.find_tools(evaluate.Arguments(parzen=True, judge=options.judge), data, faces)
    real = faces.x / np.float32(255)

    def reconstruct(x, y, mask):
        return sampling.reconstruct(run.model, run.params, x, y, mask)

    rows = {}
    for name, (temperature, guidance) in ROWS.items():
        if guidance is None or run.model.velocity is not None:
            rows[name] = generated_faces(run.model, run.params, faces, 0, temperature, guidance)
    rows["reconstructions"] = sampling.in_batches(reconstruct, real, faces.y, faces.mask)
    rows["real faces"] = real
    found = {}
    for name, made in rows.items():
        found[name] = evaluate.look(made, faces, tools, name == "real faces")
        found[name]["diversity"] = (diversity(made, real), None)
    print("\n".join(["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
                    + [f"| {name} | " + " | ".join(_cell(row.get(column)) for column in COLUMNS) + " |"
                       for name, row in found.items()]))
    if options.out:
        record = {"run": run.system, "faces": faces.size, "device": jax.devices()[0].device_kind, "rows": found}
        pathlib.Path(options.out).write_text(json.dumps(record, indent=1) + "\n")
    return 0


def _cell(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return ""
    return f"{value[0]:.3f}" + ("" if value[1] is None else f" +- {value[1]:.3f}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
