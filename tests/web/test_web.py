"""The page's server: what it answers and what it refuses, against the same calls in Python."""

import asyncio
import base64
import contextlib
import io
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the page needs FastAPI: pip install '.[web]'")
pytest.importorskip("httpx2", reason="Starlette's test client needs httpx2")

import uvicorn  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

import cmma_jax  # noqa: E402
from cmma_jax.cli.main import main  # noqa: E402
from cmma_jax.data import load_dataset  # noqa: E402
from cmma_jax.errors import InputError  # noqa: E402
from cmma_jax.sampling import photos  # noqa: E402
from cmma_jax.sampling.face_model import GUIDANCE_OF_FEW, FaceModel  # noqa: E402
from cmma_jax.web import Web, guard, load_models, server, studio  # noqa: E402

ADDRESS = "http://127.0.0.1:7860"
OWN = server.names_of("127.0.0.1")
TRACES = []


@pytest.fixture(scope="module")
def models(named_runs):
    """A CMMA with a flow, whose tracings are counted, a CGAN, and a VAE of two latents."""
    cmma, cgan, vae = (cmma_jax.load(named_runs.parent / name) for name in ("runs/cmma", "runs/cgan", "vae-plane"))

    def counted(*args):
        TRACES.append(1)
        return cmma.run.model.likelihood(*args)

    return [FaceModel(cmma.run._replace(model=cmma.run.model._replace(likelihood=counted))), cgan, vae]


@pytest.fixture(scope="module")
def test(models):
    return load_dataset("folder", models[0].run.config.data_dir, image_size=16).test


