"""Bits per dimension of faces in lossless picture formats: what a model's bound is compared with.

    python -m benchmarks.formats --dataset=lfw --data_dir=DIR --split=test
    python -m benchmarks.formats --dataset=lfw --data_dir=DIR --split=validation --limit=100 --out=formats.json

Each figure is the bits of files over D, the number of the faces' pixel values (H W 3, or 12,288, for a 64x64 face).
The slowest setting of an encoder is not always its best, so each picture is encoded at several, and its shortest file
counts: PNG at zlib's level 9 by each strategy, WebP by methods 1 to 6, JPEG XL at efforts 8 and 10, a bare codestream.
Every such file is decoded and compared with what went in.

- bits/dim: one face a file; mean and standard error over the faces.
- bits/dim, payload: the same files without the container, read from their structure. PNG: the contents of the IDAT
  chunks, 57 bytes less; WebP: those of the VP8L chunk after its header, 25 bytes less, 26 where it is padded; JPEG XL:
  all but the signature's 2 bytes, since its other headers do not end at a byte.
- bits/dim, one sheet: all faces in one nearly square picture, its container included; empty cells at the end are black
  and do not count in D. A trained model has seen other faces; within a sheet, so has a format, and this is the fairer
  match.
"""

import argparse
import importlib.util
import io
import math
import pathlib
import struct
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, features
from tqdm import tqdm

from cmma_jax.data import load_dataset
from cmma_jax.evaluation import table

# Tried on every tenth of LFW's test faces: WebP's method 6 at quality 100 takes 125 times as long as method 2 and 3.082
# bits/dim for its 3.004. JPEG XL at efforts 8, 9 and 10 takes 2.723, 2.728 and 2.748, and 2.672, 2.675 and 2.555 on the
# sheet of all.
STRATEGIES, METHODS, EFFORTS = range(4), range(1, 7), (8, 10)


class Format(NamedTuple):
    """A lossless format.

    Attributes:
      encode: [H, W, 3] uint8 to a file's bytes.
      decode: a file's bytes to [H, W, 3] uint8.
      payload: a file's bytes to the number of those that hold the pixels.
      package: what has to be installed for it; empty: what the project needs anyway.
    """

    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes], np.ndarray]
    payload: Callable[[bytes], int]
    package: str = ""


def encode_by_pillow(x: np.ndarray, kind: str, **settings: bool | int) -> bytes:
    """Returns a file of the format that Pillow calls so."""
    out = io.BytesIO()
    Image.fromarray(x).save(out, kind, **settings)
    return out.getvalue()


def decode_by_pillow(file: bytes) -> np.ndarray:
    """Returns a picture, [H, W, 3] uint8."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def encode_png(x: np.ndarray) -> bytes:
    """Returns the shortest file."""
    return min((encode_by_pillow(x, "PNG", compress_level=9, compress_type=each) for each in STRATEGIES), key=len)


def png_payload(file: bytes) -> int:
    """Returns the bytes within IDAT chunks: zlib's stream. A chunk is length, type, contents, checksum (PNG, 5.3)."""
    at, total = 8, 0
    while at < len(file):
        length, kind = struct.unpack_from(">I4s", file, at)
        total += length if kind == b"IDAT" else 0
        at += 12 + length
    return total


def encode_webp(x: np.ndarray) -> bytes:
    """Returns the shortest file."""
    return min((encode_by_pillow(x, "WEBP", lossless=True, exact=True, method=each) for each in METHODS), key=len)


def webp_payload(file: bytes) -> int:
    """Returns the bytes within VP8L chunks but for 5 of header: a signature's byte, width, height, alpha, version."""
    at, total = 12, 0
    while at < len(file):
        kind, length = struct.unpack_from("<4sI", file, at)
        total += length - 5 if kind == b"VP8L" else 0
        at += 8 + length + length % 2
    return total


def encode_jpeg_xl(x: np.ndarray) -> bytes:
    """Returns the shortest bare codestream."""
    import imagecodecs
    return min((bytes(imagecodecs.jpegxl_encode(x, lossless=True, effort=each, usecontainer=False, numthreads=1))
                for each in EFFORTS), key=len)


def decode_jpeg_xl(file: bytes) -> np.ndarray:
    """Returns a picture, [H, W, 3] uint8."""
    import imagecodecs
    return imagecodecs.jpegxl_decode(file, numthreads=1)


FORMATS = {
    "PNG": Format(encode_png, decode_by_pillow, png_payload),
    "lossless WebP": Format(encode_webp, decode_by_pillow, webp_payload),
    "JPEG XL": Format(encode_jpeg_xl, decode_jpeg_xl, lambda file: len(file) - len(b"\xff\x0a"), "imagecodecs")}


def main(argv: list[str]) -> int:
    """Measures every format, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--limit", type=int, default=5000, help="faces of it at most")
    parser.add_argument("--out", default="", help="a file for the table as JSON; empty: none")
    options = parser.parse_args(argv)
    x = np.asarray(getattr(load_dataset(options.dataset, options.data_dir), options.split).x[:options.limit])
    found: dict[str, table.Figures] = {}
    versions = [f"Pillow {PIL.__version__}", f"libwebp {features.version('webp')}"]
    for name, each in FORMATS.items():
        if each.package and importlib.util.find_spec(each.package) is None:
            found[f"{name}: needs {each.package}, which is not installed"] = {}
            continue
        found[name] = measure(name, each, x)
    if "JPEG XL" in found:
        import imagecodecs
        versions.append(imagecodecs.jpegxl_version())
    print(f"{len(x):,} {options.split} faces of {options.dataset}, {x.shape[1]}x{x.shape[2]}; {', '.join(versions)}\n\n"
          f"{table.to_markdown(found)}")
    if options.out:
        pathlib.Path(options.out).write_text(table.to_json({name: row for name, row in found.items() if row}))
    return 0


def measure(name: str, each: Format, x: np.ndarray) -> table.Figures:
    """Returns the bits per dimension of faces, [N, H, W, 3] uint8, one a file and all in one sheet.

    Raises:
      ValueError: a file does not decode to the bytes that it was made of.
    """
    def encode(picture: np.ndarray) -> bytes:
        file = each.encode(picture)
        if not np.array_equal(each.decode(file), picture):
            raise ValueError(f"{name} is not lossless as it is set: a decoded picture of shape {picture.shape} differs")
        return file

    *files, whole = [encode(picture) for picture in tqdm([*x, sheet(x)], desc=name, unit=" files")]
    figures = {"bits_per_dim": [len(file) for file in files],
               "bits_per_dim_payload": [each.payload(file) for file in files]}
    found: table.Figures = {}
    for figure, sizes in figures.items():
        bits = 8 * np.array(sizes) / x[0].size
        found[figure] = (float(bits.mean()), float(bits.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else None)
    return found | {"bits_per_dim_sheet": (8 * len(whole) / x.size, None)}


def sheet(x: np.ndarray) -> np.ndarray:
    """Returns faces, [N, H, W, 3], row by row in one picture, [rows H, columns W, 3]; cells that are left are black."""
    n, height, width, _ = x.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    cells = np.concatenate([x, np.zeros((rows * columns - n, *x.shape[1:]), x.dtype)])
    return cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
