"""Files and folders: several processes make a run's folder at once."""

import concurrent.futures
import errno
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from cmma_jax.data import files
from cmma_jax.data.files import held, make_folder, write_whole
from cmma_jax.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent.parent


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
        write_whole(tmp_path / "a" / "b", b"new")
    write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new" and [path.name for path in tmp_path.iterdir()] == ["a"]
    write_whole(tmp_path / "new" / "folder" / "b", b"made")
    assert (tmp_path / "new" / "folder" / "b").read_bytes() == b"made"


HOLD = "import sys, pathlib; from cmma_jax.data.files import held\nwith held(pathlib.Path(sys.argv[1]), 'run_dir'): "


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_folder_is_one_processs_until_it_dies(number, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD + "print('held', flush=True); input()", str(tmp_path)],
                              cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    words = f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()}; .*another --run_dir"
    for _ in range(2):  # who is refused leaves the holder's name as it is
        with pytest.raises(InputError, match=words), held(tmp_path, "run_dir"):
            pytest.fail("it was held by two")
    holder.send_signal(number)
    holder.communicate(timeout=60)
    with held(tmp_path, "run_dir"):
        assert f"process {os.getpid()} " in (tmp_path / "lock").read_text()
    with held(tmp_path, "run_dir"):  # left, it is free
        pass


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with held(tmp_path, "run_dir"):
        assert f"process {os.getpid()} " in (tmp_path / "lock").read_text()
    assert f"{tmp_path} is on a disk that gives no locks (No locks available)" in caplog.text
