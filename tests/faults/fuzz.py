"""Readers of foreign bytes, fed with what no publisher would write.

  python -m tests.faults.fuzz --inputs=100000

Each input is a valid one with pieces cut out, put in and overwritten, or bytes of no meaning. A reader must return or
raise InputError, within LONGEST seconds, without writing outside the folder it was given, and all of them together
must not take more than MEMORY beyond what the program took before.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import resource
import tempfile
import time
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import hypothesis
import jax
import numpy as np
import scipy.io
from hypothesis import strategies as st
from PIL import Image

from cmma_jax.cli import train
from cmma_jax.data import disk, folder, lfw
from cmma_jax.data.dataset import Dataset, Faces, make_dataset
from cmma_jax.data.images import open_picture
from cmma_jax.data.table import TABLE
from cmma_jax.errors import InputError
from cmma_jax.evaluation import classifier
from cmma_jax.models.model import cmma
from cmma_jax.sampling import photos
from cmma_jax.sampling.attributes import Attributes, parse_settings
from cmma_jax.training import compact
from cmma_jax.training.bounds import kept_rows
from cmma_jax.training.config import Config
from cmma_jax.training.records import read_metrics

LONGEST = 10  # seconds for one input
MEMORY = 2 * 2**30
WORDS = [b"", b"\0", b"\xff" * 8, b"-1", b"1e400", b"nan", b"NaN", b"-Infinity", b"9" * 400, b"../" * 3, b"/etc/passwd",
         b"\n", b"\t", b",", b"=", b'"', b"[" * 2000, b"{}", b"null", b"true", b"?", b"+9sd", b"p101", b"\xef\xbb\xbf",
         b"\xed\xa0\x80", b"\r", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", "\u0661\u0662\xb2\u0130".encode()]


class Reader(NamedTuple):
    """A reader, what it is fed with, and how often."""

    read: Callable[[pathlib.Path, bytes], object]
    seeds: list[bytes]
    share: float


@st.composite
def hurt(draw, seeds: list[bytes]) -> bytes:
    """An input: a valid one, changed in up to four places, or bytes of no meaning."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 8)) | st.integers(start, len(content)))
        content[start:end] = draw(st.sampled_from(WORDS) | st.binary(max_size=24))
    return bytes(content)


def a_picture(kind: str, mode: str = "RGB", size: int = 40) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(pixels).convert(mode).save(file, kind, **({"exif": exif} if kind in ("JPEG", "PNG") else {}))
    return file.getvalue()


def an_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("lfwcrop_color/faces/A_B_0001.ppm", "../../../outside.ppm", "/absolute.ppm"):
            archive.writestr(name, a_picture("PPM", size=64))
        archive.writestr("bomb.ppm", b"P6 64 64 255 " + bytes(5_000_000))
    return file.getvalue()


def a_mat() -> bytes:
    file = io.BytesIO()
    names, attributes = [f"A_B\\A_B_{i:04d}.jpg" for i in range(5)], ["Male", "Bald", "Chubby"]
    scipy.io.savemat(file, {"name": np.array(names, object), "label": np.eye(5, 3),
                            "AttrName": np.array(attributes, object)})
    return file.getvalue()


def a_dataset(kind: str = "binary") -> Dataset:
    rng = np.random.default_rng(0)
    parts = [Faces(rng.integers(0, 256, (8, 16, 16, 3), np.uint8), (rng.random((8, 3)) < 0.5).astype(np.float32),
                   np.ones((8, 3), bool)) for _ in range(3)]
    return make_dataset("small", ("Male", "Smiling", "5 o' Clock Shadow"), kind, *parts)


def a_model() -> bytes:
    config, spec = Config(image_size=16, latent_size=2, width=1, prior_hidden=2, prior="gaussian"), a_dataset().spec
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "model.safetensors"
        compact.write_compact(path, config, spec, 1, 1, jax.jit(cmma(config, spec).init)(jax.random.key(0)))
        return path.read_bytes()


