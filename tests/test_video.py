"""Videos made here are read, written, cut off and refused; painted ones are held still."""

import subprocess
import sys
import wave
from fractions import Fraction

import jax
import numpy as np
import pytest

from nstjax import video
from nstjax.errors import InputError

ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="video needs imageio-ffmpeg (the video extra)")
INFO = video.Info((32, 48), Fraction(30000, 1001), 12)


def ramp(n=12, shape=INFO.shape):
    """Frames that grow brighter, darker on the left: of one hue, so that 4:2:0 loses little."""
    shade = np.linspace(0.2, 0.6, shape[1], dtype=np.float32)[None, :, None] * np.ones((shape[0], 1, 3), np.float32)
    return [shade + 0.03 * i for i in range(n)]


def said(*arguments):
    """What ffmpeg says."""
    return subprocess.run([ffmpeg.get_ffmpeg_exe(), *map(str, arguments)], capture_output=True, text=True).stderr


def tone(path, seconds):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        t = np.arange(int(8000 * seconds)) / 8000
        file.writeframes((8000 * np.sin(2 * np.pi * 440 * t)).astype("<i2").tobytes())
    return path


def clip(path, frames=None, sound=None, info=INFO):
    with video.writing(path, info, sound=sound) as add:
        for frame in frames or ramp():
            add(frame)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".mov"])
def test_frames_come_back_with_their_rate(tmp_path, suffix):
    path = clip(tmp_path / "deep" / f"clip{suffix}")
    info = video.info(path)
    frames = list(video.read(path, info))
    assert info.shape == INFO.shape and len(frames) == 12
    assert float(info.rate) == pytest.approx(30000 / 1001, rel=1e-4)
    assert info.frames == pytest.approx(12, abs=1)
    np.testing.assert_allclose(np.stack(frames), np.stack(ramp()), atol=0.03)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_sizes_are_even_and_pixels_square(tmp_path):
    path = clip(tmp_path / "clip.mp4")
    assert video.info(path, size=24).shape == (16, 24)
    assert video.info(path, size=25).shape in ((16, 24), (16, 26))
    wide, turned = tmp_path / "wide.mp4", tmp_path / "turned.mp4"
    said("-i", path, "-c", "copy", "-bsf:v", "h264_metadata=sample_aspect_ratio=2/1", wide)
    assert video.info(wide).shape == (32, 96)
    said("-display_rotation", "90", "-i", path, "-c", "copy", turned)
    info = video.info(turned)
    assert info.shape == (48, 32)
    first = next(frames := video.read(turned, info))
    frames.close()
    assert np.abs(np.diff(first.mean((1, 2)))).max() > 0.005  # it was darker on the left


def test_sound_is_kept_for_as_long_as_there_are_frames(tmp_path):
    sound = clip(tmp_path / "sounding.mp4", sound=tone(tmp_path / "tone.wav", 0.4))
    for name, frames in (("whole.mp4", ramp()), ("cut.mp4", ramp(6)), ("other.webm", ramp())):
        told = said("-i", clip(tmp_path / name, frames, sound))
        assert "Audio:" in told
        seconds = float(told.partition("Duration: 00:00:")[2].partition(",")[0])
        assert seconds == pytest.approx(len(frames) / 29.97, abs=0.1)
    assert "Audio:" not in said("-i", clip(tmp_path / "mute.mp4", sound=clip(tmp_path / "silent.mp4")))


def test_an_exception_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = clip(tmp_path / "clip.mp4")
    old = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), video.writing(path, INFO) as add:
        add(ramp()[0])
        raise KeyboardInterrupt
    with video.writing(path, INFO):
        pass
    with pytest.raises(ValueError, match="shape"), video.writing(path, INFO) as add:
        add(np.zeros((4, 4, 3)))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_an_encoder_that_fails_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(video._WRITABLE, ".mp4", ("-c:v", "nothing"))
    with pytest.raises(InputError, match=r"^[^\n]*clip\.mp4[^\n]*$"), video.writing(tmp_path / "clip.mp4", INFO) as add:
        for frame in 1000 * ramp(1):
            add(frame)
    assert not list(tmp_path.iterdir())


