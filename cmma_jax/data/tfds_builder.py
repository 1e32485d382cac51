"""Data sets of TensorFlow Datasets (TFDS), written and read without TensorFlow.

`python -m cmma_jax.data.tfds_builder --lfw_dir DIR --out DIR2` prepares LFW with attributes as the set
`lfw_attributes`, in ArrayRecord files that `tfds.data_source("lfw_attributes", data_dir=DIR2)` reads.
Importing this module imports TFDS, so nothing else in the library does it at import time.
"""

import argparse
import io
import logging
import math
import pathlib
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Literal

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import Image

from cmma_jax.data.dataset import Dataset, Faces, make_dataset
from cmma_jax.data.disk import CACHE, New, decoded, fingerprint
from cmma_jax.data.folder import SPLITS, add_constant, read_image, require_image_size
from cmma_jax.data.images import one_line
from cmma_jax.data.lfw import SIZE, Part, read_labels, read_lfw
from cmma_jax.errors import Faults, InputError
from cmma_jax.models.spec import Kind

FORMAT = "array_record"  # the one that is read without TensorFlow and knows of slices
PREPARE = "python -m cmma_jax.data.tfds_builder --lfw_dir DIR --out"


class LfwAttributes(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Labeled Faces in the Wild (LFWcrop, 64x64 colour) with 73 attributes, in the split of the CMMA paper.

    Examples are in the order of the label file. An attribute is a boolean in the config "binary", a raw
    score in the config "real". The metadata hold the order of the attributes and the data set's name,
    which says if the scores are estimated.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="binary", description="LFWA+ labels (Liu et al., 2015)"),
        tfds.core.BuilderConfig(name="real", description="scores of Kumar et al. (2009)"),
    ]

    def __init__(self, lfw_dir: str | pathlib.Path, config: Literal["binary", "real"] = "binary", **kwargs):
        """Opens the builder; data_dir says where it writes, lfw_dir is as for `load_lfw`."""
        self.lfw_dir = lfw_dir
        super().__init__(config=config, file_format=FORMAT, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        labels = read_labels(self.lfw_dir, self.builder_config.name)
        dtype = {"binary": np.bool_, "real": np.float32}[self.builder_config.name]
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                "attributes": {name: dtype for name in labels.attributes},
                "person": tfds.features.Text(),
                "number": np.int32,
            }),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(dataset=labels.dataset, attributes=labels.attributes))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        labels, parts = read_lfw(self.lfw_dir, self.builder_config.name)
        return {split: self._generate_examples(labels.attributes, parts[split]) for split in SPLITS}

    def _generate_examples(self, attributes: tuple[str, ...], part: Part) -> Iterator[tuple[int, dict]]:
        for row, (key, x, y) in enumerate(zip(part.keys, part.faces.x, part.faces.y, strict=True)):
            person, _, number = key.rpartition("_")
            png = io.BytesIO()  # TFDS itself would encode the array by TensorFlow
            Image.fromarray(x).save(png, "png")
            png.seek(0)
            values = y > 0 if self.builder_config.name == "binary" else y
            yield row, {"image": png, "attributes": dict(zip(attributes, values, strict=True)),
                        "person": person.replace("_", " "), "number": int(number)}


def load_tfds(name: str, data_dir: str | pathlib.Path, image_size: int = 64, memory: float = math.inf,
              cache: pathlib.Path = pathlib.Path(CACHE)) -> Dataset:
    """Loads a set of TFDS that has an `image` and a dictionary `attributes` of booleans or floats.

    Such are `celeb_a` and, prepared by this module, `lfw_attributes` (and `lfw_attributes/real`). Images are cropped to
    their central square and resized: x is [N, image_size, image_size, 3] uint8, image_size a multiple of 16. Booleans
    make binary attributes, floats real-valued ones. What is not in data_dir yet is downloaded and prepared by TFDS, if
    it can be. The set's metadata may name it and list the attributes, which else are in alphabetical order.

    memory, cache: as of `disk.decoded`: a larger set is decoded to memory maps, anew where its files have changed.

    Raises:
      InputError: there is no such set, it cannot be prepared, or it is not as described.
    """
    require_image_size(image_size)
    where = f"TFDS's {name} in {data_dir}"
    builder = _open(name, pathlib.Path(data_dir))
    types = _attribute_types(where, dict(builder.info.features.items()))
    if not builder.is_prepared():
        builder = _prepare(name, data_dir)
    splits = builder.info.splits
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        raise InputError(f"{where} lacks the splits {', '.join(missing)} (it has {', '.join(splits)}); expected "
                         f"{', '.join(SPLITS)}: use another set")
    metadata = builder.info.metadata or {}
    attributes = tuple(metadata.get("attributes") or sorted(types))
    kinds: tuple[Kind, ...] = tuple("binary" if types[name] == np.bool_ else "real" for name in attributes)

    def build(new: New) -> Dataset:
        parts = [_read_split(where, builder, split, attributes, new) for split in SPLITS]
        faults = Faults(where)
        add_constant(faults, attributes, parts[0].y, parts[0].mask, "use another set")
        faults.tell()
        return make_dataset(metadata.get("dataset") or f"tfds/{name}", attributes, kinds, *parts)

    return decoded(build, image_size, splits["train"].num_examples, memory, cache, lambda: [
        name, image_size, fingerprint(sorted(pathlib.Path(builder.data_path).iterdir()))])


