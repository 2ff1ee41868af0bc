"""Files of video <-> frames [H, W, 3] in [0, 1], by ffmpeg, which imageio-ffmpeg brings; and painted frames held still.

What ffmpeg can read is read: upright, with square pixels and even sides, at a constant rate.
"""

import contextlib
import os
import re
import secrets
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from nstjax import files
from nstjax.errors import InputError

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".wmv", ".flv")
_H264 = ("-c:v", "libx264", "-crf", "18", "-preset", "medium")
_VP9 = ("-c:v", "libvpx-vp9", "-crf", "24", "-b:v", "0", "-deadline", "good", "-cpu-used", "4", "-row-mt", "1")
_WRITABLE = {".mp4": _H264, ".m4v": _H264, ".mov": _H264, ".mkv": _H264, ".webm": _VP9}
# What players take for granted, and ffmpeg does not.
_BT709 = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv")

TOLERANCE = 0.03  # of a change in the video, in [0, 1], that passes for noise


class Info(NamedTuple):
    """Frames' shape (H, W), both even, their rate a second and about their number; None if the file does not tell."""

    shape: tuple[int, int]
    rate: Fraction
    frames: int | None


def info(path, *, size=None):
    """`Info` of a file, its frames' long side scaled to about `size`.

    InputError, one line, if the file is missing or no video, or if ffmpeg is not installed.
    """
    if not Path(path).is_file():
        raise files.refusal(path, "no such file; check the name")
    probe = [*_input(path), "-map", "0:v:0", "-frames:v", "1", "-vf", _scale(size), "-pix_fmt", "yuv444p"]
    done = subprocess.run(
        [*_ffmpeg("info"), *probe, "-f", "yuv4mpegpipe", "-"], capture_output=True, stdin=subprocess.DEVNULL
    )
    said = done.stderr.decode(errors="replace")
    head = re.match(rb"YUV4MPEG2 W(\d+) H(\d+) F(\d+):(\d+)", done.stdout)
    if not head or not int(head[4]):
        raise files.refusal(path, f"cannot be read as a video ({_reason(said)}); copy or convert it again")
    w, h, seconds, parts = map(int, head.groups())
    rate = Fraction(seconds, parts)
    length = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", said)
    frames = None
    if length:
        hours, minutes, rest = map(Fraction, length.groups())
        frames = max(1, round((3600 * hours + 60 * minutes + rest) * rate))
    return Info((h, w), rate, frames)


