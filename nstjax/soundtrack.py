"""The sound of a video: taken from it before painting, joined to the painted frames afterwards."""

import os
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from nstjax import ffmpeg, files

SECONDS = 3600  # for all of a long video's sound

# The codecs that usual players expect in a container (None: any), and the encoder that others are converted by.
_MP4 = ({"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}, "aac")
_CODECS: dict[str, tuple[set[str] | None, str]] = {".mp4": _MP4, ".m4v": _MP4, ".mkv": (None, "aac")}
_CODECS |= {".mov": ({"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s24le", "pcm_s16be", "pcm_s24be"}, "aac")}
_CODECS |= {".webm": ({"opus", "vorbis"}, "libopus")}
# Encoders support these layouts; others, such as 5.1(side), are mapped to the nearest.
_LAYOUTS = "aformat=channel_layouts=mono|stereo|5.1|7.1"


def extract(path: files.PathLike, folder: files.PathLike, suffix: str, *, start: Fraction | float = 0) -> list[Path]:
    """Write the sound tracks of a file into a folder, each as a file that `join` can copy, and return these files.

    A track that the container cannot hold is converted. Tracks that ffmpeg cannot convert are left out, with one line
    on stderr.

    Args:
        suffix: of the files' container, such as ".mp4".
        start: seconds of the source to skip.
    """
    _, _, said = ffmpeg.run([*ffmpeg.command("info"), *ffmpeg.source(path)], seconds=ffmpeg.PROBE_SECONDS)
    if "Input #0" not in said:
        ffmpeg.warn(path, f"its sound cannot be read, and is left out ({ffmpeg.reason(said)})")
        return []
    held, encoder = _CODECS[suffix]
    convert = ["-c:a", encoder, "-af", _LAYOUTS]
    seek, cut = (["-ss", f"{float(start):.6f}"], ["-copypriorss", "0"]) if start else ([], [])
    tracks, lost = [], []
    for number, codec in enumerate(re.findall(r"Stream #0:\d+.*?: Audio: (\w+)", said)):
        copied = held is None or codec in held or Path(path).suffix.lower() == suffix
        track = Path(folder, f"{number}{suffix}")
        for how in (["-c:a", "copy"], convert) if copied else (convert,):
            arguments = [*seek, *ffmpeg.source(path), "-map", f"0:a:{number}", *how, *cut, "-y", ffmpeg.name(track)]
            status, _, why = ffmpeg.run([*ffmpeg.command(), *arguments], seconds=SECONDS)
            if not status:
                tracks.append(track)
                break
        else:
            lost.append(f"track {number + 1} ({codec}: {ffmpeg.reason(why)})")
    if lost:
        ffmpeg.warn(path, f"sound is left out: {', '.join(lost)}")
    return tracks


def join(video: Path, tracks: Sequence[Path], folder: files.PathLike, *, seconds: Fraction | float) -> None:
    """Add so many seconds of the tracks to a video. If that fails, the video stays as it is, with one line on stderr.

    Args:
        folder: for the new file, on the video's disk.
    """
    if not tracks:
        return
    whole = Path(folder, f"whole{video.suffix}")
    # Timestamps are copied, since a track may begin later than the frames.
    arguments = ["-copyts", *ffmpeg.source(video), *(option for track in tracks for option in ffmpeg.source(track))]
    arguments += ["-map", "0:v", *(option for n in range(len(tracks)) for option in ("-map", f"{n + 1}:a"))]
    arguments += ["-c", "copy", "-t", f"{float(seconds):.6f}", "-y", ffmpeg.name(whole)]
    status, _, said = ffmpeg.run([*ffmpeg.command(), *arguments], seconds=SECONDS)
    try:
        if status:
            raise OSError(None, ffmpeg.reason(said))
        os.replace(whole, video)
    except OSError as error:
        ffmpeg.warn(video, f"is saved without sound, which cannot be joined to it ({error.strerror})")
