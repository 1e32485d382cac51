"""The page: `python -m cmma_jax web`.

What this room imports: every other but `cli`.
"""

import dataclasses
import pathlib
import socket

from cmma_jax.errors import InputError
from cmma_jax.models.architecture import check
from cmma_jax.sampling.face_model import FaceModel, load
from cmma_jax.training.runs import find_runs, load_data, load_run


@dataclasses.dataclass(frozen=True)
class Web:
    """Make, change and compare faces in a browser; nothing leaves the machine.

      python -m cmma_jax web
      python -m cmma_jax web --run=runs/cmma-lfw --data_dir=DIR --port=8000
    """

    run: str = ""
    """The run's folder; empty: the newest finished CMMA's."""
    runs_dir: str = "runs"
    """Where it is looked for, and the models to compare it with, and the results table of evaluate.py."""
    data_dir: str = ""
    """Folder of the data set's files, for test faces to change; empty: faces that the model makes stand in for them.
    The embedded faces need none."""
    port: int = 7860
    """Where the page listens; 0: any free port."""
    host: str = "127.0.0.1"
    """Name or address on which it listens; 0.0.0.0: all of this machine's, for whoever reaches it."""
    root_path: str = ""
    """Behind another server that has the page under a path: that path, such as /faces."""
    allowed_host: str = ""
    """Behind another server: the names under which people reach it, with commas between."""

    def __post_init__(self) -> None:
        if self.root_path and not (self.root_path.startswith("/") and not self.root_path.endswith("/")):
            raise InputError(f"--root_path={self.root_path}: give a path that begins with / and does not end with it")
        check(0 <= self.port <= 65535, "port", self.port, "0 to 65535")

    def act(self) -> None:
        """Loads the models, compiles what the page asks of them, and serves it until it is interrupted."""
        try:
            import uvicorn

            from cmma_jax.web import server  # with FastAPI, which is an extra
        except ImportError as error:
            raise InputError(f"the page needs FastAPI and uvicorn ({error}): pip install '.[web]'") from error
        listening = _listen(self.host, self.port)
        with listening:
            models = load_models(self)
            first = models[0]
            data = None
            if self.data_dir or first.run.config.dataset == "synthetic":
                data = load_data(first.run, self.data_dir)
            print(f"compiling for {', '.join(model.run.system for model in models)} ...", flush=True)
            app = server.make_app(models, data.test if data else None, pathlib.Path(self.runs_dir),
                                  server.names_of(self.host), root_path=self.root_path,
                                  public=frozenset(name.strip().lower() for name in self.allowed_host.split(",")
                                                   if name.strip()))
            host, port = listening.getsockname()[:2]
            print(f"http://{f'[{host}]' if ':' in host else host}:{port}   Ctrl-C ends it", flush=True)
            config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, ws="none",
                                    limit_concurrency=server.CONNECTIONS, timeout_graceful_shutdown=5)
            uvicorn.Server(config).run(sockets=[listening])


def load_models(arguments: Web) -> list[FaceModel]:
    """Returns the model that was asked for, then one of each other system that learnt the same attributes."""
    first = load(arguments.run, runs_dir=arguments.runs_dir)
    models = {first.run.system: first}
    try:
        paths = find_runs(arguments.runs_dir, dataset=first.run.config.dataset)
    except InputError:  # --run alone is enough
        paths = []
    for path in paths:
        run = load_run(path)
        if run.system in models:
            continue
        if run.spec.attributes != first.attributes or run.spec.image_shape != first.run.spec.image_shape:
            print(f"left out: {path}, whose attributes or faces are others than those of {first.run.path}")
            continue
        models[run.system] = FaceModel(run)
    return list(models.values())


def _listen(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound before the models are loaded, so that a port in use is told at once."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise InputError(f"cannot listen on {host}, port {port} ({error.strerror or error}); give another --port, or "
                         "--host=127.0.0.1") from error