def read(path, info):
    """The frames of a file, float32 [H, W, 3] in [0, 1], one after another. A file cut short ends early."""
    h, w = info.shape
    command = [*_ffmpeg("error"), *_input(path), "-map", "0:v:0", "-vf", f"fps={info.rate},{_exactly(w, h)}"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    with _started(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(data := process.stdout.read(3 * h * w)) == 3 * h * w:
            yield np.frombuffer(data, np.uint8).reshape(h, w, 3).astype(np.float32) / 255


@contextlib.contextmanager
def writing(path, info, *, sound=None):
    """While open, a function that adds a frame [H, W, 3] in [0, 1] to the file; `sound`: a file to take the sound from.

    The file appears when it is closed, with the sound of as many seconds as there are frames; if none were added, or
    after an exception, an older file stays as it was. InputError if it cannot be written.
    """
    check_writable(path)
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = target.suffix.lower()
    mute, whole = (target.with_name(f".{secrets.token_hex(8)}.tmp{suffix}") for _ in range(2))
    h, w = info.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-r", str(info.rate), "-i", "-"]
    form = ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-pix_fmt", "yuv420p", *_BT709, *_WRITABLE[suffix]]
    frames = 0
    try:
        with tempfile.TemporaryFile() as errors:
            command = [*_ffmpeg("error"), *raw, *form, "-y", _file(mute)]
            with _started(command, stdin=subprocess.PIPE, stdout=errors, stderr=errors) as process:

                def add(frame):
                    nonlocal frames
                    pixels = np.rint(255 * np.clip(np.asarray(frame, np.float32), 0, 1)).astype(np.uint8)
                    if pixels.shape != (h, w, 3):
                        raise ValueError(f"a frame of shape {pixels.shape} for a video of {(h, w, 3)}")
                    try:
                        process.stdin.write(pixels.tobytes())
                    except BrokenPipeError:
                        _check(process, errors, path)
                    frames += 1

                yield add
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
                _check(process, errors, path)
        if not frames:
            return
        if sound is not None:
            _join(mute, sound, whole, seconds=frames / info.rate, path=path)
            os.replace(whole, mute)
        os.replace(mute, target)
    except OSError as error:
        raise files.refusal(path, f"cannot be written ({error.strerror or error}); choose another name") from error
    finally:
        for temporary in (mute, whole):
            temporary.unlink(missing_ok=True)


def check_writable(path):
    """InputError if `writing(path, ...)` could not work."""
    if Path(path).suffix.lower() not in _WRITABLE:
        raise files.refusal(path, f"cannot write this kind of video; end the name in one of {', '.join(_WRITABLE)}")
    files.check_writable(path)


def steady(before, frame, painted, *, strength):
    """(the next one's `before`, the painted frame [H, W, 3] without the flicker that comes from noise in the video).

    Where the video is as it was, up to noise, the share `strength` in [0, 1] of the picture before is kept, and less
    where it changed, down to nothing. before: frame and picture so far, averaged with the same weights, so that slow
    changes count as soon as they add up; (frame, painted) of the first. Motion is not followed: what moves may shimmer.
    """
    reference, picture = before
    change = _mean((_mean(frame - reference, 1) ** 2).mean(-1, keepdims=True), 3)
    kept = strength * jnp.exp(-change / TOLERANCE**2)
    mixed = painted + kept * (picture - painted)
    return (frame + kept * (reference - frame), mixed), mixed


def _mean(x, n):
    """Mean of [H, W, C] over the 2n + 1 squared pixels around each, the border repeated."""
    x = jnp.pad(x, ((n, n), (n, n), (0, 0)), mode="edge")
    return lax.reduce_window(x, 0.0, lax.add, (2 * n + 1, 2 * n + 1, 1), (1, 1, 1), "VALID") / (2 * n + 1) ** 2


def _scale(size):
    """ffmpeg's filter: square pixels, even sides, the long one about `size`."""
    factor = "1" if size is None else f"{size}/max(iw*sar,ih)"
    return f"scale=w='2*max(1,round(iw*sar*{factor}/2))':h='2*max(1,round(ih*{factor}/2))',setsar=1"


def _exactly(w, h):
    return f"scale={w}:{h}:flags=lanczos+accurate_rnd+full_chroma_int,setsar=1"


def _ffmpeg(level):
    """How ffmpeg's command line begins."""
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise InputError('video needs ffmpeg: pip install "nstjax[video]"') from error
    return [program, "-hide_banner", "-nostdin", "-loglevel", level]


def _file(path):
    """A file's name as ffmpeg takes it, which reads "a:b" and "-a" otherwise."""
    return f"file:{os.fspath(path)}"


def _input(path):
    return ["-i", _file(path)]


@contextlib.contextmanager
def _started(command, **streams):
    """A process that Ctrl-C does not reach, and that ends with the block at the latest."""
    with subprocess.Popen(command, start_new_session=True, **streams) as process:
        try:
            yield process
        finally:
            process.kill()
            if process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()


def _check(process, errors, path):
    """InputError if ffmpeg ended badly."""
    if process.wait():
        errors.seek(0)
        raise files.refusal(path, f"cannot be written ({_reason(errors.read().decode(errors='replace'))})")


def _join(mute, sound, whole, *, seconds, path):
    """A file of the first one's pictures and so many seconds of the second one's sound, if it has any."""
    same = Path(sound).suffix.lower() == mute.suffix
    command = [*_ffmpeg("error"), *_input(mute), "-t", f"{float(seconds):.6f}", *_input(sound)]
    command += ["-map", "0:v", "-map", "1:a?", "-c:v", "copy", *(("-c:a", "copy") if same else ())]
    done = subprocess.run([*command, "-y", _file(whole)], capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise files.refusal(path, f"cannot be written ({_reason(done.stderr.decode(errors='replace'))})")


def _reason(said):
    """The last line that ffmpeg said."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "ffmpeg does not say why"
