"""Runs ffmpeg, which imageio-ffmpeg installs: on local files in known containers only, and under a time limit."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from nstjax import files
from nstjax.errors import InputError

PROBE_SECONDS = 60  # to find out what is in a file
STALL_SECONDS = 300  # without progress, after which ffmpeg is assumed to hang

# Containers that hold what they play. ffmpeg recognizes files by their content, not by name, and would follow playlists
# and scripts (concat, hls, dash, sdp, avisynth) to other files and hosts.
_CONTAINERS = (
    *("mov", "matroska", "webm", "avi", "mpeg", "mpegts", "asf", "flv", "live_flv", "ogg", "mxf", "gxf", "nut", "rm"),
    *("wtv", "ivf", "gif", "apng", "webp_anim", "yuv4mpegpipe"),
    *("dv", "h264", "hevc", "m4v", "mpegvideo", "mjpeg", "av1", "obu"),  # bare streams
    *("wav", "mp3", "flac", "aac"),  # sound alone
)
_MAX_PIXELS = 2**28  # of a frame: 16384 x 16384


def command(level: str = "error") -> list[str]:
    """Return the beginning of ffmpeg's command line. Raises InputError if ffmpeg is not installed."""
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise InputError('video needs ffmpeg: pip install "nstjax[video]"') from error
    return [program, "-hide_banner", "-nostdin", "-loglevel", f"level+{level}"]


def source(path: files.PathLike) -> list[str]:
    """Return the options that open a file for reading."""
    closed = ["-protocol_whitelist", "file", "-format_whitelist", ",".join(_CONTAINERS)]
    return [*closed, "-max_pixels", str(_MAX_PIXELS), "-i", name(path)]


def name(path: files.PathLike) -> str:
    """Return a file's name in the form in which ffmpeg takes "a:b" for no protocol and "-a" for no option."""
    return f"file:{os.fspath(path)}"


def run(arguments: Sequence[str], *, seconds: float) -> tuple[int, str, str]:
    """Run a command and return (exit status, stdout, stderr); it is killed after so many seconds, with status -9."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(arguments, **pipes) as process:
        try:
            out, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return -9, "", f"[error] ffmpeg did not finish within {seconds:g} s"
    return process.returncode, out.decode(errors="replace"), said.decode(errors="replace")


@contextlib.contextmanager
def started(arguments: Sequence[str], **streams: Any) -> Iterator[Any]:
    """Start a subprocess.Popen that Ctrl-C does not reach; at the end of the block it and its children are killed.

    Args:
        streams: stdin, stdout and stderr, as subprocess.Popen takes them.

    Raises:
        InputError: it cannot be started.
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
def limited(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill the process if the block takes longer than STALL_SECONDS; its pipes then break, so that the block ends."""
    timer = threading.Timer(STALL_SECONDS, _kill, [process])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # ffmpeg may be a script that started the real one
        except (AttributeError, OSError):
            process.kill()


def reason(said: str) -> str:
    """Return why ffmpeg failed: the first error on its stderr, without the name of the component that reported it."""
    errors = re.findall(r"^(?:\[[^]]* @ [^]]*\] )*\[(?:error|fatal|panic)\] +(\S.*)", said, re.MULTILINE)
    return errors[0].strip() if errors else "ffmpeg does not say why"


def warn(path: files.PathLike, why: object) -> None:
    """Print one line on stderr about a loss that does not stop the work."""
    tqdm.write(str(files.refusal(path, why)), file=sys.stderr)
