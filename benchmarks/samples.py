"""What temperature and guidance do to a run's random samples, on validation faces, beside its reconstructions.

    python -m benchmarks.samples --run=runs/cmma-lfw --classifier=runs/classifier-lfw

A row of the table is a random face for the attributes of each of the first --limit validation faces, from the same
noise in every row, measured as by evaluate.py; guidance is the scale w, of which 1 is none. The reconstructions' row is
the best that any prior could do with this decoder; real faces' row is the measures' own floor.
"""

import argparse
import sys

import numpy as np

from cmma_jax.cli import evaluate
from cmma_jax.data.dataset import Faces
from cmma_jax.evaluation import table
from cmma_jax.evaluation.diversity import diversity, generated_faces, reconstructed_faces
from cmma_jax.training.runs import load_data, load_run

ROWS = {"guidance 1": (1.0, None), "guidance 1.5": (1.0, 1.5), "guidance 2": (1.0, 2.0), "guidance 3": (1.0, 3.0),
        "guidance 1, temperature 0.85": (0.85, None), "guidance 1, temperature 0.7": (0.7, None)}


def main(argv: list[str]) -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="lfw", help="a run's folder, or the name of a shipped model")
    parser.add_argument("--data_dir", default="", help="empty: the run's own")
    parser.add_argument("--classifier", default="", help="a classifier's folder; empty: none")
    parser.add_argument("--limit", type=int, default=1000, help="validation faces")
    options = parser.parse_args(argv)
    run = load_run(options.run)
    data = load_data(run, options.data_dir)
    faces = Faces(*(a[:options.limit] for a in data.validation))
    tools = evaluate.find_tools(evaluate.Arguments(parzen=True, classifier=options.classifier), data, faces)
    real = faces.x / np.float32(255)

    rows = {}
    for name, (temperature, guidance) in ROWS.items():
        if guidance is None or run.model.velocity is not None:
            rows[name] = generated_faces(run.model, run.params, faces, 0, temperature, guidance)
    rows["reconstructions"] = reconstructed_faces(run.model, run.params, faces)
    rows["real faces"] = real
    found = {}
    for name, made in rows.items():
        found[name] = evaluate.look(made, faces, tools, name == "real faces")
        found[name]["diversity"] = (diversity(made, real), None)
    print(table.to_markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
