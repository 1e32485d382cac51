"""The classifier: loss and scores against counts made by hand, its file, its command line, and that it learns."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from cmma_jax.cli import classifier as command
from cmma_jax.data.dataset import Faces, make_dataset, pixels
from cmma_jax.errors import InputError
from cmma_jax.evaluation import classifier as module
from cmma_jax.evaluation.classification import aucs, best_threshold, rank_auc
from cmma_jax.evaluation.classifier import (
    Classifier,
    ClassifierNetwork,
    Settings,
    load_classifier,
    make_classifier_loss,
    predict,
    save_classifier,
    scores,
    shift,
    train_classifier,
)
from cmma_jax.sampling import faces as sampling

SETTINGS = Settings(epochs=8, batch_size=16, width=4, hidden=16, dropout=0.2, learning_rate=0.01)


def dataset(seed=0):
    """280 faces of 16x16: A and B show, C and E do not, D is never present; 160 train."""
    rng = np.random.default_rng(seed)

    def draw(n):
        y = (rng.random((n, 5)) < 0.5).astype(np.float32)
        y[:, 3] = 0
        x = rng.normal(110, 10, (n, 16, 16, 3))
        x[..., 0] += 60 * y[:, 0, None, None]
        x[:, 4:9] += 60 * y[:, 1, None, None, None]
        return Faces(np.clip(x, 0, 255).astype(np.uint8), y, rng.random((n, 5)) < 0.9)

    return make_dataset("made", ("A", "B", "C", "D", "E"), "binary", draw(160), draw(60), draw(60))


@pytest.fixture(scope="module")
def data():
    return dataset()


@pytest.fixture(scope="module")
def classifier(data):
    return train_classifier(data, SETTINGS)


def predicting(monkeypatch, p, thresholds=None, visible=None):
    """A classifier that predicts the probabilities p [N, A] of any faces."""
    monkeypatch.setattr(module, "_probabilities", lambda params, x: p)
    count = p.shape[1]
    return Classifier(tuple("ABCDEFGH"[:count]), {}, np.full(count, 0.5) if thresholds is None else thresholds,
                      np.ones(count), np.ones(count, bool) if visible is None else visible, "made")


def test_it_learns_what_shows_and_knows_what_does_not(data, classifier):
    np.testing.assert_array_equal(classifier.visible, [True, True, False, False, False])
    assert (classifier.auc[:2] > 0.97).all() and np.isnan(classifier.auc[3])
    scored = scores(classifier, pixels(data.test.x), data.test.y, data.test.mask)
    assert set(scored["per_attribute"]) == {"A", "B"}
    assert scored["accuracy"] > 0.93
    turned = scores(classifier, pixels(data.test.x), 1 - data.test.y, data.test.mask)
    assert turned["accuracy"] < 0.07


def test_the_same_seed_trains_the_same_classifier_and_its_validation_figures_are_its_own(data, classifier):
    again = train_classifier(data, SETTINGS)
    jax.tree.map(np.testing.assert_array_equal, again.params, classifier.params)
    p = predict(classifier, pixels(data.validation.x))
    np.testing.assert_array_equal(aucs(p, data.validation.y, data.validation.mask), classifier.auc)
    known = data.validation.mask[:, 0]
    assert best_threshold(p[known, 0], data.validation.y[known, 0] > 0) == classifier.thresholds[0]


def test_the_best_epoch_is_kept(data, classifier, monkeypatch):
    """An AUC that only the second epoch has: its parameters are those of a training that stopped there."""
    seen, real = [], module.aucs

    def best_in_the_second(p, y, mask):
        seen.append(p)
        return np.where(len(seen) == 2, 0.99, 0.8) * np.ones(5) if len(seen) <= SETTINGS.epochs else real(p, y, mask)

    monkeypatch.setattr(module, "aucs", best_in_the_second)
    kept = train_classifier(data, SETTINGS)
    np.testing.assert_array_equal(predict(kept, data.validation.x / np.float32(255)), seen[1])
    assert not np.array_equal(seen[1], seen[SETTINGS.epochs - 1])


def test_faces_are_classified_alike_in_batches_of_any_size(data, classifier, monkeypatch):
    x = pixels(data.test.x)
    p = predict(classifier, x)
    assert p.shape == (60, 5) and ((p > 0) & (p < 1)).all()
    monkeypatch.setattr(sampling, "LARGEST_BATCH", 7)
    np.testing.assert_allclose(predict(classifier, np.asarray(x)), p, atol=1e-6)
    with pytest.raises(ValueError, match="uint8"):
        predict(classifier, data.test.x)


def test_auc_is_the_fraction_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    p = rng.integers(0, 6, 40) / 5  # with ties
    positive = rng.random(40) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(p[positive], p[~positive])]
    assert rank_auc(p, positive) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert np.isnan(rank_auc(p, np.zeros(40, bool))) and np.isnan(rank_auc(p, np.ones(40, bool)))


def test_the_threshold_is_the_best_of_all():
    rng = np.random.default_rng(1)
    positive = rng.random(60) < 0.2
    p = np.round(rng.normal(0.3 + 0.2 * positive, 0.15), 2).astype(np.float32)

    def balanced(threshold):
        return ((p > threshold)[positive].mean() + (p <= threshold)[~positive].mean()) / 2

    assert balanced(best_threshold(p, positive)) == max(balanced(t) for t in np.linspace(-0.5, 1.5, 2001))
    assert best_threshold(p, np.zeros(60, bool)) == 0.5


def test_balanced_accuracy_by_hand(monkeypatch):
    """Two of three positives and one of two negatives of A found; B unseen; of C only one class asked for."""
    p = np.asarray([[0.9, 0.1, 0.9], [0.9, 0.1, 0.9], [0.5, 0.1, 0.9], [0.9, 0.1, 0.9], [0.2, 0.1, 0.9],
                    [0.2, 0.1, 0.9]])
    y = np.asarray([[1, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 1], [0, 1, 1], [1, 0, 0]], np.float32)
    mask = np.ones((6, 3), bool)
    mask[5] = False
    classifier = predicting(monkeypatch, p, thresholds=np.asarray([0.6, 0.5, 0.5]),
                            visible=np.asarray([True, False, True]))
    scored = scores(classifier, np.zeros((6, 16, 16, 3), np.float32), y, mask)
    assert scored["per_attribute"] == {"A": pytest.approx((2 / 3 + 1 / 2) / 2)}
    assert scored["accuracy"] == scored["per_attribute"]["A"]
    # two independent fractions, 2 of 3 and 1 of 2, each with the variance r (1 - r) / n
    assert scored["accuracy_stderr"] == pytest.approx(np.sqrt(2 / 9 / 3 + 1 / 4 / 2) / 2)


def test_the_standard_error_is_that_of_drawing_the_faces_anew(monkeypatch):
    """Attributes of a face that are right or wrong together: against 400 draws of the faces."""
    rng = np.random.default_rng(2)
    y = (rng.random((300, 3)) < [0.5, 0.4, 0.2]).astype(np.float32)
    wrong = (rng.random((300, 1)) < 0.3) ^ (rng.random((300, 3)) < 0.1)
    p, x, mask = np.where(wrong, 1 - y, y), np.zeros((300, 1), np.float32), rng.random((300, 3)) < 0.8
    error = scores(predicting(monkeypatch, p), x, y, mask)["accuracy_stderr"]
    draws = []
    for _ in range(400):
        rows = rng.integers(0, 300, 300)
        draws.append(scores(predicting(monkeypatch, p[rows]), x, y[rows], mask[rows])["accuracy"])
    assert error == pytest.approx(np.std(draws), rel=0.12)


def test_nothing_to_classify_is_not_a_number(monkeypatch):
    scored = scores(predicting(monkeypatch, np.full((2, 3), 0.3)), np.zeros((2, 1), np.float32), np.ones((2, 3)),
                    np.zeros((2, 3), bool))
    assert np.isnan(scored["accuracy"]) and scored["per_attribute"] == {}


def test_the_loss_is_the_cross_entropy_of_known_attributes_and_each_face_has_its_own_noise(data):
    network = ClassifierNetwork(5, 4, 16)
    x, y, mask = pixels(data.train.x[:8]), jnp.asarray(data.train.y[:8]), jnp.asarray(data.train.mask[:8])
    keys = jax.random.split(jax.random.key(0), 8)
    params = network.init(jax.random.key(1), x, jnp.ones((8, 16)))["params"]
    same = jnp.full_like(x, 0.7)  # a shift does not change an even face
    losses, _ = jax.jit(make_classifier_loss(network, 0.0))(params, keys, same, y, mask)
    p = np.asarray(jax.nn.sigmoid(network.apply({"params": params}, same, jnp.ones((8, 16)))), np.float64)
    entropy = -np.where(y > 0, np.log(p), np.log1p(-p))
    np.testing.assert_allclose(losses, np.where(mask, entropy, 0).sum(1) / 5, rtol=1e-5)

    dropped = jax.jit(make_classifier_loss(network, 0.5))
    whole = dropped(params, keys, same, y[:1] * jnp.ones((8, 1)), jnp.ones((8, 5), bool))[0]
    assert len(np.unique(whole)) > 4
    alone = dropped(params, keys[3:4], x[3:4], y[3:4], mask[3:4])[0]
    np.testing.assert_allclose(alone, dropped(params, keys, x, y, mask)[0][3:4], rtol=1e-5)


def test_dropout_keeps_the_mean(data):
    """The logits are linear in the factors on the dense layer, so their mean over draws is that of none dropped."""
    network = ClassifierNetwork(5, 4, 16)
    x = pixels(data.train.x[:1])
    params = network.init(jax.random.key(1), x, jnp.ones((1, 16)))["params"]
    flat = params | {"logits": jax.tree.map(lambda a: 0.02 * jnp.abs(a), params["logits"])}
    even, y, mask = jnp.full((4000, 16, 16, 3), 0.9), jnp.zeros((4000, 5)), jnp.ones((4000, 5), bool)
    keys = jax.random.split(jax.random.key(0), 4000)
    losses, none = (np.asarray(jax.jit(make_classifier_loss(network, rate))(flat, keys, even, y, mask)[0]) - np.log(2)
                    for rate in (0.75, 0.0))
    # softplus is log 2 + half the logit, so near 0
    assert none[0] > 3e-3 and losses.mean() == pytest.approx(none[0], abs=5 * losses.std() / np.sqrt(4000) + 1e-5)


def test_shifts_move_by_up_to_a_sixteenth_and_repeat_the_border():
    x = jnp.arange(32 * 32.0).reshape(1, 32, 32, 1) * jnp.ones((200, 1, 1, 3))
    moved = np.asarray(shift(jax.random.split(jax.random.key(0), 200), x))[..., 0]
    face, seen = np.asarray(x[0, :, :, 0]), set()
    for image in moved:
        dy, dx = divmod(int(image[10, 10]), 32)
        rows, columns = (np.clip(np.arange(32) + d - 10, 0, 31) for d in (dy, dx))
        np.testing.assert_array_equal(image, face[np.ix_(rows, columns)])
        seen.add((dy - 10, dx - 10))
    assert seen == set(itertools.product(range(-2, 3), repeat=2))


def test_a_classifier_comes_back_from_its_file_as_it_was(data, classifier, tmp_path):
    save_classifier(classifier, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["classifier.msgpack"]
    for path in (tmp_path / "new", tmp_path / "new" / "classifier.msgpack"):
        back = load_classifier(path, data.spec)
        jax.tree.map(np.testing.assert_array_equal, back, classifier)
        np.testing.assert_array_equal(predict(back, pixels(data.test.x)),
                                      predict(classifier, pixels(data.test.x)))


def test_a_classifier_that_is_not_there_damaged_or_of_other_data_is_named(data, classifier, small, tmp_path):
    with pytest.raises(InputError, match="no classifier in .*cmma_jax classifier --dataset=made"):
        load_classifier(tmp_path, data.spec)
    save_classifier(classifier, tmp_path)
    with pytest.raises(InputError, match="5 attributes of data set 'made', not the 5 of 'small'"):
        load_classifier(tmp_path, small.data.spec)
    larger = dataset_of_size(32)
    with pytest.raises(InputError, match=r"another size than \(32, 32, 3\)"):
        load_classifier(tmp_path, larger.spec)
    whole = (tmp_path / "classifier.msgpack").read_bytes()
    foreign = serialization.msgpack_serialize({"facts": json.dumps({"attributes": ["A"]}), "params": {}})
    for content in (b"", whole[:50], whole[:-20], b"not a classifier", foreign):
        (tmp_path / "classifier.msgpack").write_bytes(content)
        with pytest.raises(InputError, match="is damaged.*make it again") as error:
            load_classifier(tmp_path, data.spec)
        assert "\n" not in str(error.value)


def dataset_of_size(size):
    few = Faces(np.zeros((2, size, size, 3), np.uint8), np.zeros((2, 5), np.float32), np.ones((2, 5), bool))
    return make_dataset("made", ("A", "B", "C", "D", "E"), "binary", few, few, few)


def test_real_valued_attributes_and_those_that_do_not_show_are_refused(data, monkeypatch):
    real = make_dataset("made", data.spec.attributes, "real", data.train, data.validation, data.test)
    with pytest.raises(InputError, match="real-valued"):
        train_classifier(real, SETTINGS)
    with pytest.raises(InputError, match="160 training faces.*--batch_size=80"):
        train_classifier(data, Settings(batch_size=161))
    monkeypatch.setattr(module, "VISIBLE_AUC", 1.01)
    with pytest.raises(InputError, match="no attribute reached"):
        train_classifier(data, Settings(epochs=1, batch_size=16, width=4, hidden=16))


def test_the_command_trains_writes_and_says_what_it_sees(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "load_dataset", lambda *args, **more: data)
    flags = ["--epochs=8", "--batch_size=16", "--width=4", "--hidden=16", "--learning_rate=0.01"]
    assert command.main(["--dataset=folder", f"--out={tmp_path / 'classifier'}", *flags]) == 0
    shown = capsys.readouterr()
    for words in ("validation AUC", "2 of them", "A 1.00", "real test faces", "classifier.msgpack"):
        assert words in shown.out
    assert "loss 0." in shown.err and "validation AUC 0." in shown.err
    assert load_classifier(tmp_path / "classifier", data.spec).visible.sum() == 2


BAD = {
    "a word": (["train"], ["train", "--help"]),
    "unknown flag": (["--epoch=3"], ["--epoch", "--help"]),
    "out of range": (["--dropout=1"], ["--dropout=1", "below 1"]),
    "no epochs": (["--epochs=0"], ["--epochs=0", "above 0"]),
    "unknown data set": (["--dataset=lwf"], ["did you mean 'lfw'"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags, words = BAD[name]
    assert command.main(flags) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("python -m cmma_jax classifier: error: "), error
    assert all(word in error[0] for word in words), error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_known_before_the_training(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "load_dataset", lambda *args, **more: data)
    (tmp_path / "file").write_text("in the way")
    assert command.main([f"--out={tmp_path / 'file' / 'classifier'}"]) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 1 and "give another --out" in shown[0]


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for words in ("--dataset=lfw", "--epochs", "--dropout", "ceiling", "classifier.msgpack"):
        assert words in shown
