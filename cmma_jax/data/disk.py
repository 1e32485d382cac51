"""Faces that stay on disk: decoded once to memory maps, 12,288 bytes a face of 64x64, and read ahead of the step.

A memory map is a NumPy array, so `Faces` is the one noun for faces in memory and on disk. Pictures are not decoded anew
for every batch: a face costs one copy of its bytes in every epoch instead of a decoder's work.
"""

import collections
import hashlib
import json
import mmap
import os
import pathlib
import tempfile
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from cmma_jax.data.dataset import Dataset, Faces
from cmma_jax.data.files import make_folder
from cmma_jax.data.images import one_line
from cmma_jax.errors import InputError
from cmma_jax.models.spec import Spec

PARTS = ("train", "validation", "test")
CACHE = ".cmma_jax"  # in the data set's folder, unless --cache says where
WORKERS = 2  # a face is one copy of its bytes: two threads read faster than any step
AHEAD = 3  # calls read before they are wanted: one on its way to the device, two that even out a slow disk

New = Callable[[str, int], np.ndarray]
A = TypeVar("A")
B = TypeVar("B")


def decoded(build: Callable[[New], Dataset], image_size: int, train: int, memory: float, cache: pathlib.Path,
            facts: Callable[[], object]) -> Dataset:
    """Returns build's data set, its faces in memory if those that train fit, or else in memory maps.

    The maps are written into a folder of a temporary name, which takes its own once it is whole: a decoder that was
    stopped leaves nothing that a later start would take, and of several processes that decode at once the first wins.
    Attributes are written as well, standardised as they are, and the description.

    Args:
      build: new -> the data set; new(part, n) is an array of n faces, [n, image_size, image_size, 3] uint8, to be
        written to, for a part of PARTS.
      train, memory: how many faces train, and the bytes that those may take in memory.
      cache: the folder of all maps.
      facts: returns what the result depends on, as JSON has it; other facts are decoded into a folder of their own.

    Raises:
      InputError: the folder cannot be written to, or what it holds is damaged; or as build.
    """
    shape = (image_size, image_size, 3)
    if train * image_size * image_size * 3 <= memory:
        return build(lambda part, n: np.empty((n, *shape), np.uint8))
    place = cache / hashlib.sha256(json.dumps(facts()).encode()).hexdigest()[:16]
    if not place.is_dir():
        make_folder(cache, "the cache of decoded faces", "cache")
        try:
            _write(place, build, shape)
        except OSError as error:
            raise InputError(f"cannot write decoded faces to {cache} ({error.strerror}); give another --cache, with "
                             f"room for {image_size * image_size * 3:,} bytes a face") from error
    return _read(place)


def fingerprint(paths: Iterable[pathlib.Path]) -> str:
    """Returns a digest of files' names, sizes and times of change: other content has another one."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path}\n{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _write(place: pathlib.Path, build: Callable[[New], Dataset], shape: tuple[int, ...]) -> None:
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f"{place.name}.", ignore_cleanup_errors=True) as made:
        folder = pathlib.Path(made) / "whole"
        folder.mkdir()

        def new(part: str, n: int) -> np.ndarray:
            path = folder / f"{part}.x.npy"
            x = np.lib.format.open_memmap(path, "w+", np.uint8, (n, *shape))
            if hasattr(os, "posix_fallocate"):  # a full disk is told now; writing to the map would end the process
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            return x

        data = build(new)
        for part in PARTS:
            faces: Faces = getattr(data, part)
            faces.x.flush()
            np.save(folder / f"{part}.y.npy", faces.y)
            np.save(folder / f"{part}.mask.npy", faces.mask)
        (folder / "spec.json").write_text(json.dumps(data.spec.to_json()))
        try:
            folder.rename(place)
        except OSError:
            if not place.is_dir():  # or else another process was first
                raise


def _read(place: pathlib.Path) -> Dataset:
    try:
        spec = Spec.from_json(json.loads((place / "spec.json").read_text()))
        parts = [Faces(*(_open_map(place / f"{part}.{name}.npy") for name in Faces._fields)) for part in PARTS]
        for part, (x, y, mask) in zip(PARTS, parts, strict=True):
            attributes = (len(x), len(spec.attributes))
            if (x.shape[1:], y.shape, mask.shape) != (spec.image_shape, attributes, attributes) or (
                    x.dtype, y.dtype, mask.dtype) != (np.uint8, np.float32, np.bool_):
                raise ValueError(f"the arrays of {part} do not belong together")
        train, validation, test = parts
        return Dataset(train, validation, test, spec)
    except Exception as error:  # a corrupt file makes NumPy raise almost anything
        raise InputError(f"the decoded faces in {place} are damaged ({one_line(error)}); delete that folder, and they "
                         "are decoded again") from error


def _open_map(path: pathlib.Path) -> Any:
    """Opens a memory map for reading by index: reading on behind each face took two to three times as long."""
    a = np.load(path, mmap_mode="r")
    if hasattr(mmap, "MADV_RANDOM"):  # not on Windows
        a.base.madvise(mmap.MADV_RANDOM)
    return a


def read_ahead(read: Callable[[A], B], wanted: Iterable[A]) -> Generator[B, None, None]:
    """Yields read(each) for each wanted thing, in order; threads read the next AHEAD meanwhile, and no more.

    What read raises is raised here, at its turn. Closing the iterator waits for the reads under way alone.
    """
    with ThreadPoolExecutor(WORKERS, "read") as pool:
        queue: collections.deque[Future[B]] = collections.deque()
        try:
            for each in wanted:
                queue.append(pool.submit(read, each))
                if len(queue) > AHEAD:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
