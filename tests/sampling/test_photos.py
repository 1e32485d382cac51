"""Photographs: LFWcrop's geometry, what files may hold, and a face put back."""

import numpy as np
import pytest
from PIL import Image

from cmma_jax.errors import InputError
from cmma_jax.sampling import photos
from cmma_jax.sampling.photos import Box, Photo, cut, lfwcrop, put_back, read_photo


def test_lfwcrops_geometry():
    """A detector's box whose enlargement is exactly LFW's 250x250: columns 83 to 166 and rows 92 to 175 are kept."""
    side = 250 / 2.2
    box = lfwcrop(Box(125 - side / 2, 125 - side / 2, side, side))
    assert box == pytest.approx((83, 92, 84, 84))
    bigger = lfwcrop(Box(1000 + 2 * (125 - side / 2), 2 * (125 - side / 2), 2 * side, 2 * side))
    assert bigger == pytest.approx((1000 + 2 * 83, 2 * 92, 2 * 84, 2 * 84))


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
    monkeypatch.setattr(photos, "detect", lambda picture: boxes)
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
    monkeypatch.setattr(photos, "detect", lambda picture: [])
    scene().save(tmp_path / "wall.png")
    with pytest.raises(InputError, match="no face found in .*--crop=left,top,width,height"):
        read_photo(tmp_path / "wall.png")
    assert read_photo(tmp_path / "wall.png", crop=Box(10, 10, 50, 50)).box == (10, 10, 50, 50)
    with pytest.raises(InputError, match="lies outside"):
        read_photo(tmp_path / "wall.png", crop=Box(500, 10, 50, 50))


def test_the_largest_face_comes_first(monkeypatch):
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install '.[photos]'")
    boxes = [(0, 0, 40, 40), (50, 50, 90, 90), (10, 10, 60, 60)]
    monkeypatch.setattr(cv2.CascadeClassifier, "detectMultiScale", lambda *_, **__: boxes)
    assert [box.width for box in photos.detect(scene())] == [90, 60, 40]


def test_the_detector_finds_a_face_of_lfw_and_the_crop_is_lfwcrops(lfw_dir):
    """Faces of LFWcrop on a grey photograph: where they are found, the crops overlap by two thirds."""
    pytest.importorskip("cv2", reason="needs OpenCV: pip install '.[photos]'")
    overlaps = []
    for path in sorted((lfw_dir / "lfwcrop_color" / "faces").glob("*.ppm"))[:400:20]:
        picture = Image.new("RGB", (600, 600), (128, 128, 128))
        picture.paste(Image.open(path).resize((256, 256), Image.Resampling.BICUBIC), (150, 200))
        for box in photos.detect(picture)[:1]:
            left, top, width, height = lfwcrop(box)
            across = max(0, min(left + width, 406) - max(left, 150)) * max(0, min(top + height, 456) - max(top, 200))
            overlaps.append(across / (width * height + 256 * 256 - across))
    assert len(overlaps) >= 5 and np.median(overlaps) > 0.66
