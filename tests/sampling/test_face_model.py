"""`cmma_jax.load` and what its model does, against the pure functions and from a process without the package."""

import functools
import json
import os
import shutil
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
from cmma_jax.models.flow import STEPS, draw
from cmma_jax.sampling.face_model import FaceModel
from cmma_jax.sampling.faces import GUIDANCE, LARGEST_BATCH, edit, generate
from cmma_jax.training.config import FLOW


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


def test_guidance_is_1_5_where_all_attributes_are_asked_of_a_flow_and_nearly_5_where_one_is(model):
    """1 is the plain velocity, to the bit; where nothing is asked for there is nothing to do."""
    y, mask = (np.repeat(a[None], 4, 0) for a in model.encode({"Male": 1, "Smiling": 1}))
    keys = row_keys(0, np.arange(4))
    few = 5 - 3.5 * mask[0].mean()
    made = {w: model.generate({"Male": 1, "Smiling": 1}, n=4, guidance=w) for w in (None, 1, GUIDANCE, 2.5, few)}
    np.testing.assert_array_equal(made[None], made[few])
    every = dict.fromkeys(model.attributes, 1)
    np.testing.assert_array_equal(*(model.generate(every, groups=False, guidance=w) for w in (None, GUIDANCE)))
    both = [np.stack([a, b[0]]) for a, b in zip(model.encode(every, groups=False), (y, mask), strict=True)]
    np.testing.assert_allclose(model.generate_encoded(*both)[1], made[few][1], atol=1e-5)  # whatever stands beside it
    plain = generate(model.run.model, model.run.params, keys, y, mask, jnp.float32(1), None, steps=STEPS)
    np.testing.assert_array_equal(made[1], plain)
    assert model._guided_by(1, True)(mask) is None  # so that the network passes over a face once, not twice
    away = [np.abs(made[w] - plain).max() for w in (GUIDANCE, 2.5)]
    assert 0.001 < away[0] < away[1]
    free = [model.generate({}, n=4, guidance=w) for w in (None, 0, 2.5)]
    np.testing.assert_array_equal(free[0], free[1])
    np.testing.assert_array_equal(free[0], free[2])


def test_pixels_are_drawn_at_the_details_temperature_where_it_is_asked_for(model, small):
    changes = {"likelihood": "gaussian", "detail_width": 8, "detail_blocks": 1}
    network, params = small.variant(**changes)
    run = model.run._replace(model=network, params=params, spec=small.data.spec)
    detailed = FaceModel(run)
    faces = {t: detailed.generate({"Male": 1}, n=3, detail=t) for t in (None, 0, 1)}
    y, mask = (np.repeat(a[None], 3, 0) for a in detailed.encode({"Male": 1}))
    z = draw(network, params, row_keys(0, np.arange(3)), y, mask, guidance=jnp.float32(5 - 3.5 * mask[0].mean()))
    np.testing.assert_allclose(faces[None], np.clip(network.likelihood(params, z, y, mask).mean, 0, 1), atol=1e-4)
    assert all(np.abs(faces[one] - faces[other]).mean() > 0.01 for one, other in ((None, 0), (None, 1), (0, 1)))
    np.testing.assert_allclose(faces[1], np.round(255 * faces[1]) / 255, atol=1e-6)
    with pytest.raises(InputError, match="detail -1 is out of range"):
        detailed.generate(detail=-1.0)
    with pytest.raises(InputError, match="cmma in .* has no detail, by which pixels are drawn; leave detail out"):
        model.generate(detail=1.0)


