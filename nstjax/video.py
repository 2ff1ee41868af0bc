"""Video files <-> frames [H, W, 3] in [0, 1], by ffmpeg, which imageio-ffmpeg installs.

Frames are upright and progressive, in sRGB, with square pixels and even sides, at a constant rate; transparency is
shown over white.
"""

import contextlib
import math
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped

from nstjax import ffmpeg, files, images, soundtrack
from nstjax.typing import Array

Add = Callable[[Shaped[Array, "..."]], None]  # adds a frame [H, W, 3] in [0, 1] to a video

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mj2", ".f4v", ".mkv", ".mk3d", ".webm", ".avi", ".divx"),
    *(".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".ts", ".m2t", ".m2ts", ".mts", ".mod", ".tod"),
    *(".wmv", ".asf", ".flv", ".ogv", ".ogm", ".mxf", ".gxf", ".dv", ".rm", ".rmvb", ".wtv", ".nut", ".ivf", ".y4m"),
    *(".h264", ".264", ".h265", ".265", ".hevc", ".mjpg", ".mjpeg"),
)
_ANIMATED = (".gif", ".png", ".apng", ".webp")  # suffixes of images that may be animated
_H264 = ("-c:v", "libx264", "-crf", "18", "-preset", "medium")
_VP9 = ("-c:v", "libvpx-vp9", "-crf", "24", "-b:v", "0", "-deadline", "good", "-cpu-used", "4", "-row-mt", "1")
_WRITABLE = {".mp4": _H264, ".m4v": _H264, ".mov": _H264, ".mkv": _H264, ".webm": _VP9}
# Players assume these values, but ffmpeg writes them only if told to.
_BT709 = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv")

_UNKNOWN = -(2**63)  # ffmpeg's timestamp of a packet without one
_LISTED = 3000  # packets at most, from which the rate is computed
_LISTED_SECONDS = 20
_ALPHA = re.compile(r"yuva|rgba|bgra|argb|abgr|gbrap|ya\d|pal8|ayuv|vuya")
_RGB = re.compile(r"rgb|bgr|gbr|argb|abgr|pal8")
# Codecs in which each frame says whether it is interlaced; for others the container may say so.
_SELF_DESCRIBED = ("h264", "hevc", "mpeg1video", "mpeg2video", "vc1")
_WIDE = ("bt2020", "smpte431", "smpte432")  # primaries well beyond sRGB's
_HDR = ("smpte2084", "arib-std-b67")  # PQ and HLG
# Diffuse white, 203 cd/m2 (ITU-R BT.2408), becomes 1; highlights up to 1000 cd/m2 are rolled off above 0.6.
_TONEMAP = "tonemap=mobius:param=0.6:peak=4.93:desat=0"

# Filters that lay the frames over an all-white copy of them.
_OVER_WHITE = (
    "format=gbrap,split[white][frame];[white]lutrgb=r=maxval:g=maxval:b=maxval:a=maxval[white];"
    "[white][frame]overlay=format=gbrp"
)


class Info(NamedTuple):
    """The shape, rate and number of a video's frames, and how ffmpeg reads them."""

    shape: tuple[int, int]  # (height, width), both even
    rate: Fraction  # frames per second
    frames: int | None  # their approximate number; None if the file does not say
    start: Fraction = Fraction(0)  # seconds into the file at which the first frame is shown
    decoder: tuple[str, ...] = ()  # options
    before: tuple[str, ...] = ()  # filters before scaling
    after: tuple[str, ...] = ()  # filters after scaling


def recognizes(path: files.PathLike) -> bool:
    """Whether a file is a video by its name, or an animated GIF, WebP or PNG by its content."""
    suffix = Path(path).suffix.lower()
    return suffix in SUFFIXES or (suffix in _ANIMATED and Path(path).is_file() and images.is_animated(path))


