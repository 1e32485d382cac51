"""Strict surroundings for every test: 4 CPU devices, no silent broadcasting, warnings are errors."""

import os
import pathlib

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402  (the environment above must stand before JAX starts)
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def lfw_dir() -> pathlib.Path:
    """A folder with LFW in its publishers' layout, from the environment variable CMMA_LFW_DIR."""
    folder = os.environ.get("CMMA_LFW_DIR")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("needs Labeled Faces in the Wild: set CMMA_LFW_DIR to its folder")
    return pathlib.Path(folder)
