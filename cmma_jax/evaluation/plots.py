"""Plots, by matplotlib, which is imported where it draws: a command that makes faces does not wait for it."""

import functools
import pathlib

import jax
import numpy as np

from cmma_jax.data.dataset import Dataset, Faces, pixels, spread
from cmma_jax.models.distributions import Gaussian
from cmma_jax.models.model import Model, Params
from cmma_jax.sampling.pictures import grid


def latent_planes(systems: list[tuple[str, Model, Params]], data: Dataset, limit: int, path: pathlib.Path,
                  people: int = 8) -> list[float]:
    """Draws Fig. 4: for each model with J = 2, priors (dashed) and posteriors (filled) of some people, at 2 deviations.

    Grey dots are the posterior means of `limit` validation faces. Returns each model's posterior standard deviation,
    averaged over those faces and both latents.
    """
    from matplotlib.figure import Figure
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    faces = spread(data.validation, limit)
    rows = np.linspace(0, faces.size - 1, people).astype(int)
    picture = Figure((6 * len(systems), 6))
    axes = picture.subplots(1, len(systems), squeeze=False)
    deviations = []
    for ax, (name, model, params) in zip(axes[0], systems, strict=True):
        q, p = jax.tree.map(np.asarray, _latents(model, params, faces))
        deviations.append(float(np.exp(q.logvar / 2).mean()))
        ax.plot(*q.mean.T, ".", color="0.85", markersize=3, zorder=0)
        for i, row in enumerate(rows):
            color = f"C{i}"
            ax.add_patch(_ellipse(p, row, edgecolor=color, facecolor="none", linestyle="--"))
            ax.add_patch(_ellipse(q, row, edgecolor=color, facecolor=color))
            thumb = OffsetImage(faces.x[row], zoom=0.35)
            ax.add_artist(AnnotationBbox(thumb, q.mean[row], xybox=(24, 24), boxcoords="offset points", pad=0.1,
                                         arrowprops={"arrowstyle": "-", "color": color},
                                         bboxprops={"edgecolor": color}))
        ax.autoscale_view()
        ax.set(title=f"{name}: posterior deviation {deviations[-1]:.3f}", xlabel="$z_1$", ylabel="$z_2$",
               aspect="equal")
    picture.tight_layout()
    picture.savefig(path, dpi=90)
    return deviations


@functools.partial(jax.jit, static_argnums=0)
def _latents(model: Model, params: Params, faces: Faces) -> tuple[Gaussian, Gaussian]:
    return (model.posterior(params, pixels(faces.x), faces.y, faces.mask), model.prior(params, faces.y, faces.mask))


def _ellipse(gaussian: Gaussian, row: int, **style):
    from matplotlib.patches import Ellipse

    width, height = 4 * np.exp(gaussian.logvar[row] / 2)  # two deviations each way
    x, y = gaussian.mean[row]
    return Ellipse((float(x), float(y)), width, height, **style)


def labelled_faces(blocks: list[tuple[str, list[np.ndarray]]], rows: list[str], path: pathlib.Path,
                   columns: list[list[str]] | None = None) -> None:
    """Writes blocks of faces side by side, a PNG, with the names of rows and columns.

    blocks: (title, a row of faces [N, H, W, 3] in [0, 1] for each of `rows`); columns: the names of each block's.
    """
    from matplotlib.figure import Figure

    wide, gap = [len(faces[0]) for _, faces in blocks], 0.4
    picture = Figure((1.3 + 0.75 * sum(wide) + gap * len(blocks), 0.75 * len(rows) + (1.4 if columns else 0.5)))
    axes = picture.subplots(1, len(blocks), squeeze=False, width_ratios=wide)[0]
    for number, (ax, (title, faces)) in enumerate(zip(axes, blocks, strict=True)):
        image = np.asarray(grid(faces))
        ax.imshow(image)
        ax.set_title(title)
        height, width = image.shape[0] / len(faces), image.shape[1] / len(faces[0])
        ax.set_yticks(height * (np.arange(len(rows)) + 0.5), rows if number == 0 else [""] * len(rows))
        names = columns[number] if columns else []
        ax.set_xticks(width * (np.arange(len(names)) + 0.5), names, rotation=60, ha="right")
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
    picture.savefig(path, dpi=90, bbox_inches="tight")