def info(path: files.PathLike, *, size: int | None = None) -> Info:
    """Return the `Info` of a file.

    Args:
        size: the long side in pixels that frames are scaled to, rounded to an even number; by default their own.

    Raises:
        InputError: the file is missing, not a regular file or not a video; ffmpeg does not read its beginning within
            `ffmpeg.PROBE_SECONDS`, or is not installed.
    """
    files.check_file(path, "give the name of a video")
    first = ["-map", "0:V:0", "-frames:v", "1", "-vf", "showinfo", "-f", "null", "-"]
    packets = ["-map", "0:V:0", "-c", "copy", "-frames:v", str(_LISTED), "-f", "framecrc", "-"]
    arguments = [*ffmpeg.command("info"), "-t", str(_LISTED_SECONDS), *ffmpeg.source(path), *first, *packets]
    _, listed, said = ffmpeg.run(arguments, seconds=ffmpeg.PROBE_SECONDS)
    source = re.search(r"Stream #(0:\d+) -> #0:0 \((\w+)", said)
    config = re.search(r"config in time_base: (\S+), frame_rate: (\d+)/(\d+)", said)
    frame = re.search(r"n: *0 +pts: *(\S+) .* fmt:(\w+) .*sar:(\d+)/(\d+) s:(\d+)x(\d+) i:(\w)", said)
    stream = source and re.search(rf"Stream #{source[1]}(?!\d).*: Video: .*", said)
    if not source or not stream or not config or not frame:
        raise files.refusal(path, f"cannot be read as a video ({_no_video(said)}); copy or convert it again")
    codec, pixels = source[2], frame[2]
    *aspect, w, h = map(int, frame.group(3, 4, 5, 6))

    order = re.search(r"(top|bottom) (coded )?first", stream[0])
    header = Fraction(int(config[2]), int(config[3])) if int(config[3]) else Fraction(0)
    times, lasts = _timestamps(listed)
    rate = _rate(header, times, interlaced=bool(order) or frame[7] != "P")
    start = Fraction(0) if frame[1] == "NOPTS" else max(Fraction(0), int(frame[1]) * Fraction(config[1]))
    if not times or len(times) == _LISTED or lasts > _LISTED_SECONDS - 1:
        lasts = _duration(said) - start
    frames = max(1, round(lasts * rate)) if lasts > 0 else None

    decoder: tuple[str, ...] = ()
    if codec in ("vp8", "vp9") and re.search(r"alpha_mode *: 1", said):  # ffmpeg's own decoders ignore the alpha
        decoder = ("-c:v", "libvpx" if codec == "vp8" else "libvpx-vp9")
    transparent = decoder or _ALPHA.search(pixels) or _ALPHA.search(stream[0])
    unflagged = frame[7] == "P" and codec not in _SELF_DESCRIBED
    before: tuple[str, ...] = (f"setfield={order[1][0]}ff",) if order and unflagged else ()
    before += () if _RGB.match(pixels) or min(w, h) < 4 else ("bwdif=mode=send_frame:deint=interlaced",)
    before += (f"fps={rate}{':eof_action=pass' if len(times) < 2 else ''}", *((_OVER_WHITE,) if transparent else ()))
    shape = _shape(w, h, Fraction(*aspect) if all(aspect) else Fraction(1), size)
    return Info(shape, rate, frames, start, decoder, before, _to_srgb(said, rgb=bool(_RGB.match(pixels))))


