"""PNG, JPEG, GIF and WebP files taken apart: what a decoder needs, and what we parse ourselves (color, orientation).

An intact image with damaged metadata must load, but damaged metadata makes decoders fail in many ways. So decoders get
a file without metadata, and we parse the color profile and the EXIF data. Damaged ones count as absent, as in browsers.
"""

import bisect
import io
import itertools
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

MAX_PROFILE = 16_000_000  # bytes of a decompressed ICC profile; those of printing presses have about 2 million
MAX_TEXT = 1_000_000  # bytes of a decompressed text
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KNOWN = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


if TYPE_CHECKING:
    File = BinaryIO
else:  # at run time BinaryIO is checked as a protocol, which an io.BytesIO does not fulfill
    File = io.BufferedIOBase | io.RawIOBase
Piece = bytes | tuple[int, int]  # or a (start, length) in a file


class Parts(NamedTuple):
    """A file for the decoder, and the metadata on which the meaning of its pixels depends."""

    stream: File
    exif: bytes | None = None
    profile: bytes | None = None
    color: dict[bytes, bytes] | None = None  # a PNG's chunks
    key: tuple[int, ...] | None = None  # the transparent 16-bit value or color of a PNG
    coefficients: int = 0  # bytes per pixel that the decoder of a progressive JPEG keeps


class Spliced(io.RawIOBase):
    """A file that reads as pieces in a row."""

    def __init__(self, file: File, pieces: Sequence[Piece]) -> None:
        self.file, self.position = file, 0
        self.pieces: list[Piece] = []
        for piece in pieces:
            last = self.pieces[-1] if self.pieces else b""
            if isinstance(piece, tuple) and isinstance(last, tuple) and sum(last) == piece[0]:
                self.pieces[-1] = last[0], last[1] + piece[1]
            else:
                self.pieces.append(piece)
        lengths = (len(piece) if isinstance(piece, bytes) else piece[1] for piece in self.pieces)
        self.starts = [0, *itertools.accumulate(lengths)]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.starts[-1]}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        if self.position >= self.starts[-1]:
            return 0
        number = bisect.bisect_right(self.starts, self.position) - 1
        inside, piece = self.position - self.starts[number], self.pieces[number]
        count = min(len(buffer), self.starts[number + 1] - self.position)
        if isinstance(piece, bytes):
            data = piece[inside : inside + count]
        else:
            self.file.seek(piece[0] + inside)
            data = self.file.read(count)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def spliced(file: File, pieces: Sequence[Piece]) -> File:
    """Return a buffered file that consists of pieces of another file."""
    return io.BufferedReader(Spliced(file, pieces), 1 << 16)


def parts(file: File) -> Parts:
    """Take a file apart, if it is PNG, JPEG, GIF or WebP. Raises ValueError if what the pixels need is damaged."""
    file.seek(0)
    start = file.read(16)
    file.seek(0)
    if start.startswith(_PNG):
        return _png(file)
    if start.startswith(b"\xff\xd8\xff"):
        return _jpeg(file)
    if start.startswith((b"GIF87a", b"GIF89a")):
        return _gif(file)
    if start.startswith(b"RIFF") and start[8:] == b"WEBPVP8X":
        return _webp(file)
    return Parts(file)


def inflated(data: bytes, limit: int = MAX_PROFILE) -> bytes | None:
    """Decompress zlib's data; return None if it is damaged, cut short or over `limit` bytes."""
    decompressor = zlib.decompressobj()
    try:
        plain = decompressor.decompress(data, limit)
    except zlib.error:
        return None
    return plain if decompressor.eof else None


