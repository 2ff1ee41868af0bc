"""experiments/stylize.py from end to end with tiny nets: what it takes, what it keeps, and what it refuses."""

import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from commands import ROOT
from commands import run as command
from networks import TINY, levels, trained
from networks import narrow_vgg as narrow
from PIL import Image
from samples import photo as photograph
from samples import png

from nstjax import features, images, memory, nets, video
from nstjax.nets import Decoder, TextureNet, adain, io, texture, tiled
from nstjax.nets.decoder import LEVELS

EXAMPLE = np.zeros((1, 16, 16, 3), np.float32)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """What takes time here is compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def tiny():
    return trained(TINY, EXAMPLE)


@pytest.fixture
def style(tiny, monkeypatch, tmp_path):
    """The file of a tiny trained net."""
    monkeypatch.setitem(nets.NETS, "fast", TINY)
    io.save(tmp_path / "a.safetensors", tiny, {"net": "fast"})
    return tmp_path / "a.safetensors"


@pytest.fixture
def run(style, tmp_path, monkeypatch):
    """Runs the command in this process; returns the output's path."""

    def run(*flags, content=None, style=style, output="out.png"):
        content = [photograph(tmp_path / "photo.png", 1)] if content is None else content
        given = ["--content", *content] if content else []
        command(monkeypatch, "stylize", *given, "--style", style, "--output", tmp_path / output, *flags)
        return tmp_path / output

    return run


def opened(path):
    with Image.open(path) as picture:
        return picture.copy()


def clip(path, n=6):
    with video.writing(path, video.Info((32, 40), 10, n)) as add:
        for i in range(n):
            add(np.kron(np.random.default_rng(i).uniform(size=(4, 5, 3)), np.ones((8, 8, 1))))
    return path


# --- pictures


def test_folders_patterns_and_files_keep_their_names(run, tmp_path, monkeypatch, capsys):
    photograph(tmp_path / "in" / "a.png", 1)
    (tmp_path / "in" / "deep").mkdir()
    photograph(tmp_path / "in" / "deep" / "a.png", 2)
    photograph(tmp_path / "more" / "b1.png", 3)
    photograph(tmp_path / "more" / "b2.jpg", 4)
    out = run(content=[tmp_path / "in", tmp_path / "more" / "b*"], output="out")
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.png")) == ["a.png", "b1.png", "b2.png", "deep/a.png"]
    assert "saved 4 of 4 images" in capsys.readouterr().out
    alone = images.load(run(content=[tmp_path / "in" / "deep" / "a.png"], output="alone.png"))
    np.testing.assert_array_equal(images.load(out / "deep" / "a.png"), alone)


def test_photographs_of_one_name_get_pictures_of_their_own(run, tmp_path):
    inside = ["photo.jpg", "photo.png", "PHOTO.webp", "photo-2.png", "deep/photo.png"]
    files = [photograph(tmp_path / "in" / name, i) for i, name in enumerate(inside[:4])]
    files.append(photograph(tmp_path / "in" / "deep" / "photo.png", 4))
    out = run(content=[tmp_path / "in"], output="out")
    painted = {str(path.relative_to(out)).lower() for path in out.rglob("*.png")}
    assert painted == {"photo.png", "photo-2.png", "photo-3.png", "photo-4.png", "deep/photo.png"}
    out = run(content=[tmp_path / "in" / "photo.png", tmp_path / "in" / "deep" / "photo.png"], output="two")
    alone = images.load(run(content=[tmp_path / "in" / "deep" / "photo.png"], output="alone.png"))
    np.testing.assert_array_equal(images.load(out / "photo-2.png"), alone)
    assert not np.array_equal(images.load(out / "photo.png"), alone)


