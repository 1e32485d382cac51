"""MATLAB's files, decoded in a process of its own.

SciPy's decoder ends its process by a segmentation fault on some damaged files, and a small file can promise gigabytes.
This module is what that process runs, too, and therefore imports nothing of the package.
"""

import contextlib
import io
import os
import subprocess
import sys

import numpy as np

SECONDS, BYTES = 120, 2 * 2**30  # what decoding may take


def read_mat(path: str | os.PathLike, names: list[str]) -> dict[str, np.ndarray]:
    """Returns those of the named variables that a file has, without axes of length 1; cells become strings.

    Raises:
      ValueError: the file cannot be decoded.
    """
    try:
        ended = subprocess.run([sys.executable, "-I", __file__, os.fspath(path), *names], capture_output=True,
                               timeout=SECONDS, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    except subprocess.TimeoutExpired:
        raise ValueError(f"not decoded within {SECONDS} seconds") from None
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(said[-1] if ended.returncode > 0 and said else "its decoder crashed")
    with np.load(io.BytesIO(ended.stdout)) as arrays:
        return dict(arrays)


def _decode(path: str, names: list[str]) -> None:
    """Writes the variables to standard output, in NumPy's format."""
    with contextlib.suppress(ImportError):  # not on Windows
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    import scipy.io

    found = scipy.io.loadmat(path, squeeze_me=True, variable_names=names)
    arrays = {name: np.asarray(found[name]) for name in names if name in found}
    texts = {name: np.array([str(cell) for cell in array.ravel()]).reshape(array.shape)
             for name, array in arrays.items() if array.dtype.hasobject}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{**arrays, **texts})
    sys.stdout.buffer.write(file.getvalue())


if __name__ == "__main__":
    _decode(sys.argv[1], sys.argv[2:])