def png_chunks(file: File) -> Iterator[tuple[bytes, int, int, bytes | None]]:
    """Yield (kind, start, length, data) of a PNG's chunks up to IEND; data is None for IDAT, and for damaged metadata.

    Raises:
        ValueError: a chunk that the pixels need is damaged, cut short or unknown (PNG specification 13.2).
    """
    file.seek(len(_PNG))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        start, checksum, left, data = file.tell(), zlib.crc32(kind), length, []
        while left and (block := file.read(min(left, 1 << 20))):
            checksum, left = zlib.crc32(block, checksum), left - len(block)
            if kind != b"IDAT" and length <= MAX_PROFILE:
                data.append(block)
        sound = not left and file.read(4) == struct.pack(">I", checksum)
        if kind[0] & 32 == 0:  # an upper-case letter marks a critical chunk
            if kind not in _PNG_KNOWN:
                raise ValueError(f"its chunk {kind!r} is in no standard PNG")
            if not sound and kind != b"IEND":
                raise ValueError(f"its chunk {kind!r} is damaged")
        yield kind, start, length, b"".join(data) if sound and kind != b"IDAT" and length <= MAX_PROFILE else None
        if kind == b"IEND":
            return


def png_texts(file: File) -> dict[str, str]:
    """Return the text of a PNG, {} for another file. Damaged text and text over MAX_TEXT bytes is left out."""
    file.seek(0)
    found: dict[str, str] = {}
    for kind, _, _, data in png_chunks(file) if file.read(8) == _PNG else ():
        key, separator, rest = (data or b"").partition(b"\0")
        text, coding = rest if kind == b"tEXt" else None, "latin-1"
        if kind == b"zTXt":
            text = inflated(rest[1:], MAX_TEXT)
        if kind == b"iTXt" and rest.count(b"\0", 2) > 1:  # whether compressed, how, language, translated key, text
            text, coding = rest[2:].split(b"\0", 2)[2], "utf-8"
            text = inflated(text, MAX_TEXT) if rest[0] else text
        if separator and text is not None:
            found[key.decode("latin-1")] = text.decode(coding, "replace")
    return found


def _png(file: File) -> Parts:
    """A PNG without its optional chunks, except transparency. The first chunk of each kind counts."""
    pieces: list[Piece] = [_PNG]
    metadata: dict[bytes, bytes] = {}
    header, key = b"", None
    for kind, start, length, data in png_chunks(file):
        if kind == b"IHDR" and not header:
            header = data or b""
        if kind == b"tRNS" and data is not None and len(header) == 13 and kind not in metadata:
            plain, key = _png_transparency(header, data)
            if plain:
                pieces.append(_chunk(kind, plain))
                metadata[kind] = plain
        elif kind in _PNG_KNOWN[:3]:
            pieces.append((start - 8, length + 12))
        elif data is not None:
            metadata.setdefault(kind, data)
    pieces.append(_chunk(b"IEND", b""))
    return Parts(spliced(file, pieces), exif=metadata.get(b"eXIf"), color=metadata, key=key)