def test_guidance_is_refused_where_it_means_nothing(model, named_runs, tmp_path):
    with pytest.raises(InputError, match="guidance 0 forgets the attributes.*of which 1 is none"):
        model.generate({"Male": 1}, guidance=0)
    with pytest.raises(InputError, match="guidance -1 is out of range"):
        model.generate({"Male": 1}, guidance=-1.0)
    with pytest.raises(InputError, match="guidance nan"):
        model.generate({"Male": 1}, guidance=float("nan"))
    for run, words in (("runs/cvae", "cvae in .* has a flow that does not see attributes"),
                       ("runs/cgan", "cgan in .* has a Gaussian prior"), ("cmma-plane", "cmma in .* has a Gaussian")):
        other = cmma_jax.load(named_runs.parent / run)
        with pytest.raises(InputError, match=words + ".*leave guidance out, or give 1"):
            other.generate({"Male": 1}, guidance=1.5)
        assert other._guided_by(None, True)(None) is other._guided_by(1, True)(None) is None
    shutil.copytree(named_runs / "cmma", tmp_path / "early")
    shutil.rmtree(tmp_path / "early" / FLOW)
    early = cmma_jax.load(tmp_path / "early", unfinished=True)
    with pytest.raises(InputError, match="has no flow yet.*the command that began the run goes on with it"):
        early.export(tmp_path / "sampler.bin", guidance=2.0)


def test_literal_is_for_gaussian_priors(model, data, named_runs):
    with pytest.raises(InputError, match="literal is for Gaussian priors.*edits by its flow"):
        model.edit(data.test.x[:1], {"Male": 1}, literal=True)
    plane = cmma_jax.load(named_runs.parent / "cmma-plane")
    other = plane.edit(data.test.x[:1], {"Male": 1}, y={"Male": 0}, literal=True)
    assert np.abs(other - plane.edit(data.test.x[:1], {"Male": 1}, y={"Male": 0})).max() > 1e-3


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
    for intensity, keep in ((1.0, True), (2.0, False), (-1.0, True)):
        counting.edit(x[:3], {"Male": 1}, intensity=intensity, keep_detail=keep)
    assert len(traces) == before + 1


def test_more_faces_than_a_batch_come_in_order(model):
    many = model.generate({"Male": 1}, n=LARGEST_BATCH + 3, seed=4)
    assert len(many) == LARGEST_BATCH + 3
    np.testing.assert_allclose(many[:8], model.generate({"Male": 1}, n=8, seed=4), atol=1e-6)


def test_an_edit_infers_what_is_not_given(model, data):
    """All but Male, which is given."""
    x, column, how = data.test.x[:8], model.attributes.index("Male"), {"literal": False, "steps": 2}
    inferred = model.infer_attributes(x, y={"Male": 1})
    assert set(inferred) == set(model.attributes) and inferred["Male"][0].shape == (8,)
    y = (np.stack([mean for mean, _ in inferred.values()], -1) > 0.5).astype(np.float32)
    new_y, known = y.copy(), np.ones_like(y, bool)
    y[:, column], new_y[:, column] = 1, 0
    expected = edit(model.run.model, model.run.params, x / np.float32(255), y, known, new_y, known,
                    np.full(8, 0.5, np.float32), keep_detail=True, **how)
    np.testing.assert_allclose(model.edit(x, {"Male": 0}, y={"Male": 1}, intensity=0.5, **how), expected, atol=1e-5)
    assert np.abs(model.edit(x, {"Male": 0}, y={"Male": 0}, intensity=0.5, **how) - expected).max() > 0.01


def test_an_edit_that_changes_nothing_returns_the_face_to_the_last_bit(model, data):
    x = data.test.x[:8] / np.float32(255)
    np.testing.assert_array_equal(model.edit(x, {}, steps=2), x)
    np.testing.assert_array_equal(model.edit(x, {"Male": 1}, intensity=0.0, steps=2), x)
    decoded = model.edit(x, {"Male": 1}, intensity=0.0, steps=2, keep_detail=False)
    assert np.abs(decoded - x).max() > 0.01


