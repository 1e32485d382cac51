"""The face detector's word on generated faces."""

import numpy as np
import pytest

from cmma_jax.data.lfw import load_lfw
from cmma_jax.errors import InputError
from cmma_jax.evaluation import detection


def test_a_face_fills_the_middle_of_what_is_searched(monkeypatch):
    seen = []
    monkeypatch.setattr(detection, "detect", lambda picture: bool(seen.append(np.asarray(picture))))
    face = np.zeros((16, 16, 3), np.float32)
    face[:, :8] = 1
    assert not detection.detected(face[None]).any()
    (picture,) = seen
    assert picture.shape == (32 + 2 * 13, 32 + 2 * 13, 3)
    assert (picture[:, :20] == 255).all() and (picture[:, -20:] == 0).all()


def test_each_face_is_looked_at_by_itself(monkeypatch):
    monkeypatch.setattr(detection, "detect", lambda picture: np.asarray(picture).mean() > 100)
    faces = np.stack([np.full((16, 16, 3), value) for value in (0.1, 0.9, 2.0)])
    assert detection.detected(faces).tolist() == [False, True, True]


def test_real_faces_are_found_and_upside_down_ones_and_noise_are_not(lfw_dir):
    try:
        detection.detected(np.zeros((1, 64, 64, 3)))
    except InputError as error:
        pytest.skip(str(error))
    x = load_lfw(lfw_dir).validation.x[:100] / 255
    assert detection.detected(x).mean() > 0.8
    assert detection.detected(x[:, ::-1]).mean() < 0.2
    assert detection.detected(np.random.default_rng(0).random((20, 64, 64, 3))).mean() < 0.1
