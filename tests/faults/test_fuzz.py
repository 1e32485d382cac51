"""A bounded run of `python -m tests.faults.fuzz`, and files by an enemy: nothing that is read can carry code."""

import pathlib
import pickle
import re
import shutil

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="the inputs are Hypothesis's")

from cmma_jax.data import lfw  # noqa: E402
from cmma_jax.errors import InputError  # noqa: E402
from cmma_jax.training.checkpoint import open_checkpoints, set_damaged_aside  # noqa: E402
from cmma_jax.training.config import FLOW  # noqa: E402
from cmma_jax.training.runs import load_run  # noqa: E402
from tests.faults import fuzz  # noqa: E402
from tests.faults.kill import ROOT  # noqa: E402

READERS = fuzz.readers()


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")  # what is said beside an error, and how often, is Python's and NumPy's affair
def test_a_reader_of_foreign_bytes_reads_or_refuses_in_one_line(name):
    count = 20 if READERS[name].share < 0.01 else 150
    with fuzz.watched() as scratch:
        told = fuzz.feed(READERS[name], count, scratch, None)
    assert told["inputs"] >= count and told["refused"] < told["inputs"]


def test_a_file_on_which_scipys_decoder_crashes_is_refused(tmp_path):
    content = bytearray(fuzz.a_mat())
    content[368] = 0  # the type of one cell's text; SciPy 1.17 ends by a segmentation fault
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(InputError, match="is corrupt"):
        lfw._read_mat(tmp_path / "a.mat")


def test_no_source_unpickles_or_evaluates():
    sources = [*(ROOT / "cmma_jax").rglob("*.py"), ROOT / "train.py", ROOT / "evaluate.py"]
    assert len(sources) > 40
    for path in sources:
        found = re.search(r"(?<!allow_)pickle|allow_pickle(?!=False)|marshal|shelve|joblib|dill|torch\.load|yaml|"
                          r"\b(eval|exec)\(|__import__", path.read_text())
        assert found is None, f"{path}: {found}"


class Enemy:
    """Writes a file where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return pathlib.Path.write_text, (self.mark, "here")


@pytest.fixture
def enemy(tmp_path):
    """Bytes that write a file when they are unpickled, and that file's path."""
    content = pickle.dumps(Enemy(tmp_path / "mark"))
    pickle.loads(content)
    assert (tmp_path / "mark").read_text() == "here"
    (tmp_path / "mark").unlink()
    return content, tmp_path / "mark"


def test_a_checkpoint_by_an_enemy_runs_nothing(named_runs, tmp_path, enemy):
    """Each of its files in turn, and a file of every usual name beside them, holds a pickle."""
    content, mark = enemy
    original = named_runs / "cvae"
    step = next((original / FLOW).glob("[0-9]*")).relative_to(original)
    files = sorted(path.relative_to(original) for path in (original / step).rglob("*") if path.is_file())
    assert len(files) > 5
    named = 0
    for i, file in enumerate(files):
        run = tmp_path / str(i)
        shutil.copytree(original, run)
        (run / file).write_bytes(content)
        for name in ("state.pkl", "checkpoint.pt", "params.npy", "metadata.pkl"):
            (run / step / name).write_bytes(content)
        for read in (load_run, lambda run: set_damaged_aside(run / FLOW)):
            try:
                read(run)
            except InputError:
                named += 1
        with open_checkpoints(tmp_path / "empty") as checkpoints:  # what failed above leaves nothing open
            assert checkpoints.steps() == []
    assert named > len(files) / 2 and not mark.exists()


def test_other_files_by_an_enemy_run_nothing(tmp_path, enemy):
    content, mark = enemy
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([Enemy(mark)], object), allow_pickle=True)
    with fuzz.watched() as scratch:
        for name, reader in READERS.items():
            for each in (content, objects.read_bytes(), b"train.y.npy|" + objects.read_bytes()):
                try:
                    reader.read(scratch, each)
                except InputError:
                    continue
                assert name in ("records of a run", "finished faces of a Parzen estimate", "maps of decoded faces",
                                "faces of LFW (zip)", "--set"), name
    assert not mark.exists()
