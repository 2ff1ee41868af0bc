"""Image files <-> float32 [H, W, 3] in [0, 1], sRGB. Everything in nstjax that reads an image file calls `load`.

Whatever a file holds (gray, palette, CMYK, 16 bits, floats, alpha, a camera's rotation, a color profile, an animation)
becomes plain sRGB; what cannot be reproduced faithfully raises an `InputError` of one line. The header tells what kind
of image a file is, and whether it can be decoded within the memory limit (`decoding`).
"""

import contextlib
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Shaped
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from nstjax import decoding, files, host, pixels, tiff
from nstjax.containers import File
from nstjax.errors import InputError

MARK = {"Software": "nstjax"}  # metadata of images that later runs may replace
MAX_PIXELS = 500_000_000  # more is a mistake or an attack
HUGE_PIXELS = 64_000_000  # above this JPEGs are decoded at a reduced scale, and one image at a time

Source = files.PathLike | File  # an image's path, or a binary file object, whose `name` is used in messages
Gray = Float32[np.ndarray, "h w"]

_JPEG = ("JPEG", {"quality": 95, "subsampling": 0})
_TIFF = ("TIFF", {"compression": "tiff_lzw"})
_WRITABLE: dict[str, tuple[str, dict]] = {".png": ("PNG", {}), ".jpg": _JPEG, ".jpeg": _JPEG}
_WRITABLE |= {".webp": ("WEBP", {"lossless": True}), ".tif": _TIFF, ".tiff": _TIFF, ".bmp": ("BMP", {})}

_DESCRIPTION = 0x010E  # EXIF tag
# Keys of PNG text that readers, Pillow among them, interpret as something else.
_RESERVED = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp", "transparency", "icc_profile", "gamma", "dpi"}


def load(
    path: Source,
    *,
    size: int | tuple[int, ...] | None = None,
    minimum: int = 1,
    source_minimum: int = 16,
    limit: float | None = None,
) -> Float32[np.ndarray, "h w 3"]:
    """Return the image in a file, in [0, 1], sRGB, upright, with transparency shown over white.

    Args:
        size: the long side in pixels, (w, h) -> (round(w*k), round(h*k)) with k = size / max(w, h), or (height, width);
            resized by Pillow's LANCZOS on 8 bits.
        minimum: of each side of the result, in pixels.
        source_minimum: of each side in the file, in pixels.
        limit: bytes of memory to use at most; by default 0.7 of what is free, but at least 1 GB.

    Raises:
        InputError: a side is below its minimum, or the file is missing, not an image, corrupt, cut short, or over
            MAX_PIXELS or the memory limit, both of which are checked by the header before it is decoded.
    """
    longest = max(size) if isinstance(size, tuple) else size
    with _opening(path, minimum=source_minimum, longest=longest) as (name, opened):
        target = _target(name, opened, size, minimum)
        if target[0] * target[1] > MAX_PIXELS:
            raise files.refusal(name, f"{target[0]}x{target[1]} px is over {MAX_PIXELS:,} pixels; lower the size")
        _check_memory(name, opened, target, limit)
        bands = (pixels.flattened(band, "white") for band in pixels.bands(opened))
        return pixels.to_array(pixels.resized(bands, opened, target, Image.Resampling.LANCZOS), target)


def load_mask(path: Source, *, shape: tuple[int, int], of: str | None = None, limit: float | None = None) -> Gray:
    """Return the mask in a file, in [0, 1], stretched to a shape (H, W); white is inside.

    Resizing antialiases. A color counts by its luminance, transparency as black.

    Args:
        of: the flag that the mask was given as, to raise InputError if its aspect is not the shape's.
        limit: bytes of memory, as in `load`.

    Raises:
        InputError: as `load` does, and for a mask that is all black.
    """
    target = shape[::-1]
    if of is not None:
        check_aspect(path, shape, of)
    with _opening(path, longest=max(shape)) as (name, opened):
        opened = opened._replace(profile=None)
        _check_memory(name, opened, target, limit)
        bands = (pixels.flattened(band, "black").convert("L").convert("F") for band in pixels.bands(opened))
        gray = pixels.joined(pixels.resized(bands, opened, target, Image.Resampling.BILINEAR), target)
        mask = np.clip(np.asarray(gray, np.float32) / 255, 0, 1)
        if not mask.any():
            raise files.refusal(name, "the mask is all black, so nothing is inside; paint the region white")
        return mask


