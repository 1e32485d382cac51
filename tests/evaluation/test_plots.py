"""Figure 4's plot and its command."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cmma_jax.cli import main as command
from cmma_jax.data.dataset import pixels
from cmma_jax.evaluation.plots import latent_planes


def test_posterior_deviations_are_averaged_over_faces_and_latents(small, tmp_path):
    faces = small.data.validation
    found = latent_planes([("a", narrow(small), small.params)], small.data, faces.size, tmp_path / "plot.png", people=3)
    q = small.model.posterior(small.params, pixels(jnp.asarray(faces.x)), faces.y, faces.mask)
    assert found == [pytest.approx(np.exp(np.float64(q.logvar[:, :2]) / 2).mean(), rel=1e-5)]
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size == (540, 540) and len(np.unique(np.asarray(picture))) > 50


def narrow(small):
    """The small model with its first two latents alone."""
    def first_two(part):
        return lambda *args: type(part(*args))(*(a[:, :2] for a in part(*args)))

    return small.model._replace(posterior=first_two(small.model.posterior), prior=first_two(small.model.prior))


@pytest.mark.parametrize("arguments, words", [(["--figure=4", "--cmma_plane=/nowhere"], "no run in /nowhere"),
                                              ([], "usage")])
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, capsys):
    assert command.main(["figures", *arguments] if arguments else []) == 2
    assert words in capsys.readouterr().err
