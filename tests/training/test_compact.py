"""Models in one file: they come back as they were up to half precision, by name too, and hostile files are refused."""

import dataclasses
import json
import shutil
import typing

import jax
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

import cmma_jax
from cmma_jax.cli import evaluate
from cmma_jax.cli.main import main
from cmma_jax.errors import InputError
from cmma_jax.sampling.face_model import SHIPPED, FaceModel
from cmma_jax.training import compact
from cmma_jax.training.bounds import variational_bound
from cmma_jax.training.config import MAY_CHANGE, Config
from cmma_jax.training.runs import load_data, load_run, save_compact


@pytest.fixture(scope="module")
def written(named_runs, tmp_path_factory):
    """A CMMA's run as one file."""
    path = tmp_path_factory.mktemp("compact") / "tiny.safetensors"
    save_compact(load_run(named_runs / "cmma"), path)
    return path


@pytest.fixture
def comes_with_the_package(written, tmp_path, monkeypatch):
    """The folder of such models, with the tiny one under two names."""
    for name in ("tiny", "lfw"):
        shutil.copy(written, tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(compact, "SHIPPED", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["cmma", "cvae", "cgan", "../real-run"])
def test_a_run_comes_back_up_to_half_precision_without_the_places_where_it_was_trained(name, named_runs, tmp_path):
    run = load_run(named_runs / name)
    save_compact(run, tmp_path / "model.safetensors")
    back = load_run(tmp_path / "model.safetensors")
    assert json.dumps(back.spec.to_json()) == json.dumps(run.spec.to_json())
    assert (back.step, back.epoch, back.path) == (run.step, run.epoch, tmp_path / "model.safetensors")
    for field in dataclasses.fields(Config):
        same = getattr(back.config, field.name) == getattr(run.config, field.name)
        assert same or field.name in MAY_CHANGE, field.name
    assert run.config.data_dir.encode() not in (tmp_path / "model.safetensors").read_bytes()

    def close(a, b):
        assert b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=2**-11, atol=2**-25)

    # A flow has taken f's place.
    jax.tree.map(close, {name: run.params[name] for name in run.params.keys() - {"f"}}, back.params)
    if name == "cmma":
        made, again = (FaceModel(each).generate({"Male": 1}, n=2, seed=3) for each in (run, back))
        np.testing.assert_allclose(made, again, atol=0.05)
        bounds = [variational_bound(each.model, each.params, load_data(run).test)["bound"] for each in (run, back)]
        assert bounds[0] == pytest.approx(bounds[1], abs=2)
    jax.tree.map(np.testing.assert_array_equal, run.params.get("scale"), back.params.get("scale"))
    assert (back.model.velocity is None) == (name == "cgan")


def test_no_setting_that_is_a_path_is_in_the_file(named_runs, tmp_path):
    """Each setting of free text says where something lies, but for names of the data set and its columns, and numbers.
    """
    run, kinds = load_run(named_runs / "cmma"), typing.get_type_hints(Config)
    texts = {field.name for field in dataclasses.fields(Config) if kinds[field.name] is str}
    texts -= {"dataset", "seeds", "ignore", "unknown"}
    assert texts == {"data_dir", "cache", "run_dir", "coordinator"}
    config = dataclasses.replace(run.config, **{name: f"/home/somebody/{name}" for name in texts})
    save_compact(run._replace(config=config), tmp_path / "model.safetensors")
    assert b"somebody" not in (tmp_path / "model.safetensors").read_bytes()


def test_it_is_half_as_large_and_makes_the_same_faces(written, named_runs):
    whole, small = cmma_jax.load(named_runs / "cmma"), cmma_jax.load(written)
    assert written.stat().st_size < 2.1 * sum(a.size for a in jax.tree.leaves(whole.run.params)) + 20_000
    one, other = (model.generate({"Male": 1}, n=4, seed=0) for model in (whole, small))
    assert 0 < np.abs(one - other).max() < 0.01


def test_a_model_that_comes_with_the_package_is_loaded_by_its_name(comes_with_the_package, named_runs):
    assert cmma_jax.load("tiny").run.path == comes_with_the_package / "tiny.safetensors"
    with pytest.raises(InputError, match=r"no run in tinny, .* \(it has: lfw, tiny\); train one"):
        cmma_jax.load("tinny")


