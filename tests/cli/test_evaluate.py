"""evaluate.py as a person runs it: every model in one table, interrupted and gone on, and given bad input."""

import csv
import io
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from cmma_jax.cli import evaluate, train
from cmma_jax.errors import InputError
from cmma_jax.evaluation import editing, parzen
from cmma_jax.evaluation.classifier import Settings, save_classifier, scores, train_classifier
from cmma_jax.evaluation.diversity import generated_faces
from cmma_jax.evaluation.embeddings import frechet_distance
from cmma_jax.sampling.face_model import FaceModel
from cmma_jax.training.checkpoint import open_checkpoints
from cmma_jax.training.config import Config
from cmma_jax.training.records import read_metrics
from cmma_jax.training.runs import find_runs, load_data, load_run

ROOT = pathlib.Path(__file__).parents[2]
TINY = ["--dataset=folder", "--image_size=16", "--latent_size=4", "--width=2", "--prior_hidden=8", "--devices=1",
        "--batch_size=8"]


@pytest.fixture(scope="module")
def runs(faces, tmp_path_factory):
    """A CMMA with two seeds, a VAE and a CGAN, 2 epochs each."""
    folder = tmp_path_factory.mktemp("runs")
    for model, more in (("cmma", ["--seeds=0,1"]), ("vae", []), ("cgan", ["--preset=gauthier"])):
        flags = [*TINY, f"--model={model}", f"--data_dir={faces}", "--epochs=2", f"--run_dir={folder / model}", *more]
        assert train.main(flags) == 0
    return folder


@pytest.fixture(scope="module")
def whole_table(runs):
    assert evaluate.main(["--parzen", f"--runs_dir={runs}", "--samples=20", "--iwae=3", "--limit=6"]) == 0
    return json.loads((runs / "results-folder-test.json").read_text())


def test_the_table_has_every_system_with_its_figures(whole_table, runs):
    assert {"cmma", "vae", "cgan (gauthier)", "mean face", "linear regression", "real faces",
            "conditional PPCA, 10 components"} <= set(whole_table)
    for system in ("cmma", "vae"):
        assert {"bound", "iwae", "kl", "reconstruction", "bits_per_dim", "active_latents", "parzen", "parzen_sigma",
                "parameters", "diversity"} <= set(whole_table[system])
    assert "bound" not in whole_table["cgan (gauthier)"] and "parzen" in whole_table["cgan (gauthier)"]
    assert whole_table["cmma"]["seeds"] == [2, None] and "seeds" not in whole_table["vae"]
    assert whole_table["vae"]["parzen_samples"] == [20, None] and whole_table["vae"]["parzen_faces"] == [6, None]
    rows = list(csv.DictReader(io.StringIO((runs / "results-folder-test.csv").read_text())))
    assert {row["system"] for row in rows} == set(whole_table)
    assert "| cmma" in (runs / "results-folder-test.md").read_text()


def test_on_a_cpu_a_flow_is_spared_what_takes_hours_and_a_word_says_so(runs, faces, tmp_path, capsys):
    flow = tmp_path / "flow"
    flags = [*TINY, f"--data_dir={faces}", "--preset=best", "--epochs=1", f"--start_from={runs / 'cmma'}"]
    assert train.main([*flags, f"--run_dir={flow}"]) == 0
    assert evaluate.main(["--parzen", f"--run={flow}", "--limit=4"]) == 0
    found = json.loads((flow / "results-folder-test.json").read_text())["cmma (best)"]
    assert {"bound", "kl", "diversity"} <= set(found) and not {"iwae", "parzen"} & set(found)
    said = capsys.readouterr().out
    assert "left out: the importance-weighted bound" in said and "left out: the Parzen estimate" in said
    assert evaluate.main(["--parzen", f"--run={flow}", "--limit=4", "--samples=5"]) == 0
    found = json.loads((flow / "results-folder-test.json").read_text())["cmma (best)"]
    assert "parzen" in found


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


def test_the_classifier_and_the_embedding_look_at_every_system(runs, classifier, monkeypatch):
    monkeypatch.setattr(evaluate.embeddings, "embed_dlib", blocks)
    monkeypatch.setattr(evaluate.baselines, "fit_baselines", lambda _: [])
    classifier, flag = classifier
    flags = [f"--runs_dir={runs}", "--model=cmma", "--samples=5", "--iwae=2", "--limit=4"]
    assert evaluate.main(["--parzen", flag, *flags]) == 0
    rows = json.loads((runs / "results-folder-test.json").read_text())
    test = load_data(load_run(runs / "cmma")).test
    x = test.x / np.float32(255)
    said = scores(classifier, x, test.y, test.mask)
    assert rows["real faces"]["accuracy"] == [said["accuracy"], said["accuracy_stderr"]]
    assert rows["real faces"]["accuracy Red"] == [said["per_attribute"]["Red"], None]
    made = [generated_faces(run.model, run.params, test) for run in map(load_run, (runs / "cmma", runs / "cmma-seed1"))]
    distances = [frechet_distance(blocks(faces[::2]), blocks(x[1::2])) for faces in made]
    assert rows["cmma"]["fd_dlib"][0] == pytest.approx(np.mean(distances), rel=1e-5)
    assert rows["real faces"]["identities"] == [1.0, None] and rows["cmma"]["identities"][0] > 0


