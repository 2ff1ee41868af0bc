"""TIFF by its tags (TIFF 6.0, Technical Notes 1 and 2, BigTIFF): what its samples mean, and their values in 8 bits.

Pillow decodes the layouts that it decodes correctly, among them the usual ones of 8 bits or less. The others, such as
separate planes of 16 bits, color in floats or 16 bits in which 0 is white, are decoded by tifffile (with imagecodecs
for compressions such as LZW).
"""

import contextlib
import importlib
import io
import logging
import math
import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from nstjax import containers

BLOCK = 1 << 20  # values that are converted at once
Values = Shaped[np.ndarray, "h w"]

_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 7: "s", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I"}
_FORMATS |= {5: "Q", 10: "q", 16: "Q", 17: "q", 18: "Q"}  # rationals (5, 10) only have the right size here
_DESCRIPTION, _ORIENTATION, _PROFILE, _SAMPLE_FORMAT = 270, 274, 34675, 339
# The tags on which the pixels depend. The others are removed, since damaged ones make decoders fail.
_NEEDED = (254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325)
_NEEDED += (332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 50674)
_NAMES = {4: "transparency mask", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "raw camera data", 32844: "LogL"}
_NAMES |= {32845: "LogLuv", 34892: "raw camera data", 6: "YCbCr", 8: "CIE L*a*b*"}
_PILLOW_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 32946, 34925, 50000}
_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # channels of a photometric interpretation
_CONVERT = "which cannot be read; convert it to RGB of 8 or 16 bits"


class Unsupported(ValueError):
    """An intact file with a feature that cannot be read; the text names it and says what to do."""


class Directory(NamedTuple):
    """The first directory of a TIFF."""

    order: str  # of bytes: "<" or ">"
    big: bool  # BigTIFF
    values: dict[int, tuple[Any, ...]]  # {tag: numbers, or one bytes}, of intact entries that are needed
    types: dict[int, int]  # {tag: type}
    entries: dict[int, bytes]  # {tag: the entry as it is in the file}

    def number(self, tag: int, default: int) -> int:
        """Return a tag's first number."""
        value = next(iter(self.values.get(tag, ())), default)
        return value if type(value) is int else default

    def orientation(self) -> int:
        """Return 1 to 8; anything else in the tag counts as 1, upright."""
        values = self.values.get(_ORIENTATION, ())
        whole = self.types.get(_ORIENTATION) in (3, 4) and len(values) == 1
        return values[0] if whole and 1 <= values[0] <= 8 else 1

    def profile(self) -> bytes | None:
        """Return the ICC profile."""
        values = self.values.get(_PROFILE, ())
        return values[0] if values and isinstance(values[0], bytes) else bytes(values) if values else None

    def description(self) -> str | None:
        """Return the ImageDescription."""
        values = self.values.get(_DESCRIPTION, ())
        if not values or not isinstance(values[0], bytes):
            return None
        data = values[0].split(b"\0")[0]
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data.decode("latin-1")


class Layout(NamedTuple):
    """What the samples of a TIFF's pixels are."""

    size: tuple[int, int]  # width and height
    photometric: int  # what the samples mean, as the tag has it
    bits: int  # of a sample
    kind: str  # "u" (unsigned), "i" (signed) or "f" (float)
    samples: int  # of a pixel
    planar: bool  # whether each sample has a plane of its own
    alpha: int | None  # the number of that sample
    premultiplied: bool  # by alpha
    compression: int
    order: str  # of bytes: "<" or ">"
    big: bool  # BigTIFF
    reversed: bool  # the bits of each byte are in reverse order
    segment: int  # bytes of the largest strip or tile, decompressed

    @property
    def colors(self) -> int:
        """The number of samples that are not alpha or spare."""
        return _COLORS[self.photometric]


def is_tiff(start: bytes) -> bool:
    """Whether a file is a TIFF, by its first bytes."""
    return start[:2] in (b"II", b"MM") and start[2:4] in (b"*\0", b"\0*", b"+\0", b"\0+")


