"""What temperature, guidance and detail do to a run's random samples, beside its reconstructions and real faces.

    python -m benchmarks.samples --run=runs/cmma-lfw --classifier=runs/classifier-lfw
    python -m benchmarks.samples --run=lfw --classifier=runs/classifier-lfw --split=test --guidance 1 1.5

A row of the table is a random face for the attributes of each of the first --limit faces of the split, from the same
noise in every row, measured as by evaluate.py; guidance is the scale w, of which 1 is none, and detail the temperature
at which pixels are drawn as well, under the first guidance. The reconstructions' row is the best that any prior could
do with this decoder; real faces' row is the measures' own floor.
"""

import argparse
import sys
from typing import Any

import numpy as np

from cmma_jax.data.dataset import Faces
from cmma_jax.evaluation import table
from cmma_jax.evaluation.diversity import diversity, generated_faces
from cmma_jax.evaluation.tools import find_tools, look
from cmma_jax.models.model import Model, Params
from cmma_jax.sampling.faces import in_batches, reconstruct
from cmma_jax.training.runs import load_data, load_run

SHOWN = ("Male", "Eyeglasses", "Sunglasses", "Smiling", "Mustache", "Senior", "Wearing Lipstick", "Asian", "Black")


def reconstructed_faces(model: Model, params: Params, faces: Faces) -> np.ndarray:
    """Returns the reconstructions of N faces from q(z|x, y): [N, H, W, 3] in [0, 1]."""
    def make(x, y, mask):
        return reconstruct(model, params, x, y, mask)

    return in_batches(make, faces.x / np.float32(255), faces.y, faces.mask)


def main(argv: list[str]) -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="lfw", help="a run's folder, or the name of a shipped model")
    parser.add_argument("--data_dir", default="", help="empty: the run's own")
    parser.add_argument("--classifier", default="", help="its folder; empty: runs/classifier-lfw if it is there")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="choose on validation")
    parser.add_argument("--limit", type=int, default=2000, help="faces of it at most")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0], help="scales, 1 for none")
    parser.add_argument("--temperature", type=float, nargs="*", default=[0.85], help="of the noise, without guidance")
    parser.add_argument("--detail", type=float, nargs="*", default=[], help="temperatures of a model that has one")
    options = parser.parse_args(argv)
    run = load_run(options.run)
    data = load_data(run, options.data_dir)
    faces = Faces(*(a[:options.limit] for a in getattr(data, options.split)))
    tools = find_tools(options.classifier or "runs/classifier-lfw", bool(options.classifier), data.spec, faces, print)
    real = faces.x / np.float32(255)

    ways: dict[str, dict[str, Any]] = {
        f"guidance {scale:g}": {"guidance": scale if scale != 1 else None} for scale in options.guidance
        if scale == 1 or run.model.velocity is not None}
    ways |= {f"temperature {each:g}": {"temperature": each} for each in options.temperature}
    ways |= {f"detail {each:g}": next(iter(ways.values())) | {"detail": each} for each in options.detail}
    rows = {name: generated_faces(run.model, run.params, faces, **way) for name, way in ways.items()}
    rows["reconstructions"] = reconstructed_faces(run.model, run.params, faces)
    rows["real faces"] = real
    found = {}
    for name, made in rows.items():
        found[name] = look(made, faces, tools, name == "real faces")
        found[name]["diversity"] = (diversity(made, real), None)
    print(f"{run.path}, {faces.size:,} {options.split} faces\n\n{table.to_markdown(found)}")
    if tools.classifier:
        print("accuracy of single attributes")
        for attribute in SHOWN:
            rates = [figures.get(f"accuracy {attribute}") for figures in found.values()]
            print(f"| {attribute} | " + " | ".join(f"{rate[0]:.3f}" for rate in rates if rate) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
