"""The package as it is shipped: wheel and sdist, built and installed in a fresh environment, without the network."""

import os
import pathlib
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_{}(sys.argv[1]))"


def run(command, **options):
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, **options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def build(kind, source, out):
    return out / run([sys.executable, "-c", BUILD.format(kind), out], cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of a copy of the tree, and the wheel that is built from that sdist alone."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "tree").mkdir()
    for path in ROOT.iterdir():
        if path.suffix in (".py", ".md", ".txt", ".toml", ".cff", ".in", ".yml") or path.name == "LICENSE":
            shutil.copy(path, folder / "tree")
    for name in ("cmma_jax", "tests", "docs", "examples", "benchmarks"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    sdist = build("sdist", folder / "tree", folder)
    with tarfile.open(sdist) as archive:  # Python 3.11's first releases know no filters
        archive.extractall(folder / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = (folder / "unpacked").iterdir()
    return {"sdist": sdist, "wheel": build("wheel", unpacked, folder)}, unpacked


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_is_installed_in_a_fresh_environment_and_its_command_runs(kind, built, tmp_path):
    """The new environment borrows what it depends on from this one, since there may be no network."""
    fresh = tmp_path / "fresh"
    run([sys.executable, "-m", "venv", "--without-pip", fresh])
    (packages,) = fresh.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    python, surroundings = fresh / "bin" / "python", {**os.environ, "PYTHONPATH": ""}
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
         "--no-build-isolation", "--force-reinstall", "-q", built[0][kind]], env=surroundings)
    said = run([fresh / "bin" / "cmma", "--help"], cwd=tmp_path, env=surroundings)
    assert "generate" in said and "edit" in said
    where = run([python, "-c", "import cmma_jax; print(cmma_jax.__file__)"], cwd=tmp_path, env=surroundings)
    assert pathlib.Path(where.strip()).is_relative_to(packages)


def test_the_wheel_holds_every_module_and_nothing_else_and_the_sdist_the_whole_project(built):
    paths, unpacked = built
    here = {str(path.relative_to(ROOT)) for path in (ROOT / "cmma_jax").rglob("*")
            if path.suffix in (".py", ".typed", ".safetensors")}
    with zipfile.ZipFile(paths["wheel"]) as wheel:
        there = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert here <= there and all(name.startswith("cmma_jax/") for name in there)
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    for name in ("train.py", "evaluate.py", "CITATION.cff", "requirements-cpu.txt", "docs/equations.md",
                 "tests/conftest.py", "benchmarks/train_step.py"):
        assert (unpacked / name).is_file(), name


def plain(requirement):
    return requirement.split("#")[0].replace(" ", "")


def test_requirements_and_versions_are_written_alike_everywhere():
    lines = (ROOT / "requirements-cpu.txt").read_text().splitlines()
    listed = {plain(line) for line in lines if plain(line)}
    wanted = {plain(each) for each in PROJECT["dependencies"]}
    assert wanted <= listed
    assert listed - wanted <= {plain(each) for each in PROJECT["optional-dependencies"]["test"]}
    assert re.search(rf"^version: {PROJECT['version']}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert f"\n## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
