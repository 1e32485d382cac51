"""A folder of anybody's images: what it may hold, and every bad input."""

import io
import logging
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cmma_jax.data.folder import load_folder, read_image
from cmma_jax.errors import InputError

FILES = [f"face{i:02d}.png" for i in range(20)]


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """20 images with two binary attributes, the second with a hole."""
    rng = np.random.default_rng(0)
    for name in FILES:
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / name)
    write(tmp_path, ["file,Smiling,Glasses", *(f"{name},{i % 2},{i % 3 // 2 if i else ''}"
                                               for i, name in enumerate(FILES))])
    return tmp_path


def write(folder: pathlib.Path, lines: list[str]) -> None:
    (folder / "attributes.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def lines(folder: pathlib.Path) -> list[str]:
    return (folder / "attributes.csv").read_text(encoding="utf-8").splitlines()


def edit_line(folder: pathlib.Path, number: int, text: str) -> None:
    write(folder, [text if i == number else line for i, line in enumerate(lines(folder), 1)])


def refuses(folder: pathlib.Path, *fragments: str, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_folder(folder, **{"image_size": 16} | options)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
    return message


def rows(data) -> dict[bytes, tuple]:
    """Returns what belongs to each image, and the part it is in."""
    return {part.x[i].tobytes(): (name, part.y[i].tolist(), part.mask[i].tolist())
            for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test))
            for i in range(part.size)}


