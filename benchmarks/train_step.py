"""Faces/s of a training step, against Linen's own layers and against the same network in PyTorch.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.train_step [--batch_size 100] [--steps 5] [--rounds 7]

The network is `--preset=paper`'s (convolutions alone, 73 binary attributes), the optimiser Adam. A step is draw,
forward, backward and update. All contestants take turns in one process, round by round, and the median of a
round's ratios is printed, so that a machine whose speed drifts does not favour one of them. Ours is measured as
train.py runs it, as a scan of several steps; Linen's convolutions, whose gradients XLA compiles badly inside a loop
on a CPU, one call a step.
"""

import argparse
import dataclasses
import itertools
import math
import time
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.noise import ATTRIBUTES, as_dataset, noise
from cmma_jax.data.dataset import Faces, call_rows
from cmma_jax.models import layers
from cmma_jax.models.model import cmma
from cmma_jax.models.objectives import make_loss
from cmma_jax.training import parallel
from cmma_jax.training.config import Config
from cmma_jax.training.step import TrainState, make_optimizer, make_run, make_step

LATENTS, HIDDEN, WIDTH = 500, 800, 32


def linen_conv(x, kernel, bias):
    return nn.Conv(kernel.shape[3], (4, 4), (2, 2)).apply({"params": {"kernel": kernel, "bias": bias}}, x)


def linen_conv_transpose(x, kernel, bias):
    return nn.ConvTranspose(kernel.shape[3], (4, 4), (2, 2)).apply({"params": {"kernel": kernel, "bias": bias}}, x)


def jax_contestant(data, batch_size, steps, as_scan):
    """Returns run() -> seconds a step, mean over `steps` steps, compiled already."""
    config = Config(linear_path=False, batch_size=batch_size, attribute_dropout=0.0)
    model = cmma(config, data.spec)
    optimizer, _ = make_optimizer(Config(learning_rate=1e-4, linear_rate=1.0, schedule="constant", warmup_steps=1,
                                         epochs=1), 10**6)
    placement = parallel.place(1, "pmap", batch_size)
    step = make_step(make_loss(model, 0.0, 1.0), optimizer, 0, batch_size, False, placement)
    run_steps = make_run(step, placement)
    if not as_scan:
        run_steps = placement.compile(lambda state, data: step(state, Faces(*(a[data[1][0]] for a in data[0]))))
    params = jax.jit(model.init)(jax.random.key(0))
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    faces = placement.put(data.train)
    calls = call_rows(0, 0, 10**6, data.train.size, batch_size, steps if as_scan else 1)

    def run() -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(1 if as_scan else steps):
            state, means = run_steps(state, (faces, placement.put(next(calls))))
            jax.block_until_ready((state, means))
        return (time.perf_counter() - began) / steps

    run()
    return run


class Torch(torch.nn.Module):
    """The same network, layer for layer."""

    def __init__(self):
        super().__init__()
        widths = [3, *(WIDTH * 2**i for i in range(4))]
        self.down = torch.nn.ModuleList(torch.nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(widths))
        self.see = torch.nn.Linear(2 * ATTRIBUTES, 8 * WIDTH)
        self.posterior = torch.nn.Linear(16 * widths[4] + 8 * WIDTH, 2 * LATENTS)
        self.prior = torch.nn.Sequential(torch.nn.Linear(2 * ATTRIBUTES, HIDDEN), torch.nn.Softplus(),
                                         torch.nn.Linear(HIDDEN, 2 * LATENTS))
        self.features = torch.nn.Linear(LATENTS, 16 * widths[4])
        ups = [*widths[4:0:-1], 6]
        self.up = torch.nn.ModuleList(torch.nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(ups))
        self.tell = torch.nn.Sequential(torch.nn.Linear(LATENTS, HIDDEN), torch.nn.Softplus(),
                                        torch.nn.Linear(HIDDEN, ATTRIBUTES))

    def forward(self, x, a, y):
        h = x
        for layer in self.down:
            h = F.relu(layer(h))
        q_mean, q_logvar = self.posterior(torch.cat([h.flatten(1), F.relu(self.see(a))], 1)).chunk(2, 1)
        p_mean, p_logvar = self.prior(a).chunk(2, 1)
        z = q_mean + torch.randn_like(q_mean) * torch.exp(q_logvar / 2)
        g = F.relu(self.features(z)).view(len(x), -1, 4, 4).contiguous(memory_format=torch.channels_last)
        for i, layer in enumerate(self.up):
            g = layer(g) if i == 3 else F.relu(layer(g))
        mean, logvar = g.chunk(2, 1)
        logvar = torch.clamp(logvar, min=-10)
        rec = -0.5 * ((x - mean) ** 2 * torch.exp(-logvar) + logvar + math.log(2 * math.pi)).sum((1, 2, 3))
        kl = 0.5 * (p_logvar - q_logvar + torch.exp(q_logvar - p_logvar)
                    + (q_mean - p_mean) ** 2 * torch.exp(-p_logvar) - 1).sum(1)
        joint = 0
        for latent in (z.detach(), p_mean + torch.randn_like(p_mean) * torch.exp(p_logvar / 2)):
            joint = joint - F.binary_cross_entropy_with_logits(self.tell(latent), y, reduction="none").sum(1)
        return -(rec - kl + joint).mean() / x[0].numel()


