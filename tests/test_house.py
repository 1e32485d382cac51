"""The house: who may import whom, what the documents name, and what must not be in the tree."""

import ast
import graphlib
import importlib
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = ["models", "data", "training", "sampling", "evaluation", "web", "cli"]  # each may import from those before it
ABOVE_ALL = {"", "__main__"}


def modules():
    """Returns {name within the package: its source}; "" is the package itself."""
    paths = {path.relative_to(ROOT / "cmma_jax").with_suffix(""): path for path in (ROOT / "cmma_jax").rglob("*.py")}
    return {".".join(part for part in short.parts if part != "__init__"): path.read_text()
            for short, path in paths.items()}


SOURCES = modules()


def imports(source):
    """Yields the modules of the package that a source imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "cmma_jax":
            base = node.module.removeprefix("cmma_jax").lstrip(".")
            for alias in node.names:
                longer = f"{base}.{alias.name}".lstrip(".")
                yield longer if longer in SOURCES else base
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
        elif isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "cmma_jax" for alias in node.names), "import cmma_jax..."


def room_of(name):
    return name.split(".")[0]


def test_every_file_is_in_a_room():
    assert {room_of(name) for name in SOURCES} == {*ROOMS, *ABOVE_ALL, "errors"}
    assert all(f"`{room}" in (ROOT / "CONTRIBUTING.md").read_text() for room in ROOMS)


@pytest.mark.parametrize("name", sorted(SOURCES.keys() - ABOVE_ALL))
def test_a_file_imports_from_its_own_room_and_those_below(name):
    room = room_of(name)
    allowed = {"errors", *ROOMS[:ROOMS.index(room) + 1]} if room in ROOMS else set()
    for other in imports(SOURCES[name]):
        assert room_of(other) in allowed, f"{name} imports {other}"


def test_no_file_imports_itself_by_way_of_others():
    order = graphlib.TopologicalSorter({name: set(imports(source)) - {name} for name, source in SOURCES.items()})
    order.prepare()  # raises for a circle


def test_one_file_names_orbax_one_safetensors_and_one_names_devices():
    for name, text in SOURCES.items():
        source = ast.unparse(ast.parse(text))
        assert ("orbax" in source) == (name == "training.checkpoint"), name
        assert ("import safetensors" in source) == (name == "training.compact"), name
        assert ("pmap(" in source or "jax.sharding" in source) == (name == "training.parallel"), name


def test_networks_are_made_in_the_room_of_models_and_by_the_classifier():
    for name, source in SOURCES.items():
        if "flax.linen" in source or "from flax import linen" in source:
            assert room_of(name) == "models" or name == "evaluation.classifier", name


@pytest.mark.parametrize("tool", [["ruff", "check"], ["mypy"]], ids=["ruff", "mypy"])
def test_ruff_and_mypy_have_nothing_to_say(tool):
    ended = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("own", [None, "--xla_backend_optimization_level=1"])
def test_xla_flags_are_set_at_import_unless_there_are_some(own):
    surroundings = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ended = subprocess.run([sys.executable, "-c", "import os, cmma_jax; print(os.environ.get('XLA_FLAGS'))"], cwd=ROOT,
                           env=surroundings | ({"XLA_FLAGS": own} if own else {}), capture_output=True, text=True,
                           timeout=120)
    known = importlib.metadata.version("jaxlib").startswith("0.10.")
    expected = own or ("--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT" if known else "None")
    assert ended.stdout.strip() == expected, ended.stderr


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