def directory(file: containers.File) -> Directory:
    """Parse the first directory; damaged entries are left out of `values`. Raises ValueError if there is none."""
    file.seek(0)
    start = file.read(16)
    if not is_tiff(start) or len(start) < 8:
        raise ValueError("no TIFF")
    order, big = "<>"[start[:1] == b"M"], b"+" in start[2:4]
    width, counted = (8, "Q") if big else (4, "I")
    (at,) = struct.unpack_from(order + counted, start.ljust(16, b"\0"), width)
    file.seek(at)
    head = file.read(8 if big else 2)
    (count,) = struct.unpack(order + ("Q" if big else "H"), head)
    found = Directory(order, big, {}, {}, {})
    for _ in range(min(count, 65535)):
        entry = file.read(4 + 2 * width)
        if len(entry) < 4 + 2 * width:
            break
        tag, kind, length = struct.unpack_from(order + "HH" + counted, entry)
        if tag in found.entries:
            continue
        found.entries[tag] = entry
        found.types[tag] = kind
        if (tag in _NEEDED or tag in (_DESCRIPTION, _ORIENTATION, _PROFILE)) and kind in _FORMATS:
            with contextlib.suppress(struct.error):
                found.values[tag] = _values(file, entry[4 + width :], kind, length, order)
    return found


def _values(file: containers.File, inline: bytes, kind: int, count: int, order: str) -> tuple[Any, ...]:
    """The numbers, or (bytes,), of an entry. Raises struct.error if the file ends before them."""
    letter = _FORMATS[kind]
    length = count * struct.calcsize("<" + letter)
    if length > len(inline):
        (at,) = struct.unpack(order + ("Q" if len(inline) == 8 else "I"), inline)
        back, size = file.tell(), file.seek(0, os.SEEK_END)
        file.seek(at)
        inline = file.read(length) if length <= size else b""
        file.seek(back)
    return struct.unpack(f"{order}{count}{letter}", inline[:length])


def exif(data: bytes | None) -> Directory:
    """Return the directory of EXIF data, which has the form of a TIFF; an empty one if it is missing or damaged."""
    if isinstance(data, bytes):
        with contextlib.suppress(ValueError, struct.error):
            return directory(io.BytesIO(data[6:] if data.startswith(b"Exif\0") else data))
    return Directory("<", False, {}, {}, {})


def without_metadata(file: containers.File, found: Directory) -> containers.File:
    """Return the TIFF with only the tags that its pixels need, in a new directory; ValueError if it is cut short."""
    width, counted = (8, "Q") if found.big else (4, "I")
    size = file.seek(0, os.SEEK_END)
    starts = found.values.get(324) or found.values.get(273) or (size,)
    lengths = found.values.get(325) or found.values.get(279) or (1,) * len(starts)
    if any(start + length > size for start, length in zip(starts, lengths, strict=False)):
        raise ValueError("it ends before its pixels do")
    plain = {1, 4}.issuperset(found.values.get(_SAMPLE_FORMAT, ()))  # 4, undefined, is read as unsigned
    tags = [tag for tag in sorted(found.values) if tag in _NEEDED and not (tag == _SAMPLE_FORMAT and plain)]
    entries = [found.entries[tag] for tag in tags]
    end = size + size % 2
    table = struct.pack(found.order + ("Q" if found.big else "H"), len(entries)) + b"".join(entries) + bytes(width)
    file.seek(0)
    start = file.read(width) + struct.pack(found.order + counted, end)
    return containers.spliced(file, [start, (len(start), size - len(start)), bytes(size % 2) + table])