def test_without_a_run_the_one_for_lfw_stands_in_for_a_cmma(comes_with_the_package, named_runs, tmp_path, capsys):
    assert cmma_jax.load(runs_dir=tmp_path).run.path.stem == "lfw"
    assert cmma_jax.load(runs_dir=named_runs).run.path == named_runs / "cmma"
    with pytest.raises(InputError, match="no finished run of a cvae"):
        cmma_jax.load(runs_dir=tmp_path, model="cvae")
    out = tmp_path / "faces.png"
    assert main(["generate", f"--runs_dir={tmp_path / 'none'}", "--n=1", f"--out={out}"]) == 0
    assert "using lfw, which comes with the package" in capsys.readouterr().err and out.exists()
    assert main(["generate", "--run=lfw", "--n=1", f"--out={out}"]) == 0
    assert not capsys.readouterr().err
    (comes_with_the_package / f"{SHIPPED}.safetensors").unlink()
    with pytest.raises(InputError, match="no finished run of a cmma"):
        cmma_jax.load(runs_dir=tmp_path)


def test_commands_and_evaluate_take_a_file_or_a_name(comes_with_the_package, named_runs, tmp_path, capsys):
    """A model without a flow, whose evaluation is soon compiled."""
    whole = load_run(named_runs.parent / "cmma-plane")
    folder, data = tmp_path / "tables", whole.config.data_dir
    save_compact(whole, tmp_path / "tiny.safetensors")
    assert main(["compact", f"--run={whole.path}", f"--out={tmp_path / 'again.safetensors'}"]) == 0
    assert "MiB" in capsys.readouterr().out
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "tiny.safetensors").read_bytes()
    for run in ("tiny", str(tmp_path / "again.safetensors")):
        assert main(["sweep", f"--run={run}", "--attribute=Male", "--frames=2", f"--out={tmp_path / 's.gif'}"]) == 0
    assert main(["figures", "--figure=samples", "--cmma=tiny", f"--data_dir={data}", f"--runs_dir={named_runs}",
                 f"--out_dir={tmp_path}"]) == 0
    assert evaluate.main(["--run=tiny", "--iwae=1", f"--data_dir={data}", f"--runs_dir={folder}"]) == 0
    table = json.loads((folder / "results-folder-test.json").read_text())
    small = load_run("tiny")
    expected = evaluate.variational_bound(whole.model, whole.params, load_data(whole).test)["bound"]
    assert table["cmma"]["bound"][0] == pytest.approx(expected, abs=5)
    sampler, faces = evaluate.model_sampler(small.model, small.params), load_data(whole)
    few = faces.test._replace(**{name: getattr(faces.test, name)[:3] for name in ("x", "y", "mask")})
    assert "parzen" in evaluate.measure_parzen(sampler, faces, few, evaluate.Arguments(), 3, small)


def test_the_one_for_lfw_is_small_and_its_faces_have_what_was_asked_for():
    assert compact.shipped()["lfw"].stat().st_size < 20 * 2**20
    model = cmma_jax.load("lfw")
    assert len(model.attributes) == 73 and model.run.spec.image_shape == (64, 64, 3)
    asked = [model.encode({"Male": value}) for value in (0, 1) for _ in range(32)]
    faces = model.generate_encoded(*(np.stack(each) for each in zip(*asked, strict=True)))
    inferred, _ = model.infer_attributes(faces, samples=5)["Male"]
    # By 0.06: the model is one of a short training, and obeys weakly; 0.15 is asked of one of a long run.
    assert inferred[32:].mean() > inferred[:32].mean() + 0.02