def test_edits_and_told_attributes_are_measured(runs, classifier, monkeypatch):
    monkeypatch.setattr(evaluate.embeddings, "embed_dlib", blocks)
    classifier, flag = classifier
    flags = [f"--runs_dir={runs}", "--model=cmma", "--limit=6"]
    assert evaluate.main(["--editing", flag, *flags, "--intensities", "2", "9"]) == 0
    rows = json.loads((runs / "editing-folder-test.json").read_text())
    assert {"cmma, intensity 2", "cmma, intensity 9", "cmma, literal, intensity 1"} <= set(rows)
    model, data = FaceModel(load_run(runs / "cmma")), load_data(load_run(runs / "cmma"))
    few = evaluate.spread(data.test, 6)
    alone = editing.measure_edits(model, classifier, few, 2.0, False, blocks, blocks(few.x / np.float32(255)))
    for name in ("flips", "others", "moved", "back", "identity"):
        assert rows["cmma, intensity 2"][name][0] == pytest.approx(alone[name][0], rel=1e-5), name
    assert rows["cmma, intensity 9"]["moved"][0] > rows["cmma, intensity 2"]["moved"][0]
    told = json.loads((runs / "inference-folder-test.json").read_text())
    assert set(told) == {"cmma, q(y|z)", "cmma, q(y|z), 3 steps", "the classifier"}
    assert told["the classifier"]["auc"][0] > told["cmma, q(y|z)"]["auc"][0]  # after two epochs on 40 faces


def test_edits_want_a_classifier_and_a_model_that_edits(runs, tmp_path, capsys):
    assert "edits need a CMMA or a CVAE" in failing(["--editing", f"--run={runs / 'vae'}"], capsys)
    shutil.copytree(runs / "cmma", tmp_path / "cmma")
    assert "edits are measured by a classifier; make one" in failing(["--editing", f"--runs_dir={tmp_path}"], capsys)


def test_figures_of_two_seeds_are_their_mean_and_deviation(whole_table, runs, capsys):
    alone = []
    for run in ("cmma", "cmma-seed1"):
        assert evaluate.main([f"--run={runs / run}", "--iwae=3"]) == 0
        found = json.loads((runs / run / "results-folder-test.json").read_text())["cmma"]
        alone.append(found["bound"][0])
        assert found["bound"][1] > 0 and found["bound"][0] == pytest.approx(
            found["reconstruction"][0] - found["kl"][0], rel=1e-5)
    value, spread = whole_table["cmma"]["bound"]
    assert value == pytest.approx(np.mean(alone)) and spread == pytest.approx(np.std(alone, ddof=1))


def test_validation_bound_is_what_training_recorded(runs, tmp_path):
    picture = tmp_path / "faces.png"
    best = max(read_metrics(runs / "vae"), key=lambda record: record["validation_bound"])
    assert evaluate.main([f"--run={runs / 'vae'}", "--split=validation", "--iwae=1", f"--picture={picture}"]) == 0
    found = json.loads((runs / "vae" / "results-folder-validation.json").read_text())["vae"]
    assert found["bound"][0] == pytest.approx(best["validation_bound"], rel=1e-6)
    assert picture.exists()


def test_an_interrupted_evaluation_goes_on(whole_table, runs, monkeypatch):
    """What was measured is not measured again: the table comes out the same when drawing samples would fail."""
    def broken(*_):
        raise AssertionError("sampled again")

    monkeypatch.setattr(parzen, "_compiled", lambda *_: broken)
    monkeypatch.setattr(evaluate.baselines, "fit_baselines", lambda _: [])
    assert evaluate.main(["--parzen", f"--run={runs / 'vae'}", "--samples=20", "--limit=6", "--iwae=3"]) == 0
    again = json.loads((runs / "vae" / "results-folder-test.json").read_text())
    assert again["vae"] == whole_table["vae"]


def test_the_newest_finished_run_of_each_model_is_taken(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs", ignore=shutil.ignore_patterns("evaluation", "results*"))
    runs = tmp_path / "runs"
    assert [path.name for path in find_runs(runs)] == ["cmma", "cmma-seed1", "vae", "cgan"]
    assert [path.name for path in find_runs(runs, model="vae")] == ["vae"]
    shutil.copytree(runs / "vae", runs / "vae-later")
    lines = (runs / "vae-later" / "metrics.jsonl").read_text()
    (runs / "vae-later" / "metrics.jsonl").write_text(lines)
    assert [path.name for path in find_runs(runs, model="vae")] == ["vae-later"]
    (runs / "vae-later" / "metrics.jsonl").write_text(lines.splitlines()[0] + "\n")  # after 1 of 2 epochs
    assert [path.name for path in find_runs(runs, model="vae")] == ["vae"]
    assert [path.name for path in find_runs(runs, model="vae", unfinished=True)] == ["vae-later"]
    with pytest.raises(InputError, match="stopped after epoch 1 of 2"):
        load_run(runs / "vae-later")
    assert load_run(runs / "vae-later", unfinished=True).epoch == 1


def test_a_run_is_its_best_checkpoint(runs):
    run = load_run(runs / "cmma")
    with open_checkpoints(runs / "cmma" / "checkpoints") as checkpoints:
        assert run.step == checkpoints.best_step()
    assert (run.system, run.epoch, run.config.model) == ("cmma", 2, "cmma")
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
    error = failing(["--parzen", f"--run={runs / 'cmma-seed1'}", "--samples=3"], capsys)
    assert "too little memory" in error and "--batch_size" in error


def test_help_says_what_it_does(capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.parse(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    for words in ("--parzen", "--iwae", "--samples", "--limit", "standard error"):
        assert words in said
