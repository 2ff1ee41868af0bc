"""The live page, `nstjax web`: drop a photo and a painting, and watch the image appear (the extra `web`).

For one person on one computer: the server listens on 127.0.0.1 alone, every address begins with a random token, and
requests whose Host or Origin header names another site are rejected. Jobs are painted one after another.
"""

import asyncio
import base64
import io
import json
import secrets
import socket
import tempfile
import threading
import webbrowser
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from nstjax import images, neural_style, pixels, recipes
from nstjax.errors import InputError
from nstjax.optional import needed
from nstjax.weights import PICTURES

MAX_BYTES = 64 << 20  # of an uploaded file
MAX_FILES = 64  # uploads and results that are kept; older ones are deleted
SIZES = (64, 1024)  # pixels of the long side
BUNDLED = {"photo": PICTURES / "astronaut.jpg", "painting": PICTURES / "gale.jpg"}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # an address holds the token
    "X-Content-Type-Options": "nosniff",
}


class Job(NamedTuple):
    """One painting, shared by the page's request and the thread that paints."""

    name: str
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[dict[str, Any]]
    stop: threading.Event  # keep the image so far
    gone: threading.Event  # nobody looks any more

    def tell(self, **event: Any) -> None:
        """Send an event to the page, from any thread."""
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


