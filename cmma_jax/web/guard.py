"""What stands before the page: whom it answers, how much it reads, and how many it lets wait."""

import asyncio
import ipaddress
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UPLOAD_BYTES = 10 * 2**20  # of a photograph
JSON_BYTES = 2**20
BODY_SECONDS = 20.0  # in which a request's body must have come
READING = 16  # bodies at once, which bounds the memory they take

HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin", "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()", "cache-control": "no-store",
}


class Guard:
    """ASGI middleware: checks Host and Origin, reads bodies within bounds, and adds security headers.

    A page of another site whose name is made to point at this machine (DNS rebinding) carries that name in Host; one
    that sends requests across sites carries another Origin. Both are refused.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str], uploads: tuple[str, ...] = (),
                 public: frozenset[str] = frozenset(), root_path: str = ""):
        """Args:
          names: hosts that are answered, "*" for every address in numbers.
          uploads: paths that take photographs.
          public: hosts of a server before this one, whose Origin may be another than the Host that it names.
          root_path: the path under which such a server has the page, which it may pass on or take off.
        """
        self.app, self.names, self.uploads, self.public = app, names | public, uploads, public
        self.root_path, self.reading = root_path, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, head = Headers(scope=scope), scope["method"] == "HEAD"
        path = scope["path"].removeprefix(self.root_path) or "/"
        scope = {**scope, "root_path": self.root_path, "method": "GET" if head else scope["method"]}

        async def send_guarded(message: Message) -> None:
            if head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    out.setdefault(name, value)
            await send(message)

        try:
            self._check_origin(path, headers)
            body = await self._read(path, headers, receive)
        except HTTPException as error:
            return await _refuse(send_guarded, error)
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send_guarded)

    def _check_origin(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._known(host):
            raise HTTPException(421, f"this page is not {host!r}; open it under the name or address it was started "
                                     "with (--host), or start it with --allowed_host")
        origin = headers.get("origin")
        if (origin is not None and urlsplit(origin).netloc.lower() != host.lower()
                and _hostname(urlsplit(origin).netloc) not in self.public):
            raise HTTPException(403, "a page of another origin may not ask this one")
        # What no Origin is sent with: another site's <img> or <script>.
        if path != "/" and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise HTTPException(403, "another site may not ask this one")

    def _known(self, host: str) -> bool:
        name = _hostname(host)
        return name in self.names or ("*" in self.names and _is_address(name))

    async def _read(self, path: str, headers: Headers, receive: Receive) -> bytes:
        limit = UPLOAD_BYTES if path in self.uploads else JSON_BYTES
        too_large = HTTPException(413, f"too large: at most {limit / 2**20:g} MiB are taken")
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or len(declared) > 20 or int(declared) > limit:
            raise too_large
        if declared == "0" and "transfer-encoding" not in headers:
            return b""
        if self.reading >= READING:
            raise busy()
        self.reading += 1
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise HTTPException(400, "the request broke off")
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise HTTPException(408, f"the request took longer than {BODY_SECONDS:g} seconds to come") from None
        finally:
            self.reading -= 1


class Queue:
    """Work on one thread, in turn; what a client no longer waits for is not begun."""

    def __init__(self, places: int, seconds: float):
        """places: requests at work or waiting, beyond which 503 is answered; seconds: the longest that one may take."""
        self.places, self.seconds, self.taken = places, seconds, 0
        self.turn, self.thread = asyncio.Lock(), ThreadPoolExecutor(1)

    async def run(self, request: Request, function: Callable, *args) -> Any:
        """Returns function(*args).

        Raises:
          HTTPException: 503: the queue is full, or the answer was not there in time.
        """
        if self.taken >= self.places:
            raise busy()
        self.taken += 1
        try:
            async with asyncio.timeout(self.seconds), self.turn:
                if await request.is_disconnected():
                    raise HTTPException(400, "nobody waits for the answer")
                return await asyncio.get_running_loop().run_in_executor(self.thread, function, *args)
        except TimeoutError:
            raise busy() from None
        finally:
            self.taken -= 1


def busy() -> HTTPException:
    """Returns what is answered to a request that finds no place."""
    return HTTPException(503, "too many requests wait; ask again in a second", {"retry-after": "1"})


def _hostname(netloc: str) -> str:
    """Returns a name without port and closing dot, in small letters; empty: it is none."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _refuse(send: Send, error: HTTPException) -> None:
    headers = {"content-type": "application/json", "connection": "close", **(error.headers or {})}
    await send({"type": "http.response.start", "status": error.status_code,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()]})
    await send({"type": "http.response.body", "body": json.dumps({"error": error.detail}).encode()})