def test_what_is_no_video_is_refused_in_one_line(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    tone(tmp_path / "sound.mp4", 0.1)
    whole = clip(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    for name in ("text.mp4", "empty.mp4", "sound.mp4", "cut.mp4", "none.mp4", "."):
        with pytest.raises(InputError, match=r"^[^\n]*$") as refused:
            video.info(tmp_path / name)
        assert str(tmp_path / name) in str(refused.value)
    for name in ("a.png", "a.avi", "a"):
        with pytest.raises(InputError, match="end the name in"):
            video.check_writable(tmp_path / name)


def test_a_file_cut_short_ends_early(tmp_path):
    path = clip(tmp_path / "clip.mkv", frames=[np.random.default_rng(i).uniform(size=(32, 48, 3)) for i in range(40)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 2 < len(list(video.read(path, video.info(path)))) < 38


def test_without_ffmpeg_the_extra_is_named(tmp_path, monkeypatch):
    path = clip(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match=r"nstjax\[video\]"):
        video.info(path)


# --- holding still


def painted(frame):
    """As nervous as a net: small changes of its input are large ones of its output."""
    return 0.5 + 0.5 * np.sin(40 * frame)


def held(frames, strength):
    hold = jax.jit(lambda *arguments: video.steady(*arguments, strength=strength))
    before, pictures = None, []
    for frame in frames:
        before = before or (frame, painted(frame))
        before, picture = hold(before, frame, painted(frame))
        pictures.append(np.asarray(picture))
    return np.stack(pictures)


def scene(n=20, noise=0.01, moving=False):
    """A still picture with a camera's noise, over which a bright square may move."""
    rng = np.random.default_rng(0)
    still = np.kron(rng.uniform(0.1, 0.4, (8, 12, 3)), np.ones((8, 8, 1)))
    for i in range(n):
        frame = still.copy()
        if moving:
            frame[24:40, 3 * i : 3 * i + 16] = 0.9
        yield (frame + rng.normal(0, noise, frame.shape)).clip(0, 1).astype(np.float32)


def test_flicker_of_a_still_noisy_clip_falls():
    nervous, calm = (held(scene(), strength)[5:] for strength in (0, 0.8))
    flicker = [np.abs(np.diff(frames, axis=0)).mean() for frames in (nervous, calm)]
    assert flicker[0] > 0.1
    assert flicker[1] < 0.35 * flicker[0]
    assert np.abs(calm.mean(0) - nervous.mean(0)).mean() < 0.05


def test_what_moves_leaves_no_trail():
    frames = list(scene(moving=True, noise=0))
    pictures = held(frames, 0.9)
    for i in (5, 10, 19):
        square = (slice(20, 44), slice(max(0, 3 * i - 20), 3 * i + 20))
        error = np.abs(pictures[i] - painted(frames[i]))[square]
        assert error.mean() < 0.01 and error.max() < 0.1


def test_slow_changes_and_cuts_are_followed():
    fade = [np.full((16, 16, 3), 0.2 + 0.004 * i, np.float32) for i in range(60)]
    hold = jax.jit(lambda *arguments: video.steady(*arguments, strength=1.0))
    before = (fade[0], fade[0])
    for frame in fade:
        before, picture = hold(before, frame, frame)
        assert np.abs(picture - frame).max() < 2 * video.TOLERANCE
    _, picture = hold(before, 1 - fade[0], fade[3])
    np.testing.assert_allclose(picture, fade[3], atol=1e-6)
    np.testing.assert_array_equal(held(fade[:5], 0.0), painted(np.stack(fade[:5])).astype(np.float32))
