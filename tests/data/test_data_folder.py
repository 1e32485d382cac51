"""A folder of anybody's images: what it may hold, and every bad input."""

import io
import logging
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cmma_jax.data import images
from cmma_jax.data.folder import load_folder, read_image
from cmma_jax.data.table import Reading, read_columns, read_table
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


def test_the_split_does_not_depend_on_the_order_of_the_rows(folder):
    first = load_folder(folder, 16)
    header, *rest = lines(folder)
    write(folder, [header, *rest[::-1]])
    again = load_folder(folder, 16)
    np.testing.assert_array_equal(again.train.x, first.train.x)
    assert rows(again) == rows(first)


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


def test_each_column_has_its_own_kind_and_numbers_are_standardised_where_known(folder):
    write(folder, ["file,Age,Smiling", *(f"{name},{20 + i if i != 7 else ''},{'yes' if i % 2 else 'no'}"
                                         for i, name in enumerate(FILES))])
    data = load_folder(folder, 16)
    assert data.spec.kinds == ("real", "binary") and data.spec.kind == "mixed"
    known = data.train.y[data.train.mask[:, 0], 0]
    np.testing.assert_allclose([known.mean(), known.std()], [0, 1], atol=1e-6)
    assert set(data.train.y[:, 1].tolist()) == {0, 1} and 20 <= data.spec.attribute_mean[0] <= 40


def columns(folder, *cells, names="abcdefgh", **reading):
    """Returns {name: (kind, values, known)} of a table whose columns a, b, ... hold these cells over and over."""
    names = names[:len(cells)]
    write(folder, [",".join(["file", *names]), *(",".join([name, *(str(each[i % len(each)]) for each in cells)])
                                                 for i, name in enumerate(FILES))])
    table = read_table(folder)
    found = read_columns(table, Reading(**reading))
    table.faults.tell()
    return {c.name: (c.kind, c.values[:6].tolist(), c.known[:6].tolist(), c.note) for c in found}


def test_one_and_two_are_absent_and_present_and_said_to_be(folder, caplog):
    (found,) = columns(folder, [1, 2, ""]).values()
    assert found == ("binary", [0, 1, 0, 0, 1, 0], [True, True, False] * 2, "2 is present, 1 absent")
    columns(folder, [1, 2], [-1, 1], [2, 1])
    with caplog.at_level(logging.WARNING):
        load_folder(folder, 16)
    assert "2 is present, 1 absent in a, c" in caplog.text and "1 is present, -1 absent in b" in caplog.text


@pytest.mark.parametrize("cells, unknown, values, known", [
    ([-1, 0, 1], "0", [0, 0, 1], [True, False, True]), ([-1, 0, 1], "-1", [0, 0, 1], [False, True, True]),
    ([0, 1, 9], "9", [0, 1, 0], [True, True, False]), ([1, 2, -1], "-1", [0, 1, 0], [True, True, False]),
    ([0, 1, 99], "99", [0, 1, 0], [True, True, False]), ([0, 1, 255], "255", [0, 1, 0], [True, True, False]),
    ([1, 2, 0], "0", [0, 1, 0], [True, True, False]), ([0, 1, 2], "2", [0, 1, 0], [True, True, False]),
    ([0, 1, 0.5], "0.5", [0, 1, 0], [True, True, False]), ([1, 2, 3], "3", [0, 1, 0], [True, True, False]),
    ([-1, 1, 9], "9", [0, 1, 0], [True, True, False])])
def test_a_mark_of_the_unknown_among_labels_is_asked_about(cells, unknown, values, known, folder):
    with pytest.raises(InputError) as caught:
        columns(folder, cells, [0, 1])
    assert f"--unknown={unknown} (" in str(caught.value)
    assert "--unknown=none" in str(caught.value) and "column 'a'" in str(caught.value)
    found = columns(folder, cells, [0, 1], unknown=unknown)
    assert found["a"][:3] == ("binary", values * 2, known * 2)
    assert found["b"][:3] == ("binary", [0, 1] * 3, [True] * 6)  # where 0 is not one of three
    assert columns(folder, cells, [0, 1], unknown="none")["a"][0] == "real"


def test_both_readings_of_minus_one_0_and_1_are_named(folder):
    with pytest.raises(InputError, match=r"--unknown=-1 \(0 is absent, 1 present\), or --unknown=0 \(-1 is absent, 1 "
                                         r"present\), or --unknown=none"):
        columns(folder, [-1, 0, 1])


