"""The page of docs/browser: what its folder holds, and what it paints in a real browser by ONNX Runtime Web."""

import base64
import fcntl
import functools
import http.server
import importlib.util
import io
import json
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from browsers import DROP, chromium
from networks import SMALL, pictures, trained
from PIL import Image
from samples import picture

from nstjax import images, nets, pixels, styles
from nstjax.errors import InputError
from nstjax.nets import io as files_of_nets

onnxruntime = pytest.importorskip("onnxruntime", reason='the page needs pip install "nstjax[onnx]"')

ROOT = Path(__file__).parent.parent
FAST = nets.NETS["fast"]
WIDTHS = (360, 1280)
STATUS = "document.getElementById('status').textContent"
PAINTED = f"{STATUS}.includes('40 x 32 px in ')"
WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
WEBCAM = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@functools.cache
def build():
    """The module docs/browser/build.py."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "browser" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def small():
    """Nets of few channels in place of the whole ones."""
    with pytest.MonkeyPatch.context() as patch:
        for name, net in SMALL.items():
            patch.setitem(nets.NETS, name, net)
        yield


@pytest.fixture(scope="module")
def trained_nets(small, tmp_path_factory):
    """Files of two nets, after Johnson and with depthwise separable convolutions."""
    folder, x = tmp_path_factory.mktemp("nets"), pictures(1, 16, 16)
    for seed, (style, net) in enumerate({"night": "fast", "wave": "depsep-nn-bil"}.items()):
        files_of_nets.save(folder / f"{style}.safetensors", trained(SMALL[net], x, seed=seed), {"net": net})
    return [folder / "night.safetensors", folder / "wave.safetensors"]


@pytest.fixture(scope="module")
def runtime(request, tmp_path_factory):
    """The folder dist of onnxruntime-web, kept in pytest's cache."""
    npm, folder = shutil.which("npm"), request.config.cache.mkdir("onnxruntime-web")
    dist = folder / "node_modules" / "onnxruntime-web" / "dist"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of pytest's processes installs, the others wait
        if not all((dist / name).is_file() for name in build().RUNTIMES):
            if npm is None:
                pytest.skip("ONNX Runtime Web comes by npm: apt-get install npm")
            flags = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder]
            done = subprocess.run([npm, "install", *flags, "onnxruntime-web"], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"npm install onnxruntime-web failed: {(done.stderr.splitlines() or [''])[-1]}")
    return dist


@pytest.fixture(scope="module")
def page(trained_nets, runtime, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    build().main(folder, tuple(map(str, trained_nets)), ort=str(runtime))
    picture(folder / "photo.jpg", 4, size=(48, 40))
    return folder


@pytest.fixture(scope="module")
def address(page):
    """The page's address on a server of static files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def end_headers(self):
            self.send_header("Cache-Control", "no-store")
            super().end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=page)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(address, tmp_path_factory):
    browser = chromium(tmp_path_factory.mktemp("browser"), *WEBGPU, *WEBCAM)
    yield browser
    browser.close()


def drop(browser, content, name="photo.png"):
    encoded = base64.b64encode(content).decode()
    blob = f"new Blob([Uint8Array.from(atob('{encoded}'), each => each.charCodeAt())])"
    browser.run((DROP % (blob, "drop")).replace("dropped.jpg", name))


def canvas(browser):
    """The pixels [h, w, 3] of the page's picture, in 0..255."""
    url = browser.run("document.getElementById('painted').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"), np.int16)


def expected(page, name, photo):
    """What ONNX Runtime makes of a photo [h, w, 3] on the CPU, in 0..255."""
    session = onnxruntime.InferenceSession(page / f"{name}.onnx", providers=["CPUExecutionProvider"])
    (painted,) = session.run(None, {"pictures": np.float32(photo)[None] / 255})[0]
    return pixels.to_bytes(painted).astype(np.int16)


@pytest.fixture
def dropped(tmp_path):
    """A photo of 40 x 32 px: (the file's content, its pixels)."""
    content = picture(tmp_path / "photo.png", 3, size=(40, 32)).read_bytes()
    return content, np.asarray(Image.open(io.BytesIO(content)), np.int16)