def layout(found: Directory) -> Layout:
    """Return what the samples are. Raises Unsupported for what cannot be read, and ValueError for a damaged file."""
    photometric, compression = found.number(262, 0), found.number(259, 1)
    photometric = 6 if compression == 6 else photometric
    if photometric not in _COLORS:
        raise Unsupported(f"holds {_NAMES.get(photometric, f'photometric interpretation {photometric}')}, {_CONVERT}")
    colors = _COLORS[photometric]
    samples = found.number(277, 3 if compression == 6 else 1)
    bits, formats = found.values.get(258, (1,)), found.values.get(339, (1,))
    bits = bits * samples if len(bits) == 1 else bits[:samples]
    if samples < colors or len(bits) != samples:
        raise ValueError(f"{samples} samples of {bits} bits do not make a pixel")
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        raise Unsupported(f"has samples of different kinds ({bits} bits), {_CONVERT}")
    kind = {1: "u", 4: "u", 2: "i", 3: "f"}.get(formats[0])
    if kind is None:
        raise Unsupported(f"has complex numbers for pixels, {_CONVERT}")
    if photometric == 5 and found.number(332, 1) != 1:
        raise Unsupported(f"has other inks than CMYK, {_CONVERT}")
    extra = found.values.get(338, ())
    if not extra and photometric == 2 and samples == 4:
        extra = (2,)  # many programs do not declare their alpha
    alphas = [index for index, value in enumerate(extra[: samples - colors]) if value in (1, 2, 999)]
    alpha = colors + alphas[0] if alphas else None
    width, height = found.number(256, 0), found.number(257, 0)
    tile = found.number(322, 0), found.number(323, 0)
    strip = width, min(found.number(278, height), height)
    planar = found.number(284, 1) == 2 and samples > 1
    segment = math.prod(tile if min(tile) > 0 else strip) * (1 if planar else samples) * bits[0] // 8
    return Layout(
        size=(width, height),
        photometric=photometric,
        bits=bits[0],
        kind=kind,
        samples=samples,
        planar=planar,
        alpha=alpha,
        premultiplied=alpha is not None and extra[alpha - colors] == 1,
        compression=compression,
        order=found.order,
        big=found.big,
        reversed=found.number(266, 1) == 2,
        segment=segment,
    )


def by_pillow(about: Layout) -> bool:
    """Whether Pillow decodes a layout correctly, as found by comparing it with tifffile for each of these cases."""
    spare = about.samples - about.colors
    if (
        about.compression not in _PILLOW_COMPRESSIONS
        or (about.reversed and about.bits > 1)
        or (about.big and about.order == ">")
    ):
        return False
    if about.samples == 1 and (about.kind, about.bits) in (("i", 32), ("f", 32)):
        return about.photometric == 1 and (about.order == "<" or about.compression == 1)  # else Pillow swaps bytes
    if about.kind != "u" or about.bits not in (1, 2, 4, 8, 16):
        return False
    deep = {(1, 1), (2, 3), (2, 4), (5, 4)}  # (photometric interpretation, samples) that it reads in 16 bits
    if about.bits == 16:
        return not about.planar and (about.photometric, about.samples) in deep
    if about.photometric in (0, 3):
        return spare == 0
    if about.photometric == 1:
        return spare == 0 or (spare == 1 and about.bits == 8 and not about.planar)
    if about.planar and (about.photometric not in (2, 5) or (spare and about.alpha is None) or about.premultiplied):
        return False
    return about.bits == 8 and spare <= (about.photometric == 2)


