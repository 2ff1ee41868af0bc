"""Files of video <-> frames [H, W, 3] in [0, 1], by ffmpeg, which imageio-ffmpeg brings; and painted frames held still.

What ffmpeg reads comes out upright, with square pixels and even sides, at a constant rate, progressive, in sRGB, over
white where it is transparent.
"""

import contextlib
import math
import os
import re
import shutil
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from nstjax import ffmpeg, files, images, soundtrack

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mj2", ".f4v", ".mkv", ".mk3d", ".webm", ".avi", ".divx"),
    *(".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".ts", ".m2t", ".m2ts", ".mts", ".mod", ".tod"),
    *(".wmv", ".asf", ".flv", ".ogv", ".ogm", ".mxf", ".gxf", ".dv", ".rm", ".rmvb", ".wtv", ".nut", ".ivf", ".y4m"),
    *(".h264", ".264", ".h265", ".265", ".hevc", ".mjpg", ".mjpeg"),
)
_ANIMATED = (".gif", ".png", ".apng", ".webp")  # suffixes of images that may be videos
_H264 = ("-c:v", "libx264", "-crf", "18", "-preset", "medium")
_VP9 = ("-c:v", "libvpx-vp9", "-crf", "24", "-b:v", "0", "-deadline", "good", "-cpu-used", "4", "-row-mt", "1")
_WRITABLE = {".mp4": _H264, ".m4v": _H264, ".mov": _H264, ".mkv": _H264, ".webm": _VP9}
# What players take for granted, and ffmpeg does not.
_BT709 = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv")

_UNKNOWN = -(2**63)  # ffmpeg's timestamp of what has none
_LISTED = 3000  # packets at most, from which rates are computed
_LISTED_SECONDS = 20
_ALPHA = re.compile(r"yuva|rgba|bgra|argb|abgr|gbrap|ya\d|pal8|ayuv|vuya")
_RGB = re.compile(r"rgb|bgr|gbr|argb|abgr|pal8")
# Codecs whose every frame says whether it is interlaced; of others, the container may know.
_SELF_DESCRIBED = ("h264", "hevc", "mpeg1video", "mpeg2video", "vc1")
_WIDE = ("bt2020", "smpte431", "smpte432")  # primaries well beyond sRGB's
_HDR = ("smpte2084", "arib-std-b67")  # PQ and HLG
# Diffuse white, 203 cd/m2 (ITU-R BT.2408), becomes 1; highlights up to 1000 cd/m2 are rolled off above 0.6.
_TONEMAP = "tonemap=mobius:param=0.6:peak=4.93:desat=0"

# By a copy of the frames that is all white, below them.
_OVER_WHITE = (
    "format=gbrap,split[white][frame];[white]lutrgb=r=maxval:g=maxval:b=maxval:a=maxval[white];"
    "[white][frame]overlay=format=gbrp"
)

TOLERANCE = 0.03  # of a change in the video, in [0, 1], that passes for noise


class Info(NamedTuple):
    """What is known of a video: its frames' shape, rate and number, and how they are read.

    shape: (H, W), both even. rate: frames a second. frames: about their number, None if the file does not tell.
    start: seconds into the file at which the first one is shown. decoder: options of ffmpeg. before, after: its filters
    around the scaling.
    """

    shape: tuple[int, int]
    rate: Fraction
    frames: int | None
    start: Fraction = Fraction(0)
    decoder: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def recognizes(path) -> bool:
    """Whether a file is a video by its name, or an animated GIF, WebP or PNG by its content."""
    suffix = Path(path).suffix.lower()
    return suffix in SUFFIXES or (suffix in _ANIMATED and Path(path).is_file() and images.is_animated(path))