def test_several_marks_are_said_together_and_of_one_column_alone(folder):
    with pytest.raises(InputError, match=r"is -9 or -1 'unknown' or a value\? say --unknown=-9,-1 \(0 is absent"):
        columns(folder, [0, 1, -1, -9])
    with pytest.raises(InputError, match="column 'b' has the values 0, 1, 99"):  # nothing was said of 99
        columns(folder, [0, 1, -1], [0, 1, 99], unknown="-1")
    found = columns(folder, [-1, 0, 1], [0, 1, -1], [0, 1, 2], [0, 30, 7], unknown="0,b=-1,c=none,d=none")
    assert [(each[0], each[2][:3]) for each in found.values()] == [
        ("binary", [True, False, True]), ("binary", [True, True, False]), ("real", [True] * 3), ("real", [True] * 3)]
    assert found["a"][3] == "0 is unknown; 1 is present, -1 absent" and found["b"][3] == "-1 is unknown"
    with pytest.raises(InputError, match="--unknown=e: no such column"):
        columns(folder, [0, 1], unknown="e=1")


def test_minus_one_among_ages_is_asked_about_and_among_temperatures_is_not(folder):
    with pytest.raises(InputError, match="values -1, 20, 31, 40: is -1 'unknown' or a value"):
        columns(folder, [20, 31, -1, 40])
    assert columns(folder, [20, 31, -1, 40], unknown="-1")["a"][2] == [True, True, False, True, True, True]
    assert columns(folder, [-3.5, 4, -1, 0])["a"][0] == "real"
    assert columns(folder, [-3.5, 4, -1, 0], unknown="-1")["a"][2] == [True] * 6  # -1 lies between the others
    for code in (99, 999):
        with pytest.raises(InputError, match=f"is {code} 'unknown' or a value"):
            columns(folder, [20, 31, 44, code])
    assert columns(folder, [20, 31, 98, 99])["a"][0] == "real"


def test_two_numbers_are_binary_kinds_in_numbers_are_pointed_out_and_row_numbers_refused(folder):
    assert columns(folder, [0, 100])["a"] == ("binary", [0, 1] * 3, [True] * 6, "100 is present, 0 absent")
    assert "write words" in columns(folder, [0, 1, 2, 3])["a"][3]
    with pytest.raises(InputError, match="column 'a' counts the rows.*--ignore=a"):
        columns(folder, range(20), [0, 1])


def test_a_few_words_are_categories_and_many_are_no_attribute(folder):
    found = columns(folder, ["Asian", "Black", "", "White"], [1, 0], ["male", "female"])
    assert list(found) == ["a: Asian", "a: Black", "a: White", "b", "c: female", "c: male"]
    assert found["a: Black"][:3] == ("binary", [0, 1, 0, 0, 0, 1], [True, True, False, True, True, True])
    with pytest.raises(InputError, match="column 'a' holds 20 different words.*--ignore=a"):
        columns(folder, FILES, [0, 1])
    assert list(columns(folder, FILES, [0, 1], ignore=("a",))) == ["b"]
    with pytest.raises(InputError, match="--ignore=persn: no such column; did you mean 'person'"):
        columns(folder, [1, 0], [1, 0], names=["person", "x"], ignore=("persn",))


def test_capitals_make_no_other_word_and_a_bar_no_number(folder):
    assert columns(folder, ["male", "Male", "Male", "FEMALE"])["a: Male"][1] == [1, 1, 1, 0, 1, 1]
    assert list(columns(folder, ["20_29", "30_39"])) == ["a: 20_29", "a: 30_39"]
    assert columns(folder, ["hat", "none", "cap"])["a: cap"][3] == "one of 2 words ('none' is unknown)"
    assert list(columns(folder, ["yes", "no", "no", "maybe"])) == ["a: maybe", "a: no", "a: yes"]


@pytest.mark.parametrize("cells, kinds", [(["T", "F"], ["a"]), (["y", "N", ""], ["a"]), (["f", "m"], ["a: f", "a: m"])])
def test_letters_are_yes_and_no_where_there_are_no_others(cells, kinds, folder):
    assert list(found := columns(folder, cells)) == kinds and found[kinds[0]][1][:2] == [1, 0]