def test_a_parameter_beyond_half_precision_is_named(named_runs, tmp_path):
    run = load_run(named_runs / "cmma")
    run.params["h2"]["hidden"]["bias"] = np.full_like(run.params["h2"]["hidden"]["bias"], 1e5)
    with pytest.raises(InputError, match="params/h2/hidden/bias has a value that is not finite in float16"):
        save_compact(run, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def settings(**changes):
    return lambda tensors, facts: (tensors, facts | {"config": facts["config"] | changes})


def description(**changes):
    return lambda tensors, facts: (tensors, facts | {"spec": facts["spec"] | changes})


def parameter(name, value):
    def change(tensors, facts):
        more = tensors | {f"params/{name}": value}
        return {key: tensor for key, tensor in more.items() if tensor is not None}, facts

    return change


HOSTILE = {
    "version 0.1": (lambda tensors, facts: (tensors, facts | {"version": 1}), "it was made by cmma_jax 0.1, "),
    "settings of version 0.1": (settings(linear_path=True), "this run was made by cmma_jax 0.1, "),
    "a later version": (lambda tensors, facts: (tensors, facts | {"version": 9}), "of version 9"),
    "no object": (lambda tensors, facts: (tensors, 3), "cannot be read"),
    "no settings": (lambda tensors, facts: (tensors, facts | {"config": None}), "no JSON object"),
    "an unknown setting": (settings(latent_sise=3), "latent_sise"),
    "a setting of another type": (settings(latent_size="many"), 'latent_size="many"'),
    "an unknown model": (settings(model="gpt"), "gpt"),
    "a model of another size": (settings(latent_channels=3), "expected ('F16', ("),
    "a vector under a flow": (settings(latent_size=9), "--prior=flow is out of range"),
    "a standardisation in half precision": (parameter("scale/mean", np.zeros(2, np.float16)), "expected ('F32', (2,))"),
    "a model without end": (settings(width=2**60), "cannot be read"),
    "another image size": (settings(image_size=32), "mean face make no sense"),
    "no attributes": (description(attributes=[]), "attributes make no sense"),
    "attributes without names": (description(attributes=[1] * 15), "attributes make no sense"),
    "an unknown kind": (description(kinds=["maybe"] * 15), "kinds make no sense"),
    "too few kinds": (description(kinds=["binary"]), "kinds make no sense"),
    "percentiles of binary attributes": (description(attribute_percentiles=[[0.0] * 101] * 15), "percentiles make no"),
    "statistics that are none": (description(attribute_mean=["x"] * 15), "could not convert"),
    "too few statistics": (description(attribute_std=[1.0]), "statistics make no sense"),
    "a deviation that is no number": (description(pixel_std=float("nan")), "make no sense"),
    "a parameter missing": (parameter("h2/hidden/bias", None), "params/h2/hidden/bias is missing"),
    "a parameter too many": (parameter("f/more", np.zeros(3, np.float16)), "params/f/more is"),
    "a parameter of another type": (parameter("h2/hidden/bias", np.zeros(8, np.float32)), "('F32', (8,))"),
    "a parameter that is no number": (parameter("h2/hidden/bias", np.full(16, np.nan, np.float16)), "not finite"),
    "no step": (lambda tensors, facts: (tensors, facts | {"step": "soon"}), "steps make no sense"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(name, written, tmp_path, capsys):
    with safe_open(written, "numpy") as file:
        tensors, said = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    change, words = HOSTILE[name]
    tensors, facts = change(tensors, json.loads(said["cmma_jax"]))
    refused(safetensors.numpy.save(tensors, {"cmma_jax": json.dumps(facts)}), words, tmp_path, capsys)


@pytest.mark.parametrize("said, words", [(None, "cmma_jax"), ({"format": "pt"}, "cmma_jax"),
                                         ({"cmma_jax": "{"}, "Expecting"), ({"cmma_jax": "[" * 100_000}, "recursion")])
def test_metadata_of_others_are_refused_in_one_line(said, words, written, tmp_path, capsys):
    with safe_open(written, "numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    refused(safetensors.numpy.save(tensors, said), words, tmp_path, capsys)


@pytest.mark.parametrize("damage, words", [
    (lambda whole: b"", "cannot be read"), (lambda whole: b"not a model", "cannot be read"),
    (lambda whole: whole[:len(whole) // 2], "cannot be read"), (lambda whole: whole + b"more", "cannot be read"),
    (lambda whole: (2**62).to_bytes(8, "little") + whole[8:], "cannot be read"),
    (lambda whole: whole[:8] + b"{" * 50 + whole[58:], "cannot be read")])
def test_a_damaged_file_is_refused_in_one_line(damage, words, written, tmp_path, capsys):
    refused(damage(written.read_bytes()), words, tmp_path, capsys)


def refused(content, words, folder, capsys):
    path = folder / "hostile.safetensors"
    path.write_bytes(content)
    assert main(["generate", f"--run={path}", f"--out={folder / 'faces.png'}"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and str(path) in error[0] and words in error[0], error
    assert not (folder / "faces.png").exists()