def test_a_sweep_passes_through_the_face_itself_and_goes_both_ways(model, data, named_runs):
    levels, face = np.array([-0.01, 0, 0.01]), data.test.x[0]
    (y,), _ = model.complete(face[None] / np.float32(255), *(a[None] for a in model.encode({})))
    for had in (0, 1):
        name = model.attributes[np.flatnonzero(y == had)[0]]
        frames = model.sweep(name, levels, face=face, groups=False)
        np.testing.assert_array_equal(frames[1], face / np.float32(255))
        # What is asked for lies ahead of a face that has it not, and behind one that has it: there it is reset.
        edited = model.edit(face, {name: 1 - had}, intensity=0.01, groups=False)[0]
        np.testing.assert_allclose(frames[0 if had else 2], edited, atol=1e-5)
        assert ((frames[2] - frames[1]) * (frames[0] - frames[1])).sum() < 0
    frames = model.sweep("Male", levels)
    np.testing.assert_allclose(frames[1:2], model.generate({}), atol=1e-6)
    gaussian = cmma_jax.load(named_runs.parent / "cmma-plane")
    y, mask = gaussian.encode({"Male": 0.5})
    np.testing.assert_allclose(gaussian.sweep("Male", [0.0]), gaussian.generate_encoded(y[None], mask[None],
                                                                                        temperature=0.0), atol=1e-6)


def test_a_morph_goes_from_one_face_to_the_other(model, data):
    x = data.test.x[:2]
    frames = model.morph(x, 5)
    np.testing.assert_allclose(frames[[0, -1]], model.edit(x, {}, keep_detail=False), atol=1e-3)
    assert np.abs(frames[2] - frames[0]).max() > 0.01


def test_real_valued_attributes_are_asked_for_and_inferred_in_their_own_units(named_runs):
    """This q(y|z) says N(0, 1) in standard units, which is the data's own mean and deviation."""
    model = cmma_jax.load(named_runs.parent / "real-run")
    spec = model.run.spec
    assert spec.kind == "real"
    inferred = model.infer_attributes(np.full((3, 16, 16, 3), 100, np.uint8))
    for i, name in enumerate(model.attributes):
        np.testing.assert_allclose(inferred[name][0], spec.attribute_mean[i], atol=1e-5)
        np.testing.assert_allclose(inferred[name][1], spec.attribute_std[i], rtol=1e-5)
    column = model.attributes.index("Male")
    score = spec.attribute_mean[column] + 2 * spec.attribute_std[column]
    made = [model.generate({"Male": value}, temperature=0.0) for value in (score, "+2sd", "-2sd")]
    np.testing.assert_allclose(made[0], made[1], atol=1e-4)
    assert np.abs(made[2] - made[1]).max() > 0.01


def test_what_is_known_changes_what_is_inferred_and_is_kept(model, data):
    inferred = model.infer_attributes(data.test.x[:3], y={"Male": 1})
    assert all(np.isfinite(mean).all() and (deviation >= 0).all() for mean, deviation in inferred.values())
    other = model.infer_attributes(data.test.x[:3], y={"Male": 0})
    assert max(np.abs(inferred[name][0] - other[name][0]).max() for name in model.attributes) > 1e-3


