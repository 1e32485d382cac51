"""The data as values: statistics, the description's round trip, batches, data sets by name."""

import json

import jax
import numpy as np
import pytest

from cmma_jax.data import NAMES, dataset, load_dataset, synthetic
from cmma_jax.data.dataset import Faces, call_rows, make_dataset, pixels
from cmma_jax.errors import InputError
from cmma_jax.models.spec import Spec

ATTRIBUTES = ("Smiling", "Age", "Hat")


def make_faces(rng: np.random.Generator, n: int, kind: str) -> Faces:
    y = rng.normal(3, 2, (n, 3)) if kind == "real" else rng.integers(0, 2, (n, 3))
    mask = rng.random((n, 3)) > 0.3
    return Faces(rng.integers(0, 256, (n, 16, 16, 3), np.uint8), np.where(mask, y, np.nan).astype(np.float32), mask)


@pytest.fixture(params=["binary", "real"])
def parts(request) -> tuple[str, list[Faces]]:
    rng = np.random.default_rng(0)
    return request.param, [make_faces(rng, n, request.param) for n in (1203, 40, 30)]


def test_statistics_are_those_of_the_known_training_values(parts):
    kind, faces = parts
    spec = make_dataset("some", ATTRIBUTES, kind, *faces).spec
    np.testing.assert_allclose(spec.attribute_mean, np.nanmean(faces[0].y, 0, np.float64), rtol=1e-6)
    np.testing.assert_allclose(spec.attribute_std, np.nanstd(faces[0].y, 0, np.float64), rtol=1e-6)
    x = faces[0].x.astype(np.float64) / 255
    np.testing.assert_allclose(spec.mean_face, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(spec.pixel_std, np.sqrt(np.square(x - x.mean(0)).mean()), rtol=1e-9)
    assert (spec.dataset, spec.kind, spec.attributes) == ("some", kind, ATTRIBUTES)
    assert spec.image_shape == (16, 16, 3)


def test_attributes_are_standardised_if_real_and_zero_where_unknown(parts):
    kind, faces = parts
    data = make_dataset("some", ATTRIBUTES, kind, *faces)
    mean, std = (np.nanmean(faces[0].y, 0), np.nanstd(faces[0].y, 0)) if kind == "real" else (0, 1)
    for read, made in zip(faces, (data.train, data.validation, data.test), strict=True):
        np.testing.assert_allclose(made.y, np.nan_to_num((read.y - mean) / std), atol=1e-5)
        np.testing.assert_array_equal(made.mask, read.mask)
        np.testing.assert_array_equal(made.x, read.x)
        assert (made.x.dtype, made.y.dtype, made.mask.dtype) == (np.uint8, np.float32, bool)


def test_an_attribute_that_is_constant_or_unknown_stays_finite():
    rng = np.random.default_rng(0)
    faces = make_faces(rng, 10, "real")
    faces = Faces(faces.x, np.full((10, 3), 7, np.float32), np.arange(3) * np.ones((10, 1)) > 0)
    data = make_dataset("some", ATTRIBUTES, "real", faces, faces, faces)
    np.testing.assert_array_equal(data.train.y, np.zeros((10, 3)))
    assert data.spec.attribute_mean == (0, 7, 7) and data.spec.attribute_std == (0, 0, 0)


def test_a_mixed_table_standardises_its_real_columns_alone():
    faces = make_faces(np.random.default_rng(0), 50, "binary")
    data = make_dataset("some", ATTRIBUTES, ("binary", "real", "binary"), faces, faces, faces)
    assert data.spec.kind == "mixed" and data.spec.binary.tolist() == [True, False, True]
    known = faces.mask[:, 1]
    np.testing.assert_array_equal(data.train.y[:, ::2], np.where(faces.mask, faces.y, 0)[:, ::2])
    np.testing.assert_allclose([data.train.y[known, 1].mean(), data.train.y[known, 1].std()], [0, 1], atol=1e-5)
    assert [len(each) for each in data.spec.attribute_percentiles] == [0, 101, 0]


def test_the_description_survives_json_exactly(parts):
    kind, faces = parts
    spec = make_dataset("some", ATTRIBUTES, kind, *faces).spec
    back = Spec.from_json(json.loads(json.dumps(spec.to_json())))
    assert back.mean_face.dtype == spec.mean_face.dtype
    np.testing.assert_array_equal(back.mean_face, spec.mean_face)
    names = ("dataset", "attributes", "kinds", "attribute_mean", "attribute_std", "pixel_std", "image_shape",
             "attribute_percentiles")
    for name in names:
        assert getattr(back, name) == getattr(spec, name) and type(getattr(back, name)) is type(getattr(spec, name))


def epoch(seed: int, number: int, size: int = 103, batch_size: int = 10) -> list[int]:
    count = size // batch_size
    (rows,) = call_rows(seed, number * count, (number + 1) * count, size, batch_size, count)
    assert rows.shape == (count, batch_size)
    return rows.reshape(-1).tolist()


def test_an_epoch_is_a_permutation_without_repeats():
    for number in range(3):
        rows = epoch(0, number)
        assert len(rows) == len(set(rows)) == 100 and set(rows) <= set(range(103))
    assert sorted(epoch(0, 0, 100)) == list(range(100))


def test_epochs_and_seeds_differ_and_leave_out_other_rows():
    assert len({tuple(epoch(seed, number)) for seed in range(3) for number in range(3)}) == 9
    assert len({frozenset(range(103)) - set(epoch(0, number)) for number in range(5)}) > 1


@pytest.mark.parametrize("start, stop, most", [(0, 30, 10), (0, 30, 3), (7, 25, 4), (23, 24, 10), (10, 10, 5)])
def test_calls_cut_the_epochs_into_parts_and_lose_nothing(start, stop, most):
    whole = np.reshape([epoch(5, number) for number in range(3)], (30, 10))
    calls = list(call_rows(5, start, stop, 103, 10, most))
    np.testing.assert_array_equal(np.concatenate([whole[:0], *calls]), whole[start:stop])
    ends = start + np.cumsum([len(rows) for rows in calls])
    assert all(len(rows) <= most for rows in calls)
    assert {end for end in (10, 20, 30) if start < end <= stop} <= set(ends)


def test_an_epochs_order_is_drawn_once(monkeypatch):
    drawn, draw = [], dataset._permutation
    monkeypatch.setattr(dataset, "_permutation", lambda *args: drawn.append(args) or draw(*args))
    assert len(list(call_rows(5, 3, 20, 103, 10, 1))) == 17
    assert drawn == [(5, 0, 103), (5, 1, 103)]


def test_the_order_of_an_epoch_stays_what_it_was():
    """Runs of earlier versions go on by it: change it, and their epochs would mix."""
    order = jax.random.permutation(jax.random.fold_in(jax.random.key(5), 2), 103)
    np.testing.assert_array_equal(epoch(5, 2), order[:100])


def test_pixels_are_in_0_1():
    np.testing.assert_array_equal(pixels(np.array([0, 51, 255], np.uint8)), np.float32([0, 0.2, 1]))


def refuses(*fragments: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(**{"data_dir": "nowhere"} | options)
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_unknown_data_set():
    refuses("no data set 'lwf'", "did you mean 'lfw'?", *NAMES, dataset="lwf")
    refuses("no data set 'imagenet'", *NAMES, dataset="imagenet")
    refuses("no data set ''", *NAMES, dataset="")


def test_every_data_set_gets_its_settings():
    refuses("LFW's folder nowhere not found", dataset="lfw")
    refuses("kind 'other'", dataset="lfw", kind="other")
    refuses("nowhere/attributes.csv not found", dataset="folder")
    refuses("got 40", dataset="folder", image_size=40)
    refuses("TFDS's folder nowhere not found", "celeb_a", dataset="tfds/celeb_a")
    for name in ("lfw", "synthetic"):
        refuses("are 64x64", "got image_size 32", "leave it at 64", dataset=name, image_size=32)


def test_synthetic_faces_are_always_the_same(monkeypatch):
    small = synthetic.make_synthetic(seed=0, train=20, validation=2, test=2)
    monkeypatch.setattr(synthetic, "make_synthetic", lambda **options: (small, options)[bool(options)])
    assert load_dataset("synthetic", "") is small
    refuses("'synthetic' are binary", "ask for 'binary'", dataset="synthetic", kind="real")
