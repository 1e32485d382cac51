"""The page's server: a FastAPI application made of loaded models; it holds nothing but them."""

import base64
import ipaddress
import pathlib
import socket
from importlib import resources
from typing import Annotated, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from cmma_jax.data.dataset import Faces
from cmma_jax.data.images import HEIF, NO_HEIC
from cmma_jax.errors import InputError
from cmma_jax.evaluation import table
from cmma_jax.sampling.attributes import FARTHEST, Attributes
from cmma_jax.sampling.face_model import GUIDANCE_OF_FEW, FaceModel
from cmma_jax.web import studio
from cmma_jax.web.groups import GROUPS, OTHERS, group_of, presets
from cmma_jax.web.guard import UPLOAD_BYTES, Guard, Queue

CONNECTIONS = 256  # at once; more are answered 503
WAITING, SECONDS = 64, 20.0  # requests at a model, and the longest that one may take
PHOTOS_WAITING = 8  # photographs to be decoded, each of 40 megapixels at most
RANGE = {"binary": (-3.0, 4.0), "real": (-FARTHEST, FARTHEST)}  # of an attribute that is wanted
HIGHEST_INTENSITY, HIGHEST_TEMPERATURE, HIGHEST_GUIDANCE = 6.0, 2.0, 10.0
HIGHEST_SEED = 2**31 - 1
IMAGES = (*(f"image/{name.lower()}" for name in studio.FORMATS), *(["image/heic"] if HEIF else []))
FILES = {"/": ("index.html", "text/html"), "/style.css": ("style.css", "text/css"),
         "/page.js": ("page.js", "text/javascript"), "/icon.svg": ("icon.svg", "image/svg+xml"),
         "/api": ("api.html", "text/html"), "/api.js": ("api.js", "text/javascript")}

# JSON knows one kind of number: 4.0 is a whole one. It comes after the bounds, which are then the interface's too.
WHOLE = BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)


class Problem(BaseModel):
    """Why a request was not carried out, in one line."""

    error: str


class Pictures(BaseModel):
    """Faces, each a PNG as a data URL."""

    faces: list[str]


class Inferred(BaseModel):
    """An attribute as the model infers it: a probability or a score, and its deviation."""

    mean: float
    deviation: float


class Looked(BaseModel):
    """What a model sees in a face."""

    inferred: dict[str, Inferred]
    reconstruction: str


class Box(BaseModel):
    """A square of a photograph, in pixels."""

    left: float
    top: float
    size: float


class Cropped(BaseModel):
    """A face cut from a photograph, turned by so many degrees to the left; `preview` is the photograph, turned
    and scaled down.
    """

    turn: int
    width: int
    height: int
    box: Box
    found: bool | None
    face: str
    preview: str | None


class AttributeView(BaseModel):
    """An attribute: its kind and group, and those that cannot hold where it does."""

    name: str
    kind: Literal["binary", "real"]
    group: str
    contradicts: list[str]


class ModelView(BaseModel):
    """A model: whether it encodes faces, infers their attributes, has a flow, and takes guidance."""

    name: str
    encodes: bool
    infers: bool
    flows: bool
    guided: bool
    run: str


class About(BaseModel):
    """What this page has."""

    dataset: str
    size: Annotated[list[int], Field(min_length=2, max_length=2)]
    groups: list[str]
    attributes: list[AttributeView]
    models: list[ModelView]
    presets: dict[str, dict[str, bool]]
    faces: int
    faces_are: Literal["test", "generated"]
    range: Annotated[list[float], Field(min_length=2, max_length=2)]
    guidance: float
    batch: int
    upload_bytes: int


class Results(BaseModel):
    """The table of evaluate.py as cells, the first row its headings; empty if there is none."""

    rows: list[list[str]]
    title: str


STATUSES = {400: "broken off", 403: "another origin", 408: "came too slowly",
            409: "cannot be carried out: attributes that contradict each other, or a model without the part it needs",
            413: "too large", 421: "another host", 422: "not valid", 503: "too many requests"}