def torch_contestant(data, batch_size, steps, compiled=False):
    """Returns run() -> seconds a step, mean over `steps` steps, warmed up already."""
    torch.manual_seed(0)
    model = Torch().to(memory_format=torch.channels_last)
    model = torch.compile(model) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    faces, attributes = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)

    def step() -> None:
        rows = torch.randint(len(faces), (batch_size,))
        x = faces[rows].permute(0, 3, 1, 2).to(memory_format=torch.channels_last).float().div_(255).sub_(0.5)
        y = attributes[rows]
        optimizer.zero_grad()
        loss = model(x, torch.cat([2 * y - 1, torch.ones_like(y)], 1), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def run() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - began) / steps

    run()
    return run


def matmul_contestant():
    """Returns run() -> seconds of a 2048^3 float32 matrix product."""
    a = jax.random.normal(jax.random.key(0), (2048, 2048))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()

    def run() -> float:
        began = time.perf_counter()
        for _ in range(5):
            product(a, a).block_until_ready()
        return (time.perf_counter() - began) / 5

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--steps", type=int, default=5, help="steps a round")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    data = dataclasses.replace(as_dataset(faces := noise(1000)), train=faces)
    ours = jax_contestant(data, arguments.batch_size, arguments.steps, as_scan=True)
    with mock.patch.multiple(layers, conv=linen_conv, conv_transpose=linen_conv_transpose):
        linen = jax_contestant(data, arguments.batch_size, 1, as_scan=False)
    with mock.patch.object(layers, "_kernel_gradient_cpu", lambda x, g: layers._shifted_products(x, g, 4, 2)):
        shifted = jax_contestant(data, arguments.batch_size, arguments.steps, as_scan=True)
    contestants = {"cmma_jax": ours, "without Winograd's products": shifted,
                   "Linen's layers": linen,
                   "PyTorch": torch_contestant(data, arguments.batch_size, arguments.steps),
                   "PyTorch, compiled": torch_contestant(data, arguments.batch_size, arguments.steps, compiled=True),
                   "matrix product": matmul_contestant()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(-1, arguments.rounds):  # the first round only warms up
        for name, run in contestants.items():
            taken = run()
            if turn >= 0:
                seconds[name].append(taken)

    # Products of a step: each layer's multiply-adds twice for the forward pass and, but for the first
    # layer's input, four times for the backward one.
    widths = [3, *(WIDTH * 2**i for i in range(4))]
    convolutions = [(32 // 2**i) ** 2 * 16 * a * b for i, (a, b) in enumerate(itertools.pairwise(widths))]
    mirror = [*convolutions[1:], 2 * convolutions[0]]
    dense = 16 * widths[4] * 3 * LATENTS + 8 * WIDTH * (2 * LATENTS + 2 * ATTRIBUTES) + HIDDEN * (
        2 * ATTRIBUTES + 2 * LATENTS + 2 * (LATENTS + ATTRIBUTES))
    flops = arguments.batch_size * (6 * (sum(convolutions) + sum(mirror) + dense) - 2 * convolutions[0])
    rate = 2 * 2048**3 / np.median(seconds["matrix product"])
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, torch {torch.__version__}, batch "
          f"{arguments.batch_size}, {arguments.rounds} rounds; matrix product {rate / 1e9:,.0f} GFLOP/s; "
          f"a step is {flops / arguments.batch_size / 1e9:.2f} GFLOP a face")
    print("| | faces/s, median (min to max) | ratio, median of rounds | of the product's rate |\n|---|---|---|---|")
    for name in list(contestants)[:-1]:
        faces_s = arguments.batch_size / np.asarray(seconds[name])
        ratio = np.median(np.asarray(seconds[name]) / np.asarray(seconds["cmma_jax"]))
        print(f"| {name} | {np.median(faces_s):,.0f} ({faces_s.min():,.0f} to {faces_s.max():,.0f}) "
              f"| ours is {ratio:.2f} x | {flops / np.median(seconds[name]) / rate:.0%} |")


if __name__ == "__main__":
    main()