def serve(*names: Path, port: int = 0, browser: bool = True) -> None:
    """Serve the page until Ctrl-C.

    Args:
        names: of the photo and the painting that it begins with, by default the bundled ones.
        port: of 127.0.0.1; 0 takes a free one.
        browser: open the page in the user's browser.

    Raises:
        InputError: the port is not free, a file is no image, or uvicorn is missing.
    """
    uvicorn = needed("uvicorn", "the page", '"nstjax[web]"')
    for path in names:
        images.shape(path, minimum=16)
    listening = socket.socket()
    try:
        listening.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise InputError(f"{port}: cannot listen there ({error}); choose another, or 0", argument="port") from error
    host, token = f"127.0.0.1:{listening.getsockname()[1]}", secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory(prefix="nstjax-") as folder:
        address = f"http://{host}/{token}/"
        print(f"{address}\nCtrl-C ends it", flush=True)
        if browser:
            webbrowser.open(address)
        config = uvicorn.Config(
            application(token, host, Path(folder), dict(zip(BUNDLED, names, strict=False))),
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
        uvicorn.Server(config).run(sockets=[listening])


def application(token: str, host: str, folder: Path, first: Mapping[str, Path]) -> Any:
    """The ASGI application: the page, files to upload, paintings as streams of events, and their results.

    Args:
        token: with which every path begins.
        host: that requests must name, 127.0.0.1:PORT.
        folder: for uploads and results.
        first: {"photo" or "painting": the file to begin with}, by default a bundled one.
    """
    first = {**BUNDLED, **first}
    worker = ThreadPoolExecutor(1)  # one job at a time; the others wait
    jobs: dict[str, Job] = {}

    async def page(request: Request) -> Response:
        return FileResponse(Path(__file__).with_name("web.html"), headers=HEADERS)

    async def thumbnail(request: Request) -> Response:
        if (path := first.get(request.path_params["name"])) is None:
            return refused("no such image", 404)
        shown = jpeg(await asyncio.to_thread(images.load, path, size=512))
        return Response(shown, media_type="image/jpeg", headers=HEADERS)

    async def paint(request: Request) -> Response:
        try:
            options = asked(request.query_params, folder, first)
        except InputError as error:
            return refused(str(error), 400)
        job = Job(
            secrets.token_hex(8), asyncio.get_running_loop(), asyncio.Queue(), threading.Event(), threading.Event()
        )
        job.tell(job=job.name, waiting=len(jobs))
        jobs[job.name] = job
        worker.submit(work, job, options, folder)
        return Watched(job, jobs)

    async def stop(request: Request) -> Response:
        if job := jobs.get(request.path_params["name"]):
            job.stop.set()
        return Response(status_code=204 if job else 404, headers=HEADERS)

    routes = [
        Route("/", page),
        Route("/first/{name}", thumbnail),
        Route("/files", partial(upload, folder=folder), methods=["PUT"]),
        Route("/paint", paint),
        Route("/stop/{name}", stop, methods=["POST"]),
        Route("/results/{name}", partial(result, folder=folder)),
    ]
    return guarded(Starlette(routes=[Mount(f"/{token}", routes=routes)]), host)


async def upload(request: Request, *, folder: Path) -> Response:
    """Keep an image of at most MAX_BYTES, whose header can be read, for a painting."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BYTES:
            return refused(f"the file is over {MAX_BYTES >> 20} MB; shrink it first", 413)
    path = folder / f"upload-{secrets.token_hex(8)}"
    path.write_bytes(content)
    try:
        h, w = await asyncio.to_thread(images.shape, path, minimum=16)
    except InputError as error:
        path.unlink()
        return refused(str(error).replace(str(path), "the file"), 400)
    forget(folder)
    return JSONResponse({"name": path.name, "width": w, "height": h}, headers=HEADERS)


async def result(request: Request, *, folder: Path) -> Response:
    """A finished or stopped painting as a PNG."""
    path = folder / f"result-{request.path_params['name']}.png"
    if not (request.path_params["name"].isalnum() and path.is_file()):
        return refused("no such image", 404)
    return FileResponse(path, filename="stylized.png", headers=HEADERS)


def guarded(application: Any, host: str) -> Any:
    """An application that rejects requests which another site made a browser send."""

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        foreign = headers.get("host") != host or headers.get("origin", f"http://{host}") != f"http://{host}"
        if scope["type"] == "http" and foreign:
            await refused("another host or origin", 403)(scope, receive, send)
        elif scope["type"] != "websocket":
            await application(scope, receive, send)

    return guard


def refused(why: str, status: int) -> Response:
    """A response of one line."""
    return PlainTextResponse(why, status, headers=HEADERS)


def forget(folder: Path) -> None:
    """Delete the oldest files where there are more than MAX_FILES."""
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-MAX_FILES]:
        path.unlink(missing_ok=True)


def asked(query: Mapping[str, str], folder: Path, first: Mapping[str, Path]) -> dict[str, Any]:
    """What a request asks to paint: paths of content and style, preset, size, and the recipe's changes.

    Raises InputError for what is missing, unknown or out of range.
    """
    options: dict[str, Any] = {"preset": query.get("preset", "fast"), "changes": {}}
    for name in BUNDLED:
        given = query.get(name, "")
        path = folder / given if given else first[name]
        if given and not (given.removeprefix("upload-").isalnum() and path.is_file()):
            raise InputError("is gone; drop it again", argument=name)
        options[name] = path
    if options["preset"] not in recipes.PRESETS:
        raise InputError(f"there are {', '.join(recipes.PRESETS)}", argument="preset")
    try:
        options["size"] = int(query.get("size", 512))
        if "strength" in query:
            options["changes"]["strength"] = float(query["strength"])
    except ValueError as error:
        raise InputError(f"{error}: give numbers for size and strength") from error
    if not SIZES[0] <= options["size"] <= SIZES[1]:
        raise InputError(f"give a number from {SIZES[0]} to {SIZES[1]}", argument="size")
    recipes.changed(options["preset"], options["changes"])
    return options


def work(job: Job, options: Mapping[str, Any], folder: Path) -> None:
    """Paint a job, in the worker's thread; every step is an event."""
    try:
        progress = None
        if not job.gone.is_set():
            for progress in painting(options):
                shown = base64.b64encode(jpeg(progress.image)).decode()
                terms = {"loss": float(progress.terms["loss"]), "step": progress.step, "total": progress.total}
                job.tell(size=progress.size, work=progress.work, image=shown, **terms)
                if job.gone.is_set() or job.stop.is_set():
                    break
        if progress is not None and not job.gone.is_set():
            images.save(folder / f"result-{job.name}.png", progress.image, metadata=images.MARK)
            forget(folder)
            job.tell(done=job.name, stopped=job.stop.is_set())
    except (InputError, FloatingPointError) as error:
        job.tell(error=str(error).replace(str(folder), "").lstrip("/"))
    except Exception as error:  # such as XLA's without memory; the page must not wait for ever
        job.tell(error=f"{type(error).__name__}: {error}")


def painting(options: Mapping[str, Any]) -> Any:
    """The steps of `neural_style.paint`."""
    recipe = recipes.changed(options["preset"], options["changes"])
    content = images.load(options["photo"], size=options["size"], minimum=recipes.MINIMUM)
    size = recipes.style_size(recipe, images.shape(options["painting"]), content.shape[:2])
    style = images.load(options["painting"], size=size, minimum=recipes.STYLE_MINIMUM)
    return neural_style.paint(content, [style], preset=recipe)


def jpeg(image: Any) -> bytes:
    """An image as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels.to_bytes(image)).save(file, "JPEG", quality=88)
    return file.getvalue()


class Watched(StreamingResponse):
    """A job's events as text/event-stream; when the page closes, before they begin or later, the job is cancelled."""

    def __init__(self, job: Job, jobs: dict[str, Job]) -> None:
        super().__init__(told(job), media_type="text/event-stream", headers=HEADERS)
        self.job, self.jobs = job, jobs

    async def __call__(self, *connection: Any) -> None:
        try:
            await super().__call__(*connection)
        finally:  # not in `told`, which has not started where the page closed at once
            self.job.gone.set()
            self.jobs.pop(self.job.name, None)


async def told(job: Job) -> AsyncIterator[str]:
    """A job's events as text, to the last one."""
    while True:
        event = await job.events.get()
        yield f"data: {json.dumps(event)}\n\n"
        if "done" in event or "error" in event:
            return