def test_a_bad_name_or_link_does_not_stop_the_others(run, tmp_path, capsys):
    photograph(tmp_path / "in" / "good.png", 1)
    photograph(tmp_path / "in" / "a.png", 1).rename(tmp_path / "in" / f"{251 * 'n'}.qoi")
    photograph(tmp_path / "in" / "a.png", 1).rename(tmp_path / "in" / f"{252 * 'm'}.gi")
    photograph(tmp_path / "in" / "a.png", 1).rename(tmp_path / "in" / os.fsdecode(b"\xff\x1b[31m.png"))
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "in" / "pipe.png").symlink_to(tmp_path / "pipe")
    with pytest.raises(SystemExit) as stop:
        run(content=[tmp_path / "in", tmp_path / "in" / f"{252 * 'm'}.gi"], output="out")
    said = capsys.readouterr()
    assert stop.value.code == 1 and "saved 3 of 6" in said.out
    told = [line for line in said.err.splitlines() if line.startswith("stylize.py:")]
    assert len(told) == 3 and all(line.isprintable() for line in told)
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_batches_paint_the_same_pictures(run, tmp_path):
    content = [photograph(tmp_path / "in" / f"{i}.png", i, size=(40, 36 if i % 2 else 30)) for i in range(5)]
    one, two = run(content=content, output="one"), run("--batch-size", 2, content=content, output="two")
    for i in range(5):
        np.testing.assert_allclose(images.load(one / f"{i}.png"), images.load(two / f"{i}.png"), atol=1.1 / 255)


def test_strips_paint_the_same_picture(run, monkeypatch, tmp_path):
    whole = images.load(run(output="whole.png"))
    asked = []
    monkeypatch.setattr(tiled, "plan", lambda net, shape, *, limit: asked.append(limit) or 16)
    strips = images.load(run("--memory-limit", "1", output="strips.png"))
    assert asked == [1e9 - memory.RUNTIME - 4 * 24 * 40 * 36]
    np.testing.assert_allclose(strips, whole, atol=1.1 / 255)


def test_rotation_is_applied_and_transparency_kept(run, tmp_path):
    pixels = np.asarray(opened(photograph(tmp_path / "plain.png", 1)))
    alpha = np.broadcast_to(np.linspace(0, 255, 40, dtype=np.uint8), (36, 40))
    clear = Image.fromarray(np.dstack([pixels, alpha]))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    clear.save(tmp_path / "clear.png", exif=exif)
    picture = opened(run(content=[tmp_path / "clear.png"]))
    assert picture.mode == "RGBA" and picture.size == (36, 40)
    np.testing.assert_allclose(np.asarray(picture)[..., 3], np.rot90(alpha, -1), atol=1)
    assert opened(run(content=[tmp_path / "plain.png"])).mode == "RGB"
    assert opened(run(content=[tmp_path / "clear.png"], output="out.jpg")).mode == "RGB"


@pytest.mark.parametrize("preserve", ["luminance", "covariance", "histogram"])
def test_colours_are_the_photographs(run, tmp_path, preserve):
    photo = images.load(photograph(tmp_path / "photo.png", 1))
    kept, plain = images.load(run("--preserve-color", preserve)), images.load(run())

    def error(picture):
        if preserve == "luminance":
            return np.abs((picture - photo) - (picture - photo) @ np.full((3, 3), [[0.299], [0.587], [0.114]])).mean()
        return np.abs(np.sort(picture.reshape(-1, 3), axis=0) - np.sort(photo.reshape(-1, 3), axis=0)).mean()

    assert error(kept) < 0.5 * error(plain)


@pytest.mark.parametrize("preserve", ["luminance", "covariance", "histogram"])
def test_a_grey_photograph_stays_grey(run, tmp_path, preserve):
    opened(photograph(tmp_path / "colour.png", 1)).convert("L").save(tmp_path / "grey.png")
    painted = np.asarray(opened(run("--preserve-color", preserve, content=[tmp_path / "grey.png"])).convert("RGB"), int)
    assert np.ptp(painted, axis=-1).max() <= 1 and np.ptp(painted) > 50
    plain = np.asarray(opened(run(content=[tmp_path / "grey.png"])).convert("RGB"), int)
    assert np.ptp(plain, axis=-1).max() > 10


def test_one_corrupt_picture_does_not_stop_the_others(run, tmp_path, capsys):
    for i in range(3):
        photograph(tmp_path / "in" / f"{i}.png", i)
    (tmp_path / "in" / "1.png").write_bytes((tmp_path / "in" / "1.png").read_bytes()[:300])
    (tmp_path / "in" / "x.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as stop:
        run(content=[tmp_path / "in"], output="out")
    said = capsys.readouterr()
    assert stop.value.code == 1 and "saved 2 of 4" in said.out
    told = [line for line in said.err.splitlines() if line.startswith("stylize.py:")]
    assert len(told) == 2 and any("x.png" in line for line in told) and any("1.png" in line for line in told)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "2.png"]
    (tmp_path / "in" / "0.png").unlink()
    (tmp_path / "in" / "2.png").unlink()
    with pytest.raises(SystemExit) as stop:
        run(content=[tmp_path / "in"], output="other")
    assert stop.value.code == 2


