"""`python -m cmma_jax` as a person runs it: pictures come out, and bad input is one line, exit code 2, no file."""

import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

import cmma_jax
from cmma_jax.cli.main import COMMANDS, PROGRAMS, main
from cmma_jax.data.images import LARGEST
from cmma_jax.sampling.faces import GUIDANCE

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def here(named_runs, tmp_path_factory):
    """A folder with pictures: a face, another, a photograph, and files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, i in (("a", 300), ("b", 301)):
        Image.open(named_runs.parent / "binary" / f"{i}.png").save(folder / f"{name}.png")
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "photo.jpg", quality=95)
    (folder / "cut.jpg").write_bytes((folder / "photo.jpg").read_bytes()[:3000])
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    (folder / "words.png").write_text("not an image")

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
                                      + chunk(b"IEND", b""))
    assert 20_000**2 > LARGEST
    return folder


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_generate(here, named_runs, tmp_path):
    out = tmp_path / "faces.png"
    assert main(["generate", "--set", "male=1,eye_glasses", "--n", "5", "--columns", "3", f"--runs_dir={named_runs}",
                 f"--out={out}"]) == 0
    assert pixels(out).shape == (2 + 2 * 18, 2 + 3 * 18, 3)
    assert (pixels(out)[-17:, -17:] == 255).all()  # a sixth place stays white


def test_edit_shows_the_face_before_and_after_and_keeps_detail(here, named_runs, tmp_path):
    out = tmp_path / "edited.png"
    flags = [str(here / "a.png"), f"--runs_dir={named_runs}", f"--out={out}"]
    assert main(["edit", *flags, "--set", "Male=1", "--intensity", "0"]) == 0
    both = pixels(out)
    np.testing.assert_array_equal(both[2:18, 2:18], pixels(here / "a.png"))
    np.testing.assert_array_equal(both[2:18, 20:36], pixels(here / "a.png"))
    assert main(["edit", *flags, "--set", "Male=1", "--known", "Male=0", "--steps=2"]) == 0
    after = pixels(out)[2:18, 20:36]
    model = cmma_jax.load(named_runs / "cmma")
    expected = model.edit(pixels(here / "a.png"), {"Male": 1}, y={"Male": 0}, steps=2)[0]
    assert np.abs(after - 255 * expected).max() < 1 and np.abs(after - 255.0 * pixels(here / "a.png") / 255).max() > 5
    assert main(["edit", *flags, "--set", "Male=1", "--intensity", "0", "--steps=2", "--no-keep_detail"]) == 0
    assert (pixels(out)[2:18, 20:36] != pixels(here / "a.png")).any()


def test_edit_puts_the_face_back_into_the_photograph(here, named_runs, tmp_path):
    out = tmp_path / "whole.png"
    flags = [str(here / "photo.jpg"), "--crop=30,20,48,48", "--whole", f"--runs_dir={named_runs}", f"--out={out}"]
    assert main(["edit", *flags, "--set", "Male=1", "--known", "Male=0", "--steps=2"]) == 0
    change = np.abs(pixels(out).astype(int) - pixels(here / "photo.jpg"))
    assert change[:20].max() == 0 and change[:, 78:].max() == 0 and change[24:40, 40:70].mean() > 1
    assert main(["edit", *flags, "--set", "Male=1", "--intensity=0", "--steps=2"]) == 0
    np.testing.assert_array_equal(pixels(out), pixels(here / "photo.jpg"))


def test_infer_prints_every_attribute_the_likeliest_first(here, named_runs, capsys):
    assert main(["infer", str(here / "a.png"), f"--runs_dir={named_runs}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = [float(line[28:40]) for line in lines[1:]]
    assert len(values) == 15 and values == sorted(values, reverse=True) and "probability" in lines[0]


def test_morph_and_sweep_move(here, named_runs, tmp_path):
    out = tmp_path / "moving.gif"
    assert main(["morph", str(here / "a.png"), str(here / "b.png"), "--frames=5", f"--runs_dir={named_runs}",
                 f"--out={out}"]) == 0
    with Image.open(out) as picture:
        assert picture.n_frames == 8 and picture.size == (64, 64)
    assert main(["sweep", "--attribute", "male", "--frames=3", f"--runs_dir={named_runs}", f"--out={out}"]) == 0
    with Image.open(out) as picture:
        assert picture.n_frames == 4
    assert main(["sweep", "--attribute", "male", "--frames=3", "--photo", str(here / "a.png"),
                 f"--runs_dir={named_runs}", f"--out={tmp_path / 'row.png'}"]) == 0
    row = pixels(tmp_path / "row.png").astype(int)
    np.testing.assert_array_equal(row[2:18, 20:36], pixels(here / "a.png"))
    assert all(np.abs(row[2:18, left:left + 16] - row[2:18, 20:36]).max() > 5 for left in (2, 38))


def test_export_writes_the_sampler_and_its_description(named_runs, tmp_path):
    assert main(["export", f"--runs_dir={named_runs}", f"--out={tmp_path / 'sampler.bin'}"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"sampler.bin", "sampler.bin.json"}


@pytest.mark.parametrize("arguments, words", [
    (["edit", "words.png", "--set", "Male=1"], ["words.png", "cannot be decoded"]),
    (["edit", "nothing.png", "--set", "Male=1"], ["no photograph", "nothing.png"]),
    (["edit", "tiny.png", "--set", "Male=1"], ["too small", "1x1"]),
    (["edit", "huge.png", "--set", "Male=1"], ["huge.png", "too large", str(LARGEST), "scale it down"]),
    (["edit", "cut.jpg", "--set", "Male=1", "--crop=1,1,50,50"], ["cut.jpg", "cannot be decoded"]),
    (["edit", "a.png", "--set", "Mal=1"], ["unknown attribute 'Mal'", "did you mean 'Male'"]),
    (["edit", "a.png", "--set", "Eyeglasses=1,No Eyewear=1"], ["contradict each other", "--no-groups"]),
    (["edit", "a.png", "--set", "Male=7"], ["Male=7", "out of range"]),
    (["edit", "a.png", "--set", "Male=1", "--intensity=nan"], ["--intensity=nan", "finite"]),
    (["edit", "a.png"], ["nothing to change", "--set"]),
    (["edit", "photo.jpg", "--set", "Male=1", "--crop=1,2,3"], ["--crop=1,2,3", "left,top,width,height"]),
    (["edit", "photo.jpg", "--set", "Male=1", "--crop=1,2,nan,4"], ["--crop=1,2,nan,4"]),
    (["edit", "photo.jpg", "--set", "Male=1", "--crop=0,0,1e9,1e9"], ["--crop=0,0,1e+09,1e+09", "too large"]),
    (["edit", "a.png", "--set", "Male=1", "--out=/dev/null/e.png"], ["cannot write", "--out"]),
    (["edit", "a.png", "--set", "Male=1", "--out=e.txt"], ["--out=e.txt", ".png"]),
    (["infer", "a.png", "--run", "cvae"], ["cvae", "no q(y|z)", "use a CMMA"]),
    (["edit", "a.png", "--set", "Male=1", "--run", "cgan"], ["cgan", "cannot encode a face"]),
    (["infer", "a.png", "--run", "nowhere"], ["no run in"]),
    (["generate", "--n", "0"], ["--n=0"]),
    (["generate", "--temperature=-1"], ["temperature -1"]),
    (["generate", "--guidance=-1", "--set", "Male=1"], ["guidance -1 is out of range"]),
    (["generate", "--guidance=0", "--set", "Male=1"], ["guidance 0 forgets the attributes", "of which 1 is none"]),
    (["generate", "--guidance=2", "--run", "cgan"], ["cgan", "takes no guidance", "leave guidance out"]),
    (["generate", "--steps=0"], ["steps 0 is out of range"]),
    (["generate", "--detail=1"], ["cmma", "has no detail"]),
    (["generate", "--steps=2.5"], ["--steps", "2.5"]),
    (["edit", "a.png", "--set", "Male=1", "--steps=0"], ["steps 0 is out of range"]),
    (["edit", "a.png", "--set", "Male=1", "--literal"], ["literal is for Gaussian priors", "leave literal out"]),
    (["export", "--steps=0"], ["steps 0 is out of range"]),
    (["morph", "a.png", "b.png", "--run", "cgan"], ["cgan", "cannot encode a face"]),
    (["sweep", "--attribute=Male", "--reach=0"], ["--reach=0", "above 0"]),
    (["generate", "--set", "=1"], ["'=1' is no setting"]),
    (["generate", "--bogus"], ["bogus", "--help"]),
    (["sweep"], ["attribute"]),
    (["sweep", "--attribute=Mal"], ["did you mean 'Male'"]),
    (["morph", "a.png", "b.png", "--frames=1"], ["2 frames or more"]),
])
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(arguments, words, here, named_runs, tmp_path, capsys,
                                                               monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, *rest = arguments
    for i, word in enumerate(rest):
        if word.endswith((".png", ".jpg")) and not word.startswith("--"):
            rest[i] = str(here / word)
        elif rest[i - 1] == "--run":
            rest[i] = str(named_runs / word)
    assert main([command, *rest, *([] if "--run" in rest else [f"--runs_dir={named_runs}"])]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1, error
    for word in words:
        assert word in error[0]
    assert not list(tmp_path.iterdir())


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in [*COMMANDS, *PROGRAMS])
    assert main([]) == 2 and main(["paint"]) == 2


def test_help_names_the_default_guidance(capsys):
    for name in ("generate", "export"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert f"{GUIDANCE:g} " in capsys.readouterr().out


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_programs_are_commands_and_name_themselves_in_errors_and_help(name, capsys):
    assert main([name, "--bogus=1"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith(f"python -m cmma_jax {name}: error: ")
    assert f"(python -m cmma_jax {name} --help lists every flag)" in error[0]
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0 and f"usage: python -m cmma_jax {name}" in capsys.readouterr().out


def test_a_command_does_not_wait_for_what_it_does_not_use():
    script = "import sys, cmma_jax.cli.main; print(*{name.split('.')[0] for name in sys.modules})"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"matplotlib", "tensorboardX", "fastapi", "uvicorn", "tensorflow_datasets"} & set(ended.stdout.split())


def test_figure_4_is_drawn_with_its_deviations(named_runs, tmp_path, capsys):
    planes = [f"--{name}_plane={named_runs.parent / f'{name}-plane'}" for name in ("cmma", "vae")]
    assert main(["figures", "--figure=4", *planes, "--limit=20", f"--out_dir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "cmma: average standard deviation" in said and "vae: average" in said
    assert len(np.unique(pixels(tmp_path / "figure4.png"))) > 50
    assert main(["figures", "--figure=4", f"--cmma_plane={named_runs / 'cmma'}", planes[1]]) == 2
    assert "0 latents; Figure 4 needs --latent_size=2" in capsys.readouterr().err


def test_all_figures_are_drawn(named_runs, tmp_path):
    planes = [f"--{name}_plane={named_runs.parent / f'{name}-plane'}" for name in ("cmma", "vae")]
    assert main(["figures", "--figure=all", *planes, f"--runs_dir={named_runs}", f"--out_dir={tmp_path}"]) == 0
    names = {"figure4", "figure6", "figure8", "figure9", "figure10", "figure-sweep", "figure-samples",
             "figure-overview"}
    assert {path.stem for path in tmp_path.iterdir()} == names
    for path in tmp_path.iterdir():
        assert len(np.unique(pixels(path))) > 50
