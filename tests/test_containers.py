"""Metadata of PNG, JPEG and WebP: what they mean, and that damage in them costs no pixels."""

import io
import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from nstjax import data as training
from nstjax import images, profiles
from nstjax.errors import InputError


def noise(h=20, w=24, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, c) if c else (h, w), dtype=np.uint8)


def smooth(h, w):
    y, x = np.mgrid[0 : 1 : h * 1j, 0 : 1 : w * 1j]
    return np.rint(255 * np.stack([x, y, (x + y) / 2], axis=-1)).astype(np.uint8)


def chunk(kind, data, *, crc=None):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc or zlib.crc32(kind + data))


def png(values, *, depth=8, extra=b"", after=b"", end=None):
    """A PNG by hand of uint8 or uint16 [H, W, C], or of packed rows; `extra` before its pixels, `after` behind them."""
    h, w = values.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2] if values.ndim == 3 else 1]
    if depth < 8:
        bits = values[..., None] >> np.arange(depth - 1, -1, -1) & 1
        rows = [row.tobytes() for row in np.packbits(bits.astype(np.uint8).reshape(h, -1), axis=1)]
    else:
        rows = [row.astype(">u2" if depth == 16 else "u1").tobytes() for row in values]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + after + (chunk(b"IEND", b"") if end is None else end)


def load(data, **options):
    return images.load(io.BytesIO(data), **options)


def levels(data):
    return np.rint(255 * load(data)).astype(int)


def refused(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def encoded(pixels, name, **options):
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, name, **options)
    return buffer.getvalue()


BOMB = zlib.compress(bytes(50_000_000))
DAMAGE = {
    "bad checksum": chunk(b"tEXt", b"Author\0me", crc=1),
    "unknown, bad checksum": chunk(b"abCd", b"\0" * 99, crc=1),
    "no text": chunk(b"tEXt", b""),
    "large text": chunk(b"tEXt", b"a\0" + b"x" * 3_000_000),
    "ztxt bomb": chunk(b"zTXt", b"a\0\0" + BOMB),
    "itxt bomb": chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
    "many bombs": 80 * chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))),
    "rotten ztxt": chunk(b"zTXt", b"a\0\0rotten"),
    "ztxt by another method": chunk(b"zTXt", b"a\0\7rotten"),
    "short itxt": chunk(b"iTXt", b"a\0\1"),
    "itxt that is no utf-8": chunk(b"iTXt", b"a\0\0\0\0\0\xff\xfe\xff"),
    "rotten exif": chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff\x12\x01"),
    "exif that is none": chunk(b"eXIf", b"hello"),
    "rotten profile": chunk(b"iCCP", b"a\0\0rotten"),
    "profile bomb": chunk(b"iCCP", b"a\0\0" + BOMB),
    "profile without a name": chunk(b"iCCP", b""),
    "profile by another method": chunk(b"iCCP", b"a\0\7" + zlib.compress(b"x" * 200)),
    "short gamma": chunk(b"gAMA", b"\0"),
    "gamma 0": chunk(b"gAMA", bytes(4)),
    "absurd gamma": chunk(b"gAMA", b"\xff" * 4),
    "short primaries": chunk(b"cHRM", bytes(13)),
    "primaries 0": chunk(b"cHRM", bytes(32)),
    "short srgb": chunk(b"sRGB", b""),
    "short cicp": chunk(b"cICP", b"\x09"),
    "unknown cicp": chunk(b"cICP", b"\x63\x63\0\1"),
    "short size": chunk(b"pHYs", b"\0\0"),
    "short time": chunk(b"tIME", b"\0"),
    "short animation": chunk(b"acTL", b"\0") + chunk(b"fcTL", b"\0\0"),
    "animation without frames": chunk(b"acTL", bytes(8)),
    "transparency of the wrong size": chunk(b"tRNS", b"\0"),
    "background": chunk(b"bKGD", b""),
}


