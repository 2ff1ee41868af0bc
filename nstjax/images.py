"""Image files <-> float32 [H, W, 3] in [0, 1], sRGB. Everything in nstjax that reads an image file does it by `load`.

Whatever a file holds (grey, palette, CMYK, 16 bits, floats, alpha, a camera's rotation, a colour profile, an animation)
becomes plain sRGB; what cannot be shown faithfully raises an `InputError` of one line. The header decides what an
image is, and whether it can be decoded within the memory that it may take (`decoding`).
"""

import contextlib
import io
import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from nstjax import decoding, files, host, profiles, tiff
from nstjax.errors import InputError

MARK = {"Software": "nstjax"}  # metadata of images that later runs may replace
MAX_PIXELS = 500_000_000  # more is a mistake or an attack
HUGE_PIXELS = 64_000_000  # above this JPEGs are decoded at a reduced scale, and one picture at a time
BAND = 1 << 20  # pixels that are converted at once
WHOLE = 1 << 24  # pixels up to which an image is resized at once

_JPEG = ("JPEG", {"quality": 95, "subsampling": 0})
_TIFF = ("TIFF", {"compression": "tiff_lzw"})
_WRITABLE: dict[str, tuple[str, dict]] = {".png": ("PNG", {}), ".jpg": _JPEG, ".jpeg": _JPEG}
_WRITABLE |= {".webp": ("WEBP", {"lossless": True}), ".tif": _TIFF, ".tiff": _TIFF, ".bmp": ("BMP", {})}

_DESCRIPTION = 0x010E  # EXIF tag
_TURNS = dict(enumerate((0, 3, 1, 5, 4, 6, 2), start=2))  # orientation -> the Image.Transpose to undo it
# Names of PNG text that readers, Pillow among them, take for something else.
_TAKEN = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp", "transparency", "icc_profile", "gamma", "dpi"}


def load(path, *, size=None, minimum=1, source_minimum=16, limit: float | None = None) -> np.ndarray:
    """The picture in a file as float32 [H, W, 3] in [0, 1], sRGB, upright, transparency over white.

    path: of the file, or a binary file object (its `name` is used in errors).
    size: the long side, (w, h) -> (round(w*k), round(h*k)) with k = size / max(w, h), or a (height, width);
    by Pillow's LANCZOS on 8 bits.
    limit: bytes of memory that it may take at its peak; by default 0.7 of what is free, but at least 1 GB.
    InputError where a side comes out under `minimum`, is under `source_minimum` in the file, or the file is missing, no
    picture, corrupt, cut short, over MAX_PIXELS or over the limit, which its header tells before it is decoded.
    """
    longest = max(size) if isinstance(size, tuple) else size
    with _opening(path, least=source_minimum, longest=longest) as (name, opened):
        target = _target(name, opened, size, minimum)
        if target[0] * target[1] > MAX_PIXELS:
            raise files.refusal(name, f"{target[0]}x{target[1]} px is over {MAX_PIXELS:,} pixels; lower the size")
        _check_memory(name, opened, target, limit)
        bands = (_flatten(each, "white") for each in _bands(opened))
        return _unit(_resized(bands, opened, target, Image.Resampling.LANCZOS), target)


def load_mask(path, *, shape, of: str | None = None, limit: float | None = None) -> np.ndarray:
    """The mask in a file as float32 [H, W] in [0, 1] for shape (H, W), stretched to it; white is inside.

    The resizing antialiases. Colour counts by its luminance, transparency as black. InputError as in `load`,
    for a mask all black, and, if `of` says what it was given as, for one of another aspect than the shape.
    """
    target = shape[::-1]
    if of is not None:
        check_aspect(path, shape, of)
    with _opening(path, longest=max(shape)) as (name, opened):
        opened = opened._replace(profile=None)
        _check_memory(name, opened, target, limit)
        bands = (_flatten(each, "black").convert("L").convert("F") for each in _bands(opened))
        grey = _joined(_resized(bands, opened, target, Image.Resampling.BILINEAR), target)
        mask = np.clip(np.asarray(grey, np.float32) / 255, 0, 1)
        if not mask.any():
            raise files.refusal(name, "the mask is all black, so nothing is inside; paint the region white")
        return mask


