"""Figures of edits against models and classifiers whose answers are known."""

import numpy as np
import pytest

import cmma_jax
from cmma_jax.cli import evaluate
from cmma_jax.data import load_dataset
from cmma_jax.data.dataset import Faces
from cmma_jax.evaluation import editing
from cmma_jax.evaluation.classification import calibration_error
from cmma_jax.evaluation.classifier import Classifier

SEEN = np.array([0, 1])  # the attributes that the classifier sees


class Painter:
    """An edit paints the value of attribute k on pixel row k, as far as `strength` goes; details are always kept."""

    attributes = ("Male", "Smiling", "Big Nose")

    def __init__(self, strength):
        self.strength = strength
        spec = type("Spec", (), {"attributes": self.attributes, "kinds": ("binary",) * 3, "binary": np.ones(3, bool)})
        self.run = type("Run", (), {"spec": spec, "system": "painter"})

    def edit_encoded(self, x, y, mask, new_y, new_mask, intensity=1.0, **_):
        x = x.copy()
        for k in range(3):
            changed = y[:, k] != new_y[:, k]
            x[changed, k] += (self.strength * intensity * (new_y - y)[:, k])[changed, None, None]
        return x


def scene(n=40):
    rng = np.random.default_rng(0)
    y = (rng.random((n, 3)) < 0.5).astype(np.float32)
    x = np.zeros((n, 4, 4, 3), np.uint8)
    x[:, :3] = (51 + 153 * y)[:, :, None, None]  # 0.2 or 0.8
    return Faces(x, y, np.ones((n, 3), bool))


@pytest.fixture
def classifier(monkeypatch):
    """It reads pixel row k as the probability of attribute k; the third attribute it does not see."""
    monkeypatch.setattr(editing, "predict", lambda classifier, x: x[:, :3, 0, 0])
    return Classifier(Painter.attributes, {}, np.full(3, 0.5), np.ones(3), np.array([True, True, False]), "made")


@pytest.mark.parametrize("strength, flips", [(0.6, 1.0), (0.2, 0.0)])
def test_an_edit_that_does_what_it_should(strength, flips, classifier):
    found = editing.measure_edits(Painter(strength), classifier, scene(), SEEN, 1.0)
    assert found["flips"] == (flips, 0) and found["set"][0] == found["reset"][0] == flips
    assert found["others"][0] == 0 and found["back"][0] == pytest.approx(0, abs=1e-6)
    assert found["moved"][0] == pytest.approx(strength / 2, rel=1e-5)  # one row of four
    assert found["empty_kept"] == (0, None)


def test_edits_of_one_attribute_say_nothing_of_the_others(classifier):
    """A painter who fails at the second attribute: measured by the first alone it does not."""
    painter, paint = Painter(0.6), Painter(0.6).edit_encoded
    painter.edit_encoded = lambda x, y, m, new_y, *a, **k: paint(x, y, m, np.where(np.arange(3) == 1, y, new_y), *a,
                                                                 **k)
    assert editing.measure_edits(painter, classifier, scene(), SEEN[:1], 1.0)["flips"][0] == 1
    assert editing.measure_edits(painter, classifier, scene(), SEEN[1:], 1.0)["flips"][0] == 0
    assert editing.measure_edits(painter, classifier, scene(), SEEN, 1.0)["flips"][0] == 0.5


def test_an_empty_edit_is_measured_with_and_without_details(classifier):
    """One whose reconstructions are 0.1 too bright: composition shows it, details kept do not."""
    painter, paint = Painter(0.6), Painter(0.6).edit_encoded
    painter.edit_encoded = lambda *a, keep_detail=True, **k: paint(*a, **k) + (0 if keep_detail else 0.1)
    found = editing.measure_edits(painter, classifier, scene(), SEEN, 1.0)
    assert found["empty"][0] == pytest.approx(0.1, rel=1e-5) and found["empty_kept"][0] == 0


