"""Lossless formats: no code of uniform bytes is shorter than 8 bits/dim, and what is lost is found."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from benchmarks import formats
from benchmarks.formats import FORMATS, Format, decode_by_pillow, encode_by_pillow, measure, sheet

CONTAINER = {"PNG": 8 + 25 + 12 + 12,  # bytes: signature, IHDR, an IDAT's own, IEND
             "lossless WebP": 12 + 8 + 5,  # RIFF, VP8L's own, its header
             "JPEG XL": 2}


@pytest.fixture(params=FORMATS)
def name(request):
    package = FORMATS[request.param].package
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}: pip install -r benchmarks/requirements.txt")
    return request.param


def noise(n):
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)


def test_uniform_bytes_need_8_bits_or_a_little_more(name):
    found = measure(name, FORMATS[name], noise(3))  # a sheet of 4 cells, one of them empty
    assert all(8 <= bits < 9.2 for bits, _ in found.values()), found  # JPEG XL's colour transform costs 1
    assert found["bits_per_dim_payload"][0] < found["bits_per_dim"][0]


def test_constant_faces_need_next_to_nothing(name):
    found = measure(name, FORMATS[name], np.full((4, 64, 64, 3), 77, np.uint8))
    assert all(0 < bits < 0.1 for bits, _ in found.values()) and found["bits_per_dim"][1] == 0, found


def test_a_payload_is_the_file_without_the_bytes_that_its_specification_fixes(name):
    for face in (noise(1)[0], np.full((32, 32, 3), 77, np.uint8), np.tile(np.arange(32, dtype=np.uint8), (3, 32, 1)).T):
        file = FORMATS[name].encode(face)
        assert 0 <= len(file) - FORMATS[name].payload(file) - CONTAINER[name] <= (name == "lossless WebP")  # padding


def test_the_shortest_of_several_settings_counts():
    ramp = np.linspace(0, 200, 32)[:, None, None] + np.linspace(0, 40, 32)[:, None]
    x = (ramp + noise(1)[0] % 8).astype(np.uint8)
    settings = [("PNG", "PNG", {"compress_level": 9, "compress_type": each}) for each in range(4)]
    settings += [("lossless WebP", "WEBP", {"lossless": True, "method": each}) for each in range(1, 7)]
    for name, kind, setting in settings:
        assert len(FORMATS[name].encode(x)) <= len(encode_by_pillow(x, kind, **setting)), (name, setting)


def test_a_mean_has_its_standard_error_and_one_face_none():
    x = np.concatenate([noise(2), np.zeros((2, 32, 32, 3), np.uint8)])
    bits = [8 * len(FORMATS["PNG"].encode(face)) / 3072 for face in x]
    found = measure("PNG", FORMATS["PNG"], x)
    assert found["bits_per_dim"] == (pytest.approx(np.mean(bits)), pytest.approx(np.std(bits, ddof=1) / 2))
    assert [error for _, error in measure("PNG", FORMATS["PNG"], x[:1]).values()] == [None] * 3


def test_a_sheet_holds_every_face_once_in_its_place():
    x = noise(7)
    picture = sheet(x)
    assert picture.shape == (3 * 32, 3 * 32, 3) and not picture[64:, 32:].any()
    for i, face in enumerate(x):
        row, column = divmod(i, 3)
        np.testing.assert_array_equal(picture[32 * row:32 * row + 32, 32 * column:32 * column + 32], face)


def test_what_is_lost_is_found():
    lossy = Format(lambda x: encode_by_pillow(x, "JPEG", quality=100), decode_by_pillow, len)
    with pytest.raises(ValueError, match="JPEG is not lossless"):
        measure("JPEG", lossy, noise(1))


def test_the_command_prints_a_row_a_format_and_names_the_package_that_one_lacks(faces, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    out = tmp_path / "formats.json"
    assert formats.main(["--dataset=folder", f"--data_dir={faces}", "--limit=2", f"--out={out}"]) == 0
    said, written = capsys.readouterr().out, json.loads(out.read_text())
    assert said.startswith("2 test faces of folder, 64x64") and "| JPEG XL: needs imagecodecs" in said
    assert list(written) == ["PNG", "lossless WebP"]
    assert set(written["PNG"]) == {"bits_per_dim", "bits_per_dim_payload", "bits_per_dim_sheet"}
    assert f"{written['PNG']['bits_per_dim_sheet'][0]:.3f}" in said and written["PNG"]["bits_per_dim_sheet"][1] is None
