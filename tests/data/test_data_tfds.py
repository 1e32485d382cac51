"""TFDS without TensorFlow: LFW with attributes written and read back, and sets like celeb_a."""

import io
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from test_data_lfw import write_miniature

from cmma_jax.data import load_dataset, tfds_builder
from cmma_jax.data.folder import read_image
from cmma_jax.data.lfw import load_lfw
from cmma_jax.data.tfds_builder import load_tfds, main
from cmma_jax.errors import InputError

SIZES = {"train": 8, "validation": 3, "test": 2}


class FakeCelebA(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The features of celeb_a, or faulty ones."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, sizes=SIZES, attributes=None, values=None, **kwargs):
        self.sizes = sizes
        self.attributes = attributes or {"Young": np.bool_, "Attractive": np.bool_}
        self.values = values or (lambda i: {"Young": i % 2 == 0, "Attractive": i % 3 == 0})
        super().__init__(**{"file_format": "array_record"} | kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(218, 178, 3), encoding_format="jpeg"),
            "landmarks": {"lefteye_x": np.int64},
            "attributes": self.attributes,
        }))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.sizes}

    def _generate_examples(self, split):
        for i in range(self.sizes[split]):
            yield i, {"image": io.BytesIO(photograph(i)), "landmarks": {"lefteye_x": 69}, "attributes": self.values(i)}


def photograph(i: int) -> bytes:
    file = io.BytesIO()
    smooth = Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)).resize((178, 218))
    smooth.save(file, "jpeg")
    return file.getvalue()


def prepare(folder: pathlib.Path, **options) -> pathlib.Path:
    FakeCelebA(data_dir=folder, **options).download_and_prepare()
    return folder


