"""`cmma_jax.load` and what its model does, against the pure functions and from a process without the package."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmma_jax
from cmma_jax.data import load_dataset
from cmma_jax.errors import InputError
from cmma_jax.evaluation.diversity import diversity
from cmma_jax.models.distributions import row_keys
from cmma_jax.sampling.face_model import FaceModel
from cmma_jax.sampling.faces import LARGEST_BATCH, edit, generate


@pytest.fixture(scope="module")
def model(named_runs):
    return cmma_jax.load(named_runs / "cmma")


@pytest.fixture(scope="module")
def data(model):
    return load_dataset("folder", model.run.config.data_dir, image_size=16)


def test_without_a_path_the_newest_finished_cmma_is_loaded(named_runs):
    assert cmma_jax.load(runs_dir=named_runs).run.path == named_runs / "cmma"
    assert cmma_jax.load(runs_dir=named_runs, model="cvae").run.path == named_runs / "cvae"
    with pytest.raises(InputError, match="no finished run of a vae"):
        cmma_jax.load(runs_dir=named_runs, model="vae")


def test_generated_faces_depend_on_the_seed_and_their_number_alone(model):
    faces = model.generate({"male": 1, "Eye_glasses": 1}, n=5, seed=0)
    assert faces.shape == (5, 16, 16, 3) and 0 <= faces.min() and faces.max() <= 1
    np.testing.assert_allclose(model.generate({"Male": 1, "Eyeglasses": 1}, n=3, seed=0), faces[:3], atol=1e-6)
    assert diversity(model.generate({"Male": 1, "Eyeglasses": 1}, n=5, seed=1), faces) > 0.1
    assert np.abs(model.generate({"Male": 1, "Eyeglasses": 1}, n=5, seed=1) - faces).max() > 0.01
    still = model.generate({"Smiling": 1}, n=3, temperature=0.0)
    np.testing.assert_allclose(still, np.repeat(still[:1], 3, 0), atol=1e-6)


def test_guidance_leads_a_flow_further_and_is_refused_without_one(model):
    def velocity(params, z, t, y, mask):
        return jnp.where(mask, y, 0).sum(-1, keepdims=True) + 0 * z

    flowing = FaceModel(model.run._replace(model=model.run.model._replace(velocity=velocity)))
    plain, none, more = (flowing.generate({"Male": 1, "Smiling": 1}, n=3, **how)
                         for how in ({}, {"guidance": 0.0}, {"guidance": 1.0}))
    np.testing.assert_array_equal(plain, none)
    assert np.abs(more - plain).max() > 0.01
    with pytest.raises(InputError, match="has a Gaussian prior, which takes no guidance"):
        model.generate({"Male": 1}, guidance=1.0)
    with pytest.raises(InputError, match="guidance -1 is out of range"):
        flowing.generate({"Male": 1}, guidance=-1.0)


def test_unnamed_attributes_are_missing_and_not_zero(model):
    y, mask = model.encode({"Smiling": 1})
    assert mask.sum() == 1 and y[mask] == 1
    zeros = model.generate({name: 0 for name in model.attributes} | {"Smiling": 1}, temperature=0.0)
    assert np.abs(model.generate({"Smiling": 1}, temperature=0.0) - zeros).max() > 1e-3


def test_programs_are_compiled_once_for_a_power_of_two(model):
    traces = []

    def counted(*args):
        traces.append(1)
        return model.run.model.likelihood(*args)

    counting = FaceModel(model.run._replace(model=model.run.model._replace(likelihood=counted)))
    for n, temperature in ((5, 1.0), (6, 0.5), (7, 0.0), (8, 1.0)):
        assert len(counting.generate({"Male": 1}, n=n, seed=n, temperature=temperature)) == n
    assert len(traces) == 1
    counting.generate({"Smiling": 1}, n=3)
    assert len(traces) == 2
    x = counting.generate({"Smiling": 1}, n=4)
    before = len(traces)
    for intensity in (1.0, 2.0, -1.0):
        counting.edit(x[:3], {"Male": 1}, intensity=intensity)
    assert len(traces) == before + 1


def test_more_faces_than_a_batch_come_in_order(model):
    many = model.generate({"Male": 1}, n=LARGEST_BATCH + 3, seed=4)
    assert len(many) == LARGEST_BATCH + 3
    np.testing.assert_allclose(many[:8], model.generate({"Male": 1}, n=8, seed=4), atol=1e-6)


def test_an_edit_infers_what_is_not_given(model, data):
    x = data.test.x[:6]
    told = model.infer_attributes(x)
    assert set(told) == set(model.attributes) and told["Male"][0].shape == (6,)
    y = np.stack([mean for mean, _ in told.values()], -1) > 0.5
    y = y.astype(np.float32)
    new_y, new_mask = y.copy(), np.ones_like(y, bool)
    new_y[:, model.attributes.index("Smiling")] = 1
    expected = edit(model.run.model, model.run.params, x / np.float32(255), y, new_mask, new_y, new_mask, 2.0)
    np.testing.assert_allclose(model.edit(x, {"Smiling": 1}, intensity=2.0), expected, atol=1e-5)


def test_what_is_given_of_a_face_is_not_told_by_the_model(model, data):
    x = data.test.x[:6]
    y = np.stack([mean for mean, _ in model.infer_attributes(x, y={"Male": 1}).values()], -1) > 0.5
    y, column = y.astype(np.float32), model.attributes.index("Male")
    new_y, known = y.copy(), np.ones_like(y, bool)
    y[:, column], new_y[:, column] = 1, 0
    expected = edit(model.run.model, model.run.params, x / np.float32(255), y, known, new_y, known)
    np.testing.assert_allclose(model.edit(x, {"Male": 0}, y={"Male": 1}), expected, atol=1e-5)
    assert np.abs(model.edit(x, {"Male": 0}, y={"Male": 0}) - expected).max() > 0.05


def test_an_edit_that_changes_nothing_returns_the_face_to_the_last_bit(model, data):
    x = data.test.x[:5] / np.float32(255)
    np.testing.assert_array_equal(model.edit(x, {}, keep_detail=True), x)
    np.testing.assert_array_equal(model.edit(x, {"Male": 1}, intensity=0.0, keep_detail=True), x)
    np.testing.assert_allclose(model.edit(x, {}, y={"Male": 1}), model.edit(x, {}, y={"Male": 1}, literal=True))


def test_an_edit_moves_the_pixels_that_its_attribute_shows_in(model, data):
    """Male brightens the upper half of these pictures."""
    rows = np.flatnonzero(data.test.y[:, model.attributes.index("Male")] == 0)[:16]
    x = data.test.x[rows] / np.float32(255)
    change = (model.edit(x, {"Male": 1}) - x).mean((0, 2, 3))
    assert change[:8].mean() > 0.03 + abs(change[8:].mean())


def test_a_sweep_passes_through_the_face_itself_and_goes_both_ways(model, data):
    for face in data.test.x[:4]:
        levels = model.sweep("Male", [-1.0, 0.0, 1.0], face=face)[:, :8].mean((1, 2, 3))
        assert levels[0] < levels[1] < levels[2]
    unchanged = model.edit(data.test.x[0], {})
    np.testing.assert_allclose(model.sweep("Male", [0.0], face=data.test.x[0]), unchanged, atol=1e-5)
    assert np.diff(model.sweep("Male", [-1.0, 0.0, 1.0]).mean((1, 2, 3))).min() > 0


def test_a_morph_goes_from_one_face_to_the_other(model, data):
    x = data.test.x[:2]
    frames = model.morph(x, 5)
    np.testing.assert_allclose(frames[[0, -1]], model.edit(x, {}), atol=1e-5)
    distances = [np.linalg.norm(frame - frames[0]) for frame in frames]
    assert np.all(np.diff(distances) > 0)


def test_real_valued_attributes_are_asked_for_and_told_in_their_own_units(named_runs):
    """An untrained q(y|z) says N(0, 1) in standard units, which is the data's own mean and deviation."""
    model = cmma_jax.load(named_runs.parent / "real-run")
    spec = model.run.spec
    assert spec.kind == "real"
    told = model.infer_attributes(np.full((3, 16, 16, 3), 100, np.uint8))
    for i, name in enumerate(model.attributes):
        np.testing.assert_allclose(told[name][0], spec.attribute_mean[i], atol=1e-5)
        np.testing.assert_allclose(told[name][1], spec.attribute_std[i], rtol=1e-5)
    faces = [model.generate({"Male": value}, temperature=0.0)[0, :8].mean() for value in ("-2sd", "p50", "+2sd")]
    assert faces[0] < faces[1] < faces[2]
    face = np.full((16, 16, 3), 0.4)
    assert np.diff(model.sweep("Male", [-1.0, 0.0, 1.0], face=face)[:, :8].mean((1, 2, 3))).min() > 0