@pytest.mark.parametrize("extra", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_metadata_of_a_png_leave_the_pixels(extra):
    for data in (png(noise(), extra=extra), png(noise(), after=extra)):
        np.testing.assert_array_equal(levels(data), noise())
        assert images.shape(io.BytesIO(data)) == (20, 24)
        assert isinstance(images.metadata(io.BytesIO(data)), dict)
        assert images.load_alpha(io.BytesIO(data), shape=(20, 24)) is None


@settings(max_examples=60, deadline=None)
@given(
    kind=st.from_regex(rb"[a-z][A-Za-z][A-Z][A-Za-z]", fullmatch=True), body=st.binary(max_size=60), crc=st.booleans()
)
def test_any_optional_chunk_leaves_a_png_readable(kind, body, crc):
    meaning = (b"tRNS", b"gAMA", b"cHRM", b"eXIf", b"cICP", b"iCCP")
    loaded = levels(png(noise(), extra=chunk(kind, body, crc=None if crc else 7)))
    assert loaded.shape == (20, 24, 3) or kind == b"eXIf"
    assert kind in meaning or np.array_equal(loaded, noise())


def test_what_follows_a_png_is_not_read():
    for rest in (b"garbage", b"\0" * 5000, b"PK\x03\x04", png(noise(seed=1))):
        np.testing.assert_array_equal(levels(png(noise()) + rest), noise())
    np.testing.assert_array_equal(levels(png(noise(), end=b"")), noise())  # no end, but all the pixels


def test_damage_where_a_png_has_its_pixels_is_refused():
    data = png(noise())
    for kind in (b"IHDR", b"IDAT"):
        at = data.index(kind)
        for offset in (4, 9):
            damaged = bytearray(data)
            damaged[at + offset] ^= 1
            assert "corrupt" in refused(load, bytes(damaged))
    at = data.index(b"IDAT")
    checksum = at + 4 + struct.unpack_from(">I", data, at - 4)[0]
    assert "corrupt" in refused(load, data[:checksum] + b"\0\0\0\0" + data[checksum + 4 :])
    assert "CgBI" in refused(load, png(noise(), extra=chunk(b"CgBI", bytes(4))))


def palette(indices, entries, extra=b""):
    data = png(indices, extra=chunk(b"PLTE", bytes(entries)) + extra)
    header = struct.pack(">IIBBBBB", indices.shape[1], indices.shape[0], 8, 3, 0, 0, 0)
    return data.replace(data[8:33], chunk(b"IHDR", header))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_transparent_value_of_every_depth(depth, channels):
    """tRNS: that value alone is transparent, and of 16 bits all 16 count (PNG specification, 11.3.2.1)."""
    if channels == 3 and depth < 8:
        pytest.skip("no such files")
    shape = (20, 24, 3) if channels == 3 else (20, 24)
    values = np.random.default_rng(0).integers(0, 2**depth, shape, dtype=np.uint16)
    key = values[3, 4]
    near = key.copy() ^ 1
    values[5, 6] = near
    trns = chunk(b"tRNS", np.atleast_1d(key).astype(">u2").tobytes())
    data = png(values if depth == 16 else values.astype(np.uint8), depth=depth, extra=trns)
    clear = (values.reshape(20, 24, -1) == key).all(axis=-1)
    expected = np.where(clear[..., None], 1, values.reshape(20, 24, -1) / (2**depth - 1))
    np.testing.assert_allclose(load(data), np.broadcast_to(expected, (20, 24, 3)), atol=1.01 / 255)
    alpha = images.load_alpha(io.BytesIO(data), shape=(20, 24))
    np.testing.assert_array_equal(alpha, ~clear)
    if depth > 1:  # else the rest may be black, which is no mask
        assert (images.load_mask(io.BytesIO(data), shape=(20, 24))[clear] == 0).all()


@pytest.mark.parametrize("channels", [2, 4])
def test_16_bits_with_alpha(channels):
    values = np.random.default_rng(0).integers(0, 65536, (20, 24, channels), dtype=np.uint16)
    colour, alpha = values[..., :-1] / 65535, values[..., -1:] / 65535
    data = png(values, depth=16)
    expected = np.broadcast_to(colour * alpha + 1 - alpha, (20, 24, 3))
    np.testing.assert_allclose(load(data), expected, atol=2 / 255)
    loaded = images.load_alpha(io.BytesIO(data), shape=(20, 24))
    np.testing.assert_allclose(loaded, alpha[..., 0], atol=1.01 / 255)


# Colours


P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


def matrix(primaries):
    """RGB to CIE XYZ under the white of the primaries (SMPTE RP 177)."""
    white, *rgb = ((x / y, 1, (1 - x - y) / y) for x, y in zip(primaries[::2], primaries[1::2], strict=True))
    columns = np.array(rgb).T
    return columns * np.linalg.solve(columns, white)


def srgb_curve(linear):
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def srgb_linear(values):
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oracle(pixels, primaries, decode):
    """To sRGB by hand; all primaries here have the same white."""
    linear = decode(pixels / 255) @ (np.linalg.inv(matrix(SRGB)) @ matrix(primaries)).T
    return 255 * srgb_curve(linear.clip(0, 1))


def chrm(primaries):
    return chunk(b"cHRM", struct.pack(">8I", *(round(1e5 * value) for value in primaries)))


def gama(value):
    return chunk(b"gAMA", struct.pack(">I", value))


def iccp(icc):
    return chunk(b"iCCP", b"name\0\0" + zlib.compress(icc))


def muted(seed=0):
    """Colours in the gamut of sRGB, whatever the primaries."""
    return np.random.default_rng(seed).integers(90, 170, (20, 24, 3), dtype=np.uint8)


def test_nothing_said_and_srgb_said_in_every_way_leave_the_pixels():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    said = [b"", chunk(b"sRGB", b"\0"), gama(45455), gama(45455) + chrm(SRGB), chrm(SRGB), iccp(srgb)]
    said += [chunk(b"cICP", bytes([1, 13, 0, 1])), iccp(srgb) + gama(100000), chunk(b"sRGB", b"\0") + gama(100000)]
    for extra in said:
        np.testing.assert_array_equal(levels(png(noise(), extra=extra)), noise())


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1 / 1.8, 1.0])
def test_gamma(gamma):
    data = png(noise(), extra=gama(round(1e5 * gamma)))
    expected = oracle(noise(), SRGB, lambda values: values ** (1 / gamma))
    np.testing.assert_allclose(levels(data), expected, atol=2.5)
    grey = noise(c=0)
    loaded = levels(png(grey, extra=gama(round(1e5 * gamma))))
    expected = 255 * srgb_curve((grey / 255) ** (1 / gamma))
    np.testing.assert_allclose(loaded, np.broadcast_to(expected[..., None], loaded.shape), atol=2.5)