# --- other nets


def test_texture_nets_follow_their_seed(run, tmp_path, monkeypatch):
    net = TextureNet(width=2)
    monkeypatch.setitem(nets.NETS, "ulyanov", net)
    noise = texture.noise(jax.random.key(0), (1, 16, 16), scales=2)
    io.save(tmp_path / "u.safetensors", trained(net, noise, EXAMPLE), {"net": "ulyanov"})
    io.save(tmp_path / "t.safetensors", trained(net, noise), {"net": "ulyanov"})
    photos = [photograph(tmp_path / f"{name}.png", 1) for name in "ab"]
    one, two = (run("--seed", i, content=photos, style=tmp_path / "u.safetensors", output=str(i)) for i in (1, 2))
    first, same, other = (images.load(path) for path in (one / "a.png", one / "b.png", two / "a.png"))
    assert first.shape == (36, 40, 3)
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).mean() > 1 / 255
    made = run("--size", 33, content=[], style=tmp_path / "t.safetensors", output="texture.png")
    assert images.load(made).shape == (33, 33, 3)
    for flags in ([], ["--strength", "1"], ["--preserve-color", "luminance"], ["--batch-size", "2"]):
        with pytest.raises(SystemExit):
            run(*flags, content=[] if flags else None, style=tmp_path / "t.safetensors")


def test_adain_paints_like_its_paintings(run, tmp_path, monkeypatch):
    params = features.prepare(narrow("vgg19"), winograd=False)
    monkeypatch.setattr(features, "load", lambda *args, **kwargs: params)
    # Averages of features, so that nothing is lost to ReLUs and clipping.
    level = 2 * float(np.mean(adain.encode(params, images.load(photograph(tmp_path / "photo.png", 1))[None])))
    net = Decoder(channels=(8, 4, 4), level=level)
    monkeypatch.setitem(nets.NETS, "adain", net)
    channels = params["conv4_1"]["bias"].shape[0]
    decoder = trained(net, np.zeros((1, 4, 4, channels), np.float32))
    decoder = jax.tree.map(lambda p: abs(p) / abs(p).sum((0, 1, 2)) if p.ndim > 1 else 0 * p, decoder)
    io.save(tmp_path / "d.safetensors", decoder, {"net": "adain"})
    a, b = (photograph(tmp_path / f"{i}.png", 10 + i, size=(64 + 9 * i, 64)) for i in range(2))

    def paint(*flags):
        flags = ["--style-size", 64, "--style-image", *flags]
        return images.load(run(*flags, style=tmp_path / "d.safetensors"))

    first, second = paint(a), paint(b)
    assert first.shape == (36, 40, 3)
    assert np.abs(first - second).mean() > 1 / 255
    np.testing.assert_allclose(paint(a, b, "--style-blend", 1, 0), first, atol=1.1 / 255)
    np.testing.assert_allclose(paint(a, "--strength", 0), paint(b, "--strength", 0), atol=1.1 / 255)
    for flags in ([], ["--style-image", a, "--style-blend", 1, 2], ["--style-image", a, "--style-blend", 0]):
        with pytest.raises(SystemExit) as stop:
            run(*flags, style=tmp_path / "d.safetensors")
        assert stop.value.code == 2


def test_a_painting_as_style_is_painted_like_by_wct(run, tmp_path, monkeypatch):
    params = features.prepare(narrow("vgg19"), winograd=False)
    monkeypatch.setattr(features, "load", lambda *args, **kwargs: params)
    channels = tuple(params[f"conv{block}_1"]["bias"].shape[0] for block in (3, 2, 1))
    net = Decoder(channels=channels, level=1.0, unpool=True)
    relu4_1 = np.zeros((1, 4, 4, params["conv4_1"]["bias"].shape[0]), np.float32)
    loaded = (net, net.init(jax.random.key(0), relu4_1), {})
    monkeypatch.setattr(io, "load", lambda style: {"wct": loaded}[style])
    for name, level in levels(params).items():
        monkeypatch.setitem(LEVELS, name, level)
    a, b = (photograph(tmp_path / f"{i}.png", 10 + i, size=(64 + 9 * i, 64)) for i in range(2))
    first, second = (images.load(run(style=painting)) for painting in (a, b))
    assert first.shape == (36, 40, 3) and np.abs(first - second).mean() > 1 / 255
    np.testing.assert_array_equal(images.load(run("--style-image", a, style="wct")), first)
    blended = images.load(run("--style-image", b, "--style-blend", 1, 3, style=a))
    assert np.abs(blended - first).mean() > 1 / 255 and np.abs(blended - second).mean() > 1 / 255
    with pytest.raises(SystemExit) as stop:
        run(style="wct")
    assert stop.value.code == 2


