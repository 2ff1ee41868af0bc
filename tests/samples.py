"""Files that several tests write."""

import functools
import struct
import zlib

import numpy as np
from PIL import Image


def picture(path, seed, size=(64, 56), mode="RGB"):
    """Write a smooth random image of a size (width, height) and return its path."""
    path.parent.mkdir(exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


photo = functools.partial(picture, size=(40, 36))


def png(width, height, depth, colour, rows, extra=b""):
    """A PNG by hand, of sample depths that Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + chunk(b"IEND", b"")
