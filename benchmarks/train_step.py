"""Faces/s of a step of either stage of the training, against the same networks in PyTorch.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.train_step [--batch_size 100] [--steps 2] [--rounds 7] [--compile]
                                      [--likelihood logistic_mixture]

The networks are the default's for LFW, 73 binary attributes; a step is draw, forward, backward, clipping, update and
moving average. All contestants take turns in one process, round by round, and the median of a round's ratios is
printed, so that a machine whose speed drifts does not favour one of them. PyTorch's products are counted by itself,
and stand beside the rate of a 2048^3 matrix product of each library. --compile adds `torch.compile`, minutes of it.
"""

import argparse
import dataclasses
import math
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.noise import ATTRIBUTES, as_dataset, noise, training
from cmma_jax.data.dataset import Dataset, call_rows
from cmma_jax.models.model import DROPOUT, count_parameters
from cmma_jax.models.networks import KNOWN
from cmma_jax.models.transformer import HEAD, HIGHEST_TIME, LOWEST_TIME, PATCH, TIMES, product
from cmma_jax.training.config import FIRST, FLOW, OWN, Config
from cmma_jax.training.stages import PARTLY, WHOLLY
from cmma_jax.training.step import MUON_RMS

SIDE = 2048  # of the matrices whose product's rate is measured
Run = Callable[[], float]  # -> seconds a step


def ours(folder: str, config: Config, data: Dataset, steps: int) -> tuple[Run, int]:
    """Returns run() -> seconds a step, mean over `steps` steps, compiled already, and the trained parameters' count."""
    step, state, placement, _ = training(folder, config, data)
    count, state = count_parameters(state.params), placement.put(state)
    faces = placement.put(data.train)
    rows = call_rows(0, 0, 10**6, data.train.size, config.batch_size, 1)

    def run() -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(steps):
            state, means = step(state, (faces, placement.put(next(rows)[0])))
        jax.block_until_ready((state, means))
        return (time.perf_counter() - began) / steps

    run()
    return run, count


class Block(nn.Module):
    """Two 3x3 convolutions beside an identity, shifted and scaled by what is known."""

    def __init__(self, size: int, known: int = 0):
        super().__init__()
        self.norms = nn.ModuleList(norm(size) for _ in range(2))
        self.known = nn.Linear(known, 2 * size) if known else None
        self.convs = nn.ModuleList(nn.Conv2d(size, size, 3, padding=1) for _ in range(2))

    def forward(self, x, known=None):
        features = self.norms[0](x)
        if self.known is not None:
            scale, shift = self.known(known)[:, :, None, None].chunk(2, 1)
            features = (1 + scale) * features + shift
        return x + self.convs[1](F.relu(self.norms[1](self.convs[0](F.relu(features)))))


def norm(size: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, size), size, eps=1e-6)


