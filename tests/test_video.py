"""Videos made here are read, written, cut off and refused; painted ones are held still."""

import os
import re
import struct
import subprocess
import sys
import wave
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nstjax import ffmpeg as running
from nstjax import soundtrack, video
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


# --- sound

BARS = ("-f", "lavfi", "-i", "testsrc=s=64x48:r=10:d=0.6")


def made(path, *arguments):
    """A file that ffmpeg makes."""
    command = [ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


def hum(layout="stereo", seconds=0.6, channels=2):
    waves = "|".join(["0.3*sin(2764*t)"] * channels)
    return ("-f", "lavfi", "-i", f"aevalsrc={waves}:c={layout}:s=48000:d={seconds}")


def repainted(source, target):
    """The frames of a video written again, with its sound."""
    info = video.info(source)
    with video.writing(target, info, sound=source) as add:
        for frame in video.read(source, info):
            add(frame)
    return target


def codecs(path):
    return re.findall(r"Audio: (\w+)", said("-i", path))


def spans(path):
    """[(first, last second)] that the packets of each stream are shown."""
    command = [ffmpeg.get_ffmpeg_exe(), "-nostdin", "-i", path, "-map", "0", "-c", "copy", "-f", "framecrc", "-"]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    units = [Fraction(unit) for unit in re.findall(r"#tb \d: (\S+)", listed)]
    packets = [list(map(int, line)) for line in re.findall(r"^(\d), *(\S+), *(\S+), *(\d+),", listed, re.MULTILINE)]
    return [
        (
            float(min(p[2] for p in packets if p[0] == n) * unit),
            float(max(p[2] + p[3] for p in packets if p[0] == n) * unit),
        )
        for n, unit in enumerate(units)
    ]


def without_decoder(path):
    """Rename the first sound track's codec to Apple's spatial one, which ffmpeg cannot decode."""
    data = path.read_bytes()
    at = data.index(b"mp4a", data.index(b"soun"))
    esds = data.index(b"esds", at)
    path.write_bytes(data[:at] + b"apac" + data[at + 4 : esds] + b"xsds" + data[esds + 4 :])
    return path


TWO = (*BARS, *hum(), *hum("mono", channels=1), "-map", "0", "-map", "1", "-map", "2", "-c:v", "mpeg4")
SOUNDS = {
    "pcm.mov": (*BARS, *hum(), "-c:a", "pcm_s16le"),
    "surround.mkv": (*BARS, *hum("5.1(side)", channels=6), "-c:a", "ac3"),
    "odd layout.mkv": (*BARS, *hum("quad", channels=4), "-c:a", "flac"),
    "opus.webm": (*BARS, *hum(), "-c:v", "libvpx", "-c:a", "libopus"),
    "vorbis.mkv": (*BARS, *hum(), "-c:a", "libvorbis"),
    "aac.ts": (*BARS, *hum(), "-c:a", "aac"),
    "two.mkv": (*TWO, "-c:a:0", "aac", "-c:a:1", "pcm_s16le"),
}


@pytest.mark.parametrize(
    ("name", "suffix", "expected"),
    [
        ("pcm.mov", ".mp4", ["aac"]),
        ("pcm.mov", ".mov", ["pcm_s16le"]),
        ("surround.mkv", ".mp4", ["ac3"]),
        ("surround.mkv", ".webm", ["opus"]),
        ("odd layout.mkv", ".m4v", ["aac"]),
        ("odd layout.mkv", ".mkv", ["flac"]),
        ("opus.webm", ".mov", ["aac"]),
        ("opus.webm", ".webm", ["opus"]),
        ("vorbis.mkv", ".mp4", ["aac"]),
        ("aac.ts", ".mp4", ["aac"]),
        ("aac.ts", ".webm", ["opus"]),
        ("two.mkv", ".mp4", ["aac", "aac"]),
    ],
)
def test_sound_that_the_container_cannot_hold_is_converted(tmp_path, capsys, name, suffix, expected):
    source = made(tmp_path / name, *SOUNDS[name])
    painted = repainted(source, tmp_path / f"painted{suffix}")
    assert codecs(painted) == expected and not capsys.readouterr().err
    for first, last in spans(painted):
        assert first == pytest.approx(0, abs=0.05) and last == pytest.approx(0.6, abs=0.05)
    assert {each.name for each in tmp_path.iterdir()} == {source.name, painted.name}


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_track_that_cannot_be_decoded_is_left_out_with_one_line(tmp_path, capsys, suffix):
    source = without_decoder(made(tmp_path / "phone.mov", *TWO, "-c:a", "aac"))
    assert "apac" in codecs(source)[0]
    assert len(codecs(repainted(source, tmp_path / f"painted{suffix}"))) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "phone.mov" in line and "track 1" in line


def test_subtitles_data_and_timecode_are_left_out(tmp_path, capsys):
    (tmp_path / "text.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello\n\n")
    extra = ("-i", tmp_path / "text.srt", "-map", "0", "-map", "1", "-map", "2", "-c:s", "mov_text")
    source = made(tmp_path / "clip.mov", *BARS, *hum(), *extra, "-timecode", "01:00:00:00")
    streams = re.findall(r"Stream #0:\d.*?: (\w+):", said("-i", repainted(source, tmp_path / "painted.mkv")))
    assert streams == ["Video", "Audio"] and not capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize(
    ("offsets", "sound", "shown"),
    [
        ((0, 0.3), 0.6, (0.3, 0.6)),  # the sound begins later
        ((0.3, 0), 0.6, (0, 0.3)),  # the frames do: what sounds before them is left out
        ((0, 0), 2, (0, 0.6)),
        ((0, 0), 0.2, (0, 0.2)),
    ],
)
def test_sound_stays_in_step_with_the_frames(tmp_path, suffix, offsets, sound, shown):
    arguments = ("-itsoffset", offsets[0], *BARS, "-itsoffset", offsets[1], *hum(seconds=sound), "-c:a", "libopus")
    source = made(tmp_path / "clip.mkv", *arguments)
    frames, heard = spans(repainted(source, tmp_path / f"painted{suffix}"))
    np.testing.assert_allclose(frames, (0, 0.6), atol=0.01)
    np.testing.assert_allclose(heard, shown, atol=0.05)


def fault(tmp_path, monkeypatch, condition, then):
    """Put a script in ffmpeg's place that does something else if its arguments match a pattern."""
    script = tmp_path / "ffmpeg.sh"
    script.write_text(f'#!/bin/sh\ncase "$*" in {condition}) {then};; esac\nexec "{ffmpeg.get_ffmpeg_exe()}" "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(ffmpeg, "get_ffmpeg_exe", lambda: str(script))


@pytest.mark.parametrize(
    "then",
    ["echo '[error] No space left on device' >&2; exit 1", "kill -9 $$", "sleep 600"],
    ids=["full", "killed", "hangs"],
)
@pytest.mark.parametrize("step", ["*-copyts*", "*0:a:0*"], ids=["joining", "taking"])
def test_a_video_outlives_its_sound(tmp_path, monkeypatch, capsys, step, then):
    source = made(tmp_path / "clip.mp4", *BARS, *hum())
    fault(tmp_path, monkeypatch, step, then)
    monkeypatch.setattr(soundtrack, "SECONDS", 1 if "sleep" in then else 60)
    painted = repainted(source, tmp_path / "painted.mp4")
    assert len(list(video.read(painted, video.info(painted)))) == 6 and not codecs(painted)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "sound" in line and ("No space left" in line) == ("No space" in then)
    assert {each.name for each in tmp_path.iterdir()} == {"clip.mp4", "painted.mp4", "ffmpeg.sh"}


def test_an_impatient_ctrl_c_while_joining_keeps_the_video(tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    source = made(tmp_path / "clip.mp4", *BARS, *hum())
    monkeypatch.setattr(soundtrack, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repainted(source, tmp_path / "painted.mp4")
    assert len(list(video.read(tmp_path / "painted.mp4", INFO._replace(shape=(48, 64))))) > 5


@pytest.mark.parametrize("what", ["deleted", "overwritten", "moved"])
def test_sound_outlives_its_source(tmp_path, what):
    source = made(tmp_path / "clip.mp4", *BARS, *hum())
    info = video.info(source)
    with video.writing(tmp_path / "painted.mp4", info, sound=source) as add:
        frames = list(video.read(source, info))
        {
            "deleted": source.unlink,
            "overwritten": lambda: source.write_bytes(b"other"),
            "moved": lambda: source.rename(tmp_path / "moved.mp4"),
        }[what]()
        for frame in frames:
            add(frame)
    assert codecs(tmp_path / "painted.mp4") == ["aac"]


def test_a_sound_file_that_is_not_there_costs_one_line(tmp_path, capsys):
    painted = clip(tmp_path / "painted.mp4", sound=tmp_path / "gone.mp4")
    assert len(list(video.read(painted, video.info(painted)))) == 12
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "gone.mp4" in line and "sound" in line


def test_a_painted_video_that_cannot_be_put_in_place_is_left_beside_it(tmp_path):
    target = tmp_path / "painted.mp4"
    with pytest.raises(InputError, match="saved as") as refused, video.writing(target, INFO) as add:
        for frame in ramp():
            add(frame)
        target.mkdir()
    left = re.search(r"saved as (.*\.mp4)", str(refused.value))[1]
    assert len(list(video.read(left, video.info(left)))) == 12


# --- what is not opened, and what does not end


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>\n',
        "[playlist]\nFile1=secret.mp4\n",
    ],
    ids=["concat", "hls", "sdp", "dash", "pls"],
)
def test_playlists_are_not_followed(tmp_path, capsys, text):
    made(tmp_path / "secret.mp4", *BARS, *hum())
    for name in ("list.mp4", "list.ts"):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=r"^[^\n]*list[^\n]*$"):
            video.info(tmp_path / name)
        assert list(video.read(tmp_path / name, INFO)) == []
    assert not codecs(clip(tmp_path / "out.mp4", ramp(2), sound=tmp_path / "list.ts"))
    assert capsys.readouterr().err.count("\n") == 1


def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.gif")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    for name in ("pipe.mp4", "pipe.gif", "zero.mp4"):
        with pytest.raises(InputError, match="not a regular file"):
            video.info(tmp_path / name)
    assert not video.recognizes(tmp_path / "pipe.gif")


def test_enormous_and_empty_files_are_refused_in_one_line(tmp_path):
    size = struct.pack("<HH", 65535, 65535)
    (tmp_path / "enormous.gif").write_bytes(
        b"GIF89a" + size + bytes(3) + b"\x2c" + bytes(4) + size + bytes(9) + b"\x3b"
    )
    whole = clip(tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "no frames.mkv").write_bytes(whole[: whole.index(b"\x1f\x43\xb6\x75")])  # up to the first cluster
    for name in ("enormous.gif", "no frames.mkv"):
        with pytest.raises(InputError, match=rf"^[^\n]*{name}: cannot be read as a video \([^\n]{{9,80}}\)[^\n]*$"):
            video.info(tmp_path / name)


def test_a_probe_that_hangs_is_ended(tmp_path, monkeypatch):
    source = clip(tmp_path / "clip.mp4")
    fault(tmp_path, monkeypatch, "*", "sleep 600")  # keeps the pipes open even if the shell alone is ended
    monkeypatch.setattr(running, "PROBE_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"^[^\n]*clip\.mp4[^\n]*within 0\.5 s[^\n]*$"):
        video.info(source)


@pytest.mark.parametrize("frames", [2, 400], ids=["at the end", "while frames are added"])
def test_an_encoder_that_hangs_is_ended(tmp_path, monkeypatch, frames):
    fault(tmp_path, monkeypatch, "*", "sleep 600")
    monkeypatch.setattr(running, "STALL_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"^[^\n]*out\.mp4[^\n]*$"):
        clip(tmp_path / "out.mp4", frames * ramp(1))
    assert [each.name for each in tmp_path.iterdir()] == ["ffmpeg.sh"]


def test_a_decoder_that_hangs_is_ended_and_said(tmp_path, monkeypatch, capsys):
    source = clip(tmp_path / "clip.mp4")
    fault(tmp_path, monkeypatch, "*", f"head -c {3 * 32 * 48 * 2} /dev/zero; sleep 600")
    monkeypatch.setattr(running, "STALL_SECONDS", 2)
    assert len(list(video.read(source, INFO))) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "clip.mp4" in line and "after 2 frames" in line


def test_an_ffmpeg_that_does_not_start_is_named(tmp_path, monkeypatch):
    source = clip(tmp_path / "clip.mp4")
    monkeypatch.setattr(ffmpeg, "get_ffmpeg_exe", lambda: str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"^[^\n]*none: cannot be started[^\n]*$"):
        video.info(source)


# --- rates


def timed(path, times, encoder="libvpx"):
    """A clip whose frames are shown at given milliseconds, under a header that says 1000 frames a second."""
    n = len(times)
    dense = made(
        path.with_name("dense.webm"), "-f", "lavfi", "-i", f"testsrc=s=32x32:r=1000:d={n / 1000}", "-c:v", encoder
    )
    at = "+".join(f"{t}*eq(N\\,{i})" for i, t in enumerate(times))
    return made(path, "-i", dense, "-c", "copy", "-bsf:v", f"setts=ts={at}:duration=1")


@pytest.mark.parametrize(
    ("times", "rate", "count"),
    [
        ([0, 107, 201, 308, 402, 509, 603, 710, 804, 911], 10, 10),
        ([0, 33, 67, 100, 133, 167, 200, 233, 267, 300], 30, 10),
        ([0, 40, 95, 120, 161, 199, 242, 281, 320, 358], 25, 10),
        ([0, 100, 200, 300, 1300, 1400, 1500, 1600], 10, 17),  # it stood still for a second
        ([0], 25, 1),
    ],
)
def test_rates_come_from_the_packets_where_the_header_is_wrong(tmp_path, times, rate, count):
    info = video.info(path := timed(tmp_path / "clip.webm", times))
    assert float(info.rate) == pytest.approx(rate, rel=0.03)
    assert len(list(video.read(path, info))) == pytest.approx(count, abs=1) == pytest.approx(info.frames, abs=1)


@pytest.mark.parametrize("rate", ["24000/1001", "25", "30000/1001", "50", "240", "1/2"])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_rates_of_good_headers_are_kept(tmp_path, rate, suffix):
    path = made(
        tmp_path / f"clip{suffix}", "-f", "lavfi", "-i", f"testsrc=s=32x32:r={rate}", "-frames:v", 6, "-c:v", "mpeg4"
    )
    info = video.info(path)
    assert info.rate == Fraction(rate) and info.frames == 6 == len(list(video.read(path, info)))


@given(st.fractions(1, 240), st.integers(0, 2**32 - 1))
def test_jitter_and_milliseconds_change_a_rate_little(rate, seed):
    exact = np.arange(60) / float(rate)
    jitter = np.random.default_rng(seed).uniform(-0.1, 0.1, 60) / float(rate)
    times = [Fraction(round(1000 * t), 1000) for t in exact + jitter]
    assert float(video._rate(Fraction(1000), times, interlaced=False)) == pytest.approx(float(rate), rel=0.15)


def test_a_variable_rate_keeps_its_pace(tmp_path):
    path = made(
        tmp_path / "clip.mp4", *BARS, "-vf", "setpts='(N+random(0)*0.5)/10/TB'", "-fps_mode", "vfr", "-c:v", "mpeg4"
    )
    info = video.info(path)
    assert float(info.rate) == pytest.approx(10, rel=0.2)
    assert len(list(video.read(path, info))) == pytest.approx(6, abs=1)


def test_cover_art_is_no_video(tmp_path):
    cover = made(tmp_path / "cover.png", "-f", "lavfi", "-i", "color=red:s=16x16", "-frames:v", 1)
    art = ("-i", cover, "-map", "1", "-map", "0", "-c:v:0", "png", "-disposition:v:0", "attached_pic")
    info = video.info(path := made(tmp_path / "clip.mp4", *BARS, *art, "-c:v:1", "mpeg4"))
    assert info.shape == (48, 64) and len(list(video.read(path, info))) == 6
    with pytest.raises(InputError, match=r"song\.mp4.*no video stream"):
        video.info(made(tmp_path / "song.mp4", *hum(), *art))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("a.ts", ("-c:v", "mpeg2video")),
        ("a.M2TS", ("-c:v", "libx264")),
        ("a.3gp", ("-c:v", "mpeg4")),
        ("a.ogv", ("-c:v", "libtheora")),
        ("a.mxf", ("-c:v", "mpeg2video")),
        ("a.vob", ("-c:v", "mpeg2video", "-f", "vob")),
        ("a.wmv", ("-c:v", "wmv2")),
        ("a.flv", ("-c:v", "flv")),
        ("a.avi", ("-c:v", "mjpeg")),
        ("a.mpg", ("-c:v", "mpeg1video")),
        ("a.h264", ("-c:v", "libx264")),
    ],
)
def test_usual_containers_are_read(tmp_path, name, arguments):
    bars = ("-f", "lavfi", "-i", "testsrc=s=64x48:r=25:d=0.4", "-pix_fmt", "yuvj420p" if name == "a.avi" else "yuv420p")
    path = made(tmp_path / name, *bars, *arguments)
    assert video.recognizes(path)
    info = video.info(path)
    assert info.rate == 25 and info.shape == (48, 64)
    assert len(list(video.read(path, info))) == 10 == info.frames


# --- fields, ranges, light, transparency


def combing(frames):
    """How much rows differ from the mean of their neighbours above and below."""
    return np.mean([np.abs(f[1:-1] - (f[:-2] + f[2:]) / 2).mean() for f in frames])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("a.mp4", ("-c:v", "libx264", "-crf", 1, "-flags", "+ildct+ilme")),
        ("a.mpg", ("-c:v", "mpeg2video", "-q:v", 1, "-flags", "+ildct+ilme")),
        ("a.mkv", ("-c:v", "ffv1", "-field_order", "tt")),
        ("b.mkv", ("-c:v", "huffyuv", "-pix_fmt", "yuv422p", "-field_order", "tt")),  # only the container knows
    ],
)
def test_interlaced_frames_are_deinterlaced(tmp_path, name, arguments):
    moving = ("-f", "lavfi", "-i", "testsrc2=s=64x64:r=50:d=0.4")
    fields = ("-vf", "scroll=h=0.05,interlace=scan=tff:lowpass=0,format=yuv420p")
    path = made(tmp_path / name, *moving, *fields, *arguments)
    info = video.info(path)
    frames, woven = (list(video.read(path, each)) for each in (info, info._replace(before=())))
    assert info.rate == 25 and len(frames) == 10
    assert combing(frames) < 0.5 * combing(woven)


