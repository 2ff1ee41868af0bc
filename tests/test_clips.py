"""Videos painted by optimization: what a frame is held to, the temporal loss, and the command."""

import contextlib
import itertools
import logging
import weakref

import jax
import numpy as np
import pytest
from commands import smooth
from scipy import ndimage

from nstjax import clips, images, jobs, memory, neural_style, priors, terminal, video
from nstjax.errors import InputError

pytestmark = pytest.mark.usefixtures("quickly")
STYLE = smooth(9, (48, 48))


def texture(seed, shape=(64, 80)):
    rng = np.random.default_rng(seed)
    x = sum(s**1.2 * ndimage.gaussian_filter(rng.normal(size=(*shape, 3)), (s, s, 0)) for s in (1.2, 3, 8))
    return ((x - x.min()) / np.ptp(x)).astype(np.float32)


def test_the_temporal_term_by_hand():
    image, other = smooth(1, (4, 5)), smooth(2, (4, 5))
    seen = np.random.default_rng(0).random((4, 5)).astype(np.float32)
    expected = sum(
        float(seen[i, j]) * (float(image[i, j, c]) - float(other[i, j, c])) ** 2
        for i in range(4)
        for j in range(5)
        for c in range(3)
    )
    found = priors.term("temporal", image, {"held": {"image": other, "seen": seen}}, tv_power=2.0, pool=4)
    assert float(found) == pytest.approx(expected / 60, rel=1e-5)


def test_a_frame_is_held_to_the_painted_one_moved_onto_it():
    ground, painted = texture(0), texture(1)
    frame, earlier = ground[:, 4:76], ground[:, :72]  # the camera goes 4 pixels to the right
    start, held, seen = clips.onto(frame, [earlier], [painted[:, :72]])
    assert seen[8:-8, 8:60].mean() > 0.95 and seen[:, -3:].mean() < 0.1
    assert np.abs(held - painted[:, 4:76])[8:-8, 8:60].mean() < 0.01
    np.testing.assert_allclose(start[seen > 0.99], held[seen > 0.99], atol=0.01)
    assert np.abs(start[8:-8, -1] - painted[8:-8, 71]).mean() < 0.03  # beyond the border, which is repeated


def test_what_comes_into_view_starts_from_what_was_painted_there():
    """Behind a disk that moves away the start is the painting, disk and all, and neither the frame nor nothing."""
    frame = texture(0)[:, :72]
    y, x = np.mgrid[:64, :72]
    disk = lambda cx: ((x - cx) ** 2 + (y - 32) ** 2 < 14**2)[..., None]  # noqa: E731
    before, after = (np.where(disk(cx), 0.9, frame).astype(np.float32) for cx in (30, 36))
    painted = np.where(disk(30), [0.9, 0.1, 0.1], [0.1, 0.2, 0.7]).astype(np.float32)
    start, _, seen = clips.onto(after, [before], [painted])
    uncovered = (disk(30) & ~disk(36))[..., 0]
    assert seen[uncovered].mean() < 0.5
    from_painting = np.abs(start[..., None, :] - np.array([[0.9, 0.1, 0.1], [0.1, 0.2, 0.7]])).mean(-1).min(-1)
    assert from_painting[uncovered].mean() < 0.05


def test_long_term_finds_what_was_hidden_for_a_moment():
    frame = texture(0)[:, :72]
    y, x = np.mgrid[:64, :72]
    disk = ((x - 36) ** 2 + (y - 32) ** 2 < 14**2)[..., None]
    covered = np.where(disk, 0.9, frame).astype(np.float32)
    painted = [np.full_like(frame, value) for value in (0.3, 0.7)]
    inner = ndimage.binary_erosion(disk[..., 0], iterations=4)
    outer = ~ndimage.binary_dilation(disk[..., 0], iterations=10)
    _, _, seen = clips.onto(frame, [covered], painted[:1])
    assert seen[inner].mean() < 0.05 and seen[outer].mean() > 0.98
    _, held, seen = clips.onto(frame, [covered, frame], painted)
    assert seen.min() > 0.98
    np.testing.assert_allclose(held[inner], 0.7, atol=0.03)
    np.testing.assert_allclose(held[outer], 0.3, atol=0.02)