def make_app(models: list[FaceModel], test: Faces | None, runs_dir: pathlib.Path, names: frozenset[str],
             waiting: int = WAITING, root_path: str = "", public: frozenset[str] = frozenset()) -> FastAPI:
    """Returns the application, everything that it asks of the models compiled.

    Args:
      models: the first is the one that the page begins with; all know the same attributes.
      test: faces to pick from; None: the first model makes some.
      runs_dir: where the results table of evaluate.py lies, if there is one.
      waiting: requests at the models at once, beyond which 503 is answered.
      names, root_path, public: as of `Guard`.
    """
    spec, first = models[0].run.spec, models[0]
    faces = studio.choose_faces(first, test)
    pictures = [studio.to_png(face / np.float32(255)) for face in faces]
    studios = {model.run.system: studio.open_studio(model, faces[0]) for model in models}
    height, width, channels = spec.image_shape
    ranges = [RANGE[kind] for kind in set(spec.kinds)]
    lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)

    Model = Literal[tuple(studios)]
    Wanted = Annotated[dict[Literal[spec.attributes], Annotated[float, Field(ge=lowest, le=highest)]],
                       Field(max_length=len(spec.attributes))]
    # A face: the number of one to pick, or its pixels, rows of RGB, a byte each, as base64.
    Face = (Annotated[int, Field(ge=0, lt=len(faces)), WHOLE]
            | Annotated[str, Field(min_length=4 * height * width, max_length=4 * height * width,
                                   pattern="^[A-Za-z0-9+/]*$")])

    class Body(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

        model: Model

    class Make(Body):
        """Faces that have attributes; those not named are unknown."""

        attributes: Wanted = {}
        n: Annotated[int, Field(ge=1, le=studio.BATCH), WHOLE] = 1
        seed: Annotated[int, Field(ge=0, le=HIGHEST_SEED), WHOLE] = 0
        temperature: Annotated[float, Field(ge=0, le=HIGHEST_TEMPERATURE)] = 1.0
        # 1: none; null: the default where there is a flow and attributes are asked for
        guidance: Annotated[float, Field(ge=0, le=HIGHEST_GUIDANCE)] | None = None
        # of one face, by fewer steps of a flow's solver
        preview: bool = False

    class Look(Body):
        """A face to be encoded."""

        face: Face

    class Edit(Look):
        """A face to be changed in some ways, each on its own; 0 changes nothing, 1 is plainly visible under a flow."""

        edits: Annotated[list[Wanted], Field(min_length=1, max_length=studio.BATCH)]
        intensity: Annotated[float, Field(ge=-HIGHEST_INTENSITY, le=HIGHEST_INTENSITY)] = 1.0
        keep_detail: bool = True
        preview: bool = False

    app = FastAPI(title="cmma_jax", version="1", docs_url=None, redoc_url=None,
                  description="Faces from attributes. Attributes not named are unknown; a binary one's 0 is no, 1 yes, "
                              "and what lies outside extrapolates; a real-valued one's are deviations from the mean.",
                  responses={status: {"model": Problem, "description": said} for status, said in STATUSES.items()})
    app.add_middleware(Guard, names=names, uploads=("/api/photo",), public=public, root_path=root_path)
    queue, photo_queue = Queue(waiting, SECONDS), Queue(PHOTOS_WAITING, SECONDS)

    def find(name: str, encodes: bool = True) -> studio.Studio:
        if encodes and not studios[name].encodes:
            raise InputError(f"the {name} cannot encode a face; choose another model")
        return studios[name]

    def face_of(face: int | str) -> np.ndarray:
        if isinstance(face, int):
            return faces[face] / np.float32(255)
        return np.frombuffer(base64.b64decode(face), np.uint8).reshape(height, width, channels) / np.float32(255)

    def to_pictures(made: np.ndarray) -> Pictures:
        return Pictures(faces=[studio.to_png(face) for face in made])

    @app.exception_handler(InputError)
    async def cannot(request: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 409)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        one = error.errors()[0]
        where = ".".join(str(part) for part in one["loc"][1:]) or "the request"
        return JSONResponse({"error": f"{where}: {one['msg']}"[:500]}, 422)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.get("/api/about")
    async def about() -> About:
        """What models, attributes and faces there are."""
        settings = Attributes(spec)
        attributes = [AttributeView(name=name, group=group_of(name), kind=spec.kinds[i],
                                    contradicts=[spec.attributes[j] for j in settings.contradicted(i)])
                      for i, name in enumerate(spec.attributes)]
        there = {attribute.group for attribute in attributes}
        return About(
            dataset=spec.dataset, size=[height, width], attributes=attributes,
            groups=[group for group in (*GROUPS, OTHERS) if group in there], presets=presets(spec.attributes),
            models=[ModelView(name=name, encodes=each.encodes, infers=each.model.run.model.attributes is not None,
                              flows=each.flows, guided=each.model.guided, run=each.model.run.path.name)
                    for name, each in studios.items()],
            faces=len(faces), faces_are="generated" if test is None else "test", range=[lowest, highest],
            guidance=GUIDANCE_OF_FEW, batch=studio.BATCH, upload_bytes=UPLOAD_BYTES)

    @app.post("/api/make")
    async def make(body: Make, request: Request) -> Pictures:
        """Makes faces from attributes; at temperature 0 the one at the noise's mean."""
        return await queue.run(request, lambda: to_pictures(find(body.model, encodes=False).make(
            body.attributes, body.n, body.seed, body.temperature, body.guidance, body.preview)))

    @app.post("/api/look")
    async def look(body: Look, request: Request) -> Looked:
        """Infers a face's attributes, with uncertainty, and reconstructs it."""
        def work() -> Looked:
            sitter, face = find(body.model), face_of(body.face)
            inferred = {name: Inferred(mean=mean, deviation=deviation)
                        for name, (mean, deviation) in sitter.infer(face).items()}
            return Looked(inferred=inferred, reconstruction=studio.to_png(sitter.model.reconstruct(face)[0]))

        return await queue.run(request, work)

    @app.post("/api/edit")
    async def edit(body: Edit, request: Request) -> Pictures:
        """Changes a face, whose other attributes the model infers; each of `edits` gives one."""
        return await queue.run(request, lambda: to_pictures(find(body.model).edit(
            face_of(body.face), body.edits, body.intensity, body.keep_detail, body.preview)))

    @app.post("/api/photo", openapi_extra={"requestBody": {"required": True, "content": {
        kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGES}}},
        responses={415: {"model": Problem, "description": "no image of a kind that is taken"}})
    async def photo(request: Request,
                    size: Annotated[float | None, Query(ge=1, le=1e5, allow_inf_nan=False)] = None,
                    left: Annotated[float, Query(ge=-1e5, le=1e5, allow_inf_nan=False)] = 0.0,
                    top: Annotated[float, Query(ge=-1e5, le=1e5, allow_inf_nan=False)] = 0.0,
                    turn: Annotated[int, Query(ge=0, le=270, multiple_of=90)] = 0) -> Cropped:
        """Cuts the face from a photograph, which is kept nowhere: where it is found, turned if it lies on its side, or
        a square that is given of the photograph turned by `turn` degrees to the left.
        """
        if request.headers.get("content-type", "").split(";")[0].strip().lower() not in IMAGES:
            raise HTTPException(415, f"expected a photograph, its content-type one of {', '.join(IMAGES)}"
                                + ("" if HEIF else f" ({NO_HEIC})"))
        photo_bytes, box = await request.body(), None if size is None else (left, top, size)

        def work() -> Cropped:
            try:
                crop = studio.read_crop(photo_bytes, height, box, turn)
            except InputError as error:
                raise HTTPException(415 if "cannot be decoded" in str(error) else 422, str(error)) from None
            left, top, size = crop.box
            return Cropped(turn=crop.turn, width=crop.width, height=crop.height, box=Box(left=left, top=top, size=size),
                           found=crop.found, face=studio.to_png(crop.face),
                           preview=studio.to_url(crop.preview, "JPEG", quality=85) if box is None else None)

        return await photo_queue.run(request, work)

    @app.get("/api/faces/{number}", response_class=Response,
             responses={200: {"content": {"image/png": {}}, "description": "a face to pick"}})
    async def picked(number: Annotated[int, Path(ge=0, lt=len(faces))]) -> Response:
        """One of the faces to pick from, a PNG."""
        return Response(base64.b64decode(pictures[number].partition(",")[2]), media_type="image/png",
                        headers={"cache-control": "no-cache"})

    @app.get("/api/results")
    async def results() -> Results:
        """The newest results table of evaluate.py for this data set."""
        return read_results(runs_dir, spec.dataset)

    for path, (name, kind) in FILES.items():
        content = resources.files("cmma_jax.web").joinpath(name).read_bytes()
        app.add_route(path, _file(content, kind), include_in_schema=False)
    return app


def read_results(folder: pathlib.Path, dataset: str) -> Results:
    """Returns the newest results-<dataset>-<split>.json of a folder as cells."""
    found = sorted(folder.glob(f"results-{dataset.replace('/', '-')}-*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        return Results(rows=[], title="")
    return Results(rows=table.to_rows(table.from_json(found[-1].read_text())), title=found[-1].stem)


def names_of(host: str) -> frozenset[str]:
    """Returns the hosts under which a page that listens on `host` is answered.

    A server on all of a machine's addresses is answered under its name and any address: what is written in numbers
    cannot be rebound.
    """
    names = {host.lower(), "localhost", "127.0.0.1", "::1"}
    try:
        everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        everywhere = False
    return frozenset(names | ({"*", socket.gethostname().lower()} if everywhere else set()))


def _file(content: bytes, kind: str):
    async def send(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return send