def test_progressive_frames_are_left_alone(tmp_path):
    path = made(tmp_path / "a.mkv", "-f", "lavfi", "-i", "testsrc2=s=64x64:r=10:d=0.4,format=yuv420p", "-c:v", "ffv1")
    info = video.info(path)
    np.testing.assert_array_equal(
        *(np.stack(list(video.read(path, each))) for each in (info, info._replace(before=())))
    )


def patches(path, colours, pixels, parameters, *arguments):
    """A clip of patches of colours [N, 3] in [0, 1] as they are coded."""
    image = np.kron(np.asarray(colours)[None], np.ones((32, 32, 1)))
    raw = np.rint(65535 * image.clip(0, 1)).astype("<u2").tobytes()
    command = [ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb48le"]
    command += ["-s", f"{image.shape[1]}x32", "-r", "10", "-i", "-", "-vf", f"{parameters},format={pixels}"]
    subprocess.run([*command, *(arguments or ("-c:v", "ffv1")), str(path)], input=raw * 3, check=True)
    return path


def read_patches(path):
    first = next(frames := video.read(path, video.info(path)))
    frames.close()
    return first[16, 16::32]


COLOURS = [(0, 0, 0), (0.25, 0.25, 0.25), (0.75, 0.75, 0.75), (1, 1, 1), (0.7, 0.2, 0.3), (0.2, 0.6, 0.9)]


@pytest.mark.parametrize(
    ("pixels", "extent", "matrix"),
    [
        ("yuv420p", "tv", "bt601"),
        ("yuv420p", "pc", "bt709"),
        ("yuv444p", "tv", "bt709"),
        ("yuv420p10le", "tv", "bt709"),
        ("yuv422p12le", "pc", "bt709"),
    ],
)
def test_ranges_depths_and_matrices_are_minded(tmp_path, pixels, extent, matrix):
    space = {"bt601": "smpte170m"}.get(matrix, matrix)
    parameters = f"scale=out_color_matrix={matrix}:out_range={extent},setparams=range={extent}:colorspace={space}"
    path = patches(tmp_path / "a.mkv", COLOURS, pixels, parameters)
    np.testing.assert_allclose(read_patches(path), COLOURS, atol=0.012)


# Of linear light: BT.709's primaries in BT.2020's (ITU-R BT.2087), and in Display P3's.
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
TO_P3 = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])


