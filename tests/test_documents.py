"""The documents: their code runs, their commands have flags that exist, and the site is built without a warning.

    python tests/test_documents.py FILE    runs the blocks of a document here

A block after a comment `<!-- not run: why -->` takes minutes, or needs LFW: its commands are parsed, no more.
"""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from cmma_jax.cli import classifier, command_line, evaluate, train
from cmma_jax.cli.main import COMMANDS, PROGRAMS, main

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md",
             *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]
BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (python .*)$", re.MULTILINE)
OUTSIDE = ("pip", ".", "tensorboard", "mkdocs", "coverage", "ruff", "mypy", "curl")  # commands that are not ours
MODULES_OUTSIDE = ("venv", "pytest", "coverage", "benchmarks", "tests")


def blocks(text):
    """Yields each block's language, code, and whether it is run."""
    for unless, language, code in BLOCK.findall(text):
        yield language or "sh", code, not unless
    for line in INDENTED.findall(text):
        yield "sh", line, False


def commands(code):
    """Yields the words of each command, without comments."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1:]


def ours(words):
    """Returns a command's parser, its program and its arguments; None: it is not ours."""
    words = words[1:] if words[0] == "srun" else words
    if words[0] == "python" and words[1] == "-m":
        words = words[2:]
        if words[0].split(".")[0] in MODULES_OUTSIDE:
            return None
    elif words[0] == "python":
        words = words[1:]
    elif words[0] in OUTSIDE:
        return None
    program, *arguments = words
    if program in ("train.py", "evaluate.py"):
        module = {"train.py": train, "evaluate.py": evaluate}[program]
        return module.parse, module.main, arguments
    assert program in ("cmma", "cmma_jax"), words
    if arguments[0] in PROGRAMS:
        module = {"train": train, "evaluate": evaluate, "classifier": classifier}[arguments[0]]
        return lambda argv: module.parse(argv[1:]), main, arguments
    return lambda argv: command_line.parse(COMMANDS[arguments[0]], argv[1:], "cmma", ""), main, arguments


def run(path):
    """Runs a document's blocks in the present folder."""
    names = {}
    for language, code, wanted in blocks(path.read_text()):
        if language == "python" and wanted:
            exec(compile(code, str(path), "exec"), names)
        for words in commands(code) if language == "sh" and wanted else ():
            if found := ours(words):
                print("$", *words, flush=True)
                assert found[1](found[2]) == 0, words


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_has_flags_that_exist_and_python_compiles(name):
    for language, code, _ in blocks((ROOT / name).read_text()):
        assert language in ("sh", "python", "csv", "text"), language
        if language == "python":
            compile(code, name, "exec")
        for words in commands(code) if language == "sh" else ():
            if found := ours(words):
                parse, _, arguments = found
                try:
                    parse(arguments)
                except SystemExit as stop:  # --help
                    assert not stop.code, words


def one_device():
    """Returns the surroundings of a person at home: one device, programs that are optimised, since these run for longer
    than they are compiled, and this project where Python finds it.
    """
    flags = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=1").replace("level=0", "level=1")
    return {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags.replace("--xla_cpu_use_fusion_emitters=false", "")}


def run_elsewhere(name, folder):
    surroundings = {**os.environ, **one_device()}
    ended = subprocess.run([sys.executable, __file__, str(ROOT / name)], cwd=folder, env=surroundings, text=True,
                           capture_output=True, timeout=400)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


def test_the_readme_runs(named_runs, tmp_path):
    shutil.copytree(named_runs, tmp_path / "runs", copy_function=shutil.copy2)
    for name, i in (("photo", 300), ("a", 301), ("b", 302)):  # PNG by another name: a face of the model's own size
        shutil.copy(named_runs.parent / "binary" / f"{i}.png", tmp_path / f"{name}.jpg")
    said = run_elsewhere("README.md", tmp_path)
    assert said.count("$ python -m cmma_jax") == 5
    assert {"faces.png", "edited.png", "morph.gif", "sweep.gif"} <= {p.name for p in tmp_path.iterdir()}


def test_the_tutorial_runs(tmp_path):
    said = run_elsewhere("docs/tutorial.md", tmp_path)
    assert said.count("$ ") == 12
    figures = [line for line in said.splitlines() if line.startswith("validation bound")]
    assert len(figures) == 2 and figures[0] == figures[1]  # the finished run tells its own again
    assert {"first.png", "made.png", "mean.png", "smiling.gif", "edited.png", "morph.gif", "mine.safetensors",
            "sampler.bin", "hats.png"} <= {path.name for path in tmp_path.iterdir()}


def test_the_hundred_lines_are_a_model_that_learns_and_name_what_is_there(tmp_path):
    said = run_elsewhere("docs/hundred-lines.md", tmp_path)
    before, after, inferred, seen, off = map(float, re.findall(r"-?\d[\d.]*", said.replace(",", "")))
    assert before < 0 < 500 < after and inferred > 0.85 and seen > 0.9 and off < 0.06
    (_, code, _), *_ = blocks((ROOT / "docs" / "hundred-lines.md").read_text())
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 100
    for file, name in re.findall(r"(\w+/\w+\.py): (\w+)", code):
        assert re.search(rf"\b{name}\b", (ROOT / "cmma_jax" / file).read_text()), (file, name)


def test_data_from_elsewhere_trains_a_run_and_a_step(tmp_path):
    said = run_elsewhere("docs/batches.md", tmp_path)
    before, steps, after = map(float, re.findall(r"-?\d+", said.splitlines()[-1]))
    assert steps == 12 and after > before + 100
    assert "generate --run=runs/cmma-mine" in said and "evaluate" not in said  # which cannot load the data by a name
    assert (tmp_path / "runs" / "cmma-mine" / "config.json").is_file()


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="needs mkdocs: pip install mkdocs-material")
    ended = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)], cwd=ROOT,
                           text=True, capture_output=True, timeout=120, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert ended.returncode == 0 and "WARNING" not in ended.stderr, ended.stderr
    pages = [path.read_text() for path in tmp_path.rglob("*.html")]
    assert len(pages) > 10
    for page in pages:
        for tag in re.findall(r"<(?:link|script|img|iframe)\b[^>]*>", page):
            assert not re.search(r"(src|href)=[\"']?(https?:)?//", tag), tag
    for path in tmp_path.rglob("*.css"):
        assert "@import" not in path.read_text() and "url(http" not in path.read_text()


if __name__ == "__main__":
    run(pathlib.Path(sys.argv[1]))
