"""LFW: a miniature in the publishers' layouts, every bad input, and the real files where they are."""

import io
import logging
import pathlib
import shutil
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from cmma_jax.data import lfw
from cmma_jax.data.lfw import load_lfw, read_lfw
from cmma_jax.errors import InputError

ATTRIBUTES = ("Male", "Middle Aged", "5 o' Clock Shadow")
ROWS = 20
PEOPLE = [(f"Person {chr(65 + i // 2)}", i % 2 + 1) for i in range(ROWS)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """A miniature with 12 rows to train, 4 to validate and 4 to test, of which nothing is downloaded."""
    return write_miniature(tmp_path / "lfw", monkeypatch)


def write_miniature(folder: pathlib.Path, monkeypatch) -> pathlib.Path:
    for name, value in {"TRAIN": 12, "VALIDATION": 4, "FACES": ROWS + 1, "LABELS": ROWS}.items():
        monkeypatch.setattr(lfw, name, value)
    monkeypatch.setattr(lfw, "_download", no_network)
    faces = folder / "lfwcrop_color" / "faces"
    faces.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for person, number in [*PEOPLE, ("No Label", 1)]:
        image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
        image.save(faces / f"{person.replace(' ', '_')}_{number:04d}.ppm")
    scores = rng.normal(size=(ROWS, len(ATTRIBUTES))).round(4)
    write_scores(folder / lfw.SCORES, scores)
    write_mat(folder / lfw.BINARY, scores > 0)
    return folder


def no_network(url: str, path: pathlib.Path) -> None:
    raise OSError("no network here")


def write_scores(path: pathlib.Path, scores: np.ndarray) -> None:
    lines = ["# a comment", "\t".join(["#", "person", "imagenum", *ATTRIBUTES])]
    lines += ["\t".join([person, str(number), *map(str, row)])
              for (person, number), row in zip(PEOPLE, scores.tolist(), strict=True)]
    path.write_text("\n".join(lines) + "\n")


def cell(texts: list[str]) -> np.ndarray:
    return np.array([*texts, None], object)[:-1]


def write_mat(path: pathlib.Path, label: np.ndarray, **fields) -> None:
    names = [person.replace(" ", "_") for person, _ in PEOPLE]
    names = [f"{name}\\{name}_{number:04d}.jpg" for name, (_, number) in zip(names, PEOPLE, strict=True)]
    written = [name.replace(" ", "_").replace("'", "") for name in ATTRIBUTES]
    fields = {"name": cell(names), "label": label.astype(np.uint8), "AttrName": cell(written)} | fields
    scipy.io.savemat(path, {k: v for k, v in fields.items() if v is not None})


def read_scores(folder: pathlib.Path) -> np.ndarray:
    return np.loadtxt(folder / lfw.SCORES, delimiter="\t", skiprows=2, usecols=(2, 3, 4))


def face(folder: pathlib.Path, row: int) -> pathlib.Path:
    person, number = PEOPLE[row]
    return folder / "lfwcrop_color" / "faces" / f"{person.replace(' ', '_')}_{number:04d}.ppm"


def zip_faces(folder: pathlib.Path, inside: str = "lfwcrop_color/faces/") -> pathlib.Path:
    """Turns the folder of faces into the publishers' archive."""
    path = folder / lfw.ARCHIVE
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{inside}../readme.txt", "about")
        for file in (folder / "lfwcrop_color" / "faces").iterdir():
            archive.write(file, inside + file.name)
    shutil.rmtree(folder / "lfwcrop_color")
    return path


def edit_line(path: pathlib.Path, number: int, edit) -> None:
    lines = path.read_text().split("\n")
    lines[number - 1] = edit(lines[number - 1])
    path.write_text("\n".join(lines))


def refuses(folder: pathlib.Path, *fragments: str, kind: str = "binary") -> str:
    with pytest.raises(InputError) as caught:
        load_lfw(folder, kind)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
    return message


def test_miniature_is_joined_and_split_by_row(folder):
    data = load_lfw(folder)
    assert [part.size for part in (data.train, data.validation, data.test)] == [12, 4, 4]
    assert data.spec.attributes == ATTRIBUTES
    assert (data.spec.dataset, data.spec.kind) == ("lfw", "binary")
    expected = np.stack([np.asarray(Image.open(face(folder, row))) for row in range(ROWS)])
    np.testing.assert_array_equal(np.concatenate([data.train.x, data.validation.x, data.test.x]), expected)
    y = np.concatenate([data.train.y, data.validation.y, data.test.y])
    np.testing.assert_array_equal(y, read_scores(folder) > 0)
    assert data.train.mask.all() and data.train.x.dtype == np.uint8 and y.dtype == np.float32


def test_scores_are_standardised_on_the_training_rows(folder):
    data, scores = load_lfw(folder, "real"), read_scores(folder)
    expected = (scores - scores[:12].mean(0)) / scores[:12].std(0)
    np.testing.assert_allclose(np.concatenate([data.train.y, data.validation.y, data.test.y]), expected, atol=1e-5)
    assert data.spec.dataset == "lfw"


def test_binary_attributes_without_the_mat_file_are_positive_scores(folder):
    expected = load_lfw(folder)
    (folder / lfw.BINARY).unlink()
    np.testing.assert_array_equal(load_lfw(folder).train.y, expected.train.y)


@pytest.mark.parametrize("kind", ["binary", "real"])
def test_estimated_scores_are_called_so_and_come_last(folder, kind):
    shutil.copy(folder / lfw.SCORES, folder / lfw.ESTIMATED)
    (folder / lfw.BINARY).unlink()
    assert load_lfw(folder, kind).spec.dataset == "lfw"
    (folder / lfw.SCORES).unlink()
    assert load_lfw(folder, kind).spec.dataset == "lfw (estimated scores)"


@pytest.mark.parametrize("inside", ["lfwcrop_color/faces/", "elsewhere/"])
def test_faces_from_the_archive_are_those_of_the_folder(folder, inside):
    expected = load_lfw(folder)
    zip_faces(folder, inside)
    np.testing.assert_array_equal(load_lfw(folder).train.x, expected.train.x)
    assert not (folder / "lfwcrop_color").exists()


def test_faces_may_lie_in_a_folder_of_their_own(folder):
    expected = load_lfw(folder)
    (folder / "lfwcrop_color" / "faces").rename(folder / "faces")
    np.testing.assert_array_equal(load_lfw(folder).train.x, expected.train.x)


def test_a_row_without_face_is_dropped_and_no_other_changes_its_part(folder, caplog):
    expected = load_lfw(folder)
    face(folder, 3).unlink()
    with caplog.at_level(logging.WARNING):
        labels, parts = read_lfw(folder, "binary")
    assert "1 of 20 rows" in caplog.text and "Person_B_0002" in caplog.text
    keep = np.arange(12) != 3
    np.testing.assert_array_equal(parts["train"].faces.x, expected.train.x[keep])
    np.testing.assert_array_equal(parts["train"].faces.y, expected.train.y[keep])
    np.testing.assert_array_equal(parts["test"].faces.x, expected.test.x)
    assert parts["test"].keys == labels.keys[16:]


def test_many_rows_without_face_are_the_wrong_folder(folder):
    for row in range(3):
        face(folder, row).unlink()
    refuses(folder, "lfwcrop_color/faces", "lacks the faces of 3 of 20", "check the folder")


def test_folder_that_is_not_there(tmp_path):
    refuses(tmp_path / "nowhere", "nowhere not found", "make it, or name another")


def test_unknown_kind(folder):
    refuses(folder, "kind 'both'", "'binary' or 'real'", kind="both")


@pytest.mark.parametrize("missing", ["lfwcrop_color", lfw.SCORES])
def test_missing_files_that_cannot_be_downloaded(folder, missing):
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = sorted(folder.iterdir())
    refuses(folder, "not found", "no network here", lfw.URLS[lfw.ARCHIVE], lfw.URLS[lfw.SCORES], lfw.BINARY,
            "no direct link", "by hand", kind="real")
    assert sorted(folder.iterdir()) == before


def test_missing_files_are_downloaded(folder, tmp_path, monkeypatch):
    expected = load_lfw(folder, "real")
    zip_faces(folder)
    there = {url: (folder / name).rename(tmp_path / name) for name, url in lfw.URLS.items()}
    monkeypatch.setattr(lfw, "_download", lambda url, path: shutil.copy(there[url], path))
    np.testing.assert_array_equal(load_lfw(folder, "real").train.y, expected.train.y)
    assert sorted(path.name for path in folder.iterdir()) == sorted([lfw.ARCHIVE, lfw.BINARY, lfw.SCORES])


@pytest.mark.parametrize(("name", "content", "fault"), [
    (lfw.SCORES, b"<html>not found</html>", "no header"),
    (lfw.SCORES, b"#\n#\tperson\timagenum\tMale\nA B\t1\t0.5\n", "1 rows, expected 20"),
    (lfw.ARCHIVE, b"<html>not found</html>", "no whole zip"),
])
def test_a_download_of_something_else_is_not_kept(folder, monkeypatch, name, content, fault):
    (shutil.rmtree if name == lfw.ARCHIVE else pathlib.Path.unlink)(
        folder / ("lfwcrop_color" if name == lfw.ARCHIVE else name))
    monkeypatch.setattr(lfw, "_download", lambda url, path: path.write_bytes(content))
    refuses(folder, name, "could not be downloaded", fault, kind="real")
    assert not (folder / name).exists() and not list(folder.glob("download-*"))


def test_download_writes_the_bytes_and_notices_a_connection_that_breaks_off(tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "there").write_bytes(bytes(range(256)) * 1000)
    lfw._download((tmp_path / "there").as_uri(), tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()

    class Reply(io.BytesIO):
        headers = {"Content-Length": "10"}

    monkeypatch.setattr(lfw.urllib.request, "urlopen", lambda url, timeout: Reply(b"only"))
    with pytest.raises(OSError, match="4 of 10 bytes"):
        lfw._download("http://localhost/x", tmp_path / "short")


def test_too_few_rows(folder, monkeypatch):
    monkeypatch.setattr(lfw, "TRAIN", 16)
    refuses(folder, lfw.BINARY, "has 20 rows", "expected 21 or more", "get the whole file")


def test_truncated_archive(folder):
    path = zip_faces(folder)
    path.write_bytes(path.read_bytes()[:-1000])
    refuses(folder, str(path), "no whole zip archive", "delete it and download it again", lfw.URLS[lfw.ARCHIVE])


def test_corrupt_member_of_the_archive(folder):
    path = zip_faces(folder)
    with zipfile.ZipFile(path) as archive:
        member = next(m for m in archive.infolist() if m.filename.endswith("Person_C_0001.ppm"))
    data = bytearray(path.read_bytes())
    data[member.header_offset + 1000] ^= 255
    path.write_bytes(data)
    refuses(folder, "Person_C_0001.ppm", "is corrupt", f"delete {lfw.ARCHIVE} and download it again")


def test_giant_member_of_the_archive(folder):
    face(folder, 0).write_bytes(bytes(2_000_000))
    zip_faces(folder)
    refuses(folder, "Person_A_0001.ppm", "2000000 bytes", "download it again")


def test_corrupt_image(folder):
    face(folder, 5).write_bytes(face(folder, 5).read_bytes()[:5000])
    refuses(folder, "Person_C_0002.ppm is corrupt", "get it again")


@pytest.mark.parametrize(("mode", "size"), [("RGB", (64, 48)), ("L", (64, 64))])
def test_face_of_another_size_or_without_colour(folder, mode, size):
    Image.new(mode, size).save(face(folder, 5), "ppm")
    refuses(folder, "Person_C_0002.ppm", f"{size[0]}x{size[1]} {mode}", "expected 64x64 RGB", "use LFWcrop's")


@pytest.mark.parametrize(("edit", "count"), [(lambda line: line + "\t1.0", 6), (lambda line: line[:-7], 4)])
def test_extra_and_missing_columns(folder, edit, count):
    write_scores(folder / lfw.SCORES, np.full((ROWS, 3), 0.1234))
    edit_line(folder / lfw.SCORES, 7, edit)
    refuses(folder, lfw.SCORES, f"line 7 has {count} columns", "expected 5", "get the file again", kind="real")


@pytest.mark.parametrize("score", ["nan", "inf", "1e99", "high", ""])
def test_scores_that_are_no_numbers(folder, score):
    edit_line(folder / lfw.SCORES, 9, lambda line: "\t".join([*line.split("\t")[:3], score, "1"]))
    refuses(folder, "line 9", "'Middle Aged'", repr(score), "expected a finite number", "get the file", kind="real")


def test_image_number_that_is_none(folder):
    edit_line(folder / lfw.SCORES, 3, lambda line: line.replace("\t1\t", "\tone\t"))
    refuses(folder, "line 3", "'imagenum'", "'one'", "expected a whole number", "get the file again", kind="real")


@pytest.mark.parametrize("header", ["Male\tBald", "#\tperson\timagenum", "#\tperson\timagenum\tMale\tMale\tBald"])
def test_scores_without_a_good_header(folder, header):
    edit_line(folder / lfw.SCORES, 2, lambda line: header)
    refuses(folder, lfw.SCORES, "line 2", "expected '#', 'person', 'imagenum'", "get the file again", kind="real")


def test_scores_that_are_no_text(folder):
    (folder / lfw.SCORES).write_bytes(b"#\n\xff\xfe")
    refuses(folder, lfw.SCORES, "not text", "get the file again", kind="real")


def test_repeated_rows(folder):
    edit_line(folder / lfw.SCORES, 8, lambda line: line.replace("Person C\t2", "Person A\t1"))
    refuses(folder, "line 8 is Person_A_0001 again, after line 3", "get the file again", kind="real")
    name = cell([f"P\\P_{i % 19:04d}.jpg" for i in range(ROWS)])
    write_mat(folder / lfw.BINARY, read_scores(folder) > 0, name=name)
    refuses(folder, "row 20 is P_0000 again, after row 1", "get the file again")


def test_constant_attribute(folder):
    scores = read_scores(folder)
    scores[:12, 1] = 0.5
    write_scores(folder / lfw.SCORES, scores)
    write_mat(folder / lfw.BINARY, scores > 0)
    refuses(folder, "'Middle Aged' is 0.5 in all of the 12 training rows", "the file is broken", kind="real")
    refuses(folder, "'Middle Aged' is 1 in all of the 12 training rows", "the file is broken")


def test_mat_files_that_are_not_lfwa(folder):
    path, label = folder / lfw.BINARY, read_scores(folder) > 0
    write_mat(path, label, AttrName=None)
    refuses(folder, lfw.BINARY, "no field 'AttrName'", "get the file again")
    write_mat(path, label[:, :2])
    refuses(folder, lfw.BINARY, "[20, 2]", "expected [20, 3]", "get the file again")
    write_mat(path, np.where(np.arange(ROWS)[:, None] == 4, 2, label))
    refuses(folder, lfw.BINARY, "row 5, attribute 'Male' is 2", "expected 0 or 1", "get the file again")
    path.write_bytes(path.read_bytes()[:300])
    refuses(folder, lfw.BINARY, "is corrupt", "delete it and download it again")


@pytest.mark.parametrize("name", [lfw.SCORES, lfw.BINARY, lfw.ARCHIVE])
def test_whatever_byte_is_wrong_there_is_an_answer(folder, name):
    """Files with random bytes changed, cut out or put in are read or refused, nothing else."""
    zip_faces(folder)
    good, rng = (folder / name).read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        data, at = bytearray(good), rng.integers(0, len(good), 3)
        data[at[0]] ^= int(rng.integers(1, 256))
        data[at[1]:at[1]] = rng.bytes(int(rng.integers(0, 3)))
        del data[at[2]:at[2] + int(rng.integers(0, 3))]
        (folder / name).write_bytes(data)
        try:
            load_lfw(folder, "real" if name == lfw.SCORES else "binary")
        except InputError as error:
            assert "\n" not in str(error)


def test_real_files(lfw_dir):
    labels, parts = read_lfw(lfw_dir, "binary")
    assert [len(parts[s].keys) for s in ("train", "validation")] == [10_000, 1_000]
    assert len(parts["test"].keys) == len(labels.keys) - 11_000 > 1_000
    assert len(labels.attributes) == 73
    assert {"Male", "Middle Aged", "5 o' Clock Shadow", "Strong Nose-Mouth Lines"} <= set(labels.attributes)
    assert labels.keys[0] == "Aaron_Eckhart_0001"
    people = {split: {key.rpartition("_")[0] for key in part.keys} for split, part in parts.items()}
    assert not people["train"] & people["test"]
    for part in parts.values():
        assert part.faces.x.shape == (len(part.keys), 64, 64, 3) and part.faces.x.dtype == np.uint8
        assert part.faces.y.shape == (len(part.keys), 73) and set(np.unique(part.faces.y)) == {0, 1}
    male, moustache = (labels.y[:, labels.attributes.index(name)] for name in ("Male", "Mustache"))
    assert 0.7 < male.mean() < 0.85 and moustache[male == 0].mean() < 0.02


def test_real_scores(lfw_dir):
    binary, data = load_lfw(lfw_dir), load_lfw(lfw_dir, "real")
    assert data.spec.attributes == binary.spec.attributes
    np.testing.assert_allclose(data.train.y.mean(0, dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(data.train.y.std(0, dtype=np.float64), 1, atol=1e-5)
    raw = data.test.y * np.array(data.spec.attribute_std) + data.spec.attribute_mean
    assert np.mean((raw > 0) == binary.test.y) > 0.999  # LFWA+'s labels are the signs of the scores
    np.testing.assert_array_equal(data.test.x, binary.test.x)