# --- refusals


def linked(path, target):
    path.symlink_to(target)
    return path


def film(path):
    path.write_bytes(b"no video")
    return path


def huge(path):
    """A PNG of 22,000 x 22,000 px by its header; the pixels are not there."""
    path.write_bytes(png(22_000, 22_000, 8, 2, []))
    return path


BAD = {
    "missing content": lambda d: ({"content": [d / "none.jpg"]}, [], "none.jpg"),
    "pattern of nothing": lambda d: ({"content": [d / "*.gif"]}, [], "*.gif"),
    "empty folder": lambda d: ({"content": [(d / "none").mkdir() or d / "none"]}, [], "none"),
    "corrupt content": lambda d: ({"content": [film(d / "cut.png")]}, [], "cut.png"),
    "no content": lambda d: ({"content": []}, [], "--content"),
    "output is the photograph": lambda d: ({"output": "photo.png"}, [], "would be overwritten"),
    "output is the net": lambda d: (
        {"style": photograph(d / "a.png", 1), "output": "a.png"},
        [],
        "would be overwritten",
    ),
    "output is the painting": lambda d: (
        {"output": "p.png"},
        ["--style-image", photograph(d / "p.png", 1)],
        "would be overwritten",
    ),
    "a folder into itself": lambda d: (
        {"content": [photograph(d / "in" / "a.png", 1).parent], "output": "in"},
        [],
        "would be overwritten",
    ),
    "a folder into a link to it": lambda d: (
        {"content": [photograph(d / "in" / "a.png", 1).parent], "output": linked(d / "out", d / "in").name},
        [],
        "would be overwritten",
    ),
    "over another's photograph": lambda d: (
        {"content": [photograph(d / "x" / "a.jpg", 1), photograph(d / "out" / "a.png", 1)], "output": "out"},
        [],
        "would be overwritten",
    ),
    "a picture and a folder of one name": lambda d: (
        {"content": [photograph(photograph(d / "in" / "a.jpg", 1).parent / "a.png" / "b.jpg", 1).parent.parent]},
        [],
        "both a file and the folder",
    ),
    "output is a device": lambda d: ({"output": linked(d / "null.png", "/dev/null").name}, [], "is a device"),
    "photograph is a pipe": lambda d: ({"content": [os.mkfifo(d / "p.png") or d / "p.png"]}, [], "p.png: is a FIFO"),
    "net is a pipe": lambda d: ({"style": os.mkfifo(d / "p.pth") or d / "p.pth"}, [], "p.pth: is a FIFO"),
    "long name": lambda d: ({"content": [d / (300 * "a")]}, [], "no such file"),
    "escapes": lambda d: ({"content": [d / "\x1b[31m\n.png"]}, [], "\\x1b[31m\\n.png: no such file"),
    "seed of a transform net": lambda d: ({}, ["--seed", "0"], "--seed"),
    "large seed": lambda d: ({}, ["--seed", str(2**64)], "--seed"),
    "strokes of a transform net": lambda d: ({}, ["--style-size", "512"], "--style-size"),
    "a batch of one": lambda d: ({}, ["--batch-size", "1"], "--batch-size"),
    "smooth nothing": lambda d: ({}, ["--smooth", "0"], "--smooth"),
    "output of unknown kind": lambda d: ({"output": "out.xyz"}, [], "out.xyz"),
    "video of a photograph": lambda d: ({"output": "out.mp4"}, [], "out.mp4"),
    "picture of a video": lambda d: ({"content": [film(d / "a.mp4")]}, [], "out.png"),
    "no video": lambda d: ({"content": [film(d / "a.mp4")], "output": "out.mp4"}, [], "a.mp4"),
    "two videos": lambda d: ({"content": [film(d / "a.mp4"), film(d / "b.mp4")]}, [], "a.mp4"),
    "no style": lambda d: ({"style": d / "none.safetensors"}, [], "none.safetensors"),
    "painting for a transform net": lambda d: ({}, ["--style-image", d / "a.png"], "--style-image"),
    "smooth photograph": lambda d: ({}, ["--smooth", "0.5"], "--smooth"),
    "tiny size": lambda d: ({}, ["--size", "8"], "--size"),
    "strength too high": lambda d: ({}, ["--strength", "1.5"], "--strength"),
    "strength nan": lambda d: ({}, ["--strength", "nan"], "--strength"),
    "no batch": lambda d: ({}, ["--batch-size", "0"], "--batch-size"),
    "no memory": lambda d: ({}, ["--memory-limit", "0.1"], "--memory-limit"),
    "too large to decode": lambda d: ({"content": [huge(d / "huge.png")]}, ["--memory-limit", "1"], "huge.png"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(run, tmp_path, capsys, case):
    options, flags, named = BAD[case](tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        run(*flags, **options)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stylize.py:")]
    assert len(lines) == 1 and named in lines[0], lines
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert after - set(before) <= {tmp_path / "photo.png"}
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != "photo.png")


def test_a_full_disk_loses_nothing(run, monkeypatch, tmp_path, capsys):
    old = run().read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(SystemExit) as stop:
        run("--strength", 0.5)
    assert stop.value.code == 2 and "No space left" in capsys.readouterr().err
    assert (tmp_path / "out.png").read_bytes() == old


# --- video


@pytest.fixture
def film_of_six(tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="video needs imageio-ffmpeg (the video extra)")
    return clip(tmp_path / "clip.mp4")


def test_a_video_is_painted_frame_by_frame(run, tiny, film_of_six, capsys):
    frames = list(video.read(film_of_six, video.info(film_of_six)))
    expected = np.asarray(jax.jit(TINY.apply)(tiny, np.stack(frames)))
    painted = run("--batch-size", 4, content=[film_of_six], output="out.mp4")
    assert "saved 6 frames" in capsys.readouterr().out
    got = np.stack(list(video.read(painted, info := video.info(painted))))
    assert info.rate == 10 and got.shape == expected.shape
    # The file keeps colours at half the size, and these are bright.
    assert np.abs(got - expected).mean() < 0.3 * np.abs(got - np.roll(expected, 1, axis=0)).mean()


def test_a_smooth_video_follows_cuts(run, film_of_six):
    plain, smooth = (
        np.stack(list(video.read(path, video.info(path))))
        for path in (
            run(content=[film_of_six], output="plain.mp4"),
            run("--smooth", 1, content=[film_of_six], output="smooth.mp4"),
        )
    )
    # Every frame of this clip is another picture.
    assert np.abs(plain - smooth).mean() < 0.02


def animation(path, n=3):
    frames = [Image.new("RGB", (40, 32), (80 * i, 120, 200 - 60 * i)) for i in range(n)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


def test_an_animated_gif_is_painted_as_a_video_and_in_a_folder_by_its_first_frame(run, tmp_path, capsys):
    pytest.importorskip("imageio_ffmpeg", reason="video needs imageio-ffmpeg (the video extra)")
    (tmp_path / "folder").mkdir()
    gif = animation(tmp_path / "folder" / "a.gif")
    painted = run(content=[gif], output="out.mp4")
    assert "saved 3 frames" in capsys.readouterr().out and video.info(painted).frames == 3
    run(content=[gif.parent], output="pictures")
    assert images.load(tmp_path / "pictures" / "a.png").shape == (32, 40, 3)
    run(content=[animation(tmp_path / "single.gif", 1)], output="single.png")
    assert images.load(tmp_path / "single.png").shape == (32, 40, 3)
    with pytest.raises(SystemExit):
        run(content=[gif, tmp_path / "single.gif"], output="pictures")
    assert "a.gif: a video is painted alone" in capsys.readouterr().err


def test_ctrl_c_leaves_a_playable_video(style, tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="video needs imageio-ffmpeg (the video extra)")
    io.save(style, trained(nets.NETS["depsep"], EXAMPLE), {"net": "depsep"})
    film, output = clip(tmp_path / "long.mkv", 400), tmp_path / "out.mp4"
    script = [sys.executable, ROOT / "experiments" / "stylize.py", "--content", film, "--style", style]
    process = subprocess.Popen(
        [*script, "--output", output, "--size", "80"],
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        seen = ""
        while not re.search(r"[2-9]/400", seen):
            assert process.poll() is None, seen
            seen += process.stderr.read(1)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and "frames in" in said
    there = len(list(video.read(output, video.info(output))))
    assert 2 <= there < 400 and f"saved {there} frames" in said
    assert not list(tmp_path.glob(".*"))