def test_a_cut_is_held_to_nothing():
    _, _, seen = clips.onto(texture(0), [texture(1)], [texture(2)])
    assert seen.mean() < 0.02


def noisy(n=4):
    """A still scene with a camera's noise."""
    scene = texture(3, (48, 56))
    for i in range(n):
        yield (scene + np.random.default_rng(i).normal(0, 0.01, scene.shape)).clip(0, 1).astype(np.float32)


@pytest.fixture
def paint(narrow_vgg):
    """paint(frames, ...) -> every Progress of `clips.paint`."""

    def paint(frames, **options):
        defaults = {"preset": "fast", "steps": 6, "params": narrow_vgg}
        return list(clips.paint(frames, [STYLE], **(defaults | options)))

    return paint


def pictures(painted):
    return [each.image for each in painted if each.finished]


def test_an_image_is_held_where_it_is_seen(narrow_vgg):
    frame, held = next(noisy()), texture(4, (48, 56))
    seen = np.zeros((48, 56), np.float32)
    seen[:, :28] = 1
    job = jobs.Job(frame, [STYLE], held=jobs.Held(held, seen, 1e3))
    *_, last = neural_style.paint_batch([job], preset="fast", steps=25, average=0.0, params=narrow_vgg)
    error = np.abs(last.image[0] - held)
    assert error[:, :26].mean() < 0.2 * error[:, 30:].mean()


def test_each_frame_starts_from_the_one_before_and_is_held_to_it(paint, monkeypatch):
    batch, given = neural_style.paint_batch, []
    monkeypatch.setattr(
        neural_style, "paint_batch", lambda jobs, **more: given.append((*jobs, more)) or batch(jobs, **more)
    )
    done = paint(noisy(3), stability=2.0)
    (first, whole), *later = [(job, more["preset"]) for job, more in given]
    assert first.held is None and first.init == "content" and whole.steps == 6
    for (job, recipe), before in zip(later, pictures(done), strict=False):
        assert recipe.steps == 3 and recipe.scales == 1
        assert job.held.seen.mean() > 0.9
        for image in (job.init, job.held.image):
            assert np.abs(image - before)[job.held.seen > 0.9].mean() < 0.01
        assert job.held.weight == pytest.approx(200 * done[-1].unit)
    assert done[-1].unit == [each.loss for each in done if each.finished][0]


def test_the_first_frame_is_painted_as_an_image(paint, narrow_vgg):
    frame = next(noisy())
    *_, last = neural_style.paint(frame, [STYLE], preset="fast", steps=6, params=narrow_vgg)
    first = pictures(paint([frame]))[0]
    np.testing.assert_array_equal(first, np.rint(last.image * 255).astype(np.float32) / 255)


def test_after_a_cut_a_frame_is_painted_as_the_first(paint):
    other = texture(8, (48, 56))
    cut = pictures(paint([*noisy(2), other, other]))
    alone = pictures(paint([other]))[0]
    np.testing.assert_array_equal(cut[2], alone)
    assert np.abs(cut[3] - alone).mean() < 0.05


def test_resuming_gives_the_same_frames(paint):
    whole = paint(noisy(5), lags=clips.LONG_TERM)
    done = pictures(whole)
    resumed = clips.Resumed(done[:3], 3, whole[-1].unit)
    rest = paint(noisy(5), lags=clips.LONG_TERM, resumed=resumed)
    assert [each.frame for each in rest if each.finished] == [3, 4]
    np.testing.assert_array_equal(pictures(rest), done[3:])
    assert paint(noisy(3), resumed=resumed) == []


def test_one_program_for_the_first_frame_and_one_for_all_others(paint, caplog, monkeypatch):
    free = itertools.count(10_000_000_000, -1_000_000)  # what is free changes all the time
    monkeypatch.setattr(memory, "available", lambda: next(free))
    jax.config.update("jax_log_compiles", True)
    try:
        with caplog.at_level(logging.WARNING):
            paint(noisy(5), seed=5)
    finally:
        jax.config.update("jax_log_compiles", False)
    assert sum("Compiling jit(step)" in record.getMessage() for record in caplog.records) == 2