def _open(name: str, folder: pathlib.Path) -> tfds.core.DatasetBuilder:
    """Returns the builder of a set, which may not be prepared yet."""
    if not folder.is_dir():
        raise InputError(f"TFDS's folder {folder} not found; expected one with the set {name!r}: make it, or name "
                         "another")
    try:
        return tfds.builder(name, data_dir=folder)
    except Exception as error:  # TFDS raises many kinds, with pages of advice
        own, _, kind = name.partition("/")
        mend = (f"run '{PREPARE} {folder} --kind {kind or 'binary'}'" if own == "lfw_attributes" else
                f"check the name, or prepare the set there in {FORMAT} files")
        raise InputError(f"TFDS has no set {name!r} in {folder} ({_first_line(error)}): {mend}") from error


def _prepare(name: str, folder: str | pathlib.Path) -> tfds.core.DatasetBuilder:
    """Returns the builder of a set after it was downloaded and prepared."""
    try:
        _require_network()
        builder = tfds.builder(name, data_dir=folder, file_format=FORMAT)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except Exception as error:  # no network, a checksum, no TensorFlow...
        raise InputError(f"TFDS's {name} is not in {folder}, and it could not be downloaded and prepared "
                         f"({_first_line(error)}): prepare it where there is a network, in {FORMAT} files, and copy "
                         "it there") from error
    return builder


def _require_network() -> None:
    """Raises OSError at once if there is no network: TFDS itself would try for minutes."""
    try:
        urllib.request.urlopen("https://storage.googleapis.com", timeout=5).close()
    except urllib.error.HTTPError as error:  # somebody answered
        error.close()


def _attribute_types(where: str, features: dict[str, tfds.features.FeatureConnector]) -> dict[str, np.dtype]:
    """Returns the types of the attributes: booleans or floats."""
    attributes = features.get("attributes")
    types = {name: np.dtype(feature.np_dtype) if feature.shape == () else np.dtype(object)
             for name, feature in attributes.items()} if isinstance(attributes, tfds.features.FeaturesDict) else {}
    image = isinstance(features.get("image"), tfds.features.Image)
    if not image or not types or any(dtype.kind not in "bf" for dtype in types.values()):
        raise InputError(f"{where} has the features {', '.join(sorted(features))}; expected an 'image' and a "
                         "dictionary 'attributes' of booleans or floats, as celeb_a has: use another set")
    return types


def _read_split(where: str, builder: tfds.core.DatasetBuilder, split: str, attributes: tuple[str, ...],
                new: New) -> Faces:
    """Returns a split, its faces in an array of `new`, its attributes as they were stored."""
    x = new(split, builder.info.splits[split].num_examples)
    try:
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        y = np.empty((len(source), len(attributes)), np.float32)
        for i in tqdm.trange(len(source), desc=f"reading {split}", disable=None):
            example = source[i]
            x[i] = read_image(io.BytesIO(example["image"]), f"image {i}", x.shape[1])
            y[i] = [example["attributes"][name] for name in attributes]
    except Exception as error:  # another file format, a missing or corrupt file, a corrupt image
        raise InputError(f"{where}, split {split}, cannot be read ({_first_line(error)}); expected whole {FORMAT} "
                         "files: delete the set and prepare it again") from error
    wrong = np.argwhere(~np.isfinite(y))
    if len(wrong):
        row, column = wrong[0]
        raise InputError(f"{where}: attribute {attributes[column]!r} of image {row} of {split} is {y[row, column]}; "
                         "expected a finite number: use another set")
    return Faces(x, y, np.ones(y.shape, bool))


def _first_line(error: Exception) -> str:
    """Returns the first line of an exception's message, which TFDS follows by pages of advice."""
    return (str(error).strip() or one_line(error)).splitlines()[0]


def main(arguments: list[str] | None = None) -> int:
    """Prepares LFW with attributes; returns the exit code."""
    parser = argparse.ArgumentParser("python -m cmma_jax.data.tfds_builder", description=main.__doc__)
    parser.add_argument("--lfw_dir", required=True, help="folder with LFW's files, as for load_lfw")
    parser.add_argument("--out", required=True, help="TFDS's data folder")
    parser.add_argument("--kind", choices=["binary", "real"], default="binary", help="which attributes")
    options = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        builder = LfwAttributes(options.lfw_dir, options.kind, data_dir=options.out)
        builder.download_and_prepare()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{builder.data_path}: {', '.join(f'{s.num_examples} {n}' for n, s in builder.info.splits.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