def decode(stream: containers.File, about: Layout) -> Image.Image:
    """Decode by tifffile to 8 bits: an image of mode L, RGB or CMYK, or with alpha of mode LA, La, RGBA or RGBa.

    White is 2^n - 1 for n bits and 2^(n-1) - 1 for signed ones. For 32 bits it is 65535 if no value is larger; for
    floats it is the first of 1, 255 and 65535 that no value exceeds. Negative values become black.

    Raises:
        Unsupported: the layout is not supported, or a package is missing.
    """
    if about.photometric in (6, 8):
        raise Unsupported(f"holds {_NAMES[about.photometric]} of an unusual layout, {_CONVERT}")
    if about.photometric == 5 and about.alpha is not None:
        raise Unsupported(f"holds CMYK with transparency, {_CONVERT}")
    tifffile = _tifffile()
    used = [*range(about.colors)] + ([] if about.alpha is None else [about.alpha])
    try:
        with tifffile.TiffFile(stream) as file:
            page = file.pages[0]
            colormap = page.colormap if about.photometric == 3 else None
            scales = _scales(page, about, used)
            planes = [Image.new("L", about.size) for _ in range(len(used) + 2 * (colormap is not None))]
            for plane, values, corner in _blocks(page, used):
                for number, levels in _levels(plane, values, about, scales, colormap):
                    planes[number].paste(Image.fromarray(levels), corner)
    except Exception as error:  # tifffile reports a missing codec by several kinds of exception
        if "imagecodecs" in str(error):
            what = f"is compressed in a way (TIFF compression {about.compression}) that needs imagecodecs"
            raise Unsupported(f'{what}: pip install "nstjax[formats]"') from error
        raise
    alpha = "" if about.alpha is None else "a" if about.premultiplied else "A"
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[len(planes) - bool(alpha)] + alpha
    return planes[0] if len(planes) == 1 else Image.merge(mode, planes)


def _tifffile() -> Any:
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # our own message reports damage, in one line
    try:
        return importlib.import_module("tifffile")
    except ImportError as error:
        what = "is a TIFF of an unusual layout, which needs tifffile"
        raise Unsupported(f'{what}: pip install "nstjax[formats]"') from error


def _blocks(page: Any, used: list[int]) -> Iterator[tuple[int, Values, tuple[int, int]]]:
    """Yield (index in `used`, values, (left, top)) of each strip or tile, a few rows at a time."""
    for data, (plane, _, top, left, _), (_, h, w, _) in page.segments(maxworkers=1):
        if data is None:
            raise ValueError("a strip or tile is missing")
        data = data[0, :h, :w]
        if data.shape[:2] != (h, w):
            raise ValueError("a strip or tile is cut short")
        step = max(1, BLOCK // w)
        separate = page.planarconfig == 2 and page.samplesperpixel > 1
        for number, sample in enumerate(used):
            if separate and sample != plane:
                continue
            channel = data[..., 0 if separate else sample]
            for y in range(0, h, step):
                yield number, channel[y : y + step], (left, top + y)


def _scales(page: Any, about: Layout, used: list[int]) -> list[int]:
    """The value of white for each of the samples used. Raises Unsupported if floats or 32 bits have none."""
    if about.photometric == 3:
        return [1] * len(used)
    whole = 2 ** (about.bits - (about.kind == "i")) - 1
    if about.kind != "f" and about.bits != 32:
        return [whole] * len(used)
    largest = [0.0] * len(used)
    for number, values, _ in _blocks(page, used):
        largest[number] = max(largest[number], float(values.max()))
        if not np.isfinite(values).all():
            largest[number] = math.inf
    shared = [max(largest[: about.colors])] * about.colors + largest[about.colors :]
    steps = (1, 255, 65535) if about.kind == "f" else (65535, whole)
    scales = [next((step for step in steps if value <= step), 0) for value in shared]
    if not all(scales):
        raise Unsupported("its values are not in 0..1, 0..255 or 0..65535; convert it to 8 bits")
    return scales


def _levels(
    number: int, values: Values, about: Layout, scales: list[int], colormap: Any
) -> Iterator[tuple[int, UInt8[np.ndarray, "h w"]]]:
    """Yield (number of the plane, its values in 8 bits) for one block of samples."""
    if colormap is not None and number == 0:
        for channel, column in enumerate(colormap):
            yield channel, (column >> 8).astype(np.uint8)[np.minimum(values, len(column) - 1)]
        return
    scaled = values.astype(np.float32 if about.bits <= 16 else np.float64)
    levels = np.rint(scaled.clip(0, scales[number]) * (255 / scales[number])).astype(np.uint8)
    inverted = about.photometric == 0 and number < about.colors
    yield number + 2 * (colormap is not None), 255 - levels if inverted else levels