@pytest.mark.parametrize("mark", ["nan", "NaN", "?", "NA", "n/a", "None", "null", "unknown", "-", "#N/A", "-nan",
                                  "N.A.", ".", "\\N", "missing", "\u2014"])
def test_the_usual_marks_of_a_missing_value_are_missing_values(mark, folder):
    assert columns(folder, [1, mark, 0])["a"][:3] == ("binary", [1, 0, 0] * 2, [True, False, True] * 2)


@pytest.mark.parametrize("table", [
    "file;Smiling;Hat", "file\tSmiling\tHat", "file|Smiling|Hat", "sep=;\nfile;Smiling;Hat",
    "file_name,Smiling,Hat", "image_id,Smiling,Hat", "File,Smiling,Hat",
    ",file,Smiling,Hat", "Unnamed: 0,file,Smiling,Hat", "file,Smiling,Hat,", "trailing rows", "mac",
    "backslash", "dotslash"])
def test_tables_as_programs_write_them(table, folder):
    separator = next((each for each in ";\t|" if each in table), ",")
    header = table if "Smiling" in table else "file,Smiling,Hat"
    rows = []
    for i, name in enumerate(FILES):
        cells = [name, str(i % 2), str(i % 3 % 2)]
        if table == "backslash":
            (folder / "train").mkdir(exist_ok=True)
            (folder / name).rename(folder / "train" / name)
            cells[0] = f"train\\{name}"
        if table == "dotslash":
            cells[0] = f"./{name}"
        rows.append(separator.join([str(i), *cells] if table.startswith((",", "Unn")) else [*cells, ""] if (
            table.endswith(",") or table == "trailing rows") else cells))
    text = ("\r" if table == "mac" else "\n").join([header, *rows])
    (folder / "attributes.csv").write_bytes(text.encode())
    data = load_folder(folder, 16)
    assert data.spec.attributes == ("Smiling", "Hat") and data.spec.kind == "binary"
    assert data.train.y[:, 0].mean() == pytest.approx(0.5, abs=0.2)


def test_semicolons_leave_commas_to_numbers_and_names(folder):
    write(folder, ['file;"Hair, dark, long";Age', *(f"{name};{i % 2};{20 + i % 7},5" for i, name in enumerate(FILES))])
    data = load_folder(folder, 16)
    assert data.spec.attributes == ("Hair, dark, long", "Age") and data.spec.kinds == ("binary", "real")
    assert 20.5 <= data.spec.attribute_mean[1] <= 26.5


@pytest.mark.parametrize("there, written", [
    ("Zo\u00eb 1.png", "Zoe\u0308 1.png"), ("Zoe\u0308 1.png", "Zo\u00eb 1.png"), ("a b.png", "a%20b.png"),
    ("100%25.png", "100%25.png"), ("more/Zo\u00eb.png", "more\\Zoe\u0308.png")])
def test_a_name_is_found_as_other_systems_write_it(there, written, folder):
    (folder / "more").mkdir()
    (folder / FILES[0]).rename(folder / there)
    edit_line(folder, 2, f"{written},1,")
    assert len(rows(load_folder(folder, 16))) == 20


def test_celeba_as_it_is_published_and_as_kaggle_has_it(folder):
    """Images in a folder below, names without the file's column under a count, and the parts in a list of their own."""
    (folder / "attributes.csv").unlink()
    (folder / "img_align_celeba").mkdir()
    for name in FILES:
        (folder / name).rename(folder / "img_align_celeba" / name)
    rows = [(name, 2 * (i % 2) - 1, 2 * (i % 3 % 2) - 1, 0 if i < 12 else 1 if i < 16 else 2)
            for i, name in enumerate(FILES)]
    (folder / "list_attr_celeba.txt").write_text("20\nSmiling Wearing_Hat \n" + "".join(
        f"{name} {one:2d} {two:2d}\n" for name, one, two, _ in rows))
    (folder / "list_eval_partition.txt").write_text("".join(f"{name} {part}\n" for name, _, _, part in rows))
    first = load_folder(folder, 16)
    assert first.spec.attributes == ("Smiling", "Wearing_Hat")
    assert [part.size for part in (first.train, first.validation, first.test)] == [12, 4, 4]
    (folder / "list_attr_celeba.txt").unlink()
    (folder / "list_attr_celeba.csv").write_text("image_id,Smiling,Wearing_Hat\n" + "".join(
        f"{name},{one},{two}\n" for name, one, two, _ in rows))
    second = load_folder(folder, 16)
    np.testing.assert_array_equal(first.train.x, second.train.x)
    np.testing.assert_array_equal(first.test.y, second.test.y)
    (folder / "list_eval_partition.txt").write_text("face00.png 0\n")
    refuses(folder, "list_eval_partition.txt has no part", "of 19 images", "'face01.png'")


