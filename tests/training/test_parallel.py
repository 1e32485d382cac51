"""What parallel.py says of the machine; that all placements train alike stands in test_step.py."""

import math
import os
import pathlib
import types

import jax
import numpy as np
import pytest

from cmma_jax.errors import InputError
from cmma_jax.training import parallel


def test_an_nvidia_gpu_that_jax_does_not_see_is_told(monkeypatch):
    there = pathlib.Path.exists
    monkeypatch.setattr(pathlib.Path, "exists", lambda self: "nvidia" not in str(self) and there(self))
    assert parallel.warn_unused_gpu() is None
    monkeypatch.setattr(pathlib.Path, "exists", lambda self: "nvidia" in str(self) or there(self))
    assert "pip install -r requirements.txt" in parallel.warn_unused_gpu()


def test_all_devices_are_used_unless_told_otherwise():
    assert parallel.place(0, "pmap", 16).devices == 4
    assert parallel.place(2, "mesh", 16).devices == 2


def test_a_process_has_the_rows_of_its_own_devices_wherever_they_stand(monkeypatch):
    devices = [types.SimpleNamespace(process_index=i) for i in (0, 1, 1, 0)]
    for process, expected in ((0, [0, 1, 6, 7]), (1, [2, 3, 4, 5])):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        np.testing.assert_array_equal(parallel._local_rows(devices, 8), expected)


def test_room_for_faces(monkeypatch):
    assert parallel.room_for_faces("true") == math.inf and parallel.room_for_faces("false") == 0
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert parallel.room_for_faces("auto") == machine / 4 / 4  # a quarter of what each of 4 CPU devices has
    for bytes_limit, room in ((8e9, min(8e9, machine) / 4), (1e15, machine / 4)):
        device = types.SimpleNamespace(memory_stats=lambda bytes_limit=bytes_limit: {"bytes_limit": bytes_limit})
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        assert parallel.room_for_faces("auto") == room


def test_processes_need_a_coordinator():
    with pytest.raises(InputError, match="--coordinator"):
        parallel.start_processes("", 2, 0)
    parallel.start_processes("", 1, 0)  # one process: nothing to do
