"""Data sets by name.

What this room imports: `errors`, and `models.spec`, which says what a data set is like.
"""

import math
import pathlib
from typing import Literal

from cmma_jax.data.dataset import Dataset
from cmma_jax.data.disk import CACHE
from cmma_jax.data.table import AS_IT_IS, Reading
from cmma_jax.errors import InputError, did_you_mean

NAMES = ("synthetic", "lfw", "folder", "tfds/lfw_attributes", "tfds/celeb_a")


def load_dataset(dataset: str, data_dir: str, kind: Literal["binary", "real"] = "binary", image_size: int = 64,
                 memory: float = math.inf, cache: str = "", reading: Reading = AS_IT_IS) -> Dataset:
    """Loads a data set.

    Args:
      dataset: "synthetic" (embedded, always the same), "lfw", "folder", or "tfds/<name>".
      data_dir: folder of the data set's files; "synthetic" needs none.
      kind: which of LFW's attributes; the others have the kind that their values say.
      image_size: height and width of the faces; "synthetic" and "lfw" have 64.
      memory: bytes that the training faces of a folder or of TFDS may take in memory; larger sets are decoded to memory
        maps (`disk.decoded`). "synthetic" and "lfw" are known to fit: 49 and 123 MB.
      cache: where those are; empty: `disk.CACHE` in data_dir.
      reading: how a folder's table is to be read.

    Raises:
      InputError: there is no such data set, or it is not as it should be.
    """
    if dataset in ("synthetic", "lfw") and image_size != 64:
        raise InputError(f"the faces of data set {dataset!r} are 64x64; got image_size {image_size}: leave it at 64, "
                         "or use 'folder'")
    maps = pathlib.Path(cache or pathlib.Path(data_dir) / CACHE)
    if dataset == "synthetic":
        from cmma_jax.data.synthetic import make_synthetic
        data = make_synthetic()
    elif dataset == "lfw":
        from cmma_jax.data.lfw import load_lfw
        data = load_lfw(data_dir, kind)
    elif dataset == "folder":
        from cmma_jax.data.folder import load_folder
        data = load_folder(data_dir, image_size, memory, maps, reading)
    elif dataset.startswith("tfds/"):
        from cmma_jax.data.tfds_builder import load_tfds
        data = load_tfds(dataset.removeprefix("tfds/"), data_dir, image_size, memory, maps)
    else:
        raise InputError(f"there is no data set {dataset!r}{did_you_mean(dataset, NAMES)}; expected one of "
                         f"{', '.join(NAMES)} (or another set of TFDS)")
    if kind == "real" and data.spec.kind == "binary":
        raise InputError(f"the attributes of data set {dataset!r} are binary; got kind 'real': ask for 'binary'")
    return data