def test_json_lines_of_the_hub(folder):
    (folder / "attributes.csv").unlink()
    (folder / "metadata.jsonl").write_text("".join(
        f'{{"file_name": "{name}", "Smiling": {["true", "false", "null"][i % 3]}, "Age": {20 + i}}}\n'
        for i, name in enumerate(FILES)))
    data = load_folder(folder, 16)
    assert data.spec.kinds == ("binary", "real") and data.train.mask[:, 0].mean() == pytest.approx(2 / 3, abs=0.15)


def test_all_faults_are_told_at_once(folder):
    header, *rest = lines(folder)
    rest[2], rest[5], rest[9] = "face02.png,old,0", "absent.png,1,0", "face09.png,1,tall"
    write(folder, [header, *rest])
    refuses(folder, "has 3 faults", "line 4, column 'Smiling': 'old'", "line 7: file 'absent.png' not found",
            "line 11, column 'Glasses': 'tall'")
    rest[2], rest[9] = "gone.png,1,0", "face09.png,1,1"
    write(folder, [header, *rest])
    refuses(folder, "has 2 faults", "line 4: file 'gone.png' not found", "line 7: file 'absent.png' not found")
    write(folder, [header, *(f"no{name},1,0" for name in FILES), "nofile.png,1,0"])
    refuses(folder, "has 21 faults", "(20)", "and 1 more")


def test_all_images_that_cannot_be_read_and_all_constant_columns_are_told_at_once(folder):
    for i in (4, 7, 11):
        (folder / FILES[i]).write_bytes((folder / FILES[i]).read_bytes()[:200])
    refuses(folder, "has 3 faults", "'face04.png' cannot", "'face07.png' cannot", "'face11.png' cannot")
    write(folder, [lines(folder)[0] + ",Bald,Goatee", *(line + ",0,0" for line in lines(folder)[1:])])
    refuses(folder, "has 5 faults", "'Bald' is 0 in all", "'Goatee' is 0 in all", "'face04.png' cannot")
    edit_line(folder, 2, "Face00.png,tall,1,0,0")
    refuses(folder, "has 5 faults", "line 2: file 'Face00.png' not found", "did you mean 'face00.png'?", "'tall'",
            "'face11.png' cannot")


def test_what_a_mac_leaves_beside_images_is_no_image(folder, caplog):
    for name in FILES:
        (folder / f"._{name}").write_bytes(b"\0\5\x16\7")
    with caplog.at_level(logging.WARNING):
        load_folder(folder, 16)
    assert "left out" not in caplog.text


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


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_fewer_bits_in_16_are_scaled_by_their_own_range_and_said_to_be(bits, caplog):
    images._say_depth.cache_clear()
    values = np.linspace(0, 2**bits - 1, 256).astype(np.uint16).reshape(16, 16)
    with caplog.at_level(logging.WARNING):
        faces = [picture(Image.fromarray(values)) for _ in range(3)]
    np.testing.assert_allclose(faces[0][..., 0].reshape(-1), np.arange(256), atol=1)
    assert caplog.text.count(f"all below {2**bits} are taken for {bits}-bit ones") == 1


@pytest.mark.parametrize("brightest", FILES[::6])
def test_a_dark_picture_has_as_many_bits_as_the_folders_brightest(folder, brightest):
    for name in FILES:
        level = 3000 if name == brightest else 700
        Image.fromarray(np.full((16, 16), level, np.uint16)).save(folder / name)
    data = load_folder(folder, 16)
    found = sorted(int(x.max()) for part in (data.train, data.validation, data.test) for x in part.x)
    assert found == [700 >> 4] * (len(FILES) - 1) + [3000 >> 4]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_fewer_bits_in_16_of_a_colour_are_refused_and_16_are_read(bits):
    rows = np.linspace(0, 2**bits - 1, 16 * 16 * 3).astype(">u2").reshape(16, 48)
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    file = io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))))
    if bits == 16:
        np.testing.assert_array_equal(read_image(file, "it", 16).reshape(16, 48), rows >> 8)
    else:
        with pytest.raises(InputError, match=f"it cannot be decoded .*all below {2**bits}.*8 bits a channel"):
            read_image(file, "it", 16)


