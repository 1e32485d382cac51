"""evaluate.py as a person runs it: every model in one table, interrupted and gone on, and given bad input."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from cmma_jax.cli import evaluate, train
from cmma_jax.data import load_dataset
from cmma_jax.data.dataset import spread
from cmma_jax.errors import InputError
from cmma_jax.evaluation import editing, parzen
from cmma_jax.evaluation.classifier import Settings, save_classifier, scores, train_classifier
from cmma_jax.evaluation.diversity import generated_faces
from cmma_jax.evaluation.embeddings import frechet_distance
from cmma_jax.models.model import make_model
from cmma_jax.sampling.face_model import FaceModel
from cmma_jax.sampling.faces import GUIDANCE
from cmma_jax.training import bounds
from cmma_jax.training.bounds import variational_bound
from cmma_jax.training.checkpoint import open_checkpoints
from cmma_jax.training.config import Config
from cmma_jax.training.records import read_metrics
from cmma_jax.training.runs import find_runs, load_data, load_run
from tests.conftest import random_params, write_run

ROOT = pathlib.Path(__file__).parents[2]
TINY = ["--dataset=folder", "--image_size=16", "--likelihood=logistic_mixture",
        "--latent_channels=2", "--width=4", "--prior_hidden=8",
        "--flow_width=64", "--flow_blocks=1", "--devices=1", "--batch_size=8"]
GAUSSIAN = ["--prior=gaussian", "--likelihood=gaussian", "--detail_width=0"]
STEPS = 3


@pytest.fixture(scope="module")
def runs(faces, tmp_path_factory):
    """Of random parameters: a CMMA under a flow, a VAE with Gaussian pixels and prior, two seeds, and a CGAN."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("cmma", ["--flow_epochs=1"]), ("vae", GAUSSIAN), ("vae-seed1", [*GAUSSIAN, "--seed=1"]),
                       ("cgan", ["--preset=gauthier"])):
        config = train.parse([*TINY, f"--model={name.split('-')[0]}", f"--data_dir={faces}", "--epochs=2", *more])
        data = load_dataset("folder", config.data_dir, image_size=16)
        params = random_params(make_model(config, data.spec))
        write_run(folder / name, config, data, jax.tree.map(lambda a, f=1 + config.seed: f * a, params))
    return folder


@pytest.fixture(scope="module")
def whole_table(runs):
    assert evaluate.main(["--parzen", f"--runs_dir={runs}", "--samples=20", "--iwae=3", "--limit=6",
                          f"--steps={STEPS}"]) == 0
    return json.loads((runs / "results-folder-test.json").read_text())


def test_the_table_has_every_system_with_its_figures(whole_table, runs):
    assert {"cmma", "vae", "cgan (gauthier)", "mean face", "linear regression", "real faces",
            "conditional PPCA, 10 components"} <= set(whole_table)
    both = {"bound", "kl", "reconstruction", "parzen", "parzen_sigma", "parameters", "diversity"}
    assert both | {"bits_per_dim", "steps", "solver_pixels", "solver_nats"} <= set(whole_table["cmma"])
    assert both | {"bits_per_dim_dequantised", "iwae"} <= set(whole_table["vae"])
    assert not {"iwae", "bits_per_dim_dequantised"} & set(whole_table["cmma"])
    assert not {"bits_per_dim", "steps"} & set(whole_table["vae"])
    assert "bound" not in whole_table["cgan (gauthier)"] and "parzen" in whole_table["cgan (gauthier)"]
    assert whole_table["vae"]["seeds"] == [2, None] and "seeds" not in whole_table["cmma"]
    assert whole_table["cmma"]["parzen_samples"] == [20, None] and whole_table["cmma"]["parzen_faces"] == [6, None]


def test_the_heading_says_what_was_measured_of_a_flow(whole_table, runs):
    heading = (runs / "results-folder-test.md").read_text().split("\n| ")[0]
    error = whole_table["cmma"]
    assert "log P + D ln 255 where they are discretised" in heading
    assert f"cmma: p(z|y) is a flow of {STEPS} solver steps, which differ from {4 * STEPS} by" in heading
    assert error["solver_nats"][0] > 0.001 and "random faces at guidance 1.5" in heading
    assert "its bound on 10 of the 10 faces" in heading and "No importance-weighted bound of a flow" in heading
    assert "vae: p(z|y)" not in heading


