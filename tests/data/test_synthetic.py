"""The embedded data set: drawn faces whose every attribute shows, and whose every row is repeatable."""

import numpy as np
import pytest

from cmma_jax.data import synthetic
from cmma_jax.data.synthetic import ATTRIBUTES, EYEWEAR, HAIR, MOUTH, render

# (top, left, bottom, right): the pixels of the canonical picture that change when the attribute alone does.
REGIONS: dict[str, tuple[int, int, int, int]] = {
    "Male": (0, 0, 64, 64), "Senior": (10, 12, 51, 52),
    "Black Hair": (0, 0, 64, 64), "Blond Hair": (0, 0, 64, 64), "Brown Hair": (0, 0, 64, 64),
    "Gray Hair": (0, 0, 64, 64), "Bald": (0, 0, 64, 64),
    "No Eyewear": (20, 8, 37, 56), "Eyeglasses": (20, 8, 37, 56), "Sunglasses": (20, 8, 37, 56),
    "Mustache": (41, 21, 49, 43), "Smiling": (38, 17, 60, 47), "Frowning": (16, 13, 60, 51),
    "Chubby": (26, 7, 62, 57), "Bangs": (1, 12, 23, 52), "Receding Hairline": (0, 8, 34, 56),
    "Bushy Eyebrows": (15, 12, 29, 52), "Arched Eyebrows": (14, 13, 26, 51), "Narrow Eyes": (21, 16, 31, 48),
    "Big Nose": (25, 22, 46, 42), "Big Lips": (43, 22, 61, 42),
    "Mouth Closed": (38, 18, 60, 46), "Mouth Slightly Open": (38, 18, 60, 46), "Mouth Wide Open": (38, 18, 60, 46),
    "No Beard": (38, 8, 62, 56), "Goatee": (47, 21, 62, 43), "Wearing Hat": (0, 3, 20, 61),
    "Wearing Lipstick": (43, 22, 60, 42), "Rosy Cheeks": (29, 9, 48, 55), "Pale Skin": (3, 6, 64, 58),
}


def base_faces(*names):
    """Returns [2, A] plain attributes, without and with Male, and the given ones."""
    y = np.zeros((2, len(ATTRIBUTES)), np.float32)
    for name in ("Brown Hair", "No Eyewear", "Mouth Closed", "No Beard", *names):
        y[:, ATTRIBUTES.index(name)] = 1
    y[1, ATTRIBUTES.index("Male")] = 1
    return y


def draw(seed, n):
    rng = np.random.default_rng(seed)
    y = synthetic.sample_attributes(rng, n)
    return y, synthetic.sample_nuisance(rng, n)


def canonical(n):
    """Returns the nuisance of n faces that have none."""
    return {name: np.zeros_like(v) for name, v in synthetic.sample_nuisance(np.random.default_rng(0), n).items()}


def change(y, name):
    """Returns [n, 64, 64, 3] by how much the canonical faces change when one attribute is turned around."""
    other = y.copy()
    other[:, ATTRIBUTES.index(name)] = 1 - other[:, ATTRIBUTES.index(name)]
    nuisance = canonical(len(y))
    return np.abs(render(other, nuisance).astype(float) - render(y, nuisance))


def share_within(difference, name):
    """Returns [n] the share of the absolute change that lies in the attribute's region."""
    top, left, bottom, right = REGIONS[name]
    return difference[:, top:bottom, left:right].sum((1, 2, 3)) / difference.sum((1, 2, 3))


@pytest.fixture(scope="module")
def many():
    return synthetic.sample_attributes(np.random.default_rng(0), 20_000)


@pytest.fixture(scope="module")
def dataset():
    return synthetic.make_synthetic(seed=0, train=1000, validation=40, test=400)


def test_the_data_set_has_the_documented_shapes_and_ranges(dataset):
    assert 20 <= len(ATTRIBUTES) <= 30 and tuple(REGIONS) == ATTRIBUTES
    for part, n in ((dataset.train, 1000), (dataset.validation, 40), (dataset.test, 400)):
        assert part.x.shape == (n, 64, 64, 3) and part.x.dtype == np.uint8
        assert part.y.shape == (n, len(ATTRIBUTES)) and part.y.dtype == np.float32
        assert set(np.unique(part.y)) == {0.0, 1.0}
        assert part.mask.dtype == bool and part.mask.all()
    assert dataset.spec.dataset == "synthetic" and dataset.spec.kind == "binary"
    assert dataset.spec.attributes == ATTRIBUTES
    assert 0.1 < dataset.spec.pixel_std < 0.4


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = (synthetic.make_synthetic(seed, train=30, validation=20, test=20) for seed in (7, 7, 8))
    for part in ("train", "validation", "test"):
        faces, same, different = (getattr(data, part) for data in (first, again, other))
        np.testing.assert_array_equal(faces.x, same.x)
        np.testing.assert_array_equal(faces.y, same.y)
        assert (faces.x != different.x).mean() > 0.5 and (faces.y != different.y).any()


def test_parts_are_independent_draws():
    data = synthetic.make_synthetic(seed=1, train=20, validation=20, test=20)
    assert (data.train.y != data.test.y).any() and (data.validation.y != data.test.y).any()
    longer = synthetic.make_synthetic(seed=1, train=35, validation=20, test=20)
    np.testing.assert_array_equal(data.test.x, longer.test.x)


