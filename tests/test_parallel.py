"""What parallel.py says of the machine; that all placements train alike stands in test_training.py."""

import pathlib

import pytest

from cmma_jax import parallel
from cmma_jax.errors import InputError


def test_an_nvidia_gpu_that_jax_does_not_see_is_told(monkeypatch):
    there = pathlib.Path.exists
    monkeypatch.setattr(pathlib.Path, "exists", lambda self: "nvidia" not in str(self) and there(self))
    assert parallel.warn_unused_gpu() is None
    monkeypatch.setattr(pathlib.Path, "exists", lambda self: "nvidia" in str(self) or there(self))
    assert "pip install -r requirements.txt" in parallel.warn_unused_gpu()


def test_all_devices_are_used_unless_told_otherwise():
    assert parallel.place(0, "pmap", 16).count == 4
    assert parallel.place(2, "mesh", 16).count == 2


def test_processes_need_a_coordinator():
    with pytest.raises(InputError, match="--coordinator"):
        parallel.start_processes("", 2, 0)
    parallel.start_processes("", 1, 0)  # one process: nothing to do