def test_a_flows_bound_is_that_of_its_faces_and_steps(whole_table, runs, monkeypatch, capsys):
    """On four faces, its time said before; measured once."""
    flags = ["--bound_faces=4", f"--steps={STEPS}"]
    assert evaluate.main([f"--run={runs / 'cmma'}", *flags]) == 0
    assert re.search(r"cmma: its bound takes about \d+ s", capsys.readouterr().out)
    found = json.loads((runs / "cmma" / "results-folder-test.json").read_text())["cmma"]
    run = load_run(runs / "cmma")
    few = spread(load_data(run).test, 4)
    alone = variational_bound(run.model, run.params, few, batch_size=4, steps=STEPS)
    assert found["bound"] == [pytest.approx(alone["bound"], rel=1e-5), pytest.approx(alone["bound_stderr"], rel=1e-3)]
    assert found["bits_per_dim"][0] == pytest.approx(alone["bits_per_dim"], rel=1e-5)
    assert found["bound_faces"] == [4, None]
    monkeypatch.setattr(bounds, "_batch_terms", lambda *_: 1 / 0)  # what was measured is not measured again
    monkeypatch.setattr(evaluate.flows, "seconds", None)
    assert evaluate.main([f"--run={runs / 'cmma'}", *flags]) == 0
    assert json.loads((runs / "cmma" / "results-folder-test.json").read_text())["cmma"] == found


def test_the_bound_of_faces_alone_stands_beside_that_given_their_attributes(whole_table, runs):
    """Of no attribute anything is known: against the function itself, and the other bound is not measured again."""
    flags = ["--bound_faces=4", f"--steps={STEPS}"]
    assert evaluate.main([f"--run={runs / 'cmma'}", *flags, "--unconditional"]) == 0
    found = json.loads((runs / "cmma" / "results-folder-test.json").read_text())["cmma"]
    run = load_run(runs / "cmma")
    few = spread(load_data(run).test, 4)
    unknown = few._replace(mask=np.zeros_like(few.mask))
    for name, faces in (("", few), ("_unconditional", unknown)):
        alone = variational_bound(run.model, run.params, faces, batch_size=4, steps=STEPS)
        assert found[f"bound{name}"][0] == pytest.approx(alone["bound"], rel=1e-5)
        assert found[f"bits_per_dim{name}"][1] == pytest.approx(alone["bits_per_dim_stderr"], rel=1e-3)
    assert abs(found["bound"][0] - found["bound_unconditional"][0]) > 0.1


def test_bits_of_an_exact_density_are_those_of_the_dequantised_faces(whole_table, runs):
    """Of the mean face: a Gaussian of one variance, whose mean over the noise is known: (byte + 1/2) / 256, 1/12."""
    data = load_data(load_run(runs / "vae"))
    train, test = (part.x.reshape(len(part.x), -1).astype(np.float64) for part in (data.train, data.test))
    mean = train.mean(0) / 255
    variance = np.square(train / 255 - mean).mean()
    nats = 0.5 * ((np.square((test + 0.5) / 256 - mean) + 1 / (12 * 256**2)) / variance + np.log(2 * np.pi * variance))
    expected = (nats.mean() + np.log(256)) / np.log(2)
    assert whole_table["mean face"]["bits_per_dim_dequantised"][0] == pytest.approx(expected, abs=1e-3)


def test_a_run_trained_again_is_measured_again(runs, tmp_path):
    shutil.copytree(runs / "cmma", tmp_path / "cmma", ignore=shutil.ignore_patterns("evaluation", "results*"))
    run, arguments = load_run(tmp_path / "cmma"), evaluate.Arguments()
    path = evaluate.record(run, arguments, "bound")
    again = run._replace(params=jax.tree.map(lambda a: a + 1e-3, run.params))
    assert evaluate.record(again, arguments, "bound") != path == evaluate.record(run, arguments, "bound")
    assert evaluate.record(run, evaluate.Arguments(seed=1), "bound") != path