def test_what_is_known_changes_what_is_told_and_is_kept(model, data):
    told = model.infer_attributes(data.test.x[:3], y={"Male": 1}, steps=2)
    assert all(np.isfinite(mean).all() and (deviation >= 0).all() for mean, deviation in told.values())


@pytest.mark.parametrize("call, words", [
    (lambda m: m.generate({"Mal": 1}), "did you mean 'Male'"),
    (lambda m: m.generate({"Male": 3}), "Male=3 is out of range"),
    (lambda m: m.generate(n=0), "0 faces"),
    (lambda m: m.generate(temperature=-1.0), "temperature -1"),
    (lambda m: m.edit(np.zeros((16, 16, 3)), {"Male": 1}, intensity=float("nan")), "intensity nan is no number"),
    (lambda m: m.edit(np.zeros((8, 8, 3)), {"Male": 1}), "shape"),
    (lambda m: m.reconstruct(np.full((16, 16, 3), 2.0)), "outside"),
    (lambda m: m.infer_attributes(np.zeros((16, 16, 3)), samples=0), "samples 0"),
    (lambda m: m.morph(np.zeros((1, 16, 16, 3))), "2 faces"),
    (lambda m: m.export("/nowhere/s.bin"), "cannot write"),
])
def test_bad_input_says_what_is_wrong(call, words, model):
    with pytest.raises(InputError, match=words):
        call(model)