def test_memory_does_not_grow_with_the_number_of_frames(narrow_vgg):
    alive, most = weakref.WeakSet(), 0

    class Frame(np.ndarray):
        """An array that can be hashed, and so counted."""

        __hash__ = object.__hash__

    def counted():
        for each in noisy(7):
            frame = each.view(Frame)
            alive.add(frame)
            yield frame

    for _ in clips.paint(counted(), [STYLE], steps=1, params=narrow_vgg):
        most = max(most, len(alive))
    assert most <= 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stability": -1.0}, "stability"),
        ({"stability": float("nan")}, "stability"),
        ({"preserve_color": "luminance"}, "preserve_color"),
        ({"steps": 0}, "steps"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_bad_arguments_are_rejected(changes, told):
    with pytest.raises((InputError, TypeError)) as error:
        list(clips.paint(noisy(), [STYLE], **changes))
    assert told in f"{getattr(error.value, 'argument', '')} {error.value}"


def test_what_an_image_is_held_to_is_validated():
    frame = next(noisy())
    held = jobs.Held(frame, np.ones(frame.shape[:2], np.float32), 1.0)
    for wrong in (held._replace(image=frame[1:]), held._replace(seen=held.seen[1:]), held._replace(weight=-1.0)):
        with pytest.raises(InputError) as error:
            jobs.checked(jobs.Job(frame, [STYLE], held=wrong))
        assert error.value.argument == "held"


# --- experiments/video.py


@pytest.fixture
def run(experiment, tmp_path):
    """Runs the experiment; returns the video's path."""
    pytest.importorskip("imageio_ffmpeg", reason="video needs imageio-ffmpeg (the video extra)")
    images.save(tmp_path / "style.png", STYLE)
    with video.writing(tmp_path / "clip.mkv", video.Info((48, 56), 10, 4)) as add:
        for frame in noisy():
            add(frame)

    def run(*flags, output="out.mp4", content="clip.mkv"):
        path = tmp_path / output
        standard = ["--content", tmp_path / content, "--style", tmp_path / "style.png", "--output", path]
        experiment("video", *standard, "--size", 56, "--steps", 3, *flags)
        return path

    return run


@contextlib.contextmanager
def stopping(after):
    """In place of `terminal.stop_signals`: a signal comes when its function was called so many times."""
    calls = iter(range(1000))
    yield lambda: "SIGINT" if next(calls) >= after else None


def test_a_video_is_painted_and_continued_after_ctrl_c(run, tmp_path, monkeypatch, capsys):
    whole = run("--long-term")
    names = [f"{n:05d}.png" for n in range(1, 5)]
    assert sorted(path.name for path in (tmp_path / "out-frames").iterdir()) == [*names, "video.json"]
    assert "saved 4 frames (4 new)" in capsys.readouterr().out
    info = video.info(whole)
    assert info.rate == 10 and info.shape == (48, 56) and len(list(video.read(whole, info))) == 4
    with monkeypatch.context() as patch:
        patch.setattr(terminal, "stop_signals", lambda: stopping(5))  # in the middle of a frame
        with pytest.raises(SystemExit) as stop:
            run("--long-term", output="parts.mp4")
    assert stop.value.code == 130
    said = capsys.readouterr().out
    assert "stopped by SIGINT" in said and "saved 2 frames (2 new)" in said
    assert len(list(video.read(tmp_path / "parts.mp4", info))) == 2
    run("--long-term", output="parts.mp4")
    assert "saved 4 frames (2 new)" in capsys.readouterr().out
    for name in names:
        first, second = (images.load(tmp_path / folder / name) for folder in ("out-frames", "parts-frames"))
        np.testing.assert_array_equal(first, second)
    with pytest.raises(SystemExit) as stop:
        run("--stability", "2", "--long-term")
    assert stop.value.code == 2 and "out-frames: has frames of other flags" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--stability", "-1"], "--stability"),
        (["--share", "0"], "--share"),
        (["--devices", "2"], "--devices"),
        (["--preserve-color", "luminance"], "--preserve-color"),
        (["--content", "none.mp4"], "none.mp4"),
        (["--output", "out.txt"], "out.txt"),
        (["--frames", "style.png"], "style.png"),
    ],
)
def test_bad_input_ends_with_one_line(run, flags, told, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("video.py:") and told in lines[0]
    assert sorted(tmp_path.rglob("*")) == before