def test_heic_names_its_extra_or_is_read(monkeypatch):
    start = b"\0\0\0\x18ftypheic" + bytes(20)
    for there, words in (((), r"HEIC needs pip install '.\[heic\]'"), (("HEIF",), "replace it")):
        monkeypatch.setattr(images, "HEIF", there)
        with pytest.raises(InputError, match=words):
            read_image(io.BytesIO(start), "it", 16)
    pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install '.[heic]'")
    assert picture(Image.new("RGB", (64, 64), (9, 8, 7)), kind="heif").shape == (16, 16, 3)


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


def test_a_jpeg_of_more_pixels_than_are_taken_is_decoded_at_half_its_size(tmp_path):
    large = Image.new("L", (8000, 5200), 77)
    large.save(tmp_path / "large.jpg")
    large.save(tmp_path / "large.png")
    assert images.open_picture(tmp_path / "large.jpg", "it").size == (4000, 2600)
    with pytest.raises(InputError, match="too large"):
        images.open_picture(tmp_path / "large.png", "it")


def test_no_table(tmp_path):
    refuses(tmp_path, "attributes.csv not found", "'file,Smiling,Eyeglasses'", "'anna.jpg,1,0'", "write it")
    refuses(tmp_path / "nowhere", "nowhere", "not found")


def test_table_without_header_or_attributes(folder):
    edit_line(folder, 1, "fil;Smiling;Glasses")
    refuses(folder, "'fil'; did you mean 'file'?", "expected 'file'", "'anna.jpg,1,0'", "mend its header")
    edit_line(folder, 1, "Smiling,Glasses,flie")
    refuses(folder, "the column 'flie'; did you mean 'file'?")
    write(folder, ["file,split", "face00.png,train"])
    refuses(folder, "has no attributes", "add one")
    write(folder, [""])
    refuses(folder, "expected 'file'")


def test_column_names(folder):
    edit_line(folder, 1, "file,Smiling,Smiling")
    refuses(folder, "'Smiling' 2 times", "rename or drop")
    write(folder, ["file,Smiling,", *(f"{name},{i % 2},x" for i, name in enumerate(FILES))])
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
    for name in (f"../{outside.parent.name}/face.png", str(outside)):
        edit_line(folder, 2, f"{name},1,0")
        refuses(folder, "line 2", repr(name), "is outside of", "copy it there", reading=Reading(follow_links=True))
    edit_line(folder, 2, "link.png,1,0")
    said = refuses(folder, "line 2", "'link.png'", "a link leads there", "give --follow_links")
    assert "did you mean" not in said
    assert len(rows(load_folder(folder, 16, reading=Reading(follow_links=True)))) == 20


def test_corrupt_image(folder):
    (folder / FILES[4]).write_bytes((folder / FILES[4]).read_bytes()[:200])
    refuses(folder, "line 6", "'face04.png' cannot be decoded", "replace it or leave it out")
    (folder / FILES[4]).write_text("no image")
    refuses(folder, "line 6", "'face04.png' cannot be decoded")


def test_repeated_file(folder):
    edit_line(folder, 8, "./face01.png,1,0")
    refuses(folder, "line 8", "'./face01.png' is already on line 3", "drop one of them")


@pytest.mark.parametrize("value", ["old", "inf", "1e99", "1;0"])
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
    write(folder, [header + ",split", *(f"{line},{'tests' if 'face05' in line else 'train'}" for line in rest)])
    refuses(folder, "line 7", "'tests' is none of train, validation, test; did you mean 'test'?", "write one of them")
    words = ["training", "val", "dev", "valid", "testing", "0", "1", "2", "Train", "eval"]
    write(folder, [header + ",split", *(f"{line},{words[i % 10]}" for i, line in enumerate(rest))])
    assert [load_folder(folder, 16).train.size, load_folder(folder, 16).test.size] == [6, 6]
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
