"""The pixels of an opened image file: converted to 8 bits of sRGB in bands of a few rows, and resized.

Working in bands keeps the memory that conversions take beside the image small.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image

from nstjax import profiles, tiff
from nstjax.decoding import Opened

BAND = 1 << 20  # pixels that are converted at once
WHOLE = 1 << 24  # pixels up to which an image is resized at once

_TURNS = dict(enumerate((0, 3, 1, 5, 4, 6, 2), start=2))  # orientation -> the Image.Transpose that undoes it


class Band(NamedTuple):
    """A few rows of an image, upright and in sRGB."""

    image: Image.Image  # of mode L or RGB
    alpha: Image.Image | None  # of mode L; None if all of it is opaque


def needed_memory(opened: Opened, target: tuple[int, int]) -> float:
    """Return the bytes that decoding and resizing to (width, height) take at their peak, computed from the header."""
    (w, h), stored = target, math.prod(opened.pixels)
    across, down = _upright_size(opened)
    needed = opened.needed + 40 * BAND + 12 * w * h
    if target != (across, down):
        needed += 4 * (stored if stored <= WHOLE else w * down) + 4 * w * h
    return needed


def bands(opened: Opened) -> Iterator[Band]:
    """Decode an image and yield it from top to bottom."""
    image = opened.decode()
    scale = _full_scale(image)
    w, h = image.size
    turned = opened.orientation >= 5
    rows, step = (w, BAND // h) if turned else (h, BAND // w)
    transform: Callable[[Image.Image], Image.Image] | None = None
    for top in range(0, rows, max(step, 1)):
        start, stop = top, min(rows, top + max(step, 1))
        if opened.orientation in (3, 4, 7, 8):
            start, stop = rows - stop, rows - start
        band = image.crop((start, 0, stop, h) if turned else (0, start, w, stop))
        if opened.orientation > 1:
            band = band.transpose(Image.Transpose(_TURNS[opened.orientation]))
        band, alpha = _split(_to_8_bits(band, scale))
        if top == 0:  # the transform depends on the mode, which only a converted band shows
            transform = profiles.to_srgb(opened.profile, band.mode)
        if transform:
            band = transform(band)
        yield Band(band.convert("RGB") if band.mode == "CMYK" else band, alpha)


def flattened(band: Band, background: str) -> Image.Image:
    """Return the band over a background of one color, which shows where it is transparent."""
    if band.alpha is None:
        return band.image
    canvas = Image.new(band.image.mode, band.image.size, background)
    canvas.paste(band.image, mask=band.alpha)
    return canvas


def resized(
    images: Iterable[Image.Image], opened: Opened, target: tuple[int, int], filter: Image.Resampling
) -> Iterator[Image.Image]:
    """Yield, in bands, what Image.resize makes of the whole image; above WHOLE pixels only narrowed rows are kept.

    Image.resize resizes along rows, rounds, and then resizes along columns. (Pillow 13 takes the other order where the
    height shrinks by over twice as many pixels as the width; there the results differ by the rounding.)

    Args:
        images: the bands of `opened`, from top to bottom.
        target: width and height in pixels.
    """
    w, h = _upright_size(opened)
    if (w, h) == target:
        yield from images
        return
    if w * h > WHOLE:
        images, w = (band.resize((target[0], band.height), filter) for band in images), target[0]
    yield joined(images, (w, h)).resize(target, filter)


def joined(images: Iterable[Image.Image], size: tuple[int, int]) -> Image.Image:
    """Return one image of (width, height) from its bands, from top to bottom."""
    top, whole = 0, None
    for band in images:
        whole = whole or Image.new(band.mode, size)
        whole.paste(band, (0, top))
        top += band.height
    if whole is None:
        raise ValueError("an image without rows")
    return whole


def to_array(images: Iterable[Image.Image], size: tuple[int, int]) -> Float32[np.ndarray, "h w 3"]:
    """Return bands of mode L or RGB, from top to bottom, as an array in [0, 1]. size: width and height of the whole."""
    out, top = np.empty((size[1], size[0], 3), np.float32), 0
    for band in images:
        step = max(1, BAND // band.width)
        for y in range(0, band.height, step):
            rows = np.asarray(band.crop((0, y, band.width, min(band.height, y + step))).convert("RGB"))
            out[top : top + len(rows)] = rows
            top += len(rows)
    out /= 255
    return out


def to_bytes(image: Shaped[Any, "..."]) -> UInt8[np.ndarray, "h w 3"]:
    """Return float [H, W, 3], clipped to [0, 1], in 8 bits. Raises ValueError for other arrays and infinite values."""
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype.kind in "biu":
        raise ValueError(f"an image is float [H, W, 3] in [0, 1], not {array.dtype} {list(array.shape)}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"the image has {np.sum(~np.isfinite(array))} values that are not finite")
    return np.rint(255 * array.clip(0, 1)).astype(np.uint8)


def _upright_size(opened: Opened) -> tuple[int, int]:
    """(width, height) of the decoded image, upright."""
    w, h = opened.pixels
    return (h, w) if opened.orientation >= 5 else (w, h)


def _full_scale(image: Image.Image) -> int | None:
    """The value of white, or None for modes of 8 bits.

    That is 65535 for modes I;16. For mode I, which can be a 16-bit PGM, it is 65535 if no value is larger, else
    2^31 - 1. For mode F it is the first of 1, 255 and 65535 that no value exceeds.
    """
    if image.mode not in ("I", "F"):
        return 65535 if image.mode.startswith("I;16") else None
    largest, step = 0.0, max(1, BAND // image.width)
    for top in range(0, image.height, step):
        values = np.asarray(image.crop((0, top, image.width, min(image.height, top + step))))
        largest = max(largest, float(values.max()) if np.isfinite(values).all() else math.inf)
    scales = (65535, 2**31 - 1) if image.mode == "I" else (1, 255, 65535)
    scale = next((scale for scale in scales if largest <= scale), None)
    if scale is None:
        raise tiff.Unsupported("its values are not in 0..1, 0..255 or 0..65535; convert it to 8 bits")
    return scale


def _to_8_bits(image: Image.Image, scale: int | None) -> Image.Image:
    """Modes I;16, I and F as L, or as LA where one value is transparent; negative values become black.

    Other modes are returned as they are: Pillow itself keeps only the high bytes of 16-bit color.
    """
    if scale is None:
        return image
    values = np.asarray(image)
    gray = Image.fromarray(np.rint(values.astype(np.float32).clip(0, scale) * (255 / scale)).astype(np.uint8))
    if (key := image.info.get("transparency")) is not None:
        gray.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return gray


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """An image of any 8-bit mode as one of mode L, RGB or CMYK, and its alpha, or None if it is opaque."""
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    alpha = None
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode == "CMYK":  # kept, since its color profile converts from inks
        return image, alpha
    return image.convert(mode), alpha