@pytest.mark.parametrize("primaries, code", [(P3, bytes([12, 13, 0, 1])), (SRGB, bytes([1, 8, 0, 1]))])
def test_code_points(primaries, code):
    decode = srgb_linear if code[1] == 13 else lambda values: values
    loaded = levels(png(muted(), extra=chunk(b"cICP", code) + chunk(b"sRGB", b"\0") + gama(20000)))
    np.testing.assert_allclose(loaded, oracle(muted(), primaries, decode), atol=2.5)
    assert np.abs(loaded - muted().astype(int)).max() > 5


@pytest.mark.parametrize("primaries", [P3, ADOBE])
def test_primaries(primaries):
    loaded = levels(png(muted(), extra=gama(45455) + chrm(primaries)))
    np.testing.assert_allclose(loaded, oracle(muted(), primaries, srgb_linear), atol=2.5)
    assert np.abs(loaded - muted().astype(int)).max() > 5


D50 = struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)


def v2_profile(primaries, gamma):
    """A matrix profile of version 2 by hand, adapted to D50 as ICC asks (Bradford)."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    x, y = primaries[:2]
    white, d50 = np.array([x / y, 1, (1 - x - y) / y]), np.array([0.9642, 1, 0.8249])
    columns = np.linalg.inv(bradford) @ np.diag(bradford @ d50 / (bradford @ white)) @ bradford @ matrix(primaries)

    def fixed(values):
        return struct.pack(">3i", *(round(65536 * value) for value in values))

    tags = {}
    for letter, column in zip((b"r", b"g", b"b"), columns.T, strict=True):
        tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(column)
        tags[letter + b"TRC"] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma))
    return icc_profile(b"RGB ", tags)


def icc_profile(space, tags):
    tags = {b"wtpt": b"XYZ \0\0\0\0" + D50} | tags
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s12x4s", start + len(body), b"", 0x02100000, b"mntr", space, b"XYZ ", b"acsp")
    return (head.ljust(68, b"\0") + D50).ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


@pytest.mark.parametrize("primaries, gamma", [(P3, 2.2), (ADOBE, 2.19921875)])
@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF", "JPEG", "AVIF"])
def test_profiles_of_wide_gamuts(name, primaries, gamma):
    if name == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    pixels = np.full((20, 24, 3), (160, 110, 90), np.uint8)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}, "AVIF": {"quality": 100}}.get(name, {})
    data = encoded(pixels, name, icc_profile=v2_profile(primaries, gamma), **options)
    expected = oracle(pixels, primaries, lambda values: values**gamma)
    np.testing.assert_allclose(levels(data), expected, atol=3)


def test_the_profile_that_we_build_is_the_one_by_hand():
    ours = profiles.build(ADOBE, (2.19921875,))
    by_hand = v2_profile(ADOBE, 2.19921875)
    results = [profiles.to_srgb(icc, "RGB")(Image.fromarray(noise())) for icc in (ours, by_hand)]
    np.testing.assert_allclose(*(np.asarray(result, int) for result in results), atol=1)


def grey_profile(gamma):
    return icc_profile(b"GRAY", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma))})


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
def test_grey_profiles(gamma):
    values = np.arange(256, dtype=np.uint8)[None].repeat(16, axis=0)
    expected = 255 * srgb_curve((values / 255) ** (round(256 * gamma) / 256))
    for name in ("PNG", "TIFF"):
        loaded = levels(encoded(values, name, icc_profile=grey_profile(gamma)))
        np.testing.assert_allclose(loaded, np.broadcast_to(expected[..., None], loaded.shape), atol=0.6)


def test_profiles_for_other_channels():
    grey = grey_profile(1.0)
    np.testing.assert_array_equal(levels(png(noise(), extra=iccp(grey))), noise())  # of no use for colours
    loaded = levels(png(np.full((20, 24), 128, np.uint8), extra=iccp(grey)))
    np.testing.assert_allclose(loaded, 255 * srgb_curve(np.array(128 / 255)), atol=1.5)
    linear = profiles.build(SRGB, (1.0,))  # a profile for colours says what grey is
    np.testing.assert_allclose(levels(png(np.full((20, 24), 128, np.uint8), extra=iccp(linear))), loaded, atol=1.5)
    alpha = np.full((20, 24, 2), 128, np.uint8)
    over_white = 255 * (srgb_curve(np.array(128 / 255)) * 128 + 127) / 255
    np.testing.assert_allclose(levels(png(alpha, extra=gama(100000))), over_white, atol=2)


# JPEG


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


JPEG_DAMAGE = {
    "short exif": segment(0xE1, b"Exif"),
    "rotten exif": segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"),
    "rotten mpf": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0\x00\xb0\x07\0\xff\xff\xff\xff\0\0\0\0"),
    "empty mpf": segment(0xE2, b"MPF\0"),
    "short jfif": segment(0xE0, b"JFIF\0"),
    "short adobe": segment(0xEE, b"Adobe"),
    "photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\xff\xff"),
    "short photoshop": segment(0xED, b"Photoshop 3.0\x008BIM"),
    "profile number 2 of 3": segment(0xE2, b"ICC_PROFILE\0\2\3" + b"x" * 200),
    "empty profile": segment(0xE2, b"ICC_PROFILE\0"),
    "xmp": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
    "comment": segment(0xFE, b"\xff\xd8\xff\xda\0\0"),
    "every marker": b"".join(segment(marker, b"") + segment(marker, b"\xff" * 9) for marker in range(0xE0, 0xF0)),
    "fill bytes": b"\xff\xff\xff" + segment(0xE5, b"x"),
    "garbage between": segment(0xE5, b"x") + b"garbage",
    "longer than the file": b"\xff\xe1\xff\xff"[:2] + b"\0\1",
}


@pytest.mark.parametrize("extra", JPEG_DAMAGE.values(), ids=JPEG_DAMAGE.keys())
def test_damaged_metadata_of_a_jpeg_leave_the_pixels(extra):
    data = encoded(smooth(20, 24), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    for start in (2, 20):  # before and after JFIF
        damaged = data[:start] + extra + data[start:]
        np.testing.assert_array_equal(levels(damaged), expected)
        assert images.shape(io.BytesIO(damaged)) == (20, 24)
        assert isinstance(images.metadata(io.BytesIO(damaged)), dict)
    for rest in (b"garbage", bytes(5000), data, b"\xff\xd9\xff\xd8"):
        np.testing.assert_array_equal(levels(data + rest), expected)


def test_a_profile_in_several_pieces():
    icc = v2_profile(ADOBE, 2.2)
    data = encoded(np.full((20, 24, 3), (160, 110, 90), np.uint8), "JPEG", quality=100)
    pieces = [
        segment(0xE2, b"ICC_PROFILE\0" + bytes([n + 1, 3]) + icc[n * 150 : (n + 1) * 150 if n < 2 else None])
        for n in range(3)
    ]
    expected = oracle(np.array([160, 110, 90]), ADOBE, lambda values: values**2.2)
    for order in ((0, 1, 2), (2, 0, 1)):
        whole = data[:20] + b"".join(pieces[n] for n in order) + data[20:]
        np.testing.assert_allclose(levels(whole), np.broadcast_to(expected, (20, 24, 3)), atol=3)
    partial = data[:20] + pieces[0] + pieces[2] + data[20:]
    np.testing.assert_array_equal(levels(partial), levels(data))


def test_inks_stored_as_luminance():
    """YCCK: Adobe's transform 2, of which the first three are YCbCr of the inverted inks."""
    stored = np.full((20, 24, 4), (60, 120, 200, 30), np.uint8)
    data = encoded(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=100, subsampling=0)
    at = data.index(b"Adobe")
    assert data[at + 11] == 0
    data = data[: at + 11] + b"\2" + data[at + 12 :]
    y, cb, cr, k = (int(value) for value in stored[0, 0])
    rgb = np.array([y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)])
    cmyk = np.concatenate([rgb.clip(0, 255), [k]])  # libjpeg gives 255 - R, which Adobe stores inverted
    inks = 255 - np.concatenate([255 - cmyk[:3], cmyk[3:]])
    expected = (255 - inks[:3]) * (255 - inks[3]) / 255
    np.testing.assert_allclose(levels(data)[10, 12], expected, atol=3)


