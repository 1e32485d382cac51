"""Models on the Hugging Face hub, which a folder stands for here: what is put there comes back, and faults are one
line.
"""

import importlib
import inspect
import pathlib
import shutil
import sys
import types

import numpy as np
import pytest

import cmma_jax
from cmma_jax.cli.main import main
from cmma_jax.errors import InputError
from cmma_jax.training import hub
from cmma_jax.training.runs import load_run

RUN = "hf://somebody/faces"


@pytest.fixture
def repositories(tmp_path, monkeypatch):
    """A folder of repositories, which the calls of a stand-in for huggingface_hub read and write."""
    folder = tmp_path / "hub"

    def hf_hub_download(repo_id, filename):
        if not (folder / repo_id / filename).exists():
            raise FileNotFoundError(f"404 Client Error:\nno {filename} in {repo_id}")
        return str(folder / repo_id / filename)

    class HfApi:
        def create_repo(self, repo_id, *, private, exist_ok):
            if repo_id.startswith("nobody/"):
                raise PermissionError("403 Forbidden")
            (folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            (folder / repo_id / ".private").write_text(str(private))

        def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id):
            content = path_or_fileobj if isinstance(path_or_fileobj, bytes) else path_or_fileobj.read_bytes()
            (folder / repo_id / path_in_repo).write_bytes(content)

    fake = types.SimpleNamespace(hf_hub_download=hf_hub_download, HfApi=HfApi)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return folder


def test_a_model_is_pushed_with_its_card_and_comes_back(repositories, named_runs, tmp_path, capsys):
    card = tmp_path / "card.md"
    card.write_text("# Faces\n")
    assert main(["push", f"--run={named_runs / 'cmma'}", f"--to={RUN}", f"--card={card}", "--private"]) == 0
    assert capsys.readouterr().out.strip() == RUN
    found = repositories / "somebody" / "faces"
    assert {path.name for path in found.iterdir()} == {hub.FILE, "README.md", ".private"}
    assert (found / "README.md").read_text() == "# Faces\n" and (found / ".private").read_text() == "True"
    before, back = load_run(named_runs / "cmma"), cmma_jax.load(RUN)
    assert (back.run.path, back.run.step, back.attributes) == (found / hub.FILE, before.step, before.spec.attributes)
    assert load_run(pathlib.Path(RUN)).path == found / hub.FILE  # of whose address Python has taken a slash
    shutil.copy(found / hub.FILE, tmp_path / "mine.safetensors")
    np.testing.assert_array_equal(back.generate(seed=3), cmma_jax.load(tmp_path / "mine.safetensors").generate(seed=3))
    assert main(["generate", f"--run={RUN}", "--n=1", f"--out={tmp_path / 'made.png'}"]) == 0


@pytest.mark.parametrize("address", ["hf://", "hf://faces", "hf://a/b/c", "hf:///b"])
def test_an_address_that_is_none_is_named(repositories, address):
    with pytest.raises(InputError, match="is no address of a model; give hf://USER/NAME"):
        cmma_jax.load(address)


def test_faults_of_the_hub_are_one_line(repositories, named_runs, tmp_path, capsys, monkeypatch):
    with pytest.raises(InputError, match=r"hf://a/b cannot be fetched \(404 Client Error: no model"):
        cmma_jax.load("hf://a/b")
    card = tmp_path / "card.md"
    push = ["push", f"--run={named_runs / 'cmma'}", "--to=hf://nobody/faces", f"--card={card}"]
    assert main(push) == 2 and "is no file; write what the model was trained on" in capsys.readouterr().err
    card.write_text("# Faces\n")
    assert main(push) == 2
    said = capsys.readouterr().err
    assert "hf://nobody/faces cannot be written (403 Forbidden)" in said and said.count("\n") == 1
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"pip install 'cmma_jax\[hub\]'"):
        cmma_jax.load(RUN)


def test_the_calls_are_those_of_the_library():
    """Of the library itself, where it is installed: the stand-in takes what it takes."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install 'cmma_jax[hub]'")
    library = importlib.import_module("huggingface_hub")
    inspect.signature(library.hf_hub_download).bind("a/b", hub.FILE)
    inspect.signature(library.HfApi.create_repo).bind(None, "a/b", private=True, exist_ok=True)
    inspect.signature(library.HfApi.upload_file).bind(None, path_or_fileobj=pathlib.Path("f"), path_in_repo=hub.FILE,
                                                      repo_id="a/b")
