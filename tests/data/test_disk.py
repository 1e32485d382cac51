"""Faces on disk: decoded once, never half, anew when a picture changes; read in order and no further ahead."""

import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

from cmma_jax.data import folder as pictures
from cmma_jax.data import load_dataset
from cmma_jax.data.disk import AHEAD, read_ahead
from cmma_jax.errors import InputError


def load(folder, memory=0.0, **more):
    return load_dataset("folder", str(folder), image_size=16, memory=memory, **more)


def assert_equal(a, b):
    for part in ("train", "validation", "test"):
        for mine, theirs in zip(getattr(a, part), getattr(b, part), strict=True):
            np.testing.assert_array_equal(mine, theirs)
            assert mine.dtype == theirs.dtype
    assert a.spec.to_json() == b.spec.to_json()


@pytest.fixture
def folder(faces, tmp_path):
    return shutil.copytree(faces, tmp_path / "faces", ignore=shutil.ignore_patterns(".cmma_jax"))


def test_faces_in_memory_maps_are_those_in_memory_and_are_decoded_once(folder, monkeypatch):
    in_memory = load(folder, 40 * 16 * 16 * 3)
    assert not isinstance(in_memory.train.x, np.memmap) and not (folder / ".cmma_jax").exists()
    first = load(folder, 40 * 16 * 16 * 3 - 1)
    assert all(isinstance(a, np.memmap) for a in first.train)
    assert_equal(first, in_memory)
    monkeypatch.setattr(pictures, "read_image", None)
    assert_equal(load(folder), in_memory)
    assert len(list((folder / ".cmma_jax").iterdir())) == 1


def test_a_changed_picture_or_table_is_decoded_anew(folder, tmp_path):
    cache = str(tmp_path / "cache")
    before = load(folder, cache=cache)
    Image.new("RGB", (16, 16), (1, 2, 3)).save(folder / "07.png")
    after = load(folder, cache=cache)
    assert (after.train.x[7] == (1, 2, 3)).all() and not (before.train.x[7] == (1, 2, 3)).all()
    table = folder / "attributes.csv"
    table.write_text(table.read_text().replace("Red", "Rot"))
    assert load(folder, cache=cache).spec.attributes == ("Rot", "Striped")
    assert len(list((tmp_path / "cache").iterdir())) == 3 and not (folder / ".cmma_jax").exists()


def test_a_decoder_that_was_stopped_leaves_nothing_to_be_taken(folder, monkeypatch):
    read, seen = pictures.read_image, []

    def interrupted(*args):
        seen.append(args)
        if len(seen) == 45:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(pictures, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    assert not list((folder / ".cmma_jax").iterdir())
    monkeypatch.setattr(pictures, "read_image", read)
    assert_equal(load(folder), load(folder, np.inf))


def test_another_process_that_was_first_is_taken(folder, monkeypatch):
    """While this one decodes, another one that began at the same time ends."""
    read = pictures.read_image
    monkeypatch.setattr(pictures, "read_image", lambda *args: (
        monkeypatch.setattr(pictures, "read_image", read), load(folder), read(*args))[2])
    assert_equal(load(folder), load(folder, np.inf))
    assert len(list((folder / ".cmma_jax").iterdir())) == 1


@pytest.mark.parametrize("name, length", [("train.x.npy", 1000), ("spec.json", 100), ("test.mask.npy", None)])
def test_damaged_maps_are_named(folder, name, length):
    load(folder)
    (place,) = (folder / ".cmma_jax").iterdir()
    content = (place / name).read_bytes()
    (place / name).unlink()
    if length is not None:
        (place / name).write_bytes(content[:length])
    with pytest.raises(InputError, match=rf"{place.name} are damaged.*delete that folder"):
        load(folder)


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="--cache"):
        load(folder, cache=str(tmp_path / "file" / "cache"))


def test_things_are_read_in_order_ahead_and_no_further():
    began, lock = [], threading.Lock()

    def read(i):
        with lock:
            began.append(i)
        time.sleep(0.002 * (3 - i % 3))
        return i * i

    asked = iter(range(40))
    things = read_ahead(read, asked)
    for i in range(20):
        assert next(things) == i * i
        time.sleep(0.002)
        assert max(began) <= i + AHEAD
    time.sleep(0.05)
    assert set(began) == set(range(20 + AHEAD))  # the next ones were read while nobody asked
    things.close()
    assert next(asked) <= 20 + AHEAD + 1
    assert threading.active_count() == len([t for t in threading.enumerate() if not t.name.startswith("read")])
    assert list(read_ahead(read, range(2))) == [0, 1] and list(read_ahead(read, [])) == []


def test_what_reading_raises_is_raised_at_its_turn():
    things = read_ahead(lambda i: 1 // (3 - i), range(6))
    assert [next(things) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(things)