class Autoencoder(nn.Module):
    """h, g, f and h2 of a map of latents, and their loss, weights and layers those of `cmma`."""

    def __init__(self, config: Config, cells: int):
        super().__init__()
        channels, width = config.latent_channels, config.width
        stages = int(math.log2(config.image_size // cells))
        widths = [width * 2**stage for stage in range(stages)]
        self.mixture, latents = config.likelihood == "logistic_mixture", cells**2 * channels
        self.see = nn.Linear(2 * ATTRIBUTES, KNOWN)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in zip([3, *widths], widths, strict=False))
        self.seen = nn.ModuleList(Block(widths[-1], KNOWN) for _ in range(config.blocks))
        self.last = norm(widths[-1])
        self.posterior = nn.Conv2d(widths[-1], 2 * channels, 3, padding=1)
        heads = 10 * config.components if self.mixture else 6
        self.entrance = nn.Conv2d(channels, widths[-1], 3, padding=1)
        self.made = nn.ModuleList(Block(widths[-1]) for _ in range(config.blocks))
        self.norm = norm(widths[-1])
        ups = [widths[-1], *(4 * each // 3 for each in widths[-2::-1]), heads]
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in zip(ups, ups[1:], strict=False))
        self.prior = nn.Sequential(nn.Linear(2 * ATTRIBUTES, config.prior_hidden), nn.Softplus(),
                                   nn.Linear(config.prior_hidden, 2 * latents))
        self.infer = nn.Sequential(nn.Conv2d(channels, width, 4, 2, 1), nn.ReLU(),
                                   nn.Conv2d(width, 2 * width, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                                   nn.Linear((cells // 4) ** 2 * 2 * width, 4 * width), nn.ReLU(),
                                   nn.Linear(4 * width, ATTRIBUTES))

    def encode(self, x, a):
        known, features = F.relu(self.see(a)), x
        for stage, conv in enumerate(self.down):
            features = conv(features if stage == 0 else F.relu(features))
        for block in self.seen:
            features = block(features, known)
        return self.posterior(F.relu(self.last(features))).float().chunk(2, 1)

    def decode(self, z):
        features = self.entrance(z)
        for block in self.made:
            features = block(features)
        features = self.norm(features)
        for up in self.up:
            features = up(F.relu(features))
        return features.float()

    def forward(self, x, y, mask):
        a = seen_attributes(y, mask)
        mean, logvar = self.encode((x - 0.5) / 0.29, a)
        p_mean, p_logvar = (each.view_as(mean) for each in self.prior(a).float().chunk(2, 1))
        z = mean + torch.randn_like(mean) * torch.exp(logvar / 2)
        likelihood = (mixture_log_prob if self.mixture else gaussian_log_prob)(self.decode(z), x)
        kl = 0.5 * (p_logvar - logvar + torch.exp(logvar - p_logvar) + (mean - p_mean) ** 2 * torch.exp(-p_logvar) - 1)
        joint = 0
        for latent in (z.detach(), p_mean + torch.randn_like(p_mean) * torch.exp(p_logvar / 2)):
            joint = joint - F.binary_cross_entropy_with_logits(self.infer(latent).float(), y, reduction="none").sum(1)
        return -(likelihood - kl.flatten(1).sum(1) + joint).mean() / x[0].numel()


def seen_attributes(y, mask):
    return torch.cat([torch.where(mask, 2 * y - 1, 0), mask.float()], 1)


def gaussian_log_prob(heads, x):
    """heads: [B, 6, H, W] -> [B]."""
    mean, logvar = heads.chunk(2, 1)
    mean, logvar = 0.5 + 0.29 * mean, (logvar - 2.5).clamp(min=-13.567)
    return -0.5 * ((x - mean) ** 2 * torch.exp(-logvar) + logvar + math.log(2 * math.pi)).flatten(1).sum(1)


def mixture_log_prob(heads, x):
    """heads: [B, 10 K, H, W] -> [B] log P."""
    count = heads.shape[1] // 10
    weights, (means, log_scales, slopes) = heads[:, :count], heads[:, count:].unflatten(1, (3, 3, count)).unbind(1)
    means, log_scales, slopes = 0.5 + 0.29 * means, (log_scales - 1.8).clamp(min=-8.04), torch.tanh(slopes)
    red, green = (x[:, i:i + 1] - 0.5 for i in range(2))
    means = torch.stack([means[:, 0], means[:, 1] + slopes[:, 0] * red,
                         means[:, 2] + slopes[:, 1] * red + slopes[:, 2] * green], 1)
    x, inverse = x[:, :, None], torch.exp(-log_scales)
    middle, half = inverse * (x - means), inverse * (0.5 / 255)
    upper, lower = middle + half, middle - half
    inside = torch.log(-torch.expm1(-(2 * half).clamp(min=1e-12))) - F.softplus(-upper) - F.softplus(lower)
    mass = torch.where(x < 0.5 / 255, -F.softplus(-upper), torch.where(x > 254.5 / 255, -F.softplus(lower), inside))
    return torch.logsumexp(F.log_softmax(weights, 1) + mass.sum(1), 1).flatten(1).sum(1)


class Transformer(nn.Module):
    """The flow's velocity, layer for layer, and its matching error."""

    def __init__(self, config: Config, cells: int):
        super().__init__()
        width, self.blocks, features = config.flow_width, config.flow_blocks, PATCH**2 * config.latent_channels
        self.time, self.see = nn.Linear(2 * TIMES, width), nn.Linear(2 * ATTRIBUTES, width)
        self.known, self.entrance = nn.Linear(width, width), nn.Linear(features, width)
        self.places = nn.Parameter(0.02 * torch.randn(1, (cells // PATCH) ** 2, width))
        self.modulations = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(self.blocks))
        self.mix = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(self.blocks))
        self.heard = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(self.blocks))
        self.forward0 = nn.ModuleList(nn.Linear(width, 4 * width, bias=False) for _ in range(self.blocks))
        self.forward1 = nn.ModuleList(nn.Linear(4 * width, width, bias=False) for _ in range(self.blocks))
        self.modulation, self.velocity = nn.Linear(width, 2 * width), nn.Linear(width, features)

    def forward(self, u, y, mask):
        """u: [B, N, PATCH^2 C] standardised latents of the tokens."""
        batch, width = len(u), self.known.out_features
        t, noise = torch.sigmoid(torch.randn(batch, 1, 1, device=u.device)), torch.randn_like(u)
        steps = torch.linspace(math.log(LOWEST_TIME), math.log(HIGHEST_TIME), TIMES, device=u.device).exp()
        angles = t[:, 0] * steps
        known = F.silu(self.time(torch.cat([torch.sin(angles), torch.cos(angles)], 1))
                       + self.see(seen_attributes(y, mask)))
        known = F.silu(self.known(known))
        tokens = self.entrance((1 - t) * noise + t * u) + self.places
        for i in range(self.blocks):
            shift0, scale0, gate0, shift1, scale1, gate1 = self.modulations[i](known)[:, None].chunk(6, 2)
            features = F.layer_norm(tokens, (width,), eps=1e-6) * (1 + scale0) + shift0
            parts = self.mix[i](features).unflatten(2, (3, width // HEAD, HEAD)).permute(2, 0, 3, 1, 4)
            heard = F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(tokens.shape)
            tokens = tokens + gate0 * self.heard[i](heard)
            features = F.layer_norm(tokens, (width,), eps=1e-6) * (1 + scale1) + shift1
            features = torch.square(F.relu(self.forward0[i](features)))
            keep = (torch.rand(batch, 1, 4 * width, device=u.device) >= DROPOUT) / (1 - DROPOUT)
            tokens = tokens + gate1 * self.forward1[i](features * keep.to(features.dtype))
        shift, scale = self.modulation(known)[:, None].chunk(2, 2)
        found = self.velocity(F.layer_norm(tokens, (width,), eps=1e-6) * (1 + scale) + shift)
        return (found.float() - (u - noise)).square().mean()


def pytorch(folder: str, config: Config, data: Dataset, steps: int, half: bool, compiled: bool
            ) -> tuple[Run, int, Callable[[], None]]:
    """Returns run() -> seconds a step, warmed up; the trained parameters' count; and one step alone."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cells = config.image_size // 4
    autoencoder = Autoencoder(config, cells).to(device, memory_format=torch.channels_last)
    model: nn.Module = autoencoder if folder == FIRST else Transformer(config, cells).to(device)
    weights = list(model.parameters())
    count, average = sum(w.numel() for w in weights), [w.detach().clone() for w in weights]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(weights, config.learning_rate, foreach=True)]
    if folder == FLOW:
        lists = ("modulations", "mix", "heard", "forward0", "forward1")
        matrices = [layer.weight for name in lists for layer in getattr(model, name)]
        others = [w for w in weights if not any(w is matrix for matrix in matrices)]
        optimizers = [torch.optim.Muon(matrices, config.flow_rate * MUON_RMS / 0.2, 0.01,  # its own is 0.2
                                       adjust_lr_fn="match_rms_adamw"),
                      torch.optim.NAdam(others, config.flow_rate, (0.9, 0.99), foreach=True)]
    call: Any = torch.compile(model) if compiled else model
    faces, attributes = (torch.from_numpy(a).to(device) for a in data.train[:2])
    hidden = (config.attribute_dropout / 2,) * 2 if folder == FIRST else (WHOLLY, PARTLY)

    def step() -> None:
        rows = torch.randint(len(faces), (config.batch_size,), device=device)
        x, y = faces[rows].permute(0, 3, 1, 2).float().div_(255), attributes[rows]
        x = torch.where(torch.rand(len(x), 1, 1, 1, device=device) < 0.5, x.flip(3), x)
        x = x.contiguous(memory_format=torch.channels_last)
        which, rate = torch.rand(2, len(y), 1, device=device)
        rate = torch.where(which < hidden[0], 0, torch.where(which < sum(hidden), rate, 1))
        mask = torch.rand(y.shape, device=device) < rate
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            if folder == FLOW:
                with torch.no_grad():
                    mean, logvar = autoencoder.encode((x - 0.5) / 0.29, seen_attributes(y, torch.ones_like(mask)))
                    x = F.pixel_unshuffle(mean + torch.randn_like(mean) * torch.exp(logvar / 2), PATCH)
                    x = x.flatten(2).transpose(1, 2).contiguous()
            loss = call(x, y, mask)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        for optimizer in optimizers:
            optimizer.step()
        torch._foreach_lerp_(average, weights, 0.002)

    def run() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps

    run()
    return run, count, step


def products() -> dict[str, Run]:
    """Returns the runs of a matrix product, by library and precision: seconds each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(SIDE, SIDE, device=device)
    half, b = a.bfloat16(), jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    plain, rounded = jax.jit(jnp.matmul), jax.jit(product)

    def timed(multiply: Callable[[], Any]) -> Run:
        def run() -> float:
            began = time.perf_counter()
            for _ in range(3):
                found = multiply()
            if isinstance(found, jax.Array):
                found.block_until_ready()
            elif device == "cuda":
                torch.cuda.synchronize()
            return (time.perf_counter() - began) / 3

        return run

    return {"XLA, float32": timed(lambda: plain(b, b)), "XLA, bfloat16": timed(lambda: rounded(b, b)),
            "PyTorch, float32": timed(lambda: a @ a), "PyTorch, bfloat16": timed(lambda: half @ half)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2, help="steps a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--likelihood", default="gaussian", choices=("logistic_mixture", "gaussian"))
    parser.add_argument("--compile", action="store_true", help="PyTorch compiled as well")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="PyTorch's; XLA takes all cores")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = dataclasses.replace(as_dataset(faces := noise(1000)), train=faces)
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}, torch {torch.__version__}, "
          f"batch {options.batch_size}, {options.rounds} rounds; load average {os.getloadavg()[0]:.1f}\n")
    print("| | faces/s, median (min to max) | ours against it, median of rounds | of its own product's rate |\n"
          "|---|---|---|---|", flush=True)
    rates: dict[str, list[float]] = {}
    for folder in (FIRST, FLOW):
        config = Config(likelihood=options.likelihood, batch_size=options.batch_size)
        if folder == FIRST:
            config = dataclasses.replace(config, prior="gaussian")
        mine, count = ours(folder, config, data, options.steps)
        runs = {"cmma_jax": mine}
        if folder == FLOW:
            runs["cmma_jax, bfloat16"], _ = ours(folder, dataclasses.replace(config, precision="bfloat16"), data,
                                                 options.steps)
        for compiled in (False, True) if options.compile else (False,):
            for name in ("float32", "bfloat16"):
                run, theirs, step = pytorch(folder, config, data, options.steps, name == "bfloat16", compiled)
                assert theirs == count, (theirs, count)  # the same networks
                runs[f"PyTorch, {name}{', compiled' if compiled else ''}"] = run
                if not compiled and name == "float32":
                    with FlopCounterMode(display=False) as counter:
                        step()
                    flops = counter.get_total_flops()
        runs |= {f"product {name}": run for name, run in products().items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(-1, options.rounds):  # the first round only warms up
            for name, run in runs.items():
                taken = run()
                if turn >= 0:
                    seconds[name].append(taken)
        for name in runs:
            if name.startswith("product "):
                rates.setdefault(name, []).extend(2 * SIDE**3 / np.asarray(seconds[name]))
                continue
            own = (f"{'XLA' if name.startswith('cmma') else 'PyTorch'}, "
                   f"{'bfloat16' if 'bfloat16' in name else 'float32'}")
            faces_s = options.batch_size / np.asarray(seconds[name])
            ratio = np.median(np.asarray(seconds[name]) / np.asarray(seconds["cmma_jax"]))
            share = flops / np.median(seconds[name]) / (2 * SIDE**3 / np.median(seconds[f"product {own}"]))
            print(f"| {OWN.get(folder, 'autoencoder')}, {count / 1e6:.2f} M parameters, "
                  f"{flops / options.batch_size / 1e9:.2f} GFLOP a face: {name} | "
                  f"{np.median(faces_s):,.0f} ({faces_s.min():,.0f} to {faces_s.max():,.0f}) | "
                  f"{'' if name == 'cmma_jax' else f'{ratio:.2f} x'} | {share:.0%} |", flush=True)
    print()
    for name, each in rates.items():
        print(f"matrix {name}: {np.median(each) / 1e9:,.0f} GFLOP/s")


if __name__ == "__main__":
    main()
