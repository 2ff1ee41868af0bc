"""The live page over HTTP: uploads, events, stopping, the queue, who is rejected; and in a real browser."""

import asyncio
import base64
import contextlib
import http.client
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import zlib
from pathlib import Path

import numpy as np
import pytest
from browsers import DROP, chromium
from PIL import Image
from samples import picture

from nstjax import console, features, recipes
from nstjax.errors import InputError
from nstjax.neural_style import Progress

pytest.importorskip("starlette", reason='the page needs pip install "nstjax[web]"')
uvicorn = pytest.importorskip("uvicorn", reason='the page needs pip install "nstjax[web]"')

from nstjax import web  # noqa: E402

ROOT = Path(__file__).parent.parent
WIDTHS = (360, 1280)
TOKEN = "secret"


class Server:
    """The page on a free port, in a thread."""

    def __init__(self, folder, first=None):
        self.folder, listening = folder, socket.socket()
        listening.bind(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{listening.getsockname()[1]}"
        self.url = f"http://{self.host}/{TOKEN}/"
        config = uvicorn.Config(web.application(TOKEN, self.host, folder, first or {}), log_level="error", ws="none")
        config.timeout_graceful_shutdown = 1
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]})
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def open(self, method, path, body=None, *, token=TOKEN, **headers):
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request(method, f"/{token}/{path}", body, headers)
        return connection, connection.getresponse()

    def ask(self, method, path, body=None, **more):
        connection, response = self.open(method, path, body, **more)
        with contextlib.closing(connection):
            return response.status, response.read()

    def events(self, **query):
        connection, response = self.open("GET", f"paint?{urllib.parse.urlencode(query)}")
        assert response.getheader("content-type").startswith("text/event-stream")
        with contextlib.closing(connection):
            for line in response:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.server.should_exit = True
    server.thread.join(20)


@pytest.fixture
def steps(monkeypatch):
    """Paintings of three gray steps, or of as many as `steps.count`, each after `steps.seconds`."""

    class Steps:
        count, seconds, running, most, made = 3, 0.0, 0, 0, 0

        def paint(self, options):
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                for step in range(1, self.count + 1):
                    time.sleep(self.seconds)
                    self.made += 1
                    image = np.full((40, 60, 3), step / self.count, np.float32)
                    yield Progress(image, 60, step, self.count, step / self.count, {"loss": 1 / step})
            finally:
                self.running -= 1

    steps = Steps()
    monkeypatch.setattr(web, "painting", steps.paint)
    return steps


