"""What the z of a run holds, and what it is worth: figures by which autoencoders are compared before a flow is trained.

    python -m benchmarks.latents --run=lfw --data_dir=DIR

Printed are, over some training faces: the nats that z has of a face under a Gaussian with its covariance, which is what
a linear flow would find; the matching error of that flow, whose excess over a trained one's is what is nonlinear in z;
how sharp q(z|x, y) is in each channel; and over the validation faces the squared error of the mean face, and how much a
face moves when each latent moves by a tenth of its deviation. An empty channel is noise, and raises the matching error.
"""

import argparse
import sys

import jax
import numpy as np

from cmma_jax.data.dataset import Faces, spread
from cmma_jax.training import parallel
from cmma_jax.training.runs import load_data, load_run
from cmma_jax.training.stages import latent_scale

BATCH, DRAWS = 100, 2000  # faces at once; times over which a matching error is averaged
MOVED = 0.1  # of a latent's deviation


def main() -> int:
    """Prints a run's figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="lfw", help="its folder, a compact file, or a name")
    parser.add_argument("--data_dir", default="", help="the data's folder; empty: where the run found it")
    parser.add_argument("--faces", type=int, default=3000, help="training faces, more than there are latents")
    options = parser.parse_args()
    parallel.prepare()
    run = load_run(options.run, unfinished=True)
    data, model, params = load_data(run, options.data_dir), run.model, run.params
    posterior = jax.jit(lambda x, y, mask: model.posterior(params, x / 255.0, y, mask))
    decode = jax.jit(lambda z, y, mask: model.likelihood(params, z, y, mask).mean)
    scale = params.get("scale") or latent_scale(model, params, data, run.config)
    channels = len(scale["mean"])

    def encode(faces: Faces) -> tuple[np.ndarray, np.ndarray]:
        parts = [posterior(*(np.asarray(a[i:i + BATCH], np.float32 if a is faces.x else a.dtype) for a in faces))
                 for i in range(0, faces.size, BATCH)]
        return np.concatenate([p.mean for p in parts]), np.concatenate([np.exp(p.logvar) for p in parts])

    mean, variance = encode(spread(data.train, options.faces))
    deviation = np.tile(scale["deviation"], mean.shape[1] // channels)
    centred = (mean - np.tile(scale["mean"], mean.shape[1] // channels)) / deviation
    noise = variance / deviation**2
    values = np.linalg.eigvalsh(np.cov(centred.T.astype(np.float64)) + np.diag(noise.mean(0, dtype=np.float64)))
    nats = 0.5 * (np.log(values).sum() - np.log(noise, dtype=np.float64).mean(0).sum())
    t = 1 / (1 + np.exp(-np.random.default_rng(0).normal(size=(DRAWS, 1))))
    errors = values + 1 - np.square(t * values - (1 - t)) / (t**2 * values + (1 - t) ** 2)

    faces = spread(data.validation, 1000)
    z, _ = encode(faces)
    moves = MOVED * deviation * np.random.default_rng(0).normal(size=z.shape)
    found = [decode(each.astype(np.float32), faces.y, faces.mask) for each in (z, z + moves)]
    print(f"{run.path}: z under a Gaussian with its covariance {nats:,.0f} nats a face, matching error "
          f"{errors.mean():.3f}\n"
          f"deviation of q(z|x, y) over that of z, by channel {np.sqrt(noise.reshape(-1, channels).mean(0)).round(3)}\n"
          f"mean squared error of the mean face {np.square(found[0] - faces.x / np.float32(255)).mean():.5f}; of one "
          f"whose latents move by {MOVED:g} of their deviation {np.square(found[1] - found[0]).mean():.5f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