def test_faces_are_guided_as_shipped_or_as_asked(runs, monkeypatch):
    """Those that the classifier and the embedding look at; the Parzen estimate and the bound are not."""
    asked = []
    monkeypatch.setattr(evaluate, "generated_faces", lambda model, params, faces, *_, guidance, steps: asked.append(
        (guidance, steps)) or faces.x / np.float32(255))
    monkeypatch.setattr(evaluate.flows, "solver_error", lambda *_: (0.1, 0.2))
    monkeypatch.setattr(evaluate, "measure_parzen", lambda *_: {})
    monkeypatch.setattr(evaluate, "measure_bound", lambda *_: {})
    monkeypatch.setattr(evaluate.baselines, "fit_baselines", lambda _: [])
    for flags in ([], ["--guidance=2"], ["--guidance=1"]):
        assert evaluate.main(["--parzen", f"--run={runs / 'cmma'}", *flags, "--steps=1"]) == 0
    assert evaluate.main(["--parzen", f"--run={runs / 'vae'}", "--guidance=2"]) == 0
    assert asked == [(GUIDANCE, 1), (2, 1), (None, 1), (None, 10)]


def blocks(x):
    """An embedding that needs nothing installed: the colours of a picture's quarters, [N, 12]."""
    x = np.asarray(x)
    return x.reshape(len(x), 2, x.shape[1] // 2, 2, x.shape[2] // 2, 3).mean((2, 4)).reshape(len(x), -1)


@pytest.fixture(scope="module")
def classifier(runs, tmp_path_factory):
    """A classifier, and the flag that names its file."""
    data = load_data(load_run(runs / "cmma"))
    settings = Settings(epochs=20, batch_size=8, width=4, hidden=16, learning_rate=0.01)
    trained = train_classifier(data, settings)
    assert trained.visible.all()
    folder = tmp_path_factory.mktemp("classifier")
    save_classifier(trained, folder)
    return trained, f"--classifier={folder}"


def test_the_classifier_and_the_embedding_look_at_every_system(whole_table, runs, classifier, monkeypatch):
    monkeypatch.setattr(evaluate.embeddings, "embed_dlib", blocks)
    monkeypatch.setattr(evaluate.baselines, "fit_baselines", lambda _: [])
    classifier, flag = classifier
    flags = [f"--run={runs / 'cmma'}", "--samples=20", "--limit=6", f"--steps={STEPS}"]  # what is there is taken
    assert evaluate.main(["--parzen", flag, *flags]) == 0
    rows = json.loads((runs / "cmma" / "results-folder-test.json").read_text())
    test = load_data(load_run(runs / "cmma")).test
    x = test.x / np.float32(255)
    scored = scores(classifier, x, test.y, test.mask)
    assert rows["real faces"]["accuracy"] == [scored["accuracy"], scored["accuracy_stderr"]]
    assert rows["real faces"]["accuracy Red"] == [scored["per_attribute"]["Red"], None]
    run = load_run(runs / "cmma")
    made = generated_faces(run.model, run.params, test, guidance=GUIDANCE, steps=STEPS)
    assert rows["cmma"]["fd_dlib"][0] == pytest.approx(frechet_distance(blocks(made[::2]), blocks(x[1::2])), rel=1e-5)
    assert rows["real faces"]["identities"] == [1.0, None] and rows["cmma"]["identities"][0] > 0


def test_edits_and_inferred_attributes_are_measured(runs, classifier, monkeypatch):
    monkeypatch.setattr(evaluate.embeddings, "embed_dlib", blocks)
    classifier, flag = classifier
    flags = [f"--run={runs / 'cmma'}", "--limit=6"]
    assert evaluate.main(["--editing", flag, *flags, "--attributes=striped"]) == 0
    rows = json.loads((runs / "cmma" / "editing-folder-test.json").read_text())
    assert set(rows) == {"cmma, intensity 1"}  # a flow has no literal edit
    model, data = FaceModel(load_run(runs / "cmma")), load_data(load_run(runs / "cmma"))
    few = evaluate.spread(data.test, 6)
    alone = editing.measure_edits(model, classifier, few, np.array([1]), 1.0, False, blocks,
                                  blocks(few.x / np.float32(255)))
    for name in ("flips", "others", "moved", "back", "identity", "empty"):
        assert rows["cmma, intensity 1"][name][0] == pytest.approx(alone[name][0], rel=1e-4), name
    inferred = json.loads((runs / "cmma" / "inference-folder-test.json").read_text())
    assert set(inferred) == {"cmma, q(y|z)", "the classifier"}
    assert inferred["the classifier"]["auc"][0] > inferred["cmma, q(y|z)"]["auc"][0]  # that of random parameters


def test_under_a_gaussian_prior_edits_are_literal_too_and_grow_with_their_intensity(runs, classifier):
    _, flag = classifier
    assert evaluate.main(["--editing", flag, f"--run={runs / 'vae'}", "--limit=3", "--intensities", "2", "9"]) == 0
    rows = json.loads((runs / "vae" / "editing-folder-test.json").read_text())
    assert {"vae, intensity 2", "vae, intensity 9", "vae, literal, intensity 1"} == set(rows) - {
        name for name in rows if "where" in name}
    assert rows["vae, intensity 9"]["moved"][0] == 0  # a VAE's latents do not depend on attributes


@pytest.mark.parametrize("flags, words", [(["--attributes=Strip"], ["Strip", "did you mean 'Striped'"]),
                                          (["--attributes=Red,Striped"], ["does not see Striped", "AUC 0.60"])])
def test_attributes_whose_edits_cannot_be_measured_are_named(flags, words, runs, classifier, tmp_path, capsys):
    blind = classifier[0]._replace(auc=np.array([0.9, 0.6]), visible=np.array([True, False]))
    save_classifier(blind, tmp_path)
    error = failing(["--editing", f"--classifier={tmp_path}", f"--run={runs / 'cmma'}", *flags], capsys)
    assert all(word in error for word in words), error


def test_edits_want_a_classifier_and_a_model_that_edits(runs, tmp_path, capsys):
    assert "edits need a CMMA or a CVAE" in failing(["--editing", f"--run={runs / 'cgan'}"], capsys)
    shutil.copytree(runs / "cmma", tmp_path / "cmma")
    assert "edits are measured by a classifier; make one" in failing(["--editing", f"--runs_dir={tmp_path}"], capsys)


def test_figures_of_two_seeds_are_their_mean_and_deviation(whole_table, runs, capsys):
    alone = []
    for run in ("vae", "vae-seed1"):
        assert evaluate.main([f"--run={runs / run}", "--iwae=3"]) == 0
        found = json.loads((runs / run / "results-folder-test.json").read_text())["vae"]
        alone.append(found["bound"][0])
        assert found["bound"][1] > 0 and found["bound"][0] == pytest.approx(
            found["reconstruction"][0] - found["kl"][0], rel=1e-5)
    value, deviation = whole_table["vae"]["bound"]
    assert value == pytest.approx(np.mean(alone)) and deviation == pytest.approx(np.std(alone, ddof=1))


def test_validation_bound_is_what_training_recorded(faces, tmp_path):
    run, picture = tmp_path / "vae", tmp_path / "faces.png"
    assert train.main([*TINY, *GAUSSIAN, "--model=vae", "--latent_size=4", f"--data_dir={faces}", "--epochs=2",
                       f"--run_dir={run}"]) == 0
    best = max(read_metrics(run), key=lambda record: record["validation_bound"])
    assert evaluate.main([f"--run={run}", "--split=validation", "--iwae=1", f"--picture={picture}"]) == 0
    found = json.loads((run / "results-folder-validation.json").read_text())["vae"]
    assert found["bound"][0] == pytest.approx(best["validation_bound"], rel=1e-6)
    assert picture.exists()


def test_an_interrupted_evaluation_goes_on(whole_table, runs, monkeypatch):
    """What was measured is not measured again: the table comes out the same when drawing samples would fail."""
    def broken(*_):
        raise AssertionError("sampled again")

    monkeypatch.setattr(parzen, "_compiled", lambda *_: broken)
    monkeypatch.setattr(evaluate.baselines, "fit_baselines", lambda _: [])
    assert evaluate.main(["--parzen", f"--run={runs / 'cmma'}", "--samples=20", "--limit=6", "--iwae=3",
                          f"--steps={STEPS}"]) == 0
    again = json.loads((runs / "cmma" / "results-folder-test.json").read_text())
    assert again["cmma"] == whole_table["cmma"]


def test_the_newest_finished_run_of_each_model_is_taken(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs", ignore=shutil.ignore_patterns("evaluation", "results*"))
    runs = tmp_path / "runs"
    assert [path.name for path in find_runs(runs)] == ["cmma", "vae", "vae-seed1", "cgan"]
    assert [path.name for path in find_runs(runs, model="cgan")] == ["cgan"]
    shutil.copytree(runs / "cgan", runs / "cgan-later")
    lines = (runs / "cgan-later" / "metrics.jsonl").read_text()
    (runs / "cgan-later" / "metrics.jsonl").write_text(lines)
    assert [path.name for path in find_runs(runs, model="cgan")] == ["cgan-later"]
    (runs / "cgan-later" / "metrics.jsonl").write_text(lines.splitlines()[0] + "\n")  # after 1 of 2 epochs
    assert [path.name for path in find_runs(runs, model="cgan")] == ["cgan"]
    assert [path.name for path in find_runs(runs, model="cgan", unfinished=True)] == ["cgan-later"]
    with pytest.raises(InputError, match="stopped after epoch 1 of 2"):
        load_run(runs / "cgan-later")
    assert load_run(runs / "cgan-later", unfinished=True).epoch == 1


def test_a_run_is_its_best_checkpoint(runs):
    run = load_run(runs / "cmma")
    with open_checkpoints(runs / "cmma" / "flow") as checkpoints:
        assert run.step == checkpoints.best_step()
    assert (run.system, run.epoch, run.config.model) == ("cmma", 3, "cmma")
    assert load_run(runs / "cgan").system == "cgan (gauthier)"


def failing(arguments, capsys):
    assert evaluate.main(arguments) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if " faces/s]" not in line and line.strip()]
    assert len(error) == 1 and error[0].startswith("evaluate.py: error: "), error
    return error[0]


@pytest.mark.parametrize("flags, words", [
    (["--run=/nowhere"], ["no run in /nowhere", "cmma_jax train"]),
    (["--runs_dir=/nowhere"], ["no finished run", "/nowhere", "cmma_jax train"]),
    (["--model=cvae"], ["no finished run of a cvae", "--model=cvae"]),
    (["--parzen", "--samples=-1"], ["--samples=-1"]),
    (["--iwae=0"], ["--iwae=0"]),
    (["--limit=0"], ["--limit=0"]),
    (["--steps=0"], ["--steps=0"]),
    (["--bound_faces=-1"], ["--bound_faces=-1"]),
    (["--guidance=-1"], ["--guidance=-1", "1 for none"]),
    (["--split=tests"], ["tests", "validation"]),
    (["--parsen"], ["parsen"]),
    (["--parzen", "--model=vae", "--classifier=/nowhere"], ["no classifier in", "cmma_jax classifier"]),
])
def test_bad_input_is_one_line_and_exit_code_2(flags, words, runs, capsys):
    if not any(flag.startswith("--run") for flag in flags):
        flags = [*flags, f"--runs_dir={runs}"]
    error = failing(flags, capsys)
    for word in words:
        assert word in error


def test_a_truncated_checkpoint_is_named(runs, tmp_path):
    """In a process of its own: after such a failure Orbax's threads complain of their closed event loop."""
    shutil.copytree(runs / "vae", tmp_path / "vae")
    for path in (tmp_path / "vae" / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000 and "metadata" not in path.name.lower():
            path.write_bytes(path.read_bytes()[:200])
    ended = subprocess.run([sys.executable, "evaluate.py", f"--run={tmp_path / 'vae'}"], capture_output=True, text=True,
                           cwd=ROOT)
    assert ended.returncode == 2, ended.stderr
    assert "cannot be restored" in ended.stderr and "puts a damaged one aside" in ended.stderr


def test_other_attribute_names_and_other_faces_are_named(runs, faces, tmp_path, capsys):
    shutil.copytree(faces, tmp_path / "faces")
    labels = tmp_path / "faces" / "attributes.csv"
    labels.write_text(labels.read_text().replace("Striped", "Dotted"))
    error = failing([f"--run={runs / 'vae'}", f"--data_dir={tmp_path / 'faces'}"], capsys)
    assert "Dotted" in error and "Striped" in error
    labels.write_text("\n".join(line for line in (faces / "attributes.csv").read_text().splitlines()
                                if not line.startswith("04.png")))
    assert "its faces are not those" in failing([f"--run={runs / 'vae'}", f"--data_dir={tmp_path / 'faces'}"], capsys)


def test_a_run_without_a_checkpoint_is_named(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(Config().to_json())
    assert "no checkpoint yet" in failing([f"--run={tmp_path / 'run'}"], capsys)


def test_too_little_memory_is_named(runs, monkeypatch, capsys):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

    monkeypatch.setattr(parzen, "_compiled", lambda *_: full)
    error = failing(["--parzen", f"--run={runs / 'cgan'}", "--samples=3"], capsys)
    assert "too little memory" in error and "--batch_size" in error


def test_help_says_what_it_does(capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.parse(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for words in ("--parzen", "--iwae", "--samples", "--limit", "standard error"):
        assert words in shown