def load_alpha(path: Source, *, shape: tuple[int, int], limit: float | None = None) -> Gray | None:
    """Return the opacity of the image in a file, in [0, 1], resized to a shape (H, W), or None if it is opaque."""
    target = shape[::-1]
    with _opening(path, longest=max(shape)) as (name, opened):
        if not opened.transparent:
            return None
        opened = opened._replace(profile=None)
        _check_memory(name, opened, target, limit)
        bands = (alpha or Image.new("L", image.size, 255) for image, alpha in pixels.bands(opened))
        joined = pixels.joined(pixels.resized(bands, opened, target, Image.Resampling.LANCZOS), target)
        opacity = np.asarray(joined, np.float32) / 255
        return None if opacity.min() == 1 else opacity


def shape(path: Source, *, size: int | tuple[int, ...] | None = None, minimum: int = 1) -> tuple[int, int]:
    """Return the (height, width) of `load(path, size=size)`, from the file's header. Raises InputError as it does."""
    with _opening(path) as (name, opened):
        return _target(name, opened, size, minimum)[::-1]


def reading_bytes(path: Source, *, size: int | None = None) -> float:
    """Return the bytes of memory that `load(path, size=size)` takes at its peak, from the file's header."""
    with _opening(path, longest=size) as (_, opened):
        return pixels.needed_memory(opened, shape(path, size=size)[::-1])