def test_flips_are_the_mean_over_attributes_and_directions_of_faces_classified_rightly_before(classifier, monkeypatch):
    faces = scene()
    wrong = faces.y[:, 0] > 0  # faces that have it are classified as without
    faces.x[wrong, 0] = 102
    found = editing.measure_edits(Painter(0.6), classifier, faces, SEEN, 1.0)
    assert found["flips"][0] == 1
    assert editing.measure_edits(Painter(0.0), classifier, faces, SEEN, 1.0)["flips"][0] == 0  # those are not asked
    only_set = Painter(0.6)
    monkeypatch.setattr(only_set, "edit_encoded", lambda x, y, m, new_y, nm, *a, **_: Painter(0.6).edit_encoded(
        x, y, m, np.maximum(y, new_y), nm, 1.0))
    found = editing.measure_edits(only_set, classifier, scene(), SEEN, 1.0)
    assert (found["flips"][0], found["set"][0], found["reset"][0]) == (0.5, 1, 0)


def test_other_attributes_that_move_are_counted(classifier, monkeypatch):
    sloppy = Painter(0.6)

    def edit(x, y, mask, new_y, new_mask, intensity=1.0, **_):
        x = Painter(0.6).edit_encoded(x, y, mask, new_y, new_mask, intensity)
        x[:, :2] += 0.1 * np.any(new_y != y)
        return x

    monkeypatch.setattr(sloppy, "edit_encoded", edit)
    assert editing.measure_edits(sloppy, classifier, scene(), SEEN, 1.0)["others"][0] == pytest.approx(0.1, rel=1e-4)


def test_identity_is_the_cosine_of_embeddings(classifier):
    def embed(x):
        return x.reshape(len(x), -1) + 1.0

    start = embed(scene().x / np.float32(255))
    found = editing.measure_edits(Painter(0.6), classifier, scene(), SEEN, 1.0, False, embed, start, 0.5)
    assert 0.5 < found["identity"][0] < 1 and found["kept"] == (1, None)
    turned = editing.measure_edits(Painter(0.0), classifier, scene(), SEEN, 1.0, False, embed, start, 2.0)
    assert turned["identity"][0] == pytest.approx(1) and turned["kept"] == (0, None)


def test_pairs_of_real_faces():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 8))
    people = tuple(f"p{i // 3}" for i in range(60))
    embedded = np.repeat(centres, 3, 0) + 0.05 * rng.normal(size=(60, 8))
    rows, threshold = editing.real_pairs(embedded, people)
    same, other = rows["two faces of one person"], rows["faces of two persons"]
    assert same["identity"][0] > 0.95 > threshold > other["identity"][0]
    assert same["kept"][0] > 0.95 and other["kept"][0] < 0.05


def test_calibration_error():
    p = np.array([0.05, 0.05, 0.95, 0.95, 0.95, 0.95])
    positive = np.array([False, True, True, True, True, True])
    assert calibration_error(p, positive) == pytest.approx((2 * 0.45 + 4 * 0.05) / 6)
    many = np.random.default_rng(0).random(100_000)
    assert calibration_error(many, np.random.default_rng(1).random(100_000) < many) < 0.01
    assert calibration_error(np.array([1.0]), np.array([True])) == 0


def test_inferred_attributes_are_scored_on_test_faces_with_thresholds_of_validation_faces(named_runs):
    model = cmma_jax.load(named_runs / "cmma")
    data = load_dataset("folder", model.run.config.data_dir, image_size=16)
    parts = {part.x.tobytes(): part.y for part in (data.validation, data.test)}
    visible = np.arange(len(model.attributes)) < 2

    def sees(x):
        return 0.1 + 0.2 * parts[np.round(255 * x).astype(np.uint8).tobytes()]

    found = editing.measure_inferred(sees, visible, data)
    assert found["accuracy"] == (1, None) and found["auc"] == (1, None)
    assert 0.1 < found["ece"][0] < 0.7  # sure of nothing, though right
    untrained = editing.measure_inferred(lambda x: editing.inferred(model, x), visible, data)
    assert 0.2 < untrained["accuracy"][0] < 0.8


def test_evaluate_editing_without_a_classifier_says_how_to_get_one(named_runs, capsys):
    assert evaluate.main(["--editing", f"--runs_dir={named_runs}"]) == 2
    assert "cmma_jax classifier" in capsys.readouterr().err
    assert evaluate.main(["--editing", f"--run={named_runs / 'cgan'}"]) == 2
    assert "edits need a CMMA or a CVAE" in capsys.readouterr().err