@pytest.mark.parametrize("call, words", [
    (lambda m: m.generate({"Mal": 1}), "did you mean 'Male'"),
    (lambda m: m.generate({"Male": 3}), "Male=3 is out of range"),
    (lambda m: m.generate(n=0), "0 faces"),
    (lambda m: m.generate(temperature=-1.0), "temperature -1"),
    (lambda m: m.generate(steps=0), "steps 0 is out of range; give 1 or more"),
    (lambda m: m.generate(steps=2.5), "steps 2.5 is no whole number"),
    (lambda m: m.generate(steps=float("inf")), "steps inf is no number"),
    (lambda m: m.edit(np.zeros((16, 16, 3)), {"Male": 1}, steps=0), "steps 0"),
    (lambda m: m.export("s.bin", guidance=0), "guidance 0 forgets"),
    (lambda m: m.export("s.bin", steps=0), "steps 0"),
    (lambda m: m.edit(np.zeros((16, 16, 3)), {"Male": 1}, intensity=float("nan")), "intensity nan is no number"),
    (lambda m: m.edit(np.zeros((8, 8, 3)), {"Male": 1}), "shape"),
    (lambda m: m.reconstruct(np.full((16, 16, 3), 2.0)), "outside"),
    (lambda m: m.infer_attributes(np.zeros((16, 16, 3)), samples=0), "samples 0"),
    (lambda m: m.morph(np.zeros((1, 16, 16, 3))), "2 faces"),
    (lambda m: m.export("/dev/null/s.bin"), "cannot write"),
])
def test_bad_input_says_what_is_wrong(call, words, model):
    with pytest.raises(InputError, match=words):
        call(model)


def test_models_without_a_part_say_so(named_runs):
    x = np.zeros((1, 16, 16, 3), np.uint8)
    cvae, cgan = (cmma_jax.load(named_runs / name) for name in ("cvae", "cgan"))
    with pytest.raises(InputError, match="no q"):
        cvae.infer_attributes(x)
    assert cvae.edit(x, {"Male": 1}, y={"Male": 0}).shape == (1, 16, 16, 3)
    for call in (cgan.reconstruct, lambda x: cgan.edit(x, {"Male": 1}), lambda x: cgan.morph(np.repeat(x, 2, 0))):
        with pytest.raises(InputError, match="the cgan in .* cannot encode a face; choose a CMMA, a CVAE or a VAE"):
            call(x)
    assert cgan.generate({"Male": 1}, n=2).shape == (2, 16, 16, 3)


def test_the_exported_sampler_chooses_its_guidance_as_the_package_does(model, tmp_path):
    path, facts = model.export(tmp_path / "sampler.bin")
    assert json.loads(facts.read_text())["guidance"] == "as the package's"
    sampler = jax.export.deserialize(bytearray(path.read_bytes()))
    for attributes in ({"Male": 1}, dict.fromkeys(model.attributes, 1)):
        y, mask = (np.repeat(a[None], 2, 0) for a in model.encode(attributes, groups=False))
        found = sampler.call(np.uint32(7), y, mask, np.float32(1))
        np.testing.assert_allclose(found, model.generate(attributes, n=2, seed=7, groups=False), atol=1e-4)


def test_the_exported_sampler_runs_without_this_package(model, tmp_path):
    paths = model.export(tmp_path / "sampler.bin", guidance=2.0, steps=3)
    facts = json.loads(paths[1].read_text())
    assert facts["attributes"] == list(model.attributes) and (facts["guidance"], facts["steps"]) == (2.0, 3)
    expected = model.generate({"Male": 1}, n=5, seed=7, temperature=0.5, guidance=2.0, steps=3)
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
    keys, make = row_keys(0, jnp.arange(8)), functools.partial(cmma_jax.generate, small.model, small.params, steps=1)
    whole = make(keys, y, mask)

    def one(key, y, mask):
        return make(key[None], y[None], mask[None])[0]

    np.testing.assert_allclose(jax.vmap(one)(keys, y, mask), whole, atol=1e-5)
    shards = [a.reshape(4, 2, *a.shape[1:]) for a in (keys, y, mask)]
    shared = jax.pmap(make)(*shards)
    np.testing.assert_allclose(np.asarray(shared).reshape(whole.shape), whole, atol=1e-5)
    gradient = jax.grad(lambda y: make(keys, y, mask).sum())(y)
    assert np.isfinite(gradient).all() and np.abs(np.where(mask, gradient, 0)).max() > 0
    assert np.abs(np.where(mask, 0, gradient)).max() == 0


def test_the_package_offers_what_it_names():
    assert all(callable(getattr(cmma_jax, name)) for name in cmma_jax.__all__)
