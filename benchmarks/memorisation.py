"""Whether a model has learnt faces by heart: how near its random faces are to training faces, and its flow's error on
training and validation faces, by the time on the path from noise (0) to a face (1).

    python -m benchmarks.memorisation --run=lfw --data_dir=DIR --picture=nearest.png

Near is measured by the distance of dlib's embeddings, in which two photographs of one person are some 0.4 to 0.5 apart.
A random face for the attributes of each of the first --limit faces of the split, guided as shipped, is compared with
those faces themselves: a model that repeats its training faces has nearer ones than new real faces have. The picture
has the random faces that are nearest to a training face, above it.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist
from tqdm import tqdm

from cmma_jax.data.dataset import Faces, pixels, spread
from cmma_jax.evaluation.diversity import generated_faces
from cmma_jax.evaluation.embeddings import embed_dlib
from cmma_jax.models.distributions import row_keys
from cmma_jax.models.flow import matching
from cmma_jax.models.model import Model, Params
from cmma_jax.sampling.faces import GUIDANCE
from cmma_jax.sampling.pictures import grid, save_picture
from cmma_jax.training.bounds import by_rows, standard_error
from cmma_jax.training.runs import load_data, load_run

TIMES = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
SHOWN = 12
CHUNK = 200  # training faces embedded between two looks of the progress bar


def errors_at(model: Model, params: Params, faces: Faces, time: float) -> np.ndarray:
    """Returns [N] matching errors of a flow, all attributes known, at one time on the path."""
    @jax.jit
    def compute(params, rows, batch):
        keys = row_keys(0, rows)
        z = model.posterior(params, pixels(batch.x), batch.y, batch.mask).sample(keys)
        return matching(model, params, keys, z, batch.y, batch.mask, t=jnp.full(len(rows), time))

    return by_rows(lambda rows, batch: compute(params, rows, batch), faces, 100)[:, 0]


def main(argv: list[str]) -> int:
    """Measures and prints both tables, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="lfw", help="a run's folder, or the name of a shipped model")
    parser.add_argument("--data_dir", default="", help="empty: the run's own")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--limit", type=int, default=1000, help="faces of it, and of the training's for the errors")
    parser.add_argument("--picture", type=pathlib.Path)
    options = parser.parse_args(argv)
    run = load_run(options.run)
    data = load_data(run, options.data_dir)
    faces = Faces(*(a[:options.limit] for a in getattr(data, options.split)))
    print(f"{run.path}, {faces.size:,} {options.split} faces, {data.train.size:,} training faces\n")
    if run.model.velocity:
        print("| time | matching error, training | others |\n|---|---|---|")
        for time in TIMES:
            cells = (errors_at(run.model, run.params, each, time)
                     for each in (spread(data.train, options.limit), faces))
            print(f"| {time:g} | " + " | ".join(f"{each.mean():.4f} +- {standard_error(each):.4f}" for each in cells)
                  + " |", flush=True)
    known = np.concatenate([embed_dlib(data.train.x[start:start + CHUNK] / np.float32(255)) for start in
                            tqdm(range(0, data.train.size, CHUNK), desc="training faces", unit=f" x {CHUNK}")])
    made = generated_faces(run.model, run.params, faces, guidance=GUIDANCE if run.model.guided else None)
    print("\n| | nearest training face, mean | 1st percentile | least |\n|---|---|---|---|")
    for name, x in (("random faces", made), (f"{options.split} faces", faces.x / np.float32(255))):
        distances = cdist(embed_dlib(x), known)
        nearest = distances.min(1)
        print(f"| {name} | {nearest.mean():.4f} +- {standard_error(nearest):.4f} | {np.percentile(nearest, 1):.4f} | "
              f"{nearest.min():.4f} |", flush=True)
        if x is made and options.picture:
            shown = np.argsort(nearest)[:SHOWN]
            theirs = data.train.x[distances[shown].argmin(1)] / np.float32(255)
            save_picture(grid([made[shown], theirs]), options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