def linear(srgb):
    srgb = np.asarray(srgb)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def srgb(light):
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def pq(nits):
    """SMPTE ST 2084."""
    y = (nits / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


def hlg(nits):
    """ARIB STD-B67 for a display of 1000 cd/m2, on greys."""
    scene = (nits / 1000) ** (1 / 1.2)
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


@pytest.mark.parametrize(("transfer", "curve"), [("smpte2084", pq), ("arib-std-b67", hlg)])
@pytest.mark.parametrize("tagged", [True, False], ids=["tagged", "matrix and primaries untagged"])
def test_hdr_greys_become_srgb(tmp_path, transfer, curve, tagged):
    nits = np.array([0, 0.18 * 203, 100, 203, 500, 1000])
    rest = ":color_primaries=bt2020:colorspace=bt2020nc" if tagged else ":color_primaries=unknown:colorspace=unknown"
    parameters = f"scale=out_color_matrix=bt2020nc:out_range=tv,setparams=range=tv:color_trc={transfer}{rest}"
    path = patches(tmp_path / "a.mkv", np.repeat(curve(nits)[:, None], 3, 1), "yuv420p10le", parameters)
    grey = read_patches(path)
    assert np.ptp(grey, axis=1).max() < 0.01
    # Up to 0.6 of diffuse white as it is; white itself stays bright, and highlights are still told apart.
    np.testing.assert_allclose(grey[:3, 0], srgb(nits[:3] / 203), atol=0.015)
    assert 0.88 < grey[3, 0] < grey[4, 0] - 0.02 < grey[5, 0] and grey[5, 0] > 0.98


def test_hdr_and_wide_colours_become_srgb(tmp_path):
    colours = np.array([(0.7, 0.2, 0.3), (0.3, 0.6, 0.2), (0.2, 0.4, 0.75), (0.6, 0.6, 0.1)])
    light = linear(colours)
    for name, coded, parameters in (
        ("pq", pq(203 * light @ TO_BT2020.T), "bt2020nc:smpte2084:bt2020"),
        ("p3", srgb(light @ TO_P3.T), "bt709:iec61966-2-1:smpte432"),
        ("wide", srgb(light @ TO_BT2020.T), "bt2020nc:unknown:bt2020"),
    ):
        matrix, transfer, primaries = parameters.split(":")
        tags = f"setparams=range=tv:colorspace={matrix}:color_trc={transfer}:color_primaries={primaries}"
        path = patches(
            tmp_path / f"{name}.mkv", coded, "yuv444p10le", f"scale=out_color_matrix={matrix}:out_range=tv,{tags}"
        )
        np.testing.assert_allclose(read_patches(path), colours, atol=0.02, err_msg=name)


@pytest.mark.parametrize(
    ("name", "pixels", "arguments"),
    [
        ("a.webm", "yuva420p", ("-c:v", "libvpx-vp9")),
        ("b.webm", "yuva420p", ("-c:v", "libvpx", "-auto-alt-ref", 0)),
        ("a.mov", "yuva444p10le", ("-c:v", "prores_ks", "-profile:v", 4444)),
        ("b.mov", "argb", ("-c:v", "qtrle")),
    ],
)
def test_transparency_is_over_white(tmp_path, name, pixels, arguments):
    source = ("-f", "lavfi", "-i", "color=red@0.5:s=64x48:r=10:d=0.3,format=rgba", "-pix_fmt", pixels)
    path = made(tmp_path / name, *source, *arguments)
    for frame in video.read(path, video.info(path)):
        np.testing.assert_allclose(frame[24, 32], (1, 0.5, 0.5), atol=0.02)


@pytest.mark.parametrize(
    ("suffix", "options"), [(".gif", {"disposal": 2}), (".png", {"disposal": 1}), (".webp", {"lossless": True})]
)
def test_animated_images_are_videos(tmp_path, suffix, options):
    drawn = []
    for i in range(4):
        pixels = np.zeros((24, 32, 4), np.uint8)
        pixels[4:20, 4 + 4 * i : 14 + 4 * i] = (200, 60 * i, 60, 255)
        drawn.append(Image.fromarray(pixels))
    path, durations = tmp_path / f"a{suffix}", [100, 100, 300, 200]
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=durations, loop=0, **options)
    assert video.recognizes(path)
    info = video.info(path)
    assert info.rate == 10 and info.shape == (24, 32) and info.start == 0
    expected = []
    for picture, lasts in zip(drawn, durations, strict=True):
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        expected += [np.asarray(white.convert("RGB"), np.float32) / 255] * (lasts // 100)
    got = np.stack(list(video.read(path, info)))
    assert got.shape == np.shape(expected)
    inside = np.abs(got - expected)[:, 6:18]  # lossy WebP and GIF's palette aside, all of it
    assert inside.mean() < 0.01


def test_single_images_and_others_are_no_videos(tmp_path):
    for suffix in (".gif", ".png", ".webp", ".jpg", ".tiff"):
        Image.new("RGB", (16, 16)).save(path := tmp_path / f"a{suffix}")
        assert not video.recognizes(path)
    Image.new("RGB", (8, 8)).save(tmp_path / "pages.tiff", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    for name in ("pages.tiff", "broken.gif", "none.gif", "text.txt"):
        assert not video.recognizes(tmp_path / name)
    assert video.recognizes("CLIP.MTS")