def refuses(name: str, folder: pathlib.Path, *fragments: str, image_size: int = 32) -> None:
    with pytest.raises(InputError) as caught:
        load_tfds(name, folder, image_size)
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def assert_same(first, second) -> None:
    for part in ("train", "validation", "test"):
        for a, b in zip(getattr(first, part), getattr(second, part), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert first.spec.to_json() == second.spec.to_json()


@pytest.mark.parametrize("kind", ["binary", "real"])
def test_lfw_comes_back_byte_for_byte(tmp_path, monkeypatch, capsys, kind):
    folder, out = write_miniature(tmp_path / "lfw", monkeypatch), tmp_path / "out"
    assert main(["--lfw_dir", str(folder), "--out", str(out), "--kind", kind]) == 0
    assert "12 train, 4 validation, 4 test" in capsys.readouterr().out
    assert_same(load_tfds(f"lfw_attributes/{kind}", out), load_lfw(folder, kind))
    source = tfds.data_source(f"lfw_attributes/{kind}", data_dir=out, split="validation")
    assert (source[1]["person"], source[1]["number"]) == (b"Person G", 2)
    assert "tensorflow" not in sys.modules


def test_lfw_says_that_its_scores_are_estimated(tmp_path, monkeypatch):
    folder = write_miniature(tmp_path / "lfw", monkeypatch)
    (folder / "lfw_attributes.txt").rename(folder / "lfw_attributes_estimated.txt")
    assert main(["--lfw_dir", str(folder), "--out", str(tmp_path / "out"), "--kind", "real"]) == 0
    assert load_tfds("lfw_attributes/real", tmp_path / "out").spec.dataset == "lfw (estimated scores)"


def test_the_command_prints_one_line_where_lfw_is_missing(tmp_path, capsys):
    assert main(["--lfw_dir", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 2
    assert "nowhere not found" in capsys.readouterr().err


def test_a_set_like_celeb_a(tmp_path):
    data = load_dataset("tfds/fake_celeb_a", prepare(tmp_path), image_size=32)
    assert (data.spec.dataset, data.spec.kind) == ("tfds/fake_celeb_a", "binary")
    assert data.spec.attributes == ("Attractive", "Young")
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    for split, size in SIZES.items():  # TFDS shuffles the examples when it writes them
        expected = {read_image(io.BytesIO(photograph(i)), "", 32).tobytes(): [i % 3 == 0, i % 2 == 0]
                    for i in range(size)}
        x, y, mask = parts[split]
        assert len(x) == size and mask.all()
        assert {face.tobytes(): labels.tolist() for face, labels in zip(x, y, strict=True)} == expected


def test_floats_are_real_attributes_and_booleans_binary(tmp_path):
    prepare(tmp_path, attributes={"Age": np.float32, "Male": np.bool_},
            values=lambda i: {"Age": 20 + i, "Male": i % 2 == 0})
    data = load_tfds("fake_celeb_a", tmp_path, 16)
    assert data.spec.kinds == ("real", "binary") and data.spec.attributes == ("Age", "Male")
    np.testing.assert_allclose([data.train.y.mean(0), data.train.y.std(0)], [[0, 0.5], [1, 0.5]], atol=1e-6)
    np.testing.assert_allclose(data.spec.attribute_mean, [23.5, 0.5])


def test_missing_splits(tmp_path):
    refuses("fake_celeb_a", prepare(tmp_path, sizes={"train": 4}), "fake_celeb_a", "lacks the splits validation, test",
            "it has train", "use another set")


def test_unsuitable_features(tmp_path):
    refuses("mnist", tmp_path, "features image, label", "'attributes' of booleans or floats", "use another set")
    prepare(tmp_path, attributes={"Age": np.int64}, values=lambda i: {"Age": i})
    refuses("fake_celeb_a", tmp_path, "'attributes' of booleans or floats")


def test_constant_and_infinite_attributes(tmp_path):
    prepare(tmp_path / "a", values=lambda i: {"Young": True, "Attractive": i % 3 == 0})
    refuses("fake_celeb_a", tmp_path / "a", "'Young' is 1 in all of the 8 training rows", "use another set")
    prepare(tmp_path / "b", attributes={"Age": np.float32}, values=lambda i: {"Age": np.nan if i == 1 else i})
    refuses("fake_celeb_a", tmp_path / "b", "'Age' of image", "of train is nan", "expected a finite number")


def test_sets_that_are_not_there(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(tfds_builder.urllib.request, "urlopen", fail)
    refuses("lfw_attributes", tmp_path, "no set 'lfw_attributes'", "--lfw_dir DIR --out", str(tmp_path))
    refuses("lfw_attributes/real", tmp_path, "--kind real")
    refuses("celeb_b", tmp_path, "no set 'celeb_b'", "check the name")
    refuses("../x", tmp_path, "no set '../x'", "check the name")
    refuses("celeb_a", tmp_path, "celeb_a is not in", "no network here", "prepare it where there is a network")
    refuses("celeb_a", tmp_path / "nowhere", "nowhere not found", "make it, or name another")
    refuses("celeb_a", tmp_path, "got 40", "multiple of 16", image_size=40)


def test_a_set_is_prepared_where_there_is_a_network(tmp_path, monkeypatch):
    class Registered(FakeCelebA):
        """Known to TFDS by name, as celeb_a is."""

        name = "registered"

    monkeypatch.setattr(tfds_builder.urllib.request, "urlopen", lambda *_, **__: io.BytesIO())
    data = load_tfds("registered", tmp_path, 16)
    assert data.train.size == 8 and list(tmp_path.glob("registered/1.0.0/*.array_record-*"))


def test_broken_files(tmp_path):
    prepare(tmp_path)
    shard, = tmp_path.glob("fake_celeb_a/1.0.0/*validation*")
    data = shard.read_bytes()
    for content in (b"", data[:len(data) // 2], bytes(1000) + data[1000:]):
        shard.write_bytes(content)
        refuses("fake_celeb_a", tmp_path, "split validation, cannot be read", "prepare it again")
    shard.unlink()
    refuses("fake_celeb_a", tmp_path, "split validation, cannot be read", "prepare it again")


def test_another_file_format(tmp_path):
    prepare(tmp_path)
    info = tmp_path / "fake_celeb_a/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    refuses("fake_celeb_a", tmp_path, "cannot be read", "array_record", "prepare it again")


def test_only_this_module_imports_tfds():
    names = "cmma_jax, cmma_jax.data, cmma_jax.data.dataset, cmma_jax.data.folder, cmma_jax.data.lfw"
    code = f"import sys, {names}; assert 'tensorflow_datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[2])


def test_real_lfw_comes_back_byte_for_byte(lfw_dir, tmp_path):
    assert main(["--lfw_dir", str(lfw_dir), "--out", str(tmp_path)]) == 0
    assert_same(load_dataset("tfds/lfw_attributes", tmp_path), load_lfw(lfw_dir))
    assert "tensorflow" not in sys.modules