def load_alpha(path, *, shape, limit: float | None = None) -> np.ndarray | None:
    """The opacity of the picture in a file as float32 [H, W] in [0, 1] for shape (H, W); None if it is opaque."""
    target = shape[::-1]
    with _opening(path, longest=max(shape)) as (name, opened):
        if not opened.transparent:
            return None
        opened = opened._replace(profile=None)
        _check_memory(name, opened, target, limit)
        bands = (alpha or Image.new("L", picture.size, 255) for picture, alpha in _bands(opened))
        alpha = _joined(_resized(bands, opened, target, Image.Resampling.LANCZOS), target)
        opacity = np.asarray(alpha, np.float32) / 255
        return None if opacity.min() == 1 else opacity


def shape(path, *, size: int | None = None, minimum: int = 1) -> tuple[int, int]:
    """(height, width) that `load(path, size=size)` will have, from the file's header; InputError as there."""
    with _opening(path) as (name, opened):
        return _target(name, opened, size, minimum)[::-1]


def same_aspect(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether shapes (H, W) agree in their aspect, up to 2 %, or half a pixel of a side, which rounding explains."""
    (h, w), (height, width) = one, other
    return abs(h * width - w * height) <= max(0.02 * h * width, max(height, width) / 2, max(h, w) / 2)


def check_aspect(path, like: tuple[int, int], flag: str) -> None:
    """Raise InputError if the image in a file has not the aspect of the shape `like`, (H, W); see `same_aspect`.

    flag: what the image was given as.
    """
    (h, w), (height, width) = shape(path), like
    if not same_aspect((h, w), like):
        why = f"{flag} has {w}x{h} px, another aspect than the {width}x{height} px that it is for"
        raise files.refusal(path, f"{why}; crop it to the same aspect")


def resize(image, shape) -> np.ndarray:
    """float [h, w, C] -> float32 [H, W, C] for shape (H, W), by Lanczos on floats, clipped to [0, 1]."""
    channels = np.moveaxis(np.asarray(image, np.float32), -1, 0)
    pictures = [Image.fromarray(np.ascontiguousarray(channel)) for channel in channels]
    resized = [np.asarray(p.resize(shape[::-1], Image.Resampling.LANCZOS)) for p in pictures]
    return np.clip(np.stack(resized, axis=-1), 0, 1)


def cover(image, shape) -> np.ndarray:
    """The middle of an image [h, w, C], as large as fits, resized to a shape (H, W) of any aspect."""
    h, w = image.shape[:2]
    k = max(shape[0] / h, shape[1] / w)
    whole = resize(image, (max(shape[0], round(h * k)), max(shape[1], round(w * k))))
    top, left = (whole.shape[0] - shape[0]) // 2, (whole.shape[1] - shape[1]) // 2
    return whole[top : top + shape[0], left : left + shape[1]]


def save(path, image, *, alpha=None, metadata=None) -> None:
    """Write float [H, W, 3], clipped to [0, 1] and rounded to 8 bits, in the suffix's format, all or nothing.

    .png, .webp (lossless), .tif, .bmp, .jpg (quality 95, 4:4:4). metadata {str: str} goes into PNG text, or
    as JSON into the EXIF description; BMP has no place for it. alpha: opacity [H, W] in [0, 1], for which JPEG and BMP
    have no place: there the image is as it is given. Equal pixels and metadata give equal bytes.
    Missing folders are made. InputError if the file cannot be written (an older one stays as it was),
    ValueError for bad pixels, and for names of metadata that mean something else in a PNG, such as "exif".
    """
    check_writable(path)
    if taken := _TAKEN & set(metadata or {}):
        raise ValueError(f"metadata cannot be named {', '.join(sorted(taken))}: readers of PNG take it for theirs")
    name, options = _WRITABLE[Path(path).suffix.lower()]
    picture = Image.fromarray(_to_bytes(image))
    if alpha is not None and name not in ("JPEG", "BMP"):
        picture.putalpha(Image.fromarray(np.rint(255 * np.clip(alpha, 0, 1)).astype(np.uint8)))
    try:
        data = _encode(picture, name, options, metadata or {})
    except (OSError, ValueError) as error:  # WebP ends at 16383 px, JPEG at 65500 px and at 64 kB of metadata
        raise files.refusal(path, f"{name} cannot hold this picture ({error}); write a .png") from error
    files.write(path, data)


def check_writable(path) -> None:
    """InputError if `save(path, ...)` could not work; leaves nothing behind. Missing folders are fine."""
    if Path(path).suffix.lower() not in _WRITABLE:
        raise files.refusal(path, f"cannot write this format; end the name in one of {', '.join(_WRITABLE)}")
    files.check_writable(path)


def metadata(path) -> dict[str, str]:
    """What `save` was given as metadata; of a foreign file its PNG text or its EXIF description, else {}."""
    with _opening(path) as (_, opened):
        text, description = opened.texts(), opened.description
    with contextlib.suppress(TypeError, ValueError):  # None, or not JSON
        if isinstance(items := json.loads(description), dict):
            return {key: str(text) for key, text in items.items()}
    return text if description is None else {"ImageDescription": str(description)}


def frames(folder: Path | None) -> list[files.Numbered]:
    """The images 00001.jpg and so on that go into a folder, if one is given. Raises InputError if they cannot."""
    if folder is None:
        return []
    check_writable(folder / "00001.jpg")
    return [files.Numbered(folder, r"\d{5,}\.jpg")]


def check_own(paths: Iterable[Path], advice: str) -> None:
    """Raise InputError, with the advice, if one of the files exists and was not written with `MARK` as metadata."""
    for path in paths:
        if os.path.exists(path):
            with contextlib.suppress(InputError):
                if metadata(path).get("Software") == MARK["Software"]:
                    continue
            raise files.refusal(path, f"is there, and not from an earlier run; {advice}")


def is_animated(path) -> bool:
    """Whether a file is a GIF, WebP or PNG of several frames; False if it cannot be read."""
    with contextlib.suppress(InputError), _reading(path) as (name, file):
        _check_file(name, file)
        with decoding.quietly():
            return Image.open(file, formats=("GIF", "WEBP", "PNG")).is_animated  # type: ignore[attr-defined]
    return False


@contextlib.contextmanager
def _reading(path):
    """(name, binary file) of a path or a file object. Whatever goes wrong inside becomes an InputError of one line."""
    given = hasattr(path, "read")
    name = str(getattr(path, "name", "the picture")) if given else os.fspath(path)
    try:
        if not given:
            files.check_regular(path)  # before it is opened, which waits for a FIFO's writer
        with contextlib.nullcontext(path) if given else open(path, "rb") as file:
            yield name, file
    except InputError:
        raise
    except Exception as error:  # Pillow raises nearly anything on a corrupt file
        raise files.refusal(name, _reason(name, error)) from error


@contextlib.contextmanager
def _opening(path, *, least=1, longest=None):
    """(name, `decoding.Opened`) of a file, if its size will do."""
    with _reading(path) as (name, file):
        _check_file(name, file)
        opened = decoding.header(file, longest=longest, huge=HUGE_PIXELS)
        w, h = opened.size
        if w * h > MAX_PIXELS:
            raise files.refusal(name, f"{w}x{h} px is over the limit of {MAX_PIXELS:,} pixels; shrink it first")
        if min(w, h) < least:
            raise files.refusal(name, f"{w}x{h} px is too small; each side needs {least} px or more")
        yield name, opened


def _target(name, opened, size, minimum):
    """(width, height) of an opened image at a size; InputError where a side is under the minimum."""
    w, h = opened.size
    if isinstance(size, tuple):
        target = size[::-1]
    else:
        k = 1 if size is None else size / max(w, h)
        target = round(w * k), round(h * k)
    if min(target) < max(minimum, 1):
        advice = f"under the minimum of {minimum}; choose a larger size or a less elongated image"
        raise files.refusal(name, f"{w}x{h} px becomes {target[0]}x{target[1]} px, {advice}")
    return target


def _check_file(name, file):
    with contextlib.suppress(OSError, AttributeError):  # what has no number lies in memory
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise files.refusal(name, "is not a regular file; give the name of a picture")
        if status.st_size == 0:
            raise files.refusal(name, "the file is empty; copy or download it again")


def reading_bytes(path, *, size=None) -> float:
    """Bytes of memory that `load(path, size=size)` takes at its peak, from the file's header."""
    with _opening(path, longest=size) as (_, opened):
        return _needed(opened, shape(path, size=size)[::-1])


def _check_memory(name, opened, target, limit):
    """InputError if decoding and resizing would take more than `limit` bytes at their peak."""
    if limit is None:
        limit = max(0.7 * host.free_memory(), 1e9)
    if (needed := _needed(opened, target)) > limit:
        what = f"{opened.size[0]}x{opened.size[1]} px needs {needed / 1e9:.2g} GB of memory to read"
        advice = "shrink it first, or raise --memory-limit"
        raise files.refusal(name, f"{what}, and {max(limit, 0) / 1e9:.2g} GB may be used: {advice}")


def _needed(opened, target):
    """Bytes at the peak of decoding and resizing to a target (width, height), by the header."""
    (w, h), stored = target, math.prod(opened.pixels)
    across, down = opened.pixels[::-1] if opened.orientation >= 5 else opened.pixels
    needed = opened.needed + 40 * BAND + 12 * w * h
    if target != (across, down):
        needed += 4 * (stored if stored <= WHOLE else w * down) + 4 * w * h
    return needed


def _bands(opened):
    """Yield (picture of mode L, RGB or CMYK in sRGB, its alpha or None) of a few rows, upright, from top to bottom."""
    picture = opened.decode()
    scale = _full_scale(picture)
    w, h = picture.size
    turned = opened.orientation >= 5
    rows, step = (w, BAND // h) if turned else (h, BAND // w)
    transform: Any = None  # known by the first band's mode
    for top in range(0, rows, max(step, 1)):
        start, stop = top, min(rows, top + max(step, 1))
        if opened.orientation in (3, 4, 7, 8):
            start, stop = rows - stop, rows - start
        band = picture.crop((start, 0, stop, h) if turned else (0, start, w, stop))
        if opened.orientation > 1:
            band = band.transpose(Image.Transpose(_TURNS[opened.orientation]))
        band, alpha = _plain(_to_8_bits(band, scale))
        if top == 0:
            transform = profiles.to_srgb(opened.profile, band.mode)
        if transform:
            band = transform(band)
        yield band.convert("RGB") if band.mode == "CMYK" else band, alpha


def _resized(bands, opened, target, filter):
    """Yield bands of what Image.resize makes of the whole; of over WHOLE pixels only narrowed rows are kept.

    Image.resize works along rows, rounds, and then works along columns (in Pillow 13 the other way round where the
    height shrinks by over twice as many pixels as the width: there the two ways differ by the rounding).
    """
    w, h = opened.pixels[::-1] if opened.orientation >= 5 else opened.pixels
    if (w, h) == target:
        yield from bands
        return
    if w * h > WHOLE:
        bands, w = (band.resize((target[0], band.height), filter) for band in bands), target[0]
    yield _joined(bands, (w, h)).resize(target, filter)


def _joined(bands, size):
    """One picture of bands from top to bottom."""
    top, whole = 0, None
    for band in bands:
        whole = whole or Image.new(band.mode, size)
        whole.paste(band, (0, top))
        top += band.height
    return whole


def _unit(bands, target):
    """float32 [H, W, 3] in [0, 1] of bands of mode L or RGB."""
    out, top = np.empty((target[1], target[0], 3), np.float32), 0
    for band in bands:
        step = max(1, BAND // band.width)
        for y in range(0, band.height, step):
            rows = np.asarray(band.crop((0, y, band.width, min(band.height, y + step))).convert("RGB"))
            out[top : top + len(rows)] = rows
            top += len(rows)
    out /= 255
    return out


def _full_scale(picture):
    """The value that is white: 65535 for modes I;16; for I, which may be a 16-bit PGM, 65535 if that holds every value,
    or else 2^31 - 1; for F the first of 1, 255 and 65535 that does; None for modes of 8 bits.
    """
    if picture.mode not in ("I", "F"):
        return 65535 if picture.mode.startswith("I;16") else None
    largest, step = 0.0, max(1, BAND // picture.width)
    for top in range(0, picture.height, step):
        values = np.asarray(picture.crop((0, top, picture.width, min(picture.height, top + step))))
        largest = max(largest, float(values.max()) if np.isfinite(values).all() else math.inf)
    scales = {"I": (65535, 2**31 - 1), "F": (1, 255, 65535)}[picture.mode]
    scale = next((scale for scale in scales if largest <= scale), None)
    if scale is None:
        raise tiff.Unsupported("its values are not in 0..1, 0..255 or 0..65535; convert it to 8 bits")
    return scale


def _to_8_bits(picture, scale):
    """Modes I;16, I and F as L, or LA where one value is transparent; negative values are black. Others untouched.

    Of 16-bit colour, Pillow has already kept the high bytes.
    """
    if scale is None:
        return picture
    values = np.asarray(picture)
    grey = Image.fromarray(np.rint(values.astype(np.float32).clip(0, scale) * (255 / scale)).astype(np.uint8))
    if (key := picture.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _plain(picture):
    """(mode L, RGB or CMYK, alpha or None) of any 8-bit mode."""
    grey, alpha = picture.mode in ("1", "L", "LA", "La"), None
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert(picture.mode.upper())
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
    if picture.mode == "CMYK":  # kept for its profile, which speaks of inks
        return picture, alpha
    return picture.convert("L" if grey else "RGB"), alpha


def _flatten(band, background):
    """(picture, alpha or None) as the picture over the background where it is transparent."""
    picture, alpha = band
    if alpha is None:
        return picture
    canvas = Image.new(picture.mode, picture.size, background)
    canvas.paste(picture, mask=alpha)
    return canvas


def _to_bytes(image):
    """float [H, W, 3] -> uint8."""
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype.kind in "biu":
        raise ValueError(f"a picture is float [H, W, 3] in [0, 1], not {array.dtype} {list(array.shape)}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"the picture has {np.sum(~np.isfinite(array))} values that are not finite")
    return np.rint(255 * array.clip(0, 1)).astype(np.uint8)


def _encode(picture, name, options, metadata):
    """The bytes of the file; metadata in sorted order, so that equal dictionaries give equal bytes."""
    if name == "PNG":
        text = PngImagePlugin.PngInfo()
        for key in sorted(metadata):
            text.add_text(key, metadata[key].encode(errors="replace").decode())
        options = options | {"pnginfo": text}
    elif metadata and name != "BMP":
        exif = Image.Exif()
        exif[_DESCRIPTION] = json.dumps(metadata, sort_keys=True)
        options = options | {"exif": exif}
    buffer = io.BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


def _reason(name, error):
    match error:
        case tiff.Unsupported():
            return str(error)
        case FileNotFoundError():
            return "no such file; check the name"
        case UnidentifiedImageError():
            return f"not a picture that can be read ({', '.join(decoding.READABLE)}); convert it to PNG or JPEG"
        case OSError() if os.path.isdir(name):
            return "is a folder; give the name of a picture in it"
        case PermissionError():
            return "no permission to read it; change its permissions"
        case OSError(errno=int()):
            return f"cannot be read ({error.strerror}); check the name and the disk"
        case MemoryError():
            return "not enough memory to decode it; shrink it first"
    return f"the picture is corrupt or cut short ({error}); copy or download it again"