def test_half_a_jpeg_is_refused():
    data = encoded(noise(64, 64), "JPEG", quality=95)
    for part in (3, 5, 8):
        refused(load, data[: len(data) * part // 10])


# WebP, GIF and APNG


@pytest.mark.parametrize("lossless", [True, False])
def test_damaged_metadata_of_a_webp_leave_the_pixels(lossless):
    data = encoded(smooth(20, 24), "WEBP", lossless=lossless, exif=b"Exif\0\0rotten", icc_profile=b"rotten!", xmp=b"<")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(levels(data), expected)
    at = data.index(b"EXIF")
    for cut in (data[: at + 8], data[:at] + b"EXIF\xff\xff\xff\x7f" + data[at + 8 :]):
        np.testing.assert_array_equal(levels(cut), expected)
    np.testing.assert_array_equal(levels(data + b"garbage"), expected)
    refused(load, data[: at // 2])


def test_a_webp_with_alpha_and_a_profile():
    pixels = np.full((20, 24, 4), (160, 110, 90, 128), np.uint8)
    data = encoded(pixels, "WEBP", lossless=True, icc_profile=v2_profile(ADOBE, 2.2))
    colour = oracle(pixels[..., :3], ADOBE, lambda values: values**2.2)
    np.testing.assert_allclose(levels(data), (colour * 128 + 255 * 127) / 255, atol=3)


def test_an_animated_png_shows_the_image_that_every_reader_shows():
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=False)
    np.testing.assert_array_equal(levels(data), noise(seed=0))
    at = data.index(b"fdAT")  # a later frame is damaged
    np.testing.assert_array_equal(levels(data[: at + 9] + b"\0\0\0" + data[at + 12 :]), noise(seed=0))


GIF_DAMAGE = {
    "comment": b"!\xfe\x05hello\0",
    "empty comment": b"!\xfe\0",
    "short application": b"!\xff\x0bNETSCAPE2.0\0",
    "odd application": b"!\xff\x03abc\x01x\0",
    "unknown": b"!\x77\x01x\0",
}


@pytest.mark.parametrize("extra", GIF_DAMAGE.values(), ids=GIF_DAMAGE.keys())
def test_odd_metadata_of_a_gif_leave_the_pixels(extra):
    data = encoded(Image.fromarray(noise(c=0)), "GIF")
    at = data.index(b",", 13 + 3 * 256)
    np.testing.assert_array_equal(levels(data[:at] + extra + data[at:] + b"garbage"), levels(data))


# Orientation and size


FORMATS = ["JPEG", "PNG", "WEBP", "TIFF"] + ["AVIF"] * features.check("avif")
DAMAGED = {  # (type, count, value) of the orientation
    "0": (3, 1, struct.pack("<H", 0)),
    "9": (3, 1, struct.pack("<H", 9)),
    "65535": (3, 1, struct.pack("<H", 65535)),
    "long": (4, 1, struct.pack("<I", 70000)),
    "text": (2, 2, b"6\0"),
    "bytes": (7, 4, b"\6\0\0\0"),
    "byte": (1, 1, b"\6"),
    "signed": (9, 1, struct.pack("<i", -6)),
    "rational": (5, 1, struct.pack("<I", 6)),
    "far rational": (5, 1, struct.pack("<I", 10**6)),
    "list": (3, 2, struct.pack("<HH", 6, 6)),
    "none": (3, 0, b""),
    "double": (12, 1, struct.pack("<I", 8)),
    "unknown type": (99, 1, b"\6\0"),
    "huge count": (3, 2**31, b"\6\0"),
}


def exif(kind, count, value):
    entry = struct.pack("<HHI", 0x0112, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4)


def oriented(name, pixels, entry):
    """A file that stores the pixels and an orientation as (type, count, value)."""
    if name == "TIFF":
        data = encoded(pixels, name, tiffinfo={0x0112: 1})
        at = data.index(struct.pack("<HHI", 0x0112, 3, 1))
        return data[: at + 2] + struct.pack("<HI", *entry[:2]) + entry[2].ljust(4, b"\0")[:4] + data[at + 12 :]
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100}}
    return encoded(pixels, name, exif=exif(*entry), **options.get(name, {}))


def everywhere(tmp_path, name, data):
    """What the size is, by every way to learn it."""
    path = tmp_path / f"a.{name.lower()}"
    path.write_bytes(data)
    loaded = images.load(path)
    assert images.shape(path) == loaded.shape[:2] == load(data).shape[:2]
    for size in (16, 100):
        assert images.shape(path, size=size) == images.load(path, size=size).shape[:2]
    read = training.folder(tmp_path).read(0, short=20, least=8)
    assert min(read.shape[:2]) == 20 and (read.shape[0] < read.shape[1]) == (loaded.shape[0] < loaded.shape[1])
    assert images.load_mask(path, shape=(20, 24)).shape == (20, 24)
    return loaded


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_and_pixels_agree_in_every_orientation(tmp_path, name, orientation):
    pixels = smooth(24, 40)
    loaded = everywhere(tmp_path, name, oriented(name, pixels, (3, 1, struct.pack("<H", orientation))))
    turned = pixels.swapaxes(0, 1) if orientation >= 5 else pixels  # EXIF 2.3, tag 0x0112
    turned = turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned
    turned = turned[::-1] if orientation in (3, 4, 7, 8) else turned
    np.testing.assert_allclose(255 * loaded, turned, atol=8 if name == "AVIF" else 5)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("entry", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_orientation_is_upright(tmp_path, name, entry):
    if name == "AVIF":  # its orientation is a property of the image, of which Pillow makes the tag
        pytest.skip("Pillow cannot write such files")
    pixels = smooth(24, 40)
    loaded = everywhere(tmp_path, name, oriented(name, pixels, entry))
    np.testing.assert_allclose(255 * loaded, pixels, atol=5)


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]),
    kind=st.integers(0, 20),
    count=st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1)),
    value=st.binary(min_size=4, max_size=4),
)
def test_the_size_is_that_of_the_pixels_whatever_the_tag_holds(name, kind, count, value):
    data = oriented(name, smooth(18, 30), (kind, count, value))
    loaded = load(data)
    assert images.shape(io.BytesIO(data)) == loaded.shape[:2]
    assert loaded.shape[:2] in ((18, 30), (30, 18))