def test_images_attributes_and_holes_belong_together(folder):
    data = load_folder(folder, 16)
    assert [part.size for part in (data.train, data.validation, data.test)] == [16, 2, 2]
    assert (data.spec.dataset, data.spec.kind, data.spec.attributes) == ("folder", "binary", ("Smiling", "Glasses"))
    found = rows(data)
    for i, name in enumerate(FILES):
        _, y, mask = found[np.asarray(Image.open(folder / name)).tobytes()]
        assert y == [i % 2, i % 3 // 2] and mask == [True, i > 0]


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_rows(folder):
    first = load_folder(folder, 16, seed=1)
    header, *rest = lines(folder)
    write(folder, [header, *rest[::-1]])
    np.testing.assert_array_equal(load_folder(folder, 16, seed=1).train.x, first.train.x)
    assert rows(load_folder(folder, 16, seed=1)) == rows(first) != rows(load_folder(folder, 16, seed=2))


def test_a_column_split_is_obeyed(folder):
    header, *rest = lines(folder)
    parts = ["train"] * 10 + ["validation"] * 6 + ["test"] * 4
    write(folder, [header + ",split", *(f"{line},{part}" for line, part in zip(rest, parts, strict=True))])
    data = load_folder(folder, 16)
    assert data.spec.attributes == ("Smiling", "Glasses")
    found = rows(data)
    assert [found[np.asarray(Image.open(folder / name)).tobytes()][0] for name in FILES] == parts


@pytest.mark.parametrize(("no", "yes"), [("0", "1"), ("-1", "1"), ("false", "TRUE"), ("No", "yes"), ("0.0", "1.0")])
def test_words_and_signs_are_binary(folder, no, yes):
    write(folder, ["file,Smiling", *(f"{name}, {yes if i % 2 else no} " for i, name in enumerate(FILES))])
    data = load_folder(folder, 16)
    assert data.spec.kind == "binary" and 0 < data.train.y.mean() < 1
    assert rows(data)[np.asarray(Image.open(folder / FILES[3])).tobytes()][1] == [1]
    assert rows(data)[np.asarray(Image.open(folder / FILES[4])).tobytes()][1] == [0]


def test_one_column_of_numbers_makes_all_real_and_standardised_where_known(folder):
    write(folder, ["file,Age,Smiling", *(f"{name},{20 + i if i != 7 else ''},{'yes' if i % 2 else 'no'}"
                                         for i, name in enumerate(FILES))])
    data = load_folder(folder, 16)
    assert data.spec.kind == "real"
    for column in range(2):
        known = data.train.y[data.train.mask[:, column], column]
        np.testing.assert_allclose([known.mean(), known.std()], [0, 1], atol=1e-6)
    assert 20 <= data.spec.attribute_mean[0] <= 40


def test_zero_one_and_minus_one_together_are_real(folder):
    write(folder, ["file,Tilt", *(f"{name},{i % 3 - 1}" for i, name in enumerate(FILES))])
    assert load_folder(folder, 16).spec.kind == "real"


def test_a_byte_order_mark_quotes_blank_lines_and_subfolders_are_fine(folder):
    (folder / "more").mkdir()
    (folder / FILES[0]).rename(folder / "more" / "a, b.png")
    edit_line(folder, 2, '"more/a, b.png",1,\r\n')
    text = (folder / "attributes.csv").read_bytes()
    (folder / "attributes.csv").write_bytes(b"\xef\xbb\xbf" + text)
    assert len(rows(load_folder(folder, 16))) == 20


def test_images_that_are_not_in_the_table_are_counted(folder, caplog):
    write(folder, [line for line in lines(folder) if "face03" not in line and "face05" not in line])
    (folder / "notes.txt").write_text("no image")
    with caplog.at_level(logging.WARNING):
        load_folder(folder, 16)
    assert "2 images are not in attributes.csv" in caplog.text


def picture(image: Image.Image, size: int = 16, kind: str = "png", **options) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return read_image(file, "picture", size)


def test_the_central_square_is_kept():
    for shape, middle in [((16, 48), np.s_[:, 16:32]), ((48, 16), np.s_[16:32])]:
        pixels = np.full((*shape, 3), (255, 0, 0), np.uint8)
        pixels[middle] = (0, 255, 0)
        np.testing.assert_array_equal(picture(Image.fromarray(pixels)), np.full((16, 16, 3), (0, 255, 0)))


def test_resizing_is_antialiased():
    fine = np.indices((128, 128)).sum(0) % 2 * 255
    face = picture(Image.fromarray(fine.astype(np.uint8)))
    assert face.shape == (16, 16, 3) and np.abs(face.astype(int) - 127).max() < 20


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_images_are_turned_upright(kind):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8] = (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    face = picture(Image.fromarray(upright).rotate(90), kind=kind, exif=exif)
    assert face[:7].min() > 200 and face[9:].max() < 55


@pytest.mark.parametrize(("image", "colour"), [
    (Image.new("RGBA", (20, 20), (0, 0, 255, 0)), (255, 255, 255)),
    (Image.new("RGBA", (20, 20), (0, 0, 0, 51)), (204, 204, 204)),
    (Image.new("LA", (20, 20), (0, 255)), (0, 0, 0)),
    (Image.new("L", (20, 20), 77), (77, 77, 77)),
    (Image.new("1", (20, 20), 1), (255, 255, 255)),
    (Image.new("RGB", (20, 20), (9, 8, 7)).convert("P", palette=Image.Palette.ADAPTIVE), (9, 8, 7)),
    (Image.fromarray(np.full((20, 20), 0x8012, np.uint16)), (128, 128, 128)),
], ids=lambda v: v.mode if isinstance(v, Image.Image) else None)
def test_every_mode_becomes_rgb_on_white(image, colour):
    np.testing.assert_array_equal(picture(image), np.full((16, 16, 3), colour))


def test_32_bit_pixels_are_refused():
    with pytest.raises(InputError, match="picture cannot be decoded .*8 bits"):
        picture(Image.new("F", (20, 20)), kind="tiff")


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("size", [(7_000, 6_000), (10_000, 10_000), (60_000, 60_000)])
def test_an_absurdly_large_image_is_refused_by_its_header(folder, size):
    data = b"IDAT" + b"never decoded"
    (folder / FILES[2]).write_bytes(png_header(*size) + struct.pack(">I", 13) + data + b"\0\0\0\0")
    refuses(folder, "line 4", "'face02.png'", "too large", "at most 40000000", "scale it down")


def test_no_table(tmp_path):
    refuses(tmp_path, "attributes.csv not found", "'file,Smiling,Eyeglasses'", "'anna.jpg,1,0'", "write it")
    refuses(tmp_path / "nowhere", "nowhere", "not found")


def test_table_without_header_or_attributes(folder):
    edit_line(folder, 1, "name;Smiling;Glasses")
    refuses(folder, "'name;Smiling;Glasses'", "expected 'file'", "'anna.jpg,1,0'", "mend its header")
    write(folder, ["file,split", "face00.png,train"])
    refuses(folder, "has no attributes", "add one")
    write(folder, [""])
    refuses(folder, "expected 'file'")


def test_column_names(folder):
    edit_line(folder, 1, "file,Smiling,Smiling")
    refuses(folder, "'Smiling' 2 times", "rename or drop")
    edit_line(folder, 1, "file,Smiling,")
    refuses(folder, "a column without name", "rename or drop")


@pytest.mark.parametrize(("line", "count"), [("face03.png,1", 2), ("face03.png,1,0,1", 4)])
def test_missing_and_extra_columns(folder, line, count):
    edit_line(folder, 5, line)
    refuses(folder, f"line 5 has {count} columns", "expected 3", "mend the line")


@pytest.mark.parametrize("name", ["absent.png", "", "a\0b.png", "x" * 5000, "."])
def test_file_that_is_not_there(folder, name):
    edit_line(folder, 5, f"{name},1,0")
    refuses(folder, "line 5", "not found", "mend the name")


def test_file_outside_of_the_folder(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "face.png"
    (folder / FILES[0]).rename(outside)
    (folder / "link.png").symlink_to(outside)
    for name in (f"../{outside.parent.name}/face.png", str(outside), "link.png"):
        edit_line(folder, 2, f"{name},1,0")
        refuses(folder, "line 2", repr(name), "is outside of", "copy it there")


def test_corrupt_image(folder):
    (folder / FILES[4]).write_bytes((folder / FILES[4]).read_bytes()[:200])
    refuses(folder, "line 6", "'face04.png' cannot be decoded", "replace it or leave it out")
    (folder / FILES[4]).write_text("no image")
    refuses(folder, "line 6", "'face04.png' cannot be decoded")


def test_repeated_file(folder):
    edit_line(folder, 8, "./face01.png,1,0")
    refuses(folder, "line 8", "'./face01.png' is already on line 3", "drop one of them")


@pytest.mark.parametrize("value", ["old", "nan", "inf", "1e99", "1;0"])
def test_cells_that_are_no_numbers(folder, value):
    edit_line(folder, 9, f"face07.png,{value},0")
    refuses(folder, "line 9, column 'Smiling'", repr(value), "expected a number or true/false",
            "leave the cell empty")


@pytest.mark.parametrize(("value", "seen"), [("1", "is 1 in all"), ("", "is unknown in all"), ("2.5", "is 2.5 in all")])
def test_constant_attribute(folder, value, seen):
    write(folder, [lines(folder)[0], *(f"{name},{i % 2},{value}" for i, name in enumerate(FILES))])
    refuses(folder, f"'Glasses' {seen}", "16 training rows", "drop the column")


def test_too_few_faces(folder):
    write(folder, lines(folder)[:10])
    refuses(folder, "too few faces for three splits: 9", "expected 10 or more", "write a column 'split'")
    write(folder, lines(folder)[:1])
    refuses(folder, "too few faces for three splits: 0")


def test_bad_splits(folder):
    header, *rest = lines(folder)
    write(folder, [header + ",split", *(f"{line},{'dev' if 'face05' in line else 'train'}" for line in rest)])
    refuses(folder, "line 7", "'dev' is none of train, validation, test", "write one of them")
    write(folder, [header + ",split", *(line + ",train" for line in rest)])
    refuses(folder, "no row with split 'validation'", "drop the column 'split'")


def test_table_that_is_not_utf8_or_not_csv(folder):
    good = (folder / "attributes.csv").read_bytes()
    (folder / "attributes.csv").write_bytes(good.replace(b"Smiling", "Lächeln".encode("latin-1")))
    refuses(folder, "attributes.csv is not UTF-8", "save it as 'CSV UTF-8'")
    (folder / "attributes.csv").write_bytes(good.replace(b"face07.png", b'"face07.png'))
    refuses(folder, "is not CSV", "quotation marks")


@pytest.mark.parametrize("size", [0, -16, 40])
def test_image_sizes(folder, size):
    refuses(folder, f"got {size}", "multiple of 16", image_size=size)


@pytest.mark.parametrize("name", ["attributes.csv", "face.png", "face.jpg", "face.gif", "face.tiff", "face.webp"])
def test_whatever_byte_is_wrong_there_is_an_answer(folder, name):
    """Files with random bytes changed, cut out or put in are read or refused, nothing else."""
    if name != "attributes.csv":
        Image.open(folder / FILES[3]).save(folder / name)
        edit_line(folder, 5, f"{name},1,0")
    good, rng = (folder / name).read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        data, at = bytearray(good), rng.integers(0, len(good), 3)
        data[at[0]] ^= int(rng.integers(1, 256))
        data[at[1]:at[1]] = rng.bytes(int(rng.integers(0, 3)))
        del data[at[2]:at[2] + int(rng.integers(0, 3))]
        (folder / name).write_bytes(data)
        try:
            load_folder(folder, 16)
        except InputError as error:
            assert "\n" not in str(error)
