"""Samples/s of the Parzen estimate, and of the decoder alone.

    python -m benchmarks.parzen [--rounds 7] [--samples 1000] [--faces 4] [--prior flow]

The networks are the default's, untrained: theirs costs what any other would. A round decodes as many latents as the
estimate then needs samples, in chunks of the same size, and then has the estimate; the median of the rounds' ratios is
printed. With --prior flow, minutes of it, z comes from the flow, which takes nearly all of the time. The estimate draws
z, decodes, and compares each sample with its face at one window (`evaluate.py --parzen` has 463 windows on validation
faces, where sigma is chosen, and one on test faces).
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.noise import ATTRIBUTES, as_dataset, noise, untrained
from cmma_jax.evaluation.parzen import SIGMAS, model_sampler, parzen_log_likelihood
from cmma_jax.models.model import make_model
from cmma_jax.training import parallel
from cmma_jax.training.config import Config

CHUNK = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=1000, help="N, a multiple of 200")
    parser.add_argument("--faces", type=int, default=4)
    parser.add_argument("--prior", default="gaussian", choices=("gaussian", "flow"))
    options = parser.parse_args()
    parallel.prepare()
    faces = noise(options.faces)
    data = as_dataset(faces)
    model = make_model(Config(prior=options.prior), data.spec)
    params = untrained(model)
    sampler, count = model_sampler(model, params), options.faces * options.samples

    @jax.jit
    def decode(params, z):
        """As many chunks as z has, one after another in one program, as the estimate has them."""
        nothing = jnp.zeros((CHUNK, ATTRIBUTES)), jnp.zeros((CHUNK, ATTRIBUTES), bool)
        return jax.lax.map(lambda each: model.likelihood(params, each, *nothing).mean.sum(), z)

    z = jax.random.normal(jax.random.key(1), (count // CHUNK, CHUNK, model.latents))
    ways = {"the decoder alone": lambda: decode(params, z),
            "Parzen, 1 window": lambda: parzen_log_likelihood(sampler, faces, options.samples, SIGMAS[200:201],
                                                              chunk=CHUNK),
            "Parzen, 463 windows": lambda: parzen_log_likelihood(sampler, faces, options.samples, SIGMAS, chunk=CHUNK)}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, options.rounds):  # the first one compiles
        for name, way in ways.items():
            began = time.perf_counter()
            jax.block_until_ready(way())
            if turn >= 0:
                rates[name].append(count / (time.perf_counter() - began))
    base = np.array(rates["the decoder alone"])
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}; {options.faces} faces, N = "
          f"{options.samples:,}\n\n| | samples/s, median (min to max) | of the decoder's rate, median of rounds |\n"
          "|---|---|---|")
    for name, each in rates.items():
        print(f"| {name} | {np.median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f}) | "
              f"{np.median(each / base):.1%} |")


if __name__ == "__main__":
    main()