def prepared(monkeypatch, tmp_path, contents):
    """COCO, as if TFDS had prepared it with these files."""
    builder = SimpleNamespace(version="1.1.0", as_data_source=lambda *_, **__: [{"image": each} for each in contents])
    tfds = SimpleNamespace(builder_from_directory=lambda _: builder, decode=SimpleNamespace(SkipDecoding=lambda: None))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", tfds)
    monkeypatch.setattr(training, "prepared", lambda root, split: [root])
    return training.coco(tmp_path)


def test_coco_is_read_by_the_same_rules(monkeypatch, tmp_path):
    turned = oriented("JPEG", smooth(24, 40), (3, 1, struct.pack("<H", 6)))
    wide = encoded(
        np.full((24, 40, 3), (160, 110, 90), np.uint8), "JPEG", quality=100, icc_profile=v2_profile(ADOBE, 2.2)
    )
    source = prepared(monkeypatch, tmp_path, [turned, wide, turned[:300], encoded(smooth(5, 5), "PNG")])
    read = source.read(0, short=24, least=8)
    assert read.shape == (40, 24, 3)
    np.testing.assert_array_equal(read, load(turned))
    np.testing.assert_array_equal(source.read(1, short=24, least=8), load(wide))
    for number, why in ((2, "corrupt"), (3, "5x5 px")):
        message = refused(source.read, number, short=24, least=8)
        assert why in message and message.startswith(f"coco/2017 train, image {number}: ")


# Other formats


@pytest.mark.parametrize(
    "start, line",
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL"),
    ],
)
def test_formats_of_further_packages_are_named(tmp_path, monkeypatch, start, line):
    for package in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, package, None)
    message = refused(load, start + bytes(100))
    assert line in message and 'pip install "nstjax[formats]"' in message


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason='pip install "nstjax[formats]"')
    pixels, buffer = smooth(48, 64), io.BytesIO()
    heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=100, chroma=444)
    np.testing.assert_allclose(255 * load(buffer.getvalue()), pixels, atol=8)


def test_jpeg_xl(tmp_path):
    pytest.importorskip("pillow_jxl", reason='pip install "nstjax[formats]"')
    pixels = smooth(48, 64)
    data = encoded(pixels, "JXL", lossless=True)
    np.testing.assert_array_equal(levels(data), pixels)