def png(width, height):
    """The start of a PNG, whose header promises a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + bytes(20)


@pytest.mark.usefixtures("quickly")
def test_what_is_dropped_is_painted_as_the_library_paints_it(server, tmp_path, narrow_vgg, monkeypatch):
    monkeypatch.setattr(features, "load", lambda *args, **kwargs: narrow_vgg)
    monkeypatch.setitem(recipes.PRESETS, "fast", recipes.PRESETS["fast"]._replace(steps=3))
    sent = {}
    for name in ("photo", "painting"):
        status, body = server.ask("PUT", "files", picture(tmp_path / name / "image.png", len(name)).read_bytes())
        assert status == 200 and json.loads(body) | {"name": ""} == {"name": "", "width": 64, "height": 56}
        sent[name] = json.loads(body)["name"]
    first, *shown, last = server.events(size=64, strength=0.5, **sent)
    assert first["waiting"] == 0 and [event["step"] for event in shown] == list(range(1, len(shown) + 1))
    assert shown[-1]["work"] == pytest.approx(1) and last == {"done": first["job"], "stopped": False}
    status, result = server.ask("GET", f"results/{last['done']}")
    options = {"photo": tmp_path / sent["photo"], "painting": tmp_path / sent["painting"], "size": 64}
    expected = None
    for progress in web.painting(options | {"preset": "fast", "changes": {"strength": 0.5}}):
        expected = np.round(np.clip(progress.image, 0, 1) * 255)
    assert status == 200 and np.abs(np.asarray(Image.open(io.BytesIO(result)), np.float32) - expected).max() <= 1
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[-1]["image"]))), np.float32)
    assert np.abs(seen - expected).mean() < 8


def test_stop_keeps_the_image_so_far(server, steps):
    steps.count, steps.seconds = 1000, 0.02
    events = server.events()
    job = next(events)["job"]
    assert next(events)["step"] == 1
    assert server.ask("POST", f"stop/{job}")[0] == 204
    *_, last = events
    assert last == {"done": job, "stopped": True} and steps.made < 900
    assert server.ask("GET", f"results/{job}")[1].startswith(b"\x89PNG")


def test_a_second_page_waits_and_a_closed_one_is_cancelled(server, steps):
    steps.count, steps.seconds = 1000, 0.02
    first = server.events()
    assert next(first)["waiting"] == 0 and next(first)["step"] == 1
    second = server.events()
    assert next(second)["waiting"] == 1
    first.close()  # as a closed page does
    assert next(second)["step"] == 1 and steps.most == 1 and steps.made < 900
    second.close()


def test_a_page_that_closes_before_the_first_event_cancels_its_job(tmp_path, steps):
    steps.count, steps.seconds = 1000, 0.02
    host = "127.0.0.1:1"
    application = web.application(TOKEN, host, tmp_path, {})
    scope = {"type": "http", "method": "GET", "path": f"/{TOKEN}/paint", "query_string": b"", "root_path": ""}
    scope |= {"headers": [(b"host", host.encode())], "asgi": {"spec_version": "2.3"}}
    sent: list[dict] = []

    async def gone():
        return {"type": "http.disconnect"}

    async def send(message):
        await asyncio.sleep(0.01)  # as where the connection is slow
        sent.append(message)

    async def both():
        await application(dict(scope), gone, send)
        assert not sent
        end = time.monotonic() + 10  # less than the 20 seconds that the steps would take
        while steps.running:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        assert steps.made < 900
        second = asyncio.ensure_future(application(dict(scope), asyncio.Event().wait, send))
        while len(sent) < 3:  # the headers, the place in the queue, the first step
            await asyncio.sleep(0.01)
        second.cancel()

    asyncio.run(both())
    assert json.loads(sent[1]["body"].removeprefix(b"data: "))["waiting"] == 0
    assert json.loads(sent[2]["body"].removeprefix(b"data: "))["step"] == 1


def test_an_error_of_a_painting_is_told_and_the_next_one_runs(server, steps, monkeypatch):
    def failing(options):
        raise FloatingPointError("the loss is not finite")

    with monkeypatch.context() as patch:
        patch.setattr(web, "painting", failing)
        assert list(server.events())[-1] == {"error": "the loss is not finite"}
    assert "done" in list(server.events())[-1]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"no image", 400, b"the file: "),
        (b"", 400, b"the file: "),
        (png(60_000, 60_000), 400, b"the file: "),
        (b"\0" * ((64 << 20) + 1), 413, b"the file is over 64 MB"),
    ],
    ids=["text", "empty", "3.6 gigapixels", "65 MB"],
)
def test_a_bad_file_is_one_line_and_not_kept(server, body, status, told):
    said, line = server.ask("PUT", "files", body)
    assert said == status and line.startswith(told) and b"\n" not in line and b"upload-" not in line
    assert not list(server.folder.iterdir())


def test_a_file_of_100_megapixels_is_taken_by_its_header(server):
    file = io.BytesIO()
    Image.new("L", (10_000, 10_000), 128).save(file, "PNG", compress_level=1)
    status, body = server.ask("PUT", "files", file.getvalue())
    assert status == 200 and json.loads(body)["width"] == 10_000


@pytest.mark.parametrize(
    "query",
    [
        {"size": 10_000},
        {"size": "large"},
        {"strength": 2},
        {"strength": "nan"},
        {"preset": "best"},
        {"photo": "upload-0123"},
        {"photo": "../secret"},
        {"painting": "/etc/hostname"},
    ],
)
def test_what_cannot_be_painted_is_refused(server, steps, query):
    status, line = server.ask("GET", f"paint?{urllib.parse.urlencode(query)}")
    assert status == 400 and b"\n" not in line and not steps.made


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [
        ("", {"token": "guess"}, 404),
        ("paint", {"token": "guess"}, 404),
        ("", {"Host": "evil.example"}, 403),
        ("", {"Host": "localhost.evil.example:80"}, 403),
        ("", {"Origin": "http://evil.example"}, 403),
        ("", {"Origin": "null"}, 403),
        ("paint", {"Origin": "http://127.0.0.1:1"}, 403),
        ("results/..%2f..%2fetc%2fpasswd", {}, 404),
        ("first/..%2fSOURCES.md", {}, 404),
        ("", {}, 200),
    ],
)
def test_who_is_let_in(server, steps, path, more, status):
    assert server.ask("GET", path, **more)[0] == status and not steps.made


def test_the_page_needs_nothing_else(server):
    connection, response = server.open("GET", "")
    with contextlib.closing(connection):
        page = response.read().decode()
    assert "default-src 'none'" in response.getheader("content-security-policy")
    assert response.getheader("referrer-policy") == "no-referrer" and "http" not in page.replace("<!doctype html>", "")
    offered = re.findall(r"<option>(\w+)", page)
    assert "fast" in offered and "neighbor" in offered and set(offered) <= recipes.PRESETS.keys()


def test_it_begins_with_the_files_that_were_named(tmp_path, steps, monkeypatch):
    asked, paint = [], steps.paint
    monkeypatch.setattr(web, "painting", lambda options: asked.append(options) or paint(options))
    photo = picture(tmp_path / "photo.tif", 1)
    server = Server(tmp_path, {"photo": photo})
    try:
        status, shown = server.ask("GET", "first/photo")
        assert status == 200 and Image.open(io.BytesIO(shown)).format == "JPEG"
        assert "done" in list(server.events())[-1]
        assert asked[0]["photo"] == photo and asked[0]["painting"].name == "gale.jpg"
    finally:
        server.server.should_exit = True
        server.thread.join(20)


def test_old_files_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "MAX_FILES", 3)
    for i in range(5):
        (tmp_path / str(i)).write_text("")
        (tmp_path / str(i)).touch()
        time.sleep(0.01)
    web.forget(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3", "4"}


def test_the_command_prints_its_address_and_ends_by_ctrl_c():
    command = [sys.executable, "-m", "nstjax", "web", "--no-browser", "--port"]
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as page:
        try:
            url = urllib.parse.urlsplit(page.stdout.readline().strip())
            assert url.hostname == "127.0.0.1" and len(url.path) > 20
            taken = subprocess.run([*command, str(url.port)], capture_output=True, text=True, cwd=ROOT)
            assert taken.returncode == 2 and taken.stderr.startswith(f"nstjax web: --port: {url.port}: ")
            connection = http.client.HTTPConnection(url.netloc, timeout=60)
            with contextlib.closing(connection):
                connection.request("GET", url.path)
                assert b"painting" in connection.getresponse().read()
            page.send_signal(signal.SIGINT)
            assert page.wait(60) == 130 and "Traceback" not in page.stderr.read()
        finally:
            page.kill()


def test_paint_with_web_is_the_page_with_its_names(monkeypatch):
    asked = []
    monkeypatch.setattr(console, "run_web", asked.append)
    monkeypatch.setattr(sys, "argv", ["nstjax", "paint", "photo.jpg", "painting.jpg", "--web", "--no-browser"])
    console.main()
    assert asked == [["photo.jpg", "painting.jpg", "--no-browser"]]


def test_bad_flags_are_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    for flags, told in (
        (["nowhere.jpg"], "nowhere.jpg: no such file"),
        (["--bogus"], "--bogus: give a photo, a painting"),
        (["--port", "x"], "--port"),
    ):
        with pytest.raises(InputError, match=told):
            console.run_web(flags)


@pytest.fixture
def browser(tmp_path_factory):
    browser = chromium(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


STATUS = "document.getElementById('status').textContent"


def test_drop_paint_watch_stop_and_save_in_a_browser(server, steps, browser):
    steps.count, steps.seconds = 100_000, 0.02
    for width in WIDTHS:
        target = browser.open(server.url, width)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert browser.run("[...document.images].every(image => image.naturalWidth > 0)")
        browser.run(DROP % ('new Blob(["no image"])', "photo"))
        browser.until(f"{STATUS}.startsWith('the file: ')")
        browser.run(DROP % ('await (await fetch("first/photo")).blob()', "photo"))
        browser.until(f"{STATUS} == 'photo: 512 x 512 px'")
        browser.run("document.getElementById('paint').click()")
        browser.until(f"losses.length > 4 && {STATUS}.includes(' of 100000, loss ')")
        assert browser.run("document.getElementById('image').naturalWidth") == 60
        assert browser.run("document.querySelector('#curve path').getAttribute('d').split('L').length") > 3
        assert browser.run("document.getElementById('paint').disabled")
        browser.run("document.getElementById('stop').click()")
        browser.until("!document.getElementById('save').hidden")
        assert browser.run("fetch(document.getElementById('save').href).then(answer => answer.status)") == 200
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        browser.run("document.getElementById('paint').click()")
        browser.until("losses.length > 1")
        browser.more = {}
        browser.call("Target.closeTarget", targetId=target)
        end = time.monotonic() + 30
        while steps.running:  # the closed page's job is cancelled
            assert time.monotonic() < end
            time.sleep(0.02)
