"""Colors of image files to sRGB: by embedded ICC profiles, or by the primaries and the gamma of a PNG."""

import contextlib
import io
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageCms

from nstjax import containers

_SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # x, y of white, red, green, blue
_D65, _D50 = _SRGB[:2], (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
Curve = tuple[float, ...]  # a gamma, or (g, a, b, c, d) of ICC's parametric function of type 3
_SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_BT709_CURVE = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
# Code points of ITU-T H.273, without those that need tone mapping (PQ and HLG).
_PRIMARIES = {
    1: _SRGB,
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_CURVES = {4: (2.2,), 5: (2.8,), 8: (1.0,), 13: _SRGB_CURVE} | dict.fromkeys((1, 6, 14, 15), _BT709_CURVE)


def to_srgb(profile: bytes | None, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """Return a function from images of mode L, RGB or CMYK to sRGB ones; None if the profile changes nothing.

    A profile that is damaged, or of other channels than the image's, changes nothing. One for RGB works for gray too.
    """
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
        if not isinstance(profile, bytes):
            return None
        source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        takes = "RGB" if mode == "L" and source.profile.xcolor_space.strip() == "RGB" else mode
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        if mode == "L":  # with one channel, LCMS would interpolate between a few values, which is far off in the dark
            flags |= ImageCms.Flags.NOOPTIMIZE
        transform = ImageCms.buildTransform(source, srgb, takes, "RGB", intent, flags)
        if takes == "RGB" and _changes_nothing(transform):
            return None
        if mode == "L":
            ramp = Image.frombytes("L", (256, 1), bytes(range(256))).convert(takes)
            tables = [list(channel.tobytes()) for channel in _applied(transform, ramp).split()]
            return lambda image: Image.merge("RGB", [image.point(table) for table in tables])
        return lambda image: _applied(transform, image)
    return None


def of_png(chunks: Mapping[bytes, bytes]) -> bytes | None:
    """Return the ICC profile that a PNG's chunks describe, or None for sRGB.

    cICP comes before iCCP, sRGB, and cHRM with gAMA (PNG specification 4.3). Damaged chunks and unknown code points are
    ignored. As in Skia, cHRM alone implies sRGB's curve, and gAMA alone its primaries.
    """
    cicp = chunks.get(b"cICP", b"")
    if len(cicp) == 4 and cicp[0] in _PRIMARIES and cicp[1] in _CURVES and cicp[2:] == b"\0\1":
        return None if cicp[:2] == b"\1\15" else build(_PRIMARIES[cicp[0]], _CURVES[cicp[1]])
    name, _, packed = chunks.get(b"iCCP", b"").partition(b"\0")
    icc = containers.inflated(packed[1:]) if name and packed[:1] == b"\0" else None
    if icc and icc[36:40] == b"acsp" and icc[16:20] in (b"RGB ", b"GRAY"):
        return icc
    if len(chunks.get(b"sRGB", b"")) == 1:
        return None
    primaries, curve = _SRGB, _SRGB_CURVE
    if len(chrm := chunks.get(b"cHRM", b"")) == 32:
        primaries = tuple(value / 1e5 for value in struct.unpack(">8I", chrm))
    if len(gama := chunks.get(b"gAMA", b"")) == 4 and (gamma := int.from_bytes(gama, "big")):
        # Encoders write 1 / 2.2 for sRGB's own curve.
        curve = _SRGB_CURVE if abs(gamma - 45455) <= 455 else (1e5 / gamma,)
    if (primaries, curve) == (_SRGB, _SRGB_CURVE):
        return None
    return build(primaries, curve)


def build(primaries: tuple[float, ...], curve: Curve) -> bytes | None:
    """Return an ICC profile (ICC.1:2010), or None if the numbers make no sense.

    Args:
        primaries: x, y of white, red, green and blue.
    """
    points = zip(primaries[::2], primaries[1::2], strict=True)
    xyz = [(x / y, 1.0, (1 - x - y) / y) if y > 0 else None for x, y in points]
    if None in xyz or not 0.01 < curve[0] < 100:
        return None
    white, *rgb = np.array(xyz, np.float64)
    matrix = np.stack(rgb, axis=-1)
    if abs(np.linalg.det(matrix)) < 1e-6:
        return None
    adapt = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD
    columns = (adapt @ (matrix * np.linalg.solve(matrix, white))).T
    if not np.isfinite(columns).all() or np.abs(columns).max() > 100:
        return None
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _fixed(_D50)}
    para = b"para\0\0\0\0" + struct.pack(">HH", 0 if len(curve) == 1 else 3, 0) + _fixed(curve)
    for letter, column in zip((b"r", b"g", b"b"), columns, strict=True):
        tags |= {letter + b"XYZ": b"XYZ \0\0\0\0" + _fixed(column), letter + b"TRC": para}
    return _encode(tags)


def _fixed(values: Sequence[float] | Float[np.ndarray, " n"]) -> bytes:
    """Numbers in ICC's s15Fixed16."""
    return struct.pack(f">{len(values)}i", *(round(65536 * float(value)) for value in values))


def _encode(tags: Mapping[bytes, bytes]) -> bytes:
    """The bytes of a profile with these tags."""
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s", start + len(body), 0x04200000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return (head.ljust(68, b"\0") + _fixed(_D50)).ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    return cast(Image.Image, ImageCms.applyTransform(image, transform))


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether no color changes by over 2 levels: most profiles are sRGB, and applying them would only add noise."""
    steps = np.linspace(0, 255, 16).astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(64, 64, 3)
    moved = np.asarray(_applied(transform, Image.fromarray(lattice)))
    return bool(np.abs(moved.astype(int) - lattice).max() <= 2)