def test_a_dropped_photo_is_painted_as_the_library_paints_it(browser, address, page, trained_nets, dropped):
    content, photo = dropped
    by_library = [255 * np.asarray(styles.load(net).stylize(np.float32(photo) / 255)) for net in trained_nets]
    for width in WIDTHS:
        browser.open(f"{address}?device=cpu", width, f"{STATUS}.includes(' px in ')")  # the page's own photo is painted
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert browser.run("[...document.images].every(image => image.naturalWidth > 0)")
        drop(browser, content)
        browser.until(PAINTED)
        for i, name in enumerate(("night", "wave")):
            if i:
                browser.run(f"document.querySelectorAll('#styles input')[{i}].click()")
                browser.until(f"{STATUS}.startsWith('{name}: ')")
            painted = canvas(browser)
            assert painted.shape == photo.shape and np.abs(painted - photo).mean() > 5
            assert np.abs(painted - expected(page, name, photo)).max() <= 1
            assert np.abs(painted - by_library[i]).mean() < 4  # the kernels have 8 bits
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    browser.run("(slider => { slider.value = 50; slider.oninput() })(document.getElementById('strength'))")
    assert np.abs(canvas(browser) - (painted + photo) / 2).max() <= 2
    browser.run("document.getElementById('drop').dispatchEvent(new PointerEvent('pointerdown'))")
    np.testing.assert_array_equal(canvas(browser), photo)
    assert not browser.run("document.getElementById('save').disabled")


def test_size_and_bad_files(browser, address, tmp_path, dropped):
    browser.open(f"{address}?device=cpu", 800, f"{STATUS}.includes(' px in ')")
    drop(browser, picture(tmp_path / "wide.png", 3, size=(300, 100)).read_bytes())
    browser.run("(slider => { slider.value = 128; slider.onchange() })(document.getElementById('size'))")
    browser.until(f"{STATUS}.includes('128 x 43 px in ')")
    before = canvas(browser)
    for content, told in (
        (b"no image", "photo.png: this browser cannot read it as an image; take a JPEG or a PNG"),
        (picture(tmp_path / "small.png", 3, size=(40, 15)).read_bytes(), "photo.png: 40 x 15 px; take one of at least"),
    ):
        drop(browser, content)
        browser.until(f"{STATUS}.startsWith('{told}')")
        np.testing.assert_array_equal(canvas(browser), before)
    drop(browser, dropped[0])  # the next one is painted all the same
    browser.until(PAINTED)


def test_the_webcam(browser, address, dropped):
    browser.open(f"{address}?device=cpu", 360, f"{STATUS}.includes(' px in ')")
    browser.run("document.getElementById('webcam').click()")
    browser.until(f"{STATUS}.includes('256 x 192 px in ') && document.getElementById('webcam').textContent[0] == 'S'")
    first = canvas(browser)
    browser.until("!document.getElementById('save').disabled")
    for _ in range(100):  # the fake camera's picture moves
        if (canvas(browser) != first).any():
            break
    else:
        pytest.fail("the picture stands still")
    browser.run("document.getElementById('webcam').click()")
    browser.until(f"document.getElementById('webcam').textContent == 'Webcam' && {STATUS}.includes('256 x 192')")
    browser.run("document.getElementById('webcam').click()")
    browser.until("document.getElementById('webcam').textContent == 'Stop webcam'")
    drop(browser, dropped[0])  # ends it
    browser.until(f"document.getElementById('webcam').textContent == 'Webcam' && {PAINTED}")


def test_transparency_lies_on_white(browser, address, page):
    browser.open(f"{address}?device=cpu", 360, f"{STATUS}.includes(' px in ')")
    file = io.BytesIO()
    Image.new("RGBA", (40, 32), (0, 0, 0, 0)).save(file, "PNG")
    drop(browser, file.getvalue())
    browser.until(PAINTED)
    white = np.full((32, 40, 3), 255)
    assert np.abs(canvas(browser) - expected(page, "night", white)).max() <= 1