def info(path, *, size=None):
    """`Info` of a file, its frames' long side scaled to about `size`.

    Raises InputError, one line, if the file is missing, no regular file or no video, if ffmpeg does not read its
    beginning within `ffmpeg.PROBE_SECONDS`, or if ffmpeg is not installed.
    """
    ffmpeg.check_regular(path)
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
    rate = _rate(header, times, interlaced=order or frame[7] != "P")
    start = Fraction(0) if frame[1] == "NOPTS" else max(Fraction(0), int(frame[1]) * Fraction(config[1]))
    if not times or len(times) == _LISTED or lasts > _LISTED_SECONDS - 1:
        lasts = _duration(said) - start
    frames = max(1, round(lasts * rate)) if lasts > 0 else None

    decoder: tuple[str, ...] = ()
    if codec in ("vp8", "vp9") and re.search(r"alpha_mode *: 1", said):  # which ffmpeg's own decoders leave out
        decoder = ("-c:v", "libvpx" if codec == "vp8" else "libvpx-vp9")
    transparent = decoder or _ALPHA.search(pixels) or _ALPHA.search(stream[0])
    unflagged = frame[7] == "P" and codec not in _SELF_DESCRIBED
    before: tuple[str, ...] = (f"setfield={order[1][0]}ff",) if order and unflagged else ()
    before += () if _RGB.match(pixels) or min(w, h) < 4 else ("bwdif=mode=send_frame:deint=interlaced",)
    before += (f"fps={rate}{':eof_action=pass' if len(times) < 2 else ''}", *((_OVER_WHITE,) if transparent else ()))
    shape = _shape(w, h, Fraction(*aspect) if all(aspect) else 1, size)
    return Info(shape, rate, frames, start, decoder, before, _to_srgb(said, rgb=bool(_RGB.match(pixels))))


