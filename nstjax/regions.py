"""Regions of a content and of a style image that belong together: from masks of one color for each region.

Masks are 8-bit images in [0, 1]. Their edges may be antialiased and their colors slightly off, as JPEG makes them: only
colors of solid 3x3 areas count, and every pixel has the nearest of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from nstjax.errors import InputError
from nstjax.typing import Image, Mask

SOLID = 10 / 255  # range of a channel within a solid area
ALIKE = 64 / 255  # colors nearer than that in every channel are one
MOST = 32  # colors of a mask
LEAST = 100  # pixels of a region from which a style can be learned

Colors = Float[np.ndarray, "n 3"]


class Region(NamedTuple):
    """Where a style is painted in the content image, and where it is learned in the style image."""

    name: str
    content: Mask
    style: Mask


def paired(content: Image, style: Image, *, names: Sequence[str] = ("content mask", "style mask")) -> list[Region]:
    """The regions of two masks whose colors are the same, as masks of 0 and 1.

    Colors that only the style's mask has are left out (`unused` names them).

    Args:
        names: what messages call the two masks.

    Raises:
        InputError: the content's mask has a color that the style's lacks, or a mask is no mask: it has no solid areas,
            or more than 32 colors.
    """
    there, wanted = (palette(mask, name) for mask, name in zip((style, content), reversed(names), strict=True))
    places = [_like(color, there) for color in wanted]
    if lacking := [hexadecimal(color) for color, place in zip(wanted, places, strict=True) if place is None]:
        plural = "colors" if len(lacking) > 1 else "the color"
        raise InputError(f"{names[1]}: lacks {plural} {', '.join(lacking)} of {names[0]}; paint it in, too")
    at, style_at = nearest(content, wanted), nearest(style, there)
    return [
        Region(hexadecimal(color), (at == i).astype(np.float32), (style_at == place).astype(np.float32))
        for i, (color, place) in enumerate(zip(wanted, places, strict=True))
    ]


def unused(content: Image, style: Image) -> list[str]:
    """The colors that only the style's mask has."""
    wanted = palette(content, "content mask")
    return [hexadecimal(color) for color in palette(style, "style mask") if _like(color, wanted) is None]


def palette(mask: Image, name: str) -> Colors:
    """The colors of a mask's solid areas, the most frequent first. Raises InputError if there are none, or over 32."""
    mask = np.asarray(mask, np.float32)
    h, w, _ = mask.shape
    windows = [mask[i : h - 2 + i, j : w - 2 + j] for i in range(3) for j in range(3)]
    solid = (np.maximum.reduce(windows) - np.minimum.reduce(windows)).max(-1) <= SOLID
    codes = np.rint(255 * mask[1:-1, 1:-1][solid]).astype(int) @ [1 << 16, 1 << 8, 1]
    codes, counts = np.unique(codes, return_counts=True)
    found: list[np.ndarray] = []
    for code in codes[np.argsort(-counts, kind="stable")]:
        color = np.array([code >> 16, code >> 8 & 255, code & 255]) / 255
        if _like(color, found) is None:
            found.append(color)
        if len(found) > MOST:
            raise InputError(f"{name}: has more than {MOST} colors; give a mask with one color for each region")
    if not found:
        raise InputError(f"{name}: has no area of one color; give a mask with one color for each region")
    return np.stack(found).astype(np.float32)


def nearest(mask: Image, colors: Colors) -> Int[np.ndarray, "h w"]:
    """Which of the colors is nearest at every pixel."""
    return np.argmin([((np.asarray(mask) - color) ** 2).sum(-1) for color in colors], 0)


def hexadecimal(color: Float[np.ndarray, " 3"]) -> str:
    """A color's name, such as #ff0000."""
    return "#" + "".join(f"{round(255 * float(x)):02x}" for x in color)


def _like(color: np.ndarray, others: Sequence[np.ndarray] | Colors) -> int | None:
    """The index of the first of other colors that counts as the same, or None."""
    alike = [i for i, other in enumerate(others) if np.abs(color - other).max() < ALIKE]
    return alike[0] if alike else None


def large_enough(regions: Sequence[Region], *, least: int = LEAST) -> tuple[list[Region], list[str]]:
    """The regions of at least so many pixels in both images, and a line for each of the others.

    Raises InputError if none is left.
    """
    kept, lines = [], []
    for region in regions:
        pixels, learned = (int(np.asarray(mask).sum()) for mask in (region.content, region.style))
        if min(pixels, learned) >= least:
            kept.append(region)
        else:
            lines.append(
                f"region {region.name}: {pixels} px of the content, {learned} px of the style: under {least}, skipped"
            )
    if not kept:
        raise InputError(f"{lines[0]}, and there is no other; paint larger regions" if lines else "there is no region")
    return kept, lines
