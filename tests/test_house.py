"""The house: who may import whom, what the documents name, and what must not be in the tree."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLOORS = [
    {"errors"},
    {"command_line", "config", "distributions", "files", "images", "layers", "records", "data.dataset", "data.disk",
     "data.synthetic", "data.lfw", "data.folder", "data.mat", "data.tfds_builder", "data", "parallel", "checkpoint",
     "training"},
    {"networks"},
    {"models"},
    {"attributes", "compact", "flow", "photos", "ppca"},
    {"objectives", "runs", "sampling"},
    {"figures", "evaluation.classification"},
    {"evaluation", "evaluation.bounds", "evaluation.parzen", "evaluation.diversity", "evaluation.baselines",
     "evaluation.judges", "evaluation.embeddings", "evaluation.detection", "evaluation.table", "plots", "api"},
    {"evaluation.editing", "paper_figures", "commands"},
    {"web.groups", "web.guard", "web.studio"},
    {"web.server"},
    {"web"},
    {"__main__"},
]
GROUND = FLOORS[1]


def modules():
    for path in (ROOT / "cmma_jax").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / "cmma_jax").with_suffix("").parts).removesuffix("__init__").rstrip(".")
        if name:
            yield name, ast.parse(path.read_text())


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cmma_jax":
            base = node.module.removeprefix("cmma_jax").lstrip(".")
            for alias in node.names:
                longer = f"{base}.{alias.name}".lstrip(".")
                yield longer if any(longer in floor for floor in FLOORS) else base


def floor_of(name):
    return next(i for i, floor in enumerate(FLOORS) if name in floor)


def test_a_file_imports_from_its_own_floor_on_the_ground_and_from_lower_floors_above():
    for name, tree in modules():
        for other in imports(tree):
            if name in GROUND:
                assert floor_of(other) <= 1, f"{name} imports {other}"
            else:
                assert floor_of(other) < floor_of(name), f"{name} imports {other}"


def test_one_file_names_orbax_one_safetensors_and_one_names_devices():
    for name, tree in modules():
        source = ast.unparse(tree)
        assert ("orbax" in source) == (name == "checkpoint"), name
        assert ("import safetensors" in source) == (name == "compact"), name
        assert ("pmap(" in source or "jax.sharding" in source) == (name == "parallel"), name


@pytest.mark.parametrize("tool", [["ruff", "check"], ["mypy"]], ids=["ruff", "mypy"])
def test_ruff_and_mypy_have_nothing_to_say(tool):
    ended = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def equations():
    lines = (ROOT / "docs" / "equations.md").read_text().splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
    return [row for row in rows if row[3] != "function" and not row[3].startswith("---")]


@pytest.mark.parametrize("row", equations(), ids=lambda row: row[0])
def test_every_line_of_the_equations_names_a_function_and_a_test_that_exist(row):
    assert len(row) == 5
    module, name = row[3].strip("`").rsplit(".", 1)
    assert hasattr(importlib.import_module(f"cmma_jax.{module}"), name)
    file, _, test = row[4].strip("`").partition("::")
    source = (ROOT / "tests" / file).read_text()
    assert f"def {test}(" in source if test else "def test_" in source


def test_the_tests_that_hold_the_promises_are_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    there = {node.name for path in (ROOT / "tests").rglob("test_*.py") for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.FunctionDef)}
    assert len(named) > 15 and named <= there, named - there