def read(path, info):
    """The frames of a file, float32 [H, W, 3] in [0, 1], one after another. A file cut short ends early."""
    h, w = info.shape
    scale = f"scale={w}:{h}:flags=lanczos+accurate_rnd+full_chroma_int,setsar=1"
    filters = [*(info.before or (f"fps={info.rate}",)), scale, *info.after]
    command = [*ffmpeg.command(), *info.decoder, *ffmpeg.source(path), "-map", "0:V:0", "-vf", ",".join(filters)]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    streams = {"stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ffmpeg.started(command, **streams) as process:

        def receive():
            with ffmpeg.limited(process):
                return process.stdout.read(3 * h * w)

        done = 0
        while len(data := receive()) == 3 * h * w:
            yield np.frombuffer(data, np.uint8).reshape(h, w, 3).astype(np.float32) / 255
            done += 1
        with ffmpeg.limited(process):
            status = process.wait()
        if status < 0:
            ffmpeg.warn(path, f"ffmpeg stopped or was ended after {done} frames; the rest of them is missing")


@contextlib.contextmanager
def writing(path, info, *, sound=None):
    """While open, a function that adds a frame [H, W, 3] in [0, 1] to the file; `sound`: a file to take the sound from.

    The file appears when it is closed, with the sound of as many seconds as there are frames; if none were added, or
    after an exception, an older file stays as it was. Sound that cannot be taken or joined is left out, with one line
    on stderr. Raises InputError if the file cannot be written.
    """
    check_writable(path)
    target = Path(os.path.realpath(path))
    suffix = target.suffix.lower()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise files.refusal(path, f"cannot be written ({error.strerror or error}); choose another name") from error
    mute, stranded = folder / f"mute{suffix}", False
    try:
        tracks = soundtrack.extract(sound, folder, suffix, start=info.start) if sound is not None else []
        frames = 0
        with _encoding(mute, info, path) as write:

            def add(frame):
                nonlocal frames
                write(frame)
                frames += 1

            yield add
        if not frames:
            return
        try:
            os.replace(mute, target)
        except OSError as error:
            stranded = True
            raise files.refusal(path, f"cannot be written ({error.strerror}); the video is left in {mute}") from error
        # From here on the painted frames are in place, whatever happens to the sound.
        soundtrack.join(target, tracks, folder, seconds=frames / info.rate)
    finally:
        if not stranded:
            shutil.rmtree(folder, ignore_errors=True)


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


@contextlib.contextmanager
def _encoding(target, info, path):
    """While open, a function that adds a frame [H, W, 3] in [0, 1] to a new file without sound."""
    h, w = info.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-r", str(info.rate), "-i", "-"]
    form = ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-pix_fmt", "yuv420p", *_BT709]
    command = [*ffmpeg.command(), *raw, *form, *_WRITABLE[target.suffix], "-y", ffmpeg.name(target)]
    with (
        tempfile.TemporaryFile() as errors,
        ffmpeg.started(command, stdin=subprocess.PIPE, stdout=errors, stderr=errors) as process,
    ):

        def end():
            with ffmpeg.limited(process), contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            with ffmpeg.limited(process):
                status = process.wait()
            if status:
                errors.seek(0)
                why = ffmpeg.reason(errors.read().decode(errors="replace"))
                raise files.refusal(path, f"cannot be written ({why}); check the disk's free space")

        def write(frame):
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


def _shape(w, h, aspect, size):
    """(height, width): square pixels, even sides, the long one about `size`."""
    factor = 1 if size is None else size / max(w * aspect, h)
    return tuple(2 * max(1, math.floor(side * factor / 2 + 0.5)) for side in (h, w * aspect))


def _timestamps(listed):
    """(sorted seconds at which packets are shown, seconds that they last together) of ffmpeg's framecrc."""
    base = re.search(r"^#tb 0: (\d+/\d+)", listed, re.MULTILINE)
    packets = re.findall(r"^0, *(-?\d+), *(-?\d+), *(\d+),", listed, re.MULTILINE)
    packets = [tuple(map(int, packet)) for packet in packets]
    # Old containers do not say when each frame is shown, but then when it is decoded.
    key = 1 if all(packet[1] != _UNKNOWN for packet in packets) else 0
    shown = sorted((packet[key], packet[2]) for packet in packets if packet[key] != _UNKNOWN)
    if not base or not shown:
        return [], Fraction(0)
    return [at * Fraction(base[1]) for at, _ in shown], (sum(shown[-1]) - shown[0][0]) * Fraction(base[1])


def _rate(header, times, *, interlaced):
    """Frames a second: the header's (0 if it has none) where the timestamps agree with it, else their usual one.

    Browsers' recorders write 1000 whatever it is, and a variable rate has no true one. Fields of interlaced frames may
    be packets of their own: then there are twice as many.
    """
    gaps = np.diff(np.unique(np.array(times, float)))
    if not len(gaps):
        return header if 0 < header <= 240 else Fraction(25)
    usual = np.median(gaps)
    if (0.4 if interlaced else 0.8) < header * usual < 1.25:
        return header
    rate = 1 / gaps[np.abs(gaps - usual) <= usual / 2].mean()
    whole = round(rate)
    broadcast = [Fraction(1000 * whole, 1001)] if whole % 24 == 0 or whole % 30 == 0 else []
    nearest = min([Fraction(whole), *broadcast], key=lambda standard: abs(standard - rate))
    return nearest if abs(nearest - rate) < 0.02 * rate else Fraction(rate).limit_denominator(100)


def _duration(said):
    """Seconds, as the header has them, or 0."""
    length = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", said)
    if not length:
        return Fraction(0)
    hours, minutes, rest = map(Fraction, length.groups())
    return 3600 * hours + 60 * minutes + rest


def _to_srgb(said, *, rgb):
    """Filters from HDR or a wide gamut to sRGB, by what ffmpeg says of a frame; none if it has neither."""
    colours = re.search(r"color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)", said)
    space, primaries, transfer = colours.groups() if colours else (None, None, None)
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


def _no_video(said):
    """Why ffmpeg found no frame."""
    if "not on whitelist" in said:
        return "its content is a playlist, a script or of a kind that is not read"
    if "matches no streams" in said:
        return "it has no video stream"
    return ffmpeg.reason(said)