def _png_transparency(header: bytes, data: bytes) -> tuple[bytes, tuple[int, ...] | None]:
    """(tRNS in 8 bits, the only depth that Pillow reads, or b""; the transparent value if the PNG has 16 bits)."""
    depth, color = header[8], header[9]
    if color == 3:
        return data[:256], None
    count = {0: 1, 2: 3}.get(color)
    if count is None or len(data) != 2 * count:
        return b"", None
    values = tuple(value & (2**depth - 1) for value in struct.unpack(f">{count}H", data))
    if depth == 16:
        return b"", values
    return struct.pack(f">{count}H", *(value * 255 // (2**depth - 1) for value in values)), None


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _jpeg(file: File) -> Parts:
    """A JPEG without comments and APPn segments, except for JFIF and Adobe (color); finds markers as libjpeg does."""
    pieces: list[Piece] = [b"\xff\xd8"]
    profile: dict[int, tuple[int, bytes]] = {}  # {number from 1: (how many there are, part of the profile)}
    exif, coefficients, position = None, 0, 2
    size = file.seek(0, os.SEEK_END)
    while (found := _next_marker(file, position)) is not None:
        marker, start = found
        if marker == 0xDA:  # the scans follow
            pieces.append((start - 2, size - start + 2))
            break
        if marker in (0x01, *range(0xD0, 0xDA)):  # without a length
            pieces.append((start - 2, 2))
            position = start
            continue
        file.seek(start)
        length = int.from_bytes(file.read(2), "big")
        optional = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if optional and not 2 <= length <= size - start:
            position = start
            continue
        position = start + length
        data = file.read(length - 2) if optional or 0xC0 <= marker <= 0xCF else b""
        if marker == 0xE1 and data.startswith(b"Exif\0"):
            exif = exif or data
        elif marker == 0xE2 and data.startswith(b"ICC_PROFILE\0") and len(data) > 14:
            profile[data[12]] = (data[13], data[14:])
        if marker in (0xC2, 0xC6, 0xCA, 0xCE) and len(data) > 5:
            coefficients = 2 * data[5]
        on_color = (marker == 0xE0 and len(data) >= 14 and data.startswith(b"JFIF\0")) or (
            marker == 0xEE and len(data) >= 12 and data.startswith(b"Adobe")
        )
        if on_color or not optional:
            pieces.append((start - 2, length + 2))
    whole = sorted(profile) == [*range(1, len(profile) + 1)] and all(n == len(profile) for n, _ in profile.values())
    icc = b"".join(profile[number][1] for number in sorted(profile)) if profile and whole else None
    return Parts(spliced(file, pieces), exif=exif, profile=icc, coefficients=coefficients)


def _next_marker(file: File, position: int) -> tuple[int, int] | None:
    """(the next marker, the position after it), or None at the end of the file."""
    file.seek(position)
    before = b""
    while block := file.read(1 << 16):
        if found := re.search(rb"\xff([^\x00\xff])", before + block, re.DOTALL):
            return found[1][0], position + found.end() - len(before)
        before = block[-1:]
        position += len(block)
    return None


def _gif(file: File) -> Parts:
    """A GIF without comments and application data before the first frame."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(13)
    table = 3 * 2 ** (1 + (head[10] & 7)) if len(head) == 13 and head[10] & 0x80 else 0
    pieces: list[Piece] = [(0, len(head) + table)]
    position = len(head) + table
    file.seek(position)
    while (start := file.read(2))[:1] == b"!":
        while length := int.from_bytes(file.read(1)):
            file.seek(length, os.SEEK_CUR)
        if start[1:] == b"\xf9":  # says which color is transparent
            pieces.append((position, file.tell() - position))
        position = file.tell()
    pieces.append((position, max(0, size - position)))
    return Parts(spliced(file, pieces))


def _webp(file: File) -> Parts:
    """A WebP without ICCP, EXIF and XMP, since libwebp rejects files in which these are cut short."""
    size = file.seek(0, os.SEEK_END)
    pieces: list[Piece] = []
    metadata: dict[bytes, bytes] = {}
    position, flags = 12, b""
    while position + 8 <= size:
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind in (b"ICCP", b"EXIF", b"XMP "):
            if position + 8 + length <= size:
                metadata.setdefault(kind, file.read(length))
        elif kind == b"VP8X" and not flags:
            flags = file.read(10)
        elif kind in (b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF"):
            pieces.append((position, min(8 + length + length % 2, size - position)))
            if position + 8 + length == size and length % 2:
                pieces.append(b"\0")
        position += 8 + length + length % 2
    flags = bytes([flags[0] & ~0x2C]) + flags[1:] if flags else b""
    body = sum(len(piece) if isinstance(piece, bytes) else piece[1] for piece in pieces)
    head = struct.pack("<4sI4s4sI", b"RIFF", 4 + 18 + body, b"WEBP", b"VP8X", 10) + flags
    return Parts(spliced(file, [head, *pieces]), exif=metadata.get(b"EXIF"), profile=metadata.get(b"ICCP"))