def test_a_face_depends_on_its_own_row_alone():
    y, nuisance = draw(0, synthetic.CHUNK + 9)
    alone = render(y[-1:], {name: v[-1:] for name, v in nuisance.items()})
    np.testing.assert_allclose(render(y, nuisance)[-1:].astype(int), alone, atol=1)


def test_every_attribute_is_neither_rare_nor_universal(many):
    prevalence = dict(zip(ATTRIBUTES, many.mean(0).tolist(), strict=True))
    assert {name: p for name, p in prevalence.items() if not 0.03 <= p <= 0.97} == {}


def test_sampled_attributes_go_together(many):
    of = dict(zip(ATTRIBUTES, many.T.astype(bool), strict=True))
    for group in (EYEWEAR, MOUTH):
        assert (sum(of[name].astype(int) for name in group) == 1).all()
    hair = sum(of[name].astype(int) for name in HAIR)
    assert hair.max() == 1 and hair.min() == 0
    for one, two in (("Smiling", "Frowning"), ("No Beard", "Goatee"), ("Bald", "Bangs"),
                     ("Bald", "Receding Hairline"), ("Bangs", "Receding Hairline")):
        assert not (of[one] & of[two]).any()
    for name in ("Mustache", "Goatee"):
        assert of["Male"][of[name]].mean() > 0.9
    assert of["Male"][of["Wearing Lipstick"]].mean() < 0.1


def test_no_two_attributes_say_the_same(many):
    correlation = np.corrcoef(many.T) - np.eye(len(ATTRIBUTES))
    assert np.abs(correlation).max() < 0.85


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_alone_shows_in_its_region(name):
    difference = change(base_faces(), name)
    assert (difference.max((1, 2, 3)) >= 20).all()
    assert (share_within(difference, name) >= 0.9).all()


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_of_any_face_keeps_to_its_region(name):
    difference = change(draw(5, 20)[0], name)
    shown = difference.max((1, 2, 3)) >= 20  # it may hide behind sunglasses, or a hat
    assert shown.mean() > 0.5
    assert np.mean(share_within(difference[shown], name) >= 0.9) > 0.9


def test_values_between_give_faces_between():
    y = np.repeat(base_faces("Smiling")[:1], 3, axis=0)
    y[:, ATTRIBUTES.index("Wearing Lipstick")] = 0, 0.5, 1
    none, half, full = render(y, canonical(3)).astype(float)
    assert np.abs(half - (none + full) / 2).max() <= 1


def test_the_same_attributes_give_different_faces():
    y = np.repeat(base_faces()[:1], 40, axis=0)
    spread = render(y, synthetic.sample_nuisance(np.random.default_rng(0), 40)).astype(float).std(0)
    assert spread.min() > 2 and spread.mean() > 15
    assert (render(y, canonical(40)).std(0) == 0).all()


@pytest.mark.parametrize("field", synthetic.sample_nuisance(np.random.default_rng(0), 1))
def test_every_nuisance_shows(field):
    y = base_faces("Wearing Hat") if field == "hat" else base_faces()
    still = canonical(2)
    if field == "grain":
        still["noise"] = np.full(2, 0.05, np.float32)
    value = synthetic.sample_nuisance(np.random.default_rng(3), 2)[field]
    moved = render(y, still | {field: value}).astype(int)
    assert (np.abs(moved - render(y, still)).max((1, 2, 3)) >= 2).all()


def test_no_part_is_cut_off_by_its_window(monkeypatch):
    y, nuisance = draw(2, 100)
    faces = render(y, nuisance).astype(int)
    whole = (0, 0, 64, 64)
    monkeypatch.setattr(synthetic, "_PARTS", tuple((part, whole) for part, _ in synthetic._PARTS))
    assert np.abs(faces - render(y, nuisance)).max() <= 6


@pytest.fixture(scope="module")
def balanced_accuracy(dataset):
    """Returns attribute -> balanced accuracy on the test faces of ridge regression on faces of half the size."""
    def features(x):
        small = (x - 255 * dataset.spec.mean_face).reshape(len(x), 32, 2, 32, 2, 3).mean((2, 4))
        return small.reshape(len(x), -1) / 255

    train, mean = features(dataset.train.x), dataset.train.y.mean(0)
    gram = train @ train.T + 10 * np.eye(len(train), dtype=train.dtype)
    guess = features(dataset.test.x) @ (train.T @ np.linalg.solve(gram, dataset.train.y - mean)) > (0.5 - mean) / 2
    truth = dataset.test.y == 1
    recall = [(guess & truth).sum(0) / truth.sum(0), (~guess & ~truth).sum(0) / (~truth).sum(0)]
    return dict(zip(ATTRIBUTES, np.mean(recall, axis=0).tolist(), strict=True))


@pytest.mark.parametrize("name", ["Male", "Eyeglasses", "Sunglasses", "Smiling", "Bald", "Blond Hair", "Bangs",
                                  "Wearing Hat", "Mouth Wide Open", "Mustache", "Chubby", "Wearing Lipstick"])
def test_pixels_tell_the_attribute(balanced_accuracy, name):
    assert balanced_accuracy[name] > 0.8
