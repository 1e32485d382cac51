"""Files and folders: several processes make a run's folder at once."""

import concurrent.futures

import pytest

from cmma_jax.data.files import make_folder, write_whole
from cmma_jax.errors import InputError


def test_several_make_the_same_folder_at_once(tmp_path):
    folder = tmp_path / "run"
    with concurrent.futures.ThreadPoolExecutor(8) as several:
        for one in [several.submit(make_folder, folder, "the run's folder", "run_dir") for _ in range(2000)]:
            one.result()
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_a_file_is_named_with_its_flag(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write to the run's folder .*file.*give another --run_dir"):
        make_folder(tmp_path / "file", "the run's folder", "run_dir")


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    write_whole(tmp_path / "a", b"old")
    with pytest.raises(InputError, match="cannot write .*--out"):
        write_whole(tmp_path / "none" / "a", b"new")
    write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new" and [path.name for path in tmp_path.iterdir()] == ["a"]