def a_classifier() -> bytes:
    spec, three = a_dataset().spec, np.full(3, 0.9)
    params = classifier._init(classifier.ClassifierNetwork(3, 2, 4), spec, 0)
    with tempfile.TemporaryDirectory() as scratch:
        made = classifier.Classifier(spec.attributes, params, three, three, three > 0, spec.dataset)
        classifier.save_classifier(made, scratch)
        return classifier.classifier_path(scratch).read_bytes()


def some_maps() -> dict[str, bytes]:
    data = a_dataset()
    with tempfile.TemporaryDirectory() as scratch:
        place = pathlib.Path(scratch)
        for part in disk.PARTS:
            for name, array in getattr(data, part)._asdict().items():
                np.save(place / f"{part}.{name}.npy", array)
        (place / "spec.json").write_text(json.dumps(data.spec.to_json()))
        return {path.name: path.read_bytes() for path in place.iterdir()}


def readers() -> dict[str, Reader]:
    """Returns all readers by name."""
    binary, real = Attributes(a_dataset().spec), Attributes(a_dataset("real").spec)
    spec, maps = a_dataset().spec, some_maps()
    y, mask = np.zeros(3, np.float32), np.ones(3, bool)

    def written(name: str, content: bytes, place: pathlib.Path) -> pathlib.Path:
        (place / name).write_bytes(content)
        return place / name

    def read_archive(place: pathlib.Path, content: bytes) -> None:
        written(lfw.ARCHIVE, content, place)
        where, members = lfw._find_faces(place)
        for name, read in list(members.items())[:20]:
            with contextlib.suppress(InputError):  # the next one may be whole
                lfw._decode(f"{where}: {name}", read)

    def read_table(place: pathlib.Path, content: bytes) -> None:
        for i in range(12):
            path = place / f"{i}.png"
            if not path.exists():
                path.write_bytes(a_picture("PNG", size=16))
        written(TABLE, content, place)
        folder.load_folder(place, 16)

    def read_image_of_folder(place: pathlib.Path, content: bytes) -> None:
        folder.read_image(written("a.png", content, place), "a.png", 16)

    def read_photograph(place: pathlib.Path, content: bytes) -> None:
        photos.read_photo(written("a.jpg", content, place), 16, crop=photos.Box(1, 1, 9, 9))

    def read_upload(_: pathlib.Path, content: bytes) -> None:
        open_picture(io.BytesIO(content), "the photograph", ("JPEG", "PNG", "WEBP"))

    def read_settings(_: pathlib.Path, content: bytes) -> None:
        settings = parse_settings(content.decode("utf-8", "replace"))
        with contextlib.suppress(InputError):  # what is no value of one kind may be one of the other
            binary.settle(settings, y, mask)
        real.settle(settings, y, mask)

    def read_flags(_: pathlib.Path, content: bytes) -> None:
        words = content.decode("utf-8", "replace").split("\n")
        if not any(word.startswith(("-h", "--h")) for word in words):
            train.parse(words)

    def read_maps(place: pathlib.Path, content: bytes) -> None:
        name, _, changed = content.partition(b"|")
        for other, whole in maps.items():
            (place / other).write_bytes(changed if other == name.decode("latin-1") else whole)
        disk._read(place)

    scores = "# comment\n#\tperson\timagenum\tMale\tBald\n" + "".join(f"A B\t{i}\t{i / 3}\t-1e-3\n" for i in range(9))
    table = "file,Smiling,Eyeglasses,split\n" + "".join(
        f"{i}.png,{i % 2},{'' if i % 5 == 4 else i // 3 % 2},{disk.PARTS[i % 3]}\n" for i in range(12))
    records = "".join(json.dumps({"epoch": i, "bound": 1.5}) + "\n" for i in range(1, 4))
    finished = "".join(json.dumps([i, [1.0, 2.0]]) + "\n" for i in range(4))
    pictures = [a_picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP")]
    return {
        "attributes of LFW": Reader(lambda place, content: lfw._read_scores(written("scores.txt", content, place)),
                                    [scores.encode()], 0.19),
        "attributes of LFWA+ (.mat)": Reader(lambda place, content: lfw._read_mat(written("a.mat", content, place)),
                                             [a_mat()], 0.004),
        "faces of LFW (zip)": Reader(read_archive, [an_archive()], 0.04),
        "table of a folder (CSV)": Reader(read_table, [table.encode(), table.replace("1", "yes").encode()], 0.04),
        "images of a folder": Reader(read_image_of_folder, pictures, 0.08),
        "photograph": Reader(read_photograph, pictures, 0.05),
        "uploaded photograph": Reader(read_upload, pictures, 0.05),
        "settings of a run (JSON)": Reader(lambda _, content: Config.from_json(content.decode("utf-8", "replace")),
                                           [Config().to_json().encode(), Config(seeds="0,1").to_json().encode()],
                                           0.186),
        "--set": Reader(read_settings, [b"Male=1,Smiling=+2sd,5 o' Clock Shadow=?", b"male=+1sd, SMILING=p95",
                                        b"Male=0.5"], 0.2),
        "flags of train.py": Reader(read_flags, [b"--model=cvae\n--epochs=3\n--seeds=0,1\n--no-mirror",
                                                 b"--preset\npaper\n--dataset=lfw"], 0.005),
        "records of a run": Reader(lambda place, content: read_metrics(written("metrics.jsonl", content, place).parent),
                                   [records.encode()], 0.1),
        "finished faces of a Parzen estimate": Reader(
            lambda place, content: kept_rows(written("done.jsonl", content, place), 2), [finished.encode()], 0.03),
        "maps of decoded faces": Reader(read_maps, [name.encode() + b"|" + whole for name, whole in maps.items()],
                                        0.02),
        "model in one file": Reader(lambda place, content: compact.read_compact(
            written("model.safetensors", content, place)), [a_model()], 0.0025),
        "classifier": Reader(lambda place, content: classifier.load_classifier(
            written("classifier.msgpack", content, place), spec), [a_classifier()], 0.0025),
    }


def feed(reader: Reader, inputs: int, scratch: pathlib.Path, seed: int | None = 0) -> dict[str, float]:
    """Feeds a reader; returns how many inputs it refused, and the longest time for one.

    Raises:
      AssertionError, or whatever the reader raised: with the smallest input found that makes it do so.
    """
    place = scratch / "inside" / "folder"
    place.mkdir(parents=True, exist_ok=True)
    told = {"inputs": 0, "refused": 0, "longest": 0.0}

    @hypothesis.settings(max_examples=inputs, deadline=None, database=None, derandomize=seed is None,
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(hurt(reader.seeds))
    def once(content: bytes) -> None:
        began = time.monotonic()
        told["inputs"] += 1
        try:
            reader.read(place, content)
        except InputError as error:
            told["refused"] += 1
            assert "\n" not in str(error), "an error is one line"
        took = time.monotonic() - began
        told["longest"] = max(told["longest"], took)
        assert took < LONGEST, f"took {took:.1f} s"

    (once if seed is None else hypothesis.seed(seed)(once))()
    written = {path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if place not in path.parents}
    assert written == {"inside", "inside/folder"}, f"wrote outside of its folder: {written}"
    return told


@contextlib.contextmanager
def watched():
    """In a folder of its own, which is the working directory too; raises AssertionError if memory grows too much."""
    before, here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, os.getcwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            yield pathlib.Path(scratch)
        finally:
            os.chdir(here)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MEMORY, f"took {grown / 2**30:.1f} GiB"


def main() -> None:
    """Runs the long version."""
    parser = argparse.ArgumentParser("python -m tests.faults.fuzz", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose name has this in it")
    options = parser.parse_args()
    total, began = 0, time.monotonic()
    for name, reader in readers().items():
        if options.only in name:
            with watched() as scratch:
                told = feed(reader, max(1, round(options.inputs * reader.share)), scratch, options.seed)
            total += told["inputs"]
            print(f"{name}: {told['inputs']:,} inputs, {told['refused']:,} refused in one line, the rest read; "
                  f"at most {told['longest']:.2f} s for one", flush=True)
    print(f"{total:,} inputs in {time.monotonic() - began:.0f} s; the whole program took at most "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024:,} MiB; nothing was written outside its folder")


if __name__ == "__main__":
    main()
