"""Runs ffmpeg, which imageio-ffmpeg brings: on local files in known containers only, and under a time limit."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nstjax import files
from nstjax.errors import InputError

PROBE_SECONDS = 60  # to find out what is in a file
STALL_SECONDS = 300  # without progress, after which ffmpeg is taken to hang

# Containers that hold what they play. ffmpeg goes by content, not by name, and would follow playlists and scripts
# (concat, hls, dash, sdp, avisynth) to other files and hosts.
_CONTAINERS = (
    *("mov", "matroska", "webm", "avi", "mpeg", "mpegts", "asf", "flv", "live_flv", "ogg", "mxf", "gxf", "nut", "rm"),
    *("wtv", "ivf", "gif", "apng", "webp_anim", "yuv4mpegpipe"),
    *("dv", "h264", "hevc", "m4v", "mpegvideo", "mjpeg", "av1", "obu"),  # bare streams
    *("wav", "mp3", "flac", "aac"),  # sound alone
)
_MAX_PIXELS = 2**28  # of a frame: 16384 x 16384


def command(level: str = "error") -> list[str]:
    """The beginning of ffmpeg's command line. Raises InputError if ffmpeg is not installed."""
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise InputError('video needs ffmpeg: pip install "nstjax[video]"') from error
    return [program, "-hide_banner", "-nostdin", "-loglevel", f"level+{level}"]


def source(path) -> list[str]:
    """The options that open a file for reading."""
    closed = ["-protocol_whitelist", "file", "-format_whitelist", ",".join(_CONTAINERS)]
    return [*closed, "-max_pixels", str(_MAX_PIXELS), "-i", name(path)]


def name(path) -> str:
    """A file's name as ffmpeg takes it, which reads "a:b" and "-a" otherwise."""
    return f"file:{os.fspath(path)}"


def check_regular(path) -> None:
    """Raise InputError unless path is a regular file: reading from a pipe or a device may never end."""
    if not Path(path).exists():
        raise files.refusal(path, "no such file; check the name")
    if not Path(path).is_file():
        raise files.refusal(path, "is not a regular file; give the name of a video")


def run(arguments, *, seconds: float) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a command, which is ended after so many seconds; the status is then not 0."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(arguments, **pipes) as process:
        try:
            out, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return -9, "", f"[error] ffmpeg did not finish within {seconds:g} s"
    return process.returncode, out.decode(errors="replace"), said.decode(errors="replace")


@contextlib.contextmanager
def started(arguments, **streams) -> Iterator[Any]:
    """A process that Ctrl-C does not reach, and that is ended with the block, with all that it started.

    Raises InputError if it cannot be started.
    """
    try:
        process = subprocess.Popen(arguments, start_new_session=True, **streams)
    except OSError as error:
        raise files.refusal(arguments[0], f"cannot be started ({error.strerror}); install ffmpeg again") from error
    with process:
        try:
            yield process
        finally:
            _kill(process)
            if process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()


@contextlib.contextmanager
def limited(process) -> Iterator[None]:
    """Ends the process if the block takes longer than STALL_SECONDS; its pipes then break, so that the block ends."""
    timer = threading.Timer(STALL_SECONDS, _kill, [process])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _kill(process):
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # ffmpeg may be a script that started the real one
        except (AttributeError, OSError):
            process.kill()


def reason(said: str) -> str:
    """Why ffmpeg failed, from what it said on stderr: its first error, without the name of the part it came from."""
    errors = re.findall(r"^(?:\[[^]]* @ [^]]*\] )*\[(?:error|fatal|panic)\] +(\S.*)", said, re.MULTILINE)
    return errors[0].strip() if errors else "ffmpeg does not say why"


def warn(path, why) -> None:
    """One line on stderr, of what is lost without stopping the work."""
    tqdm.write(str(files.refusal(path, why)), file=sys.stderr)
