"""Image files opened by their header: size, orientation, color profile and the memory that decoding takes.

Formats that start programs (EPS runs Ghostscript), or that nearly any bytes are valid in, are left out.
"""

import contextlib
import functools
import importlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin, features

from nstjax import containers, profiles, tiff

READABLE = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "PSD", "QOI", "HEIF", "JXL")
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # per pixel, of Pillow's modes; else 4
# Bytes per pixel that a decoder takes beside the image, as measured.
_WORKSPACE = {"WEBP": 13, "AVIF": 12, "JPEG2000": 20, "QOI": 6, "HEIF": 16, "JXL": 24, "PPM": 4, "GIF": 1}
_QUIET = threading.Lock()


class Opened(NamedTuple):
    """An image file whose header has been read; sizes are (width, height) as stored."""

    decode: Callable[[], Image.Image]
    pixels: tuple[int, int]  # of what `decode` returns, which may be reduced
    stored: tuple[int, int]
    orientation: int  # 1 to 8
    profile: bytes | None
    needed: int  # bytes that decoding takes at its peak
    transparent: bool
    description: str | None  # of EXIF or TIFF
    texts: Callable[[], dict[str, str]]  # of PNG

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), upright."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored


def header(file: containers.File, *, longest: int | None = None, huge: int = 64_000_000) -> Opened:
    """Return what the header of an image file says.

    Args:
        longest: the long side in pixels that is wanted, if a reduced scale will do.
        huge: pixels above which images are decoded one at a time, and JPEGs at a reduced scale if `longest` allows it.

    Raises:
        tiff.Unsupported: the file has a feature that cannot be read; the message names it.
        Exception: a corrupt file can raise nearly anything.
    """
    file.seek(0)
    start = file.read(64)
    if tiff.is_tiff(start):
        return _tiff(file, huge)
    _require(start)
    parts = containers.parts(file)
    with quietly():
        Image.init()
        parts.stream.seek(0)
        image = Image.open(parts.stream, formats=[each for each in READABLE if each in Image.OPEN])
    exif, profile = parts.exif, parts.profile
    if parts.stream is file:
        exif, profile = image.info.get("exif"), image.info.get("icc_profile")
    if parts.color is not None:
        profile = profiles.of_png(parts.color)
    about, (w, h) = tiff.exif(exif), image.size
    if w * h > huge and longest:  # only then, since decoding JPEG at 1/2, 1/4 or 1/8 changes the pixels a little
        image.draft(None, (2 * longest, 2 * longest))
    color_key = len(parts.key or ()) == 3

    def decode() -> Image.Image:
        with quietly() if w * h > huge else contextlib.nullcontext():
            image.load()
        if color_key:
            return _without_key(image, parts)
        if parts.key:
            image.info["transparency"] = parts.key[0]
        return image

    held = _BYTES.get(image.mode, 4) * (3 if color_key else 1) + _WORKSPACE.get(image.format or "", 0)
    return Opened(
        decode=decode,
        pixels=image.size,
        stored=(w, h),
        orientation=about.orientation(),
        profile=profile,
        needed=image.width * image.height * held + w * h * parts.coefficients,
        transparent=image.has_transparency_data or parts.key is not None,
        description=about.description(),
        texts=functools.partial(containers.png_texts, file),
    )


def _tiff(file: containers.File, huge: int) -> Opened:
    """`header` of a TIFF."""
    found = tiff.directory(file)
    about, stream = tiff.layout(found), tiff.without_metadata(file, found)
    w, h = about.size

    def by_pillow() -> Image.Image:
        with quietly():
            # Pillow's own decoder cannot read subsampled YCbCr; libtiff can.
            TiffImagePlugin.READ_LIBTIFF = about.photometric == 6
            try:
                image = Image.open(stream, formats=("TIFF",))
            finally:
                TiffImagePlugin.READ_LIBTIFF = False
        with quietly() if w * h > huge else contextlib.nullcontext():
            image.load()
        return image

    if tiff.by_pillow(about):
        held = max(about.bits // 8, 1) if about.photometric < 2 and about.samples == 1 else 4
        needed = w * h * held + (0 if about.compression == 1 else file.seek(0, os.SEEK_END))
    else:
        needed = w * h * 2 * about.samples + 2 * about.segment + 24 * tiff.BLOCK
    return Opened(
        decode=by_pillow if tiff.by_pillow(about) else functools.partial(tiff.decode, stream, about),
        pixels=about.size,
        stored=about.size,
        orientation=found.orientation(),
        profile=found.profile(),
        needed=needed,
        transparent=about.alpha is not None,
        description=found.description(),
        texts=dict,
    )


def _require(start: bytes) -> None:
    """Load the package that reads HEIC or JPEG XL. Raises Unsupported, with the install line, if it is missing."""
    brand = start[8:12] if start[4:8] == b"ftyp" else b""
    if brand in (b"avif", b"avis") and not features.check("avif"):
        raise tiff.Unsupported("is AVIF, which this Pillow cannot read: pip install --upgrade pillow")
    if brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1") and b"avif" not in start:
        _optional("HEIC", "pillow_heif").register_heif_opener(thumbnails=False)
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        _optional("JPEG XL", "pillow_jxl")  # registers itself


def _optional(kind: str, package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise tiff.Unsupported(f'is {kind}, which needs {package}: pip install "nstjax[formats]"') from error


def _without_key(high: Image.Image, parts: containers.Parts) -> Image.Image:
    """A 16-bit RGB PNG as RGBA: transparent where all 16 bits of each channel equal the key's.

    Pillow keeps only the high bytes, so the file is decoded a second time for the low ones.
    """
    parts.stream.seek(0)
    with quietly():
        low = Image.open(parts.stream, formats=("PNG",))
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]  # read as little-endian, Pillow keeps the low byte
    low.load()
    out, (w, h) = high.convert("RGBA"), high.size
    step = max(1, tiff.BLOCK // w)
    for top in range(0, h, step):
        box = (0, top, w, min(h, top + step))
        values = [np.asarray(each.crop(box)).astype(np.uint16) for each in (high, low)]
        alpha = np.where(((values[0] << 8 | values[1]) == parts.key).all(axis=-1), 0, 255).astype(np.uint8)
        rgba = high.crop(box)
        rgba.putalpha(Image.fromarray(alpha))
        out.paste(rgba, box)
    return out


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppress Pillow's warnings and lift its own limit on pixels in the block, under a lock: both are global."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