def same_aspect(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether shapes (H, W) have the same aspect, up to 2 %, or half a pixel of a side, which rounding explains."""
    (h, w), (height, width) = one, other
    return abs(h * width - w * height) <= max(0.02 * h * width, max(height, width) / 2, max(h, w) / 2)


def check_aspect(path: Source, like: tuple[int, int], flag: str) -> None:
    """Raise InputError unless the image in a file has the aspect of a shape (H, W); see `same_aspect`.

    Args:
        flag: what the image was given as, for the message.
    """
    (h, w), (height, width) = shape(path), like
    if not same_aspect((h, w), like):
        why = f"{flag} has {w}x{h} px, another aspect than the {width}x{height} px that it is for"
        raise files.refusal(_name(path), f"{why}; crop it to the same aspect")


def resize(image: Float[Any, "h w c"], shape: tuple[int, ...]) -> Float32[np.ndarray, "_ _ c"]:
    """Resize to a shape (H, W) by Lanczos on floats, clipped to [0, 1]."""
    h, w = shape
    channels = [Image.fromarray(np.ascontiguousarray(x)) for x in np.moveaxis(np.asarray(image, np.float32), -1, 0)]
    resized = [np.asarray(channel.resize((w, h), Image.Resampling.LANCZOS)) for channel in channels]
    return np.clip(np.stack(resized, axis=-1), 0, 1)


def cover(image: Float[Any, "h w c"], shape: tuple[int, int]) -> Float32[np.ndarray, "_ _ c"]:
    """Resize an image so that it just covers a shape (H, W) of any aspect, and crop its middle."""
    h, w = image.shape[:2]
    k = max(shape[0] / h, shape[1] / w)
    whole = resize(image, (max(shape[0], round(h * k)), max(shape[1], round(w * k))))
    top, left = (whole.shape[0] - shape[0]) // 2, (whole.shape[1] - shape[1]) // 2
    return whole[top : top + shape[0], left : left + shape[1]]


def save(
    path: files.PathLike,
    image: Shaped[Any, "..."],
    *,
    alpha: Float[Any, "h w"] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an image in the format of the name's suffix, whole or not at all; missing folders are created.

    The formats are .png, .webp (lossless), .tif, .bmp, and .jpg (quality 95, 4:4:4). Equal pixels and metadata give
    equal bytes.

    Args:
        image: floats [H, W, 3], which are clipped to [0, 1] and rounded to 8 bits.
        alpha: opacity in [0, 1]. JPEG and BMP cannot store it; they get the image alone.
        metadata: stored as PNG text, or as JSON in the EXIF description. BMP cannot store it.

    Raises:
        InputError: the file cannot be written; an older one stays as it was.
        ValueError: the image is not as described, or a key of the metadata, such as "exif", is reserved in PNG.
    """
    check_writable(path)
    if reserved := _RESERVED & set(metadata or {}):
        raise ValueError(f"metadata cannot be named {', '.join(sorted(reserved))}: PNG readers give these a meaning")
    name, options = _WRITABLE[Path(path).suffix.lower()]
    encoded = Image.fromarray(pixels.to_bytes(image))
    if alpha is not None and name not in ("JPEG", "BMP"):
        encoded.putalpha(Image.fromarray(np.rint(255 * np.clip(alpha, 0, 1)).astype(np.uint8)))
    try:
        data = _encode(encoded, name, options, metadata or {})
    except (OSError, ValueError) as error:  # WebP ends at 16383 px, JPEG at 65500 px and at 64 kB of metadata
        raise files.refusal(path, f"{name} cannot hold this image ({error}); write a .png") from error
    files.write(path, data)


def check_writable(path: files.PathLike) -> None:
    """Raise InputError if `save(path, ...)` could not work. Nothing is left behind; missing folders are fine."""
    if Path(path).suffix.lower() not in _WRITABLE:
        raise files.refusal(path, f"cannot write this format; end the name in one of {', '.join(_WRITABLE)}")
    files.check_writable(path)


def metadata(path: Source) -> dict[str, str]:
    """Return the metadata that `save` wrote; from another program's file its PNG text or EXIF description, if any."""
    with _opening(path) as (_, opened):
        text, description = opened.texts(), opened.description
    if description is None:
        return text
    with contextlib.suppress(ValueError):  # not JSON
        if isinstance(items := json.loads(description), dict):
            return {key: str(text) for key, text in items.items()}
    return {"ImageDescription": description}


def frames(folder: Path | None) -> list[files.Numbered]:
    """Return images 00001.jpg etc. in a folder as an output, if one is given, after checking that it is writable."""
    if folder is None:
        return []
    check_writable(folder / "00001.jpg")
    return [files.Numbered(folder, r"\d{5,}\.jpg")]


def check_own(paths: Iterable[files.PathLike], advice: str) -> None:
    """Raise InputError, with the advice, if one of the files exists and was not written with `MARK` as metadata."""
    for path in paths:
        if os.path.exists(path):
            with contextlib.suppress(InputError):
                if metadata(path).get("Software") == MARK["Software"]:
                    continue
            raise files.refusal(path, f"exists, and is not from an earlier run; {advice}")


def is_animated(path: Source) -> bool:
    """Whether a file is a GIF, WebP or PNG of several frames; False if it cannot be read."""
    with contextlib.suppress(InputError), _reading(path) as (name, file):
        _check_content(name, file)
        with decoding.quietly():
            return Image.open(file, formats=("GIF", "WEBP", "PNG")).is_animated  # type: ignore[attr-defined]
    return False


def _name(path: Source) -> str:
    """What messages call a file."""
    if isinstance(path, str | os.PathLike):
        return os.fspath(path)
    return str(getattr(path, "name", "the image"))


@contextlib.contextmanager
def _reading(path: Source) -> Iterator[tuple[str, File]]:
    """Open a file: (its name, the binary file). Any exception in the block becomes an InputError of one line."""
    name = _name(path)
    try:
        if isinstance(path, str | os.PathLike):
            files.check_regular(path)  # before it is opened, since opening a FIFO waits for its writer
            with open(path, "rb") as file:
                yield name, file
        else:
            yield name, path
    except InputError:
        raise
    except Exception as error:  # Pillow raises nearly anything on a corrupt file
        raise files.refusal(name, _reason(name, error)) from error


@contextlib.contextmanager
def _opening(path: Source, *, minimum: int = 1, longest: int | None = None) -> Iterator[tuple[str, decoding.Opened]]:
    """Read a file's header: (its name, the header), after checking its size."""
    with _reading(path) as (name, file):
        _check_content(name, file)
        opened = decoding.header(file, longest=longest, huge=HUGE_PIXELS)
        w, h = opened.size
        if w * h > MAX_PIXELS:
            raise files.refusal(name, f"{w}x{h} px is over the limit of {MAX_PIXELS:,} pixels; shrink it first")
        if min(w, h) < minimum:
            raise files.refusal(name, f"{w}x{h} px is too small; each side needs {minimum} px or more")
        yield name, opened


def _target(name: str, opened: decoding.Opened, size: int | tuple[int, ...] | None, minimum: int) -> tuple[int, int]:
    """(width, height) of an opened image at a size. Raises InputError if a side is below the minimum."""
    w, h = opened.size
    if isinstance(size, tuple):
        height, width = size
    else:
        k = 1 if size is None else size / max(w, h)
        width, height = round(w * k), round(h * k)
    if min(width, height) < max(minimum, 1):
        advice = f"under the minimum of {minimum}; choose a larger size or a less elongated image"
        raise files.refusal(name, f"{w}x{h} px becomes {width}x{height} px, {advice}")
    return width, height


def _check_content(name: str, file: File) -> None:
    """Raise InputError if an open file is not a regular one, or is empty."""
    with contextlib.suppress(OSError, AttributeError):  # a file object in memory has no descriptor
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise files.refusal(name, "is not a regular file; give the name of an image")
        if status.st_size == 0:
            raise files.refusal(name, "the file is empty; copy or download it again")


def _check_memory(name: str, opened: decoding.Opened, target: tuple[int, int], limit: float | None) -> None:
    """Raise InputError if decoding and resizing to (width, height) would take more than `limit` bytes."""
    if limit is None:
        limit = max(0.7 * host.free_memory(), 1e9)
    if (needed := pixels.needed_memory(opened, target)) > limit:
        what = f"{opened.size[0]}x{opened.size[1]} px needs {needed / 1e9:.2g} GB of memory to read"
        advice = "shrink it first, or raise --memory-limit"
        raise files.refusal(name, f"{what}, and {max(limit, 0) / 1e9:.2g} GB may be used: {advice}")


def _encode(image: Image.Image, name: str, options: dict[str, Any], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file in a format of Pillow. Metadata is sorted, so that equal dictionaries give equal bytes."""
    if name == "PNG":
        text = PngImagePlugin.PngInfo()
        for key in sorted(metadata):
            text.add_text(key, metadata[key].encode(errors="replace").decode())
        options = options | {"pnginfo": text}
    elif metadata and name != "BMP":
        exif = Image.Exif()
        exif[_DESCRIPTION] = json.dumps(dict(metadata), sort_keys=True)
        options = options | {"exif": exif}
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _reason(name: str, error: Exception) -> str:
    """What is wrong with a file, and what to do, by the exception that reading it raised."""
    match error:
        case tiff.Unsupported():
            return str(error)
        case FileNotFoundError():
            return "no such file; check the name"
        case UnidentifiedImageError():
            return f"not an image that can be read ({', '.join(decoding.READABLE)}); convert it to PNG or JPEG"
        case OSError() if os.path.isdir(name):
            return "is a folder; give the name of an image in it"
        case PermissionError():
            return "no permission to read it; change its permissions"
        case OSError(errno=int()):
            return f"cannot be read ({error.strerror}); check the name and the disk"
        case MemoryError():
            return "not enough memory to decode it; shrink it first"
    return f"the image is corrupt or cut short ({error}); copy or download it again"