def read(path: files.PathLike, info: Info) -> Generator[Float32[np.ndarray, "h w 3"], None, None]:
    """Yield the frames of a file, in [0, 1], one after another. A file that is cut short ends early."""
    h, w = info.shape
    scale = f"scale={w}:{h}:flags=lanczos+accurate_rnd+full_chroma_int,setsar=1"
    filters = [*(info.before or (f"fps={info.rate}",)), scale, *info.after]
    command = [*ffmpeg.command(), *info.decoder, *ffmpeg.source(path), "-map", "0:V:0", "-vf", ",".join(filters)]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    streams = {"stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ffmpeg.started(command, **streams) as process:

        def receive() -> bytes:
            with ffmpeg.limited(process):
                return process.stdout.read(3 * h * w)

        done = 0
        while len(data := receive()) == 3 * h * w:
            yield np.frombuffer(data, np.uint8).reshape(h, w, 3).astype(np.float32) / 255
            done += 1
        with ffmpeg.limited(process):
            status = process.wait()
        if status < 0:
            ffmpeg.warn(path, f"ffmpeg stopped or was killed after {done} frames; the rest of them are missing")


@contextlib.contextmanager
def writing(path: files.PathLike, info: Info, *, sound: files.PathLike | None = None) -> Iterator[Add]:
    """Write a video: in the block, a function adds a frame [H, W, 3] in [0, 1] to it.

    The file appears at the end of the block, with sound for as many seconds as there are frames. If no frame was added,
    or after an exception, an older file stays as it was. Sound that cannot be read or joined is left out, with one line
    on stderr.

    Args:
        sound: the file whose sound it gets.

    Raises:
        InputError: the file cannot be written.
    """
    check_writable(path)
    target = Path(os.path.realpath(path))
    suffix = target.suffix.lower()
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(files.temporary_folder(target))
        except OSError as error:
            raise files.refusal(path, f"cannot be written ({error.strerror or error}); choose another name") from error
        mute = folder / f"mute{suffix}"
        tracks = soundtrack.extract(sound, folder, suffix, start=info.start) if sound is not None else []
        frames = 0
        with _encoding(mute, info, path) as write:

            def add(frame: Shaped[Array, "..."]) -> None:
                nonlocal frames
                write(frame)
                frames += 1

            yield add
        if not frames:
            return
        try:
            os.replace(mute, target)
        except OSError as error:
            other = target.with_name(f"{target.stem[:200]}-{secrets.token_hex(4)}{suffix}")
            os.replace(mute, other)
            raise files.refusal(path, f"cannot be written ({error.strerror}); the video is saved as {other}") from error
        # The painted frames are in place now, whatever happens to the sound.
        soundtrack.join(target, tracks, folder, seconds=frames / info.rate)


def check_writable(path: files.PathLike) -> None:
    """Raise InputError if `writing(path, ...)` could not work."""
    if Path(path).suffix.lower() not in _WRITABLE:
        raise files.refusal(path, f"cannot write this kind of video; end the name in one of {', '.join(_WRITABLE)}")
    files.check_writable(path)


@contextlib.contextmanager
def _encoding(target: Path, info: Info, path: files.PathLike) -> Iterator[Add]:
    """Write a file without sound: in the block, a function adds a frame to it. path: the output, for messages."""
    h, w = info.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-r", str(info.rate), "-i", "-"]
    form = ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-pix_fmt", "yuv420p", *_BT709]
    command = [*ffmpeg.command(), *raw, *form, *_WRITABLE[target.suffix], "-y", ffmpeg.name(target)]
    with (
        tempfile.TemporaryFile() as errors,
        ffmpeg.started(command, stdin=subprocess.PIPE, stdout=errors, stderr=errors) as process,
    ):

        def end() -> None:
            with ffmpeg.limited(process), contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            with ffmpeg.limited(process):
                status = process.wait()
            if status:
                errors.seek(0)
                why = ffmpeg.reason(errors.read().decode(errors="replace"))
                raise files.refusal(path, f"cannot be written ({why}); check the disk's free space")

        def write(frame: Shaped[Array, "..."]) -> None:
            pixels = np.rint(255 * np.clip(np.asarray(frame, np.float32), 0, 1)).astype(np.uint8)
            if pixels.shape != (h, w, 3):
                raise ValueError(f"a frame of shape {pixels.shape} for a video of {(h, w, 3)}")
            try:
                with ffmpeg.limited(process):
                    process.stdin.write(pixels.tobytes())
            except BrokenPipeError:
                end()

        yield write
        end()


def _shape(w: int, h: int, aspect: Fraction, size: int | None) -> tuple[int, int]:
    """(height, width) with square pixels and even sides, the long one about `size`. aspect: of a pixel, in the file."""
    factor = Fraction(1) if size is None else size / max(w * aspect, Fraction(h))
    height, width = (2 * max(1, math.floor(side * factor / 2 + 0.5)) for side in (h, w * aspect))
    return height, width


def _timestamps(listed: str) -> tuple[list[Fraction], Fraction]:
    """(sorted seconds at which packets are shown, seconds that they last together), from ffmpeg's framecrc output."""
    base = re.search(r"^#tb 0: (\d+/\d+)", listed, re.MULTILINE)
    lines = re.findall(r"^0, *(-?\d+), *(-?\d+), *(\d+),", listed, re.MULTILINE)
    packets = [tuple(map(int, line)) for line in lines]
    # Old containers do not say when each frame is shown, but do say when it is decoded.
    key = 1 if all(packet[1] != _UNKNOWN for packet in packets) else 0
    shown = sorted((packet[key], packet[2]) for packet in packets if packet[key] != _UNKNOWN)
    if not base or not shown:
        return [], Fraction(0)
    return [at * Fraction(base[1]) for at, _ in shown], (sum(shown[-1]) - shown[0][0]) * Fraction(base[1])


def _rate(header: Fraction, times: list[Fraction], *, interlaced: bool) -> Fraction:
    """Frames per second: the header's rate if the timestamps agree with it, else the timestamps' usual rate.

    Headers can be wrong: browsers' recorders always write 1000, and a variable rate has no true value. Fields of
    interlaced frames may be packets of their own; then there are twice as many.

    Args:
        header: 0 if it has no rate.
    """
    gaps = np.diff(np.unique(np.array(times, float)))
    if not len(gaps):
        return header if 0 < header <= 240 else Fraction(25)
    usual = float(np.median(gaps))
    if (0.4 if interlaced else 0.8) < header * usual < 1.25:
        return header
    rate = 1 / float(gaps[np.abs(gaps - usual) <= usual / 2].mean())
    whole = round(rate)
    broadcast = [Fraction(1000 * whole, 1001)] if whole % 24 == 0 or whole % 30 == 0 else []
    nearest = min([Fraction(whole), *broadcast], key=lambda standard: abs(standard - rate))
    return nearest if abs(nearest - rate) < 0.02 * rate else Fraction(rate).limit_denominator(100)


def _duration(said: str) -> Fraction:
    """The duration in the header, in seconds, or 0."""
    length = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", said)
    if not length:
        return Fraction(0)
    hours, minutes, rest = map(Fraction, length.groups())
    return 3600 * hours + 60 * minutes + rest


def _to_srgb(said: str, *, rgb: bool) -> tuple[str, ...]:
    """Filters from HDR or a wide gamut to sRGB, by what ffmpeg says of a frame; none if it has neither."""
    colors = re.search(r"color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)", said)
    space, primaries, transfer = colors.groups() if colors else (None, None, None)
    hdr = transfer in _HDR
    if not hdr and primaries not in _WIDE:
        return ()
    given = []
    if primaries == "unknown":
        given.append("color_primaries=bt2020")
    if space == "unknown" and not rgb:
        given.append(f"colorspace={'bt2020nc' if hdr or primaries == 'bt2020' else 'bt709'}")
    curve = transfer if hdr else "iec61966-2-1"
    return (
        *((f"setparams={':'.join(given)}",) if given else ()),
        f"zscale=transferin={curve}:transfer=linear:primaries=bt709:npl=203",
        "format=gbrpf32le",
        *((_TONEMAP,) if hdr else ()),
        "zscale=transfer=iec61966-2-1",
        "format=gbrp",
    )


def _no_video(said: str) -> str:
    """Why ffmpeg found no frame."""
    if "not on whitelist" in said:
        return "it is a playlist, a script or of an unsupported kind"
    if "matches no streams" in said:
        return "it has no video stream"
    return ffmpeg.reason(said)
