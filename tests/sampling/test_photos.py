"""Photographs: LFWcrop's geometry, what files may hold, and a face put back."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks.photos import PHOTOGRAPHS
from cmma_jax.errors import InputError
from cmma_jax.sampling import photos
from cmma_jax.sampling.photos import Box, Photo, cut, find_face, lfwcrop, put_back, read_photo


def test_lfwcrop_has_the_middle_of_the_detectors_box_and_a_part_of_its_sides():
    box = lfwcrop(Box(100, 200, 80, 40))
    assert (box.width, box.height) == pytest.approx((0.885 * 80, 0.885 * 40))
    assert (box.left + box.width / 2, box.top + box.height / 2) == pytest.approx((140, 220))


def scene(width=200, height=160):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (20, 25, 3)).astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def test_a_cut_without_scaling_is_the_pixels_themselves_and_black_beyond_the_border():
    picture = scene()
    face = cut(picture, Box(30, 40, 64, 64), 64)
    np.testing.assert_array_equal(face, np.asarray(picture, np.float32)[40:104, 30:94] / 255)
    over = cut(picture, Box(-10, 120, 64, 64), 64)
    np.testing.assert_array_equal(over[:40, 10:], np.asarray(picture, np.float32)[120:160, :54] / 255)
    assert (over[:, :10] == 0).all() and (over[40:] == 0).all()


def test_a_face_put_back_unchanged_leaves_the_photograph_and_changed_changes_only_its_box():
    picture, box = scene(), Box(30.4, 40.7, 90, 80)
    photo = Photo(picture, box, cut(picture, box, 64))
    np.testing.assert_array_equal(np.asarray(put_back(photo, photo.face)), np.asarray(picture))
    changed = np.asarray(put_back(photo, photo.face + 0.1), np.int32) - np.asarray(picture)
    assert np.abs(changed[:40]).max() == 0 and np.abs(changed[:, :30]).max() == 0
    assert np.abs(changed[122:]).max() == 0 and np.abs(changed[:, 122:]).max() == 0
    middle = np.asarray(picture)[70:90, 60:90] < 220
    assert set(changed[70:90, 60:90][middle]) <= {25, 26}
    assert np.abs(changed[41:43, 32:120]).max() < 5  # it fades out at the border


def test_a_face_over_the_border_is_put_back_too():
    picture, box = scene(), Box(-20, 100, 80, 80)
    photo = Photo(picture, box, cut(picture, box, 64))
    np.testing.assert_array_equal(np.asarray(put_back(photo, photo.face)), np.asarray(picture))
    assert put_back(photo, photo.face + 0.1).size == picture.size


@pytest.fixture
def found(monkeypatch):
    """Two faces, in place of the detector's."""
    boxes = [Box(40, 30, 60, 60), Box(110, 60, 40, 40)]
    monkeypatch.setattr(photos, "detect", lambda picture: (1.0, boxes))
    return boxes


@pytest.mark.parametrize("change", ["grey", "alpha", "palette", "turned"])
def test_any_kind_of_file_gives_the_same_face(change, found, tmp_path):
    picture = scene().convert("L").convert("RGB")
    picture.save(tmp_path / "plain.png")
    other, options = picture, {}
    if change == "grey":
        other = picture.convert("L")
    elif change == "alpha":
        other = picture.copy()
        other.putalpha(255)
    elif change == "palette":
        other = picture.convert("L").convert("P")
    else:
        other = picture.transpose(Image.Transpose.ROTATE_90)  # EXIF's 6: to be turned a quarter clockwise
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    other.save(tmp_path / "other.png", **options)
    np.testing.assert_array_equal(read_photo(tmp_path / "other.png").face, read_photo(tmp_path / "plain.png").face)


def test_which_face(found, tmp_path):
    scene().save(tmp_path / "two.png")
    for i in (0, 1):
        assert read_photo(tmp_path / "two.png", face=i).box == lfwcrop(found[i])
    with pytest.raises(InputError, match="--face=2: 2 found"):
        read_photo(tmp_path / "two.png", face=2)


def test_a_picture_of_the_models_size_is_a_face_already(tmp_path):
    scene(64, 64).save(tmp_path / "face.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "face.png").face,
                                  np.asarray(scene(64, 64), np.float32) / 255)


def test_no_face_found_and_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(photos, "detect", lambda picture: (0.0, []))
    scene().save(tmp_path / "wall.png")
    with pytest.raises(InputError, match="no face found in .*--crop=left,top,width,height"):
        read_photo(tmp_path / "wall.png")
    assert read_photo(tmp_path / "wall.png", crop=Box(10, 10, 50, 50)).box == (10, 10, 50, 50)
    with pytest.raises(InputError, match="lies outside"):
        read_photo(tmp_path / "wall.png", crop=Box(500, 10, 50, 50))