def test_models_without_a_part_say_so(named_runs):
    x = np.zeros((1, 16, 16, 3), np.uint8)
    with pytest.raises(InputError, match="no q"):
        cmma_jax.load(named_runs / "cvae").infer_attributes(x)
    assert cmma_jax.load(named_runs / "cvae").edit(x, {"Male": 1}, y={"Male": 0}).shape == (1, 16, 16, 3)
    with pytest.raises(InputError, match="cannot encode a face"):
        cmma_jax.load(named_runs / "cgan").reconstruct(x)
    assert cmma_jax.load(named_runs / "cgan").generate({"Male": 1}, n=2).shape == (2, 16, 16, 3)


def test_the_exported_sampler_runs_without_this_package(model, tmp_path):
    paths = model.export(tmp_path / "sampler.bin")
    facts = json.loads(paths[1].read_text())
    assert facts["attributes"] == list(model.attributes)
    expected = model.generate({"Male": 1}, n=5, seed=7, temperature=0.5)
    script = f"""
import json, pathlib, sys
import numpy as np, jax, jax.export
facts = json.loads(pathlib.Path({str(paths[1])!r}).read_text())
sampler = jax.export.deserialize(bytearray(pathlib.Path({str(paths[0])!r}).read_bytes()))
y = np.zeros((5, len(facts["attributes"])), np.float32)
y[:, facts["attributes"].index("Male")] = 1
np.save({str(tmp_path / "faces.npy")!r}, sampler.call(np.uint32(7), y, y > 0, np.float32(0.5)))
assert not any(name.startswith("cmma_jax") for name in sys.modules)
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True,
                           text=True)
    assert ended.returncode == 0, ended.stderr
    np.testing.assert_allclose(np.load(tmp_path / "faces.npy"), expected, atol=1e-5)


def test_the_pure_functions_compose_with_vmap_grad_and_pmap(small):
    y, mask = jnp.asarray(small.data.test.y[:8]), jnp.asarray(small.data.test.mask[:8])
    keys = row_keys(0, jnp.arange(8))
    whole = generate(small.model, small.params, keys, y, mask)

    def one(key, y, mask):
        return cmma_jax.generate(small.model, small.params, key[None], y[None], mask[None])[0]

    np.testing.assert_allclose(jax.vmap(one)(keys, y, mask), whole, atol=1e-5)
    shards = [a.reshape(4, 2, *a.shape[1:]) for a in (keys, y, mask)]
    shared = jax.pmap(lambda key, y, mask: cmma_jax.generate(small.model, small.params, key, y, mask))(*shards)
    np.testing.assert_allclose(np.asarray(shared).reshape(whole.shape), whole, atol=1e-5)
    gradient = jax.grad(lambda y: cmma_jax.generate(small.model, small.params, keys, y, mask).sum())(y)
    assert np.isfinite(gradient).all() and np.abs(np.where(mask, gradient, 0)).max() > 0
    assert np.abs(np.where(mask, 0, gradient)).max() == 0


def test_the_package_offers_what_it_names():
    assert all(callable(getattr(cmma_jax, name)) for name in cmma_jax.__all__)
