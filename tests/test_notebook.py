"""The notebook runs, and has the pictures that it shows."""

import nbclient
import nbformat
import pytest

from tests.test_documents import ROOT, one_device


def pictures(notebook):
    return [set(output.get("data", ())) & {"image/png", "image/jpeg"} != set() for cell in notebook.cells
            if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.filterwarnings("ignore")  # what a kernel and its client say of the network is not ours
def test_the_notebook_runs_and_has_its_pictures(tmp_path, monkeypatch):
    path = ROOT / "examples" / "quickstart.ipynb"
    committed, again = (nbformat.read(path, 4) for _ in range(2))
    assert sum(pictures(committed)) == 5
    for name, value in one_device().items():
        monkeypatch.setenv(name, value)
    nbclient.NotebookClient(again, timeout=550, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert pictures(again) == pictures(committed)
    assert str(ROOT) not in path.read_text() and "/tmp" not in path.read_text()