@pytest.fixture(scope="module", params=PHOTOGRAPHS)
def photograph(request):
    """A photograph, and where its face is."""
    package, _, path = request.param.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"needs the photographs of {package}")
    return Image.open(pathlib.Path(spec.origin).parent / path).convert("RGB"), PHOTOGRAPHS[request.param]


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_face_is_found_however_the_photograph_lies_and_nothing_else_is(turn, photograph):
    picture, where = photograph
    lying = picture.rotate(turn, expand=True)
    if where is None:
        with pytest.raises(InputError, match="no face found in it, upright or turned"):
            find_face(lying, "it")
        return
    upright, box, note = find_face(lying, "it")
    np.testing.assert_array_equal(np.asarray(upright), np.asarray(picture))
    left, top, width, height = where
    assert abs(box.left + box.width / 2 - left - width / 2) < 0.2 * width
    assert abs(box.top + box.height / 2 - top - height / 2) < 0.2 * height and 0.7 < box.width / width < 1.4
    assert note.startswith("a face found, ")
    assert ("turned by" in note) == (turn > 0) and (turn != 90 or "turned by -90 degrees" in note)


def test_of_two_ways_to_turn_a_photograph_the_likelier_is_taken(monkeypatch):
    """As of a group that lies upside down: one of six faces is found as it lies, hardly."""
    found = {0: (0.06, [Box(0, 0, 40, 40)]), 90: (0.0, []), 270: (0.3, [Box(2, 2, 9, 9)]),
             180: (2.7, [Box(1, 1, 9, 9)])}
    seen = []
    monkeypatch.setattr(photos, "turned", lambda picture, turn: turn)
    monkeypatch.setattr(photos, "detect", lambda turn: seen.append(turn) or found[turn])
    assert photos.upright(scene()) == (180, found[180][1])
    found[0] = (0.6, found[0][1])
    assert photos.upright(scene()) == (0, found[0][1]) and seen == [0, 90, 270, 180, 0]


def test_a_large_photograph_is_looked_at_in_a_small_copy_and_a_small_one_enlarged(monkeypatch):
    dlib = pytest.importorskip("dlib", reason="needs dlib: pip install '.[photos]'")
    seen = []

    class Detector:
        def run(self, picture):
            seen.append(picture.shape)
            boxes = [dlib.rectangle(*box) for box in ((100, 200, 299, 399), (10, 20, 409, 419), (0, 0, 499, 499))]
            return boxes, [1.2, 0.8, 0.2], [0, 0, 0]  # the last one is unlikely beside the first

    monkeypatch.setattr(dlib, "get_frontal_face_detector", Detector)
    assert photos.detect(Image.new("RGB", (4096, 2048))) == (1.2, [(40, 80, 1600, 1600), (400, 800, 800, 800)])
    assert photos.detect(Image.new("L", (200, 100)))[1][1] == (50, 100, 100, 100)
    assert seen == [(512, 1024, 3), (200, 400, 3)]


def test_of_several_faces_the_note_says_which_was_taken_and_where_the_others_are(monkeypatch):
    boxes = [Box(10, 20, 60, 60), Box(110, 60, 58, 58), Box(0, 0, 40, 40)]
    monkeypatch.setattr(photos, "detect", lambda picture: (1.0, boxes))
    _, box, note = find_face(scene(), "it")
    assert box == lfwcrop(boxes[0]) and note == (
        "3 faces found; the largest is taken, 60x60 pixels at 10,20; --face=1: 58x58 pixels at 110,60; --face=2: 40x40 "
        "pixels at 0,0")
    assert "the one of --face=2 is taken, 40x40 pixels at 0,0; --face=0: 60x60" in find_face(scene(), "it", 2)[2]


def test_without_the_detector_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(InputError, match=r"pip install '.\[photos\]'.*--crop=left,top,width,height"):
        photos.detect(scene())


def test_the_detector_finds_a_face_of_lfw_and_the_crop_is_lfwcrops(lfw_dir):
    """Faces of LFWcrop on a grey photograph: where they are found, the crops overlap by two thirds."""
    pytest.importorskip("dlib", reason="needs dlib: pip install '.[photos]'")
    overlaps = []
    for path in sorted((lfw_dir / "lfwcrop_color" / "faces").glob("*.ppm"))[:400:20]:
        picture = Image.new("RGB", (600, 600), (128, 128, 128))
        picture.paste(Image.open(path).resize((256, 256), Image.Resampling.BICUBIC), (150, 200))
        for box in photos.detect(picture)[1][:1]:
            left, top, width, height = lfwcrop(box)
            across = max(0, min(left + width, 406) - max(left, 150)) * max(0, min(top + height, 456) - max(top, 200))
            overlaps.append(across / (width * height + 256 * 256 - across))
    assert len(overlaps) >= 12 and np.median(overlaps) > 0.7