def test_what_is_missing_is_one_line(browser, address, page, dropped):
    missing = {
        "night.onnx": "night.onnx cannot be loaded (404)",
        "ort/ort.wasm.min.mjs": f"ONNX Runtime Web is not at {address}ort/; ",
        "styles.json": "styles.json cannot be loaded; ",
    }
    for name, told in missing.items():
        (page / name).rename(page / "away")
        try:
            browser.open(f"{address}?device=cpu&without={name}", 360, f"{STATUS}.startsWith('{told}')")
        finally:
            (page / "away").rename(page / name)


def test_webgpu_and_without_it_the_cpu(browser, address, page, dropped):
    content, photo = dropped
    browser.open(f"{address}?device=gpu", 360)
    if not browser.run("(async () => Boolean(await navigator.gpu?.requestAdapter()))()"):
        pytest.skip("this browser has no WebGPU")
    drop(browser, content)
    browser.until(f"{STATUS}.includes('on the GPU')")
    browser.until(PAINTED)
    assert np.abs(canvas(browser) - expected(page, "night", photo)).max() <= 1
    broken = page / "ort" / "ort-wasm-simd-threaded.asyncify.wasm"
    broken.rename(page / "away")
    try:
        browser.open(f"{address}?device=gpu&broken", 360, f"{STATUS}.includes('on the CPU')")
    finally:
        (page / "away").rename(broken)


def fake_runtime(folder):
    folder.mkdir()
    for name in build().RUNTIMES:
        (folder / name).write_text(name)
    return folder


def test_the_folder(tmp_path, trained_nets, capsys):
    build().main(tmp_path / "page", tuple(map(str, trained_nets)), ort=str(fake_runtime(tmp_path / "dist")))
    said = capsys.readouterr().out
    assert "night.onnx: 0.0" in said and f"saved {tmp_path / 'page'}" in said
    listed = json.loads((tmp_path / "page" / "styles.json").read_text())
    assert [style["title"] for style in listed["styles"]] == ["night", "wave"]
    for style in listed["styles"]:
        assert (tmp_path / "page" / style["file"]).is_file()
        assert images.shape(tmp_path / "page" / style["thumbnail"]) == (256, 256)
    assert images.shape(tmp_path / "page" / listed["photo"]) == (512, 512)
    assert sorted(path.name for path in (tmp_path / "page" / "ort").iterdir()) == sorted(build().RUNTIMES)
    page = (tmp_path / "page" / "index.html").read_text()
    assert page == build().PAGE.read_text() and build().HERE in page
    assert "http" not in page  # nothing is loaded from elsewhere
    build().main(tmp_path / "page", (str(trained_nets[0]),), ort="https://example.org/dist")
    assert 'const ORT = "https://example.org/dist/"\n' in (tmp_path / "page" / "index.html").read_text()


def test_bad_flags_are_one_line_and_nothing_is_written(tmp_path, trained_nets):
    for styles_named, ort, told in (
        (trained_nets, tmp_path / "nowhere", "ort: .*npm install onnxruntime-web"),
        (["nowhere"], fake_runtime(tmp_path / "dist"), "no style 'nowhere'"),
        ([], tmp_path / "dist", "styles: name at least one"),
    ):
        with pytest.raises(InputError, match=told):
            build().main(tmp_path / "page", tuple(map(str, styles_named)), ort=str(ort))
    assert not (tmp_path / "page").exists()


@pytest.mark.trained
def test_bundled_nets_fit_two_megabytes_and_have_their_paintings_names(tmp_path, monkeypatch):
    monkeypatch.setitem(nets.NETS, "fast", FAST)
    build().main(tmp_path / "page", ("the_scream",), ort=str(fake_runtime(tmp_path / "dist")))
    assert (tmp_path / "page" / "the_scream.onnx").stat().st_size < 2e6
    (style,) = json.loads((tmp_path / "page" / "styles.json").read_text())["styles"]
    assert style["title"] == "Edvard Munch, The Scream, 1893"