@pytest.fixture(scope="module")
def client(models, test, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    table = '{"cmma": {"bound": [28543.4, 106.8]}, "cgan": {"parzen": [null, 1.0]}}'
    (folder / "results-folder-test.json").write_text(table)
    with TestClient(server.make_app(models, test, folder, OWN, waiting=3), base_url=ADDRESS) as client:
        yield client


def picture(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def pictures(answer):
    assert answer.status_code == 200, answer.text
    return np.stack([picture(face) for face in answer.json()["faces"]])


def rounded(faces):
    return np.round(255 * np.asarray(faces)).astype(np.uint8)


def close(faces, others):
    """Within one step of 255, where a rounding may fall the other way."""
    return faces.shape == others.shape and np.abs(faces.astype(int) - others).max() <= 1


def pixels(face):
    return base64.b64encode(face.tobytes()).decode()


def encoded(array, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def test_the_page_says_what_it_has(client, models, test):
    about = client.get("/api/about").json()
    assert [each["name"] for each in about["models"]] == ["cmma", "cgan", "vae"]
    can = [[each[part] for part in ("encodes", "infers", "flows", "guided")] for each in about["models"]]
    assert can == [[True] * 4, [False] * 4, [True, False, False, False]]
    assert about["guidance"] == GUIDANCE_OF_FEW
    assert about["faces"] == len(test.x) and about["faces_are"] == "test"
    groups = {each["name"]: each["group"] for each in about["attributes"]}
    assert list(groups) == list(models[0].attributes) and groups["Mustache"] == "Beard" and groups["Male"] == "Person"
    contradicts = {each["name"]: each["contradicts"] for each in about["attributes"]}
    assert "Mouth Closed" in contradicts["Mouth Wide Open"]
    assert about["presets"]["Fig. 6: male, Asian"] == {
        "Male": True, "Asian": True, "Mouth Closed": True, "No Eyewear": True, "Bushy Eyebrows": False,
        "Big Nose": False, "Pointy Nose": False, "Big Lips": False}
    assert picture("," + base64.b64encode(client.get("/api/faces/3").content).decode()).tolist() == test.x[3].tolist()


def test_faces_are_those_of_the_same_call_in_python(client, models):
    body = {"model": "cmma", "attributes": {"Male": 1, "Smiling": 0}, "n": 5, "seed": 7, "temperature": 0.7}
    expected = models[0].generate({"Male": 1, "Smiling": 0}, n=5, seed=7, temperature=0.7)
    assert close(pictures(client.post("/api/make", json=body)), rounded(expected))
    guided = models[0].generate({"Male": 1, "Smiling": 0}, n=5, seed=7, temperature=0.7, guidance=3.0)
    assert close(pictures(client.post("/api/make", json=body | {"guidance": 3})), rounded(guided))
    preview = models[0].generate({"Male": 1}, seed=7, steps=studio.PREVIEW_STEPS)
    body = {"model": "cmma", "attributes": {"Male": 1}, "seed": 7}
    assert close(pictures(client.post("/api/make", json=body | {"preview": True})), rounded(preview))
    body |= {"model": "cgan", "attributes": {"Male": 1, "Smiling": 0}, "temperature": 0.7}
    expected = models[1].generate({"Male": 1, "Smiling": 0}, n=1, seed=7, temperature=0.7)
    assert close(pictures(client.post("/api/make", json=body)), rounded(expected))


def test_guidance_of_0_or_where_it_means_nothing_is_answered(client):
    answer = client.post("/api/make", json={"model": "cmma", "attributes": {"Male": 1}, "guidance": 0})
    assert answer.status_code == 409 and "of which 1 is none" in answer.json()["error"]
    answer = client.post("/api/make", json={"model": "cgan", "guidance": 2})
    assert answer.status_code == 409 and "takes no guidance" in answer.json()["error"]


def test_an_intensity_goes_beyond_the_attribute(client, models):
    y, mask = models[0].encode({"Male": 1, "Smiling": 0})
    y[models[0].attributes.index("Male")], y[models[0].attributes.index("Smiling")] = 3, -1
    expected = models[0].generate_encoded(y[None], mask[None], temperature=0.0)
    body = {"model": "cmma", "attributes": {"Male": 3, "Smiling": -1}, "temperature": 0}
    assert close(pictures(client.post("/api/make", json=body)), rounded(expected))
    assert not close(rounded(expected), rounded(models[0].generate({"Male": 1, "Smiling": 0}, temperature=0.0)))


def test_setting_an_attribute_resets_what_contradicts_it(client, models):
    y, mask = studio.Studio(models[0])._settle({"Eyeglasses": 1}, *models[0].encode({}))
    expected, known = models[0].encode({"Eyeglasses": 1})
    assert y.tolist() == expected.tolist() and mask.tolist() == known.tolist() and mask.sum() == 3
    answer = client.post("/api/make", json={"model": "cmma", "attributes": {"Eyeglasses": 1, "Sunglasses": 2}})
    assert answer.status_code == 409 and "Eyeglasses and Sunglasses contradict" in answer.json()["error"]


@pytest.mark.parametrize("by_number", (True, False))
def test_edits_are_those_of_the_same_calls_in_python(client, models, test, by_number):
    body = {"model": "cmma", "face": 4 if by_number else pixels(test.x[4]), "intensity": 0.5,
            "edits": [{"Male": 1}, {"Mustache": 1}, {}]}
    made = pictures(client.post("/api/edit", json=body))
    for face, edit in zip(made, body["edits"], strict=True):
        assert close(face[None], rounded(models[0].edit(test.x[4], edit, intensity=0.5)))
    assert made[2].tolist() == test.x[4].tolist()
    single = pictures(client.post("/api/edit", json=body | {"edits": [{"Male": 1}], "keep_detail": False}))
    assert close(single, rounded(models[0].edit(test.x[4], {"Male": 1}, intensity=0.5, keep_detail=False)))
    preview = pictures(client.post("/api/edit", json=body | {"edits": [{"Male": 1}], "preview": True}))
    assert close(preview, rounded(models[0].edit(test.x[4], {"Male": 1}, intensity=0.5, steps=studio.PREVIEW_STEPS)))


def test_a_faces_attributes_are_inferred_and_it_is_reconstructed(client, models, test):
    answer = client.post("/api/look", json={"model": "cmma", "face": 2}).json()
    for name, (mean, deviation) in models[0].infer_attributes(test.x[2]).items():
        expected = {"mean": float(mean[0]), "deviation": float(deviation[0])}
        assert answer["inferred"][name] == pytest.approx(expected, abs=1e-5)
    assert close(picture(answer["reconstruction"])[None], rounded(models[0].reconstruct(test.x[2])))
    refused = client.post("/api/look", json={"model": "cgan", "face": 2})
    assert refused.status_code == 409 and "the cgan cannot encode a face" in refused.json()["error"]


def test_nothing_is_compiled_after_the_start(client, test):
    before = len(TRACES)
    assert before
    for n in range(1, studio.BATCH + 1):
        for body in ({}, {"attributes": {"Male": n / 2}}, {"attributes": {"Male": 1}, "guidance": n / 2},
                     {"preview": True}, {"attributes": {"Male": 1}, "preview": True}):
            assert client.post("/api/make", json={"model": "cmma", "n": n, "seed": 2**31 - 1} | body).status_code == 200
        for keep in (True, False):
            assert client.post("/api/edit", json={"model": "cmma", "face": n, "edits": [{"Male": 1}] * n,
                                                  "keep_detail": keep, "preview": keep}).status_code == 200
    client.post("/api/look", json={"model": "cmma", "face": pixels(test.x[0])})
    assert len(TRACES) == before


def test_the_results_table_of_evaluate(client, tmp_path):
    assert client.get("/api/results").json() == {"title": "results-folder-test", "rows": [
        ["", "bound", "Parzen"], ["cmma", "28,543 +- 107", ""], ["cgan", "", "nan +- 1"]]}
    assert server.read_results(tmp_path, "folder").rows == []


MAKE, EDIT = ("/api/make", {"model": "cmma"}), ("/api/edit", {"model": "cmma", "face": 0, "edits": [{}]})


WRONG = [
    (MAKE, {"attributes": {"Moustach": 1}}, "attributes.Moustach"),
    (MAKE, {"attributes": {"Male": 4.5}}, "attributes.Male"), (MAKE, {"attributes": {"Male": -3.5}}, "attributes.Male"),
    (MAKE, {"attributes": {"Male": True}}, "attributes.Male"), (MAKE, {"attributes": {"Male": "1"}}, "attributes.Male"),
    (MAKE, {"attributes": ["Male"]}, "attributes"), (MAKE, {"n": 9}, "n:"), (MAKE, {"n": 0}, "n:"),
    (MAKE, {"n": 1.5}, "n:"), (MAKE, {"seed": -1}, "seed"), (MAKE, {"seed": 2**31}, "seed"),
    (MAKE, {"temperature": 2.5}, "temperature"), (MAKE, {"temperature": -0.1}, "temperature"),
    (MAKE, {"model": "cvae"}, "model"), (MAKE, {"model": None}, "model"), (MAKE, {"colour": 1}, "colour"),
    (MAKE, {"guidance": -1}, "guidance"), (MAKE, {"guidance": 11}, "guidance"), (MAKE, {"preview": 1}, "preview"),
    (EDIT, {"edits": []}, "edits"), (EDIT, {"edits": [{}] * 9}, "edits"), (EDIT, {"intensity": 7}, "intensity"),
    (EDIT, {"face": -1}, "face"), (EDIT, {"face": 10_000}, "face"), (EDIT, {"face": "AAAA"}, "face"),
    (EDIT, {"face": "*" * 1024}, "face"), (EDIT, {"keep_detail": "yes"}, "keep_detail"),
]


@pytest.mark.parametrize("good, wrong, where", WRONG, ids=lambda value: str(value)[:40])
def test_what_is_not_valid_is_named(client, good, wrong, where):
    path, body = good
    answer = client.post(path, json=body | wrong)
    assert answer.status_code == 422 and answer.json()["error"].startswith(where.rstrip(":")), answer.text
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("content, kind", [(b"{", "application/json"), (b"", "application/json"),
                                           (b'{"model": "cmma", "temperature": NaN}', "application/json"),
                                           (b'{"model": "cmma", "seed": 1e999}', "application/json"),
                                           (b'{"model": "cmma"}', "text/plain"), (b"[" * 100_000, "application/json"),
                                           (b"\xff\xfe", "application/json")])
def test_what_is_no_json_is_refused(client, content, kind):
    answer = client.post("/api/make", content=content, headers={"content-type": kind})
    assert answer.status_code in (400, 422) and set(answer.json()) == {"error"}


def send_photo(client, content, kind="image/png", **query):
    return client.post("/api/photo", content=content, headers={"content-type": kind}, params=query)


def test_a_photograph_is_cut_as_the_command_cuts_it(client):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    answer = send_photo(client, encoded(noise), left=30, top=20, size=48).json()
    expected = photos.cut(Image.fromarray(noise), photos.Box(30, 20, 48, 48), 16)
    assert close(picture(answer["face"]), rounded(expected)) and answer["preview"] is None
    assert (answer["width"], answer["height"]) == (120, 90)
    found = send_photo(client, encoded(noise, "JPEG"), "image/jpeg").json()
    assert not found["found"] and found["box"] == pytest.approx({"left": 33, "top": 18, "size": 54})
    assert picture(found["preview"]).shape == (90, 120, 3)
    face = noise[:16, :16]
    assert picture(send_photo(client, encoded(face)).json()["face"]).tolist() == face.tolist()


def test_a_found_face_is_cropped_in_the_photographs_own_pixels(client, monkeypatch):
    large = Image.new("RGB", (4096, 2048), "grey")
    monkeypatch.setattr(photos, "detect", lambda preview: (1.0, [photos.Box(100, 100, 64, 64)]))
    crop = send_photo(client, encoded(np.asarray(large))).json()
    small = photos.lfwcrop(photos.Box(100, 100, 64, 64))
    expected = {"left": 4 * small.left, "top": 4 * small.top, "size": 4 * small.width}
    assert crop["found"] and crop["box"] == pytest.approx(expected)
    assert picture(crop["preview"]).shape == (512, 1024, 3)


@pytest.mark.parametrize("turn", photos.TURNS)
def test_a_photograph_on_its_side_is_turned_and_its_square_moves_in_the_turned_one(client, monkeypatch, turn):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    upright = Image.fromarray(noise).rotate(turn, expand=True)
    monkeypatch.setattr(photos, "detect", lambda seen: (1.0, [photos.Box(20, 20, 48, 48)]) if np.array_equal(
        np.asarray(seen), np.asarray(upright)) else (0.0, []))
    crop = send_photo(client, encoded(noise)).json()
    assert crop["found"] and crop["turn"] == turn and (crop["width"], crop["height"]) == upright.size
    expected = photos.cut(upright, photos.lfwcrop(photos.Box(20, 20, 48, 48)), 16)
    assert close(picture(crop["face"]), rounded(expected))
    moved = send_photo(client, encoded(noise), left=10, top=15, size=40, turn=turn).json()
    assert close(picture(moved["face"]), rounded(photos.cut(upright, photos.Box(10, 15, 40, 40), 16)))
    assert send_photo(client, encoded(noise), size=40, turn=45).status_code == 422


def test_photographs_that_are_none(client, here_photos):
    for name, status, said in (("words", 415, "cannot be decoded"), ("cut", 415, "cannot be decoded"),
                               ("eps", 415, "cannot be decoded"), ("huge", 422, "too large"),
                               ("tiny", 422, "too small")):
        answer = send_photo(client, here_photos[name])
        assert (answer.status_code, said in answer.json()["error"]) == (status, True), answer.text
    good = here_photos["good"]
    assert send_photo(client, good, "text/plain").status_code == 415
    assert send_photo(client, good, left=500, top=0, size=20).status_code == 422
    assert send_photo(client, good, left=0, top=0, size=400).status_code == 422
    assert send_photo(client, good, size="nan").status_code == 422
    assert send_photo(client, good, size=20).status_code == 200


@pytest.fixture
def here_photos():
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    good = encoded(np.full((60, 80, 3), 90, np.uint8))
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return {"good": good, "words": b"not an image", "cut": good[:60], "tiny": encoded(np.zeros((1, 1, 3), np.uint8)),
            "eps": encoded(np.zeros((60, 60, 3), np.uint8), "EPS"),
            "huge": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")}


def test_requests_have_bounds(client):
    assert send_photo(client, b"x" * (guard.UPLOAD_BYTES + 1)).status_code == 413
    assert send_photo(client, (b"x" * 2**20 for _ in range(11))).status_code == 413  # of no declared length
    assert send_photo(client, b"x" * (guard.UPLOAD_BYTES - 1)).status_code == 415
    assert client.post("/api/make", content=b" " * (guard.JSON_BYTES + 1)).status_code == 413
    assert client.post("/api/make", content=b"{}", headers={"content-length": "-1"}).status_code == 413


def test_uploads_never_touch_the_disk(client):
    opened, watching = [], threading.Event()

    def watch(event, arguments):
        if watching.is_set() and event in ("open", "os.rename", "os.mkdir", "tempfile.mkstemp"):
            opened.append((event, arguments))

    sys.addaudithook(watch)  # there is no way to take it away again
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3)).astype(np.uint8)
    content = encoded(noise)
    assert len(content) > 4 * 2**20
    watching.set()
    try:
        assert send_photo(client, content, left=30, top=20, size=48).status_code == 200
        assert client.post("/api/edit", json=EDIT[1]).status_code == 200
    finally:
        watching.clear()
    written = [arguments for event, arguments in opened
               if event != "open" or any(sign in str(arguments[1]) for sign in "wxa+")]
    assert not written


@pytest.mark.parametrize("host, status", [
    ("127.0.0.1:7860", 200), ("localhost:7860", 200), ("LOCALHOST", 200), ("[::1]:7860", 200), ("evil.example", 421),
    ("127.0.0.1.evil.example:7860", 421), ("evil.example:127.0.0.1", 421), ("192.168.1.7:7860", 421), ("", 421),
    ("localhost@evil.example", 421), ("[", 421)])
def test_only_its_own_names_are_answered(client, host, status):
    for path in ("/", "/api/about"):
        assert client.get(path, headers={"host": host}).status_code == status


def test_names_of_a_host():
    assert "kitchen" in server.names_of("Kitchen") and "*" not in server.names_of("Kitchen")
    everywhere = guard.Guard(None, server.names_of("0.0.0.0"))
    for name, known in (("192.168.1.7:80", True), ("[fe80::1]", True), (socket.gethostname(), True),
                        ("evil.example", False)):
        assert everywhere._known(name) == known


@pytest.mark.parametrize("headers, page, api", [
    ({"origin": ADDRESS}, 200, 200), ({"origin": "http://evil.example"}, 403, 403), ({"origin": "null"}, 403, 403),
    ({"origin": "http://127.0.0.1:8000"}, 403, 403), ({"sec-fetch-site": "same-origin"}, 200, 200),
    ({"sec-fetch-site": "none"}, 200, 200), ({"sec-fetch-site": "cross-site"}, 200, 403),
    ({"sec-fetch-site": "same-site"}, 200, 403)])
def test_other_origins_are_refused(client, headers, page, api):
    assert client.get("/", headers=headers).status_code == page
    assert client.get("/api/about", headers=headers).status_code == api
    assert client.post("/api/make", json=MAKE[1], headers=headers).status_code == api


@pytest.mark.parametrize("stripped", [True, False])
def test_behind_a_server_with_a_path_and_a_public_name_it_is_answered(stripped, client, models, test, tmp_path):
    """As nginx and Caddy pass requests on: under the public Host or their own, the path taken off or left."""
    under = server.make_app(models, test, tmp_path, OWN, root_path="/faces", public=frozenset({"faces.example.org"}))
    prefix = "" if stripped else "/faces"
    asked = {"origin": "https://faces.example.org"}
    with TestClient(under, base_url="http://127.0.0.1:7860") as outside:
        for host in ("faces.example.org", "127.0.0.1:7860"):
            headers = asked | {"host": host}
            assert outside.get(f"{prefix}/", headers=headers).status_code == 200
            assert outside.post(f"{prefix}/api/make", json=MAKE[1], headers=headers).status_code == 200
        assert outside.get(f"{prefix}/api/about", headers={"host": "evil.example"}).status_code == 421
        assert outside.get(f"{prefix}/api/about", headers={"origin": "http://evil.example"}).status_code == 403
        assert outside.get(f"{prefix}/api/about", headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert outside.get(f"{prefix}/", headers={"sec-fetch-site": "cross-site"}).status_code == 200
        large = b"x" * (guard.JSON_BYTES + 1)  # more than elsewhere is taken of photographs alone
        assert outside.post(f"{prefix}/api/photo", content=large, headers={"content-type": "image/png"}
                            ).status_code == 415
        assert outside.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/faces"}]
    assert client.get("/api/about", headers=asked).status_code == 403


def test_no_file_names_another_place_on_the_server(client):
    """All addresses are relative, so that the page can lie under any path."""
    for path in server.FILES:
        text = client.get(path).text
        assert not re.search(r"""(?:href|src)="/|["'`]/api""", text), path


@pytest.mark.parametrize("path", ["/", "/api", "/api/about", "/openapi.json", "/api/faces/0"])
def test_head_is_get_without_its_body(path, client):
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200 and head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"]


def test_a_photograph_in_avif_is_taken_and_messages_name_no_place_in_memory(client):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    assert send_photo(client, encoded(noise, "AVIF"), "image/avif").status_code == 200
    message = send_photo(client, b"nothing", "image/png").json()["error"]
    assert "cannot be decoded" in message and " at 0x" not in message


def test_every_answer_has_its_security_headers(client):
    for answer in (client.get("/"), client.get("/api/about"), client.get("/nothing"), client.post("/api/make", json={}),
                   client.get("/", headers={"host": "evil.example"}), client.get("/api/faces/0")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';") and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff" and "server" not in answer.headers
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_asks_nobody_else(client):
    for path, (name, kind) in server.FILES.items():
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind), name
        assert "://" not in answer.text.replace("http://www.w3.org/2000/svg", ""), name
        assert "<style" not in answer.text and "onclick=\"" not in answer.text
    assert client.get("/docs").status_code == 404


def test_the_interface_describes_itself(client):
    spec = client.get("/openapi.json").json()
    assert set(spec["paths"]) == {"/api/about", "/api/make", "/api/look", "/api/edit", "/api/photo",
                                  "/api/faces/{number}", "/api/results"}
    names = spec["components"]["schemas"]["Make"]["properties"]["attributes"]["propertyNames"]["enum"]
    assert "Mustache" in names
    for operations in spec["paths"].values():
        for operation in operations.values():
            assert operation["description"] and {"200", "422", "503"} <= set(operation["responses"])


def test_a_full_queue_answers_503(client, monkeypatch):
    full, go_on, arrived, answers = threading.Event(), threading.Event(), [], []
    made, run = studio.Studio.make, guard.Queue.run

    def slow(self, *arguments):
        assert go_on.wait(60)
        return made(self, *arguments)

    async def told(self, *arguments):
        arrived.append(1)
        if len(arrived) == 3:
            full.set()  # what arrives after this one finds the third place taken: the loop takes them in turn
        return await run(self, *arguments)

    monkeypatch.setattr(studio.Studio, "make", slow)
    monkeypatch.setattr(guard.Queue, "run", told)
    clients = [threading.Thread(target=lambda: answers.append(client.post("/api/make", json=MAKE[1])))
               for _ in range(3)]
    for each in clients:
        each.start()
    try:
        assert full.wait(60)
        refused = client.post("/api/look", json={"model": "cmma", "face": 0})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1" and client.get("/api/about").status_code == 200
    finally:
        go_on.set()
    for each in clients:
        each.join()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert client.post("/api/make", json=MAKE[1]).status_code == 200


class Asked:
    """A request as the queue sees it."""

    def __init__(self, gone=False):
        self.gone = gone

    async def is_disconnected(self):
        return self.gone


def test_what_nobody_waits_for_is_not_begun():
    async def ask():
        queue, done, go_on = guard.Queue(8, 5.0), [], threading.Event()
        tasks = [asyncio.create_task(queue.run(Asked(), go_on.wait, 5))]
        await asyncio.sleep(0.02)
        requests = [Asked(), Asked(), Asked()]
        tasks += [asyncio.create_task(queue.run(each, done.append, i)) for i, each in enumerate(requests)]
        await asyncio.sleep(0.02)
        requests[1].gone = True
        go_on.set()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        return done, ended, queue.taken

    done, ended, taken = asyncio.run(ask())
    assert done == [0, 2] and isinstance(ended[2], HTTPException) and taken == 0


def test_what_takes_too_long_is_given_up():
    async def ask():
        queue, go_on = guard.Queue(8, 0.05), threading.Event()
        try:
            with pytest.raises(HTTPException) as raised:
                await queue.run(Asked(), go_on.wait, 5)
        finally:
            go_on.set()
        return raised.value.status_code, await queue.run(Asked(), int, "7")

    assert asyncio.run(ask()) == (503, 7)


def test_a_body_that_comes_slowly_or_breaks_off_is_refused(monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    sent = []

    async def never():
        await asyncio.sleep(10)

    async def gone():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def ask(receive):
        watched = guard.Guard(None, OWN, ("/api/photo",))
        await watched({"type": "http", "path": "/api/photo", "method": "POST",
                       "headers": [(b"host", b"localhost"), (b"content-length", b"5")]}, receive, send)
        assert watched.reading == 0

    for receive, status in ((never, 408), (gone, 400)):
        asyncio.run(ask(receive))
        assert sent[-2]["status"] == status and "error" in json.loads(sent[-1]["body"])


def test_no_more_bodies_are_read_at_once_than_memory_is_meant_for():
    async def ask():
        watched, sent = guard.Guard(None, OWN, ("/api/photo",)), []
        watched.reading = guard.READING

        async def send(message):
            sent.append(message)

        await watched({"type": "http", "path": "/api/photo", "method": "POST",
                       "headers": [(b"host", b"localhost"), (b"content-length", b"5")]}, None, send)
        return sent[0]["status"]

    assert asyncio.run(ask()) == 503


def test_without_test_faces_the_model_makes_some(models):
    faces = studio.choose_faces(models[0], None)
    assert faces.shape == (studio.STAND_INS, 16, 16, 3) and faces.dtype == np.uint8 and faces.std(0).mean() > 1


def test_real_valued_attributes_are_in_deviations(named_runs):
    model = cmma_jax.load(named_runs.parent / "real-run")
    y, mask = studio.Studio(model)._settle({"Male": 2.0, "Smiling": -1.5}, *model.encode({}))
    expected, known = model.encode({"Male": "+2sd", "Smiling": "-1.5sd"})
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert mask.tolist() == known.tolist()


def test_models_that_learnt_the_same_are_found(named_runs):
    found = load_models(Web(runs_dir=str(named_runs)))
    assert [model.run.system for model in found] == ["cmma", "cvae", "cgan"]
    alone = load_models(Web(run=str(named_runs / "cvae"), runs_dir=str(named_runs.parent / "nowhere")))
    assert [model.run.system for model in alone] == ["cvae"]


def test_the_command_refuses_in_one_line(named_runs, tmp_path, capsys, monkeypatch):
    assert main(["web", "--port=99999"]) == 2
    assert "--port=99999 is out of range" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["web", f"--runs_dir={named_runs}", f"--port={taken.getsockname()[1]}"]) == 2
    assert "give another --port" in capsys.readouterr().err
    assert main(["web", f"--run={tmp_path}", "--port=0"]) == 2
    assert "no run in" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["web"]) == 2
    assert "pip install '.[web]'" in capsys.readouterr().err


def test_the_page_ships_with_the_package():
    folder = pathlib.Path(server.__file__).parent
    assert {name for name, _ in server.FILES.values()} == {path.name for path in folder.iterdir()
                                                           if path.suffix in (".html", ".css", ".js", ".svg")}
    settings = (folder.parent.parent / "pyproject.toml").read_text()
    assert '"cmma_jax.web" = ["*.html", "*.css", "*.js", "*.svg"]' in settings


def test_schemathesis_finds_nothing(models, test, tmp_path):
    program = shutil.which("schemathesis")
    if program is None:
        pytest.skip("needs schemathesis: pip install schemathesis")
    with serving(server.make_app(models, test, tmp_path, OWN)) as url:
        config = pathlib.Path(__file__).with_name("schemathesis.toml")
        ended = subprocess.run([program, f"--config-file={config}", "run", f"{url}/openapi.json", "--max-examples=15",
                                "--seed=1", "--no-color"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-5000:]
    print(ended.stdout[-1500:])


@contextlib.contextmanager
def serving(app):
    """Serves an application on a free port; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", server_header=False))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join(20)


def test_a_contradiction_is_an_input_error(models):
    with pytest.raises(InputError, match="contradict"):
        studio.Studio(models[0]).make({"Smiling": 1, "Mouth Closed": 1, "Mouth Wide Open": 1}, 1, 0, 1.0)
