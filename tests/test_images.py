"""Files of pictures of every kind, good and bad, that the tests write themselves."""

import errno
import io
import os
import resource
import signal
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from samples import png

from nstjax import images, pixels
from nstjax.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
LIMIT = Image.MAX_IMAGE_PIXELS
LOSSLESS = (".png", ".webp", ".tif", ".bmp")


def noise(h, w, c=3, seed=0):
    shape = (h, w, c) if c else (h, w)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(h, w):
    """uint8 [H, W, 3]: what JPEG keeps well."""
    y, x = np.mgrid[0 : 1 : h * 1j, 0 : 1 : w * 1j]
    return np.rint(255 * np.stack([x, y, (x + y) / 2], axis=-1)).astype(np.uint8)


def levels(image):
    """[0, 1] -> 0..255, and a check that load kept its promises."""
    assert image.dtype == np.float32 and image.ndim == 3 and image.shape[-1] == 3
    assert image.min() >= 0 and image.max() <= 1
    return np.rint(255 * image).astype(int)


def refused(call, *args, **kwargs):
    """The one line of the InputError that the call must raise."""
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Loading: sizes


@pytest.mark.parametrize("size", [None, 20, 33, 64, 100])
def test_load_is_pillows_lanczos_to_the_long_side(tmp_path, size):
    pixels = noise(41, 64)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    k = (size or 64) / 64
    oracle = Image.fromarray(pixels).resize((round(64 * k), round(41 * k)), Image.Resampling.LANCZOS)
    loaded = images.load(tmp_path / "a.png", size=size)
    np.testing.assert_array_equal(loaded, np.asarray(oracle, np.float32) / 255)


def test_load_to_a_height_and_width(tmp_path):
    Image.fromarray(noise(20, 30)).save(tmp_path / "a.png")
    oracle = Image.fromarray(noise(20, 30)).resize((50, 18), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(levels(images.load(tmp_path / "a.png", size=(18, 50))), np.asarray(oracle))


def test_load_at_its_own_size_leaves_the_pixels(tmp_path):
    Image.fromarray(noise(20, 30)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(levels(images.load(str(tmp_path / "a.png"), size=30)), noise(20, 30))


@pytest.mark.parametrize("mode, suffix", [("1", ".png"), ("L", ".jpg"), ("RGB", ".jpg"), ("1", ".tif")])
def test_a_picture_of_100_megapixels_loads_without_a_warning(tmp_path, mode, suffix):
    path = tmp_path / f"huge{suffix}"
    Image.new(mode, (12000, 8400), 1 if mode == "1" else "#808080").save(path)
    image = images.load(path, size=64)
    assert image.shape == (45, 64, 3)  # of the full size: 1/8 of 8400 is not a whole number of anything
    np.testing.assert_allclose(image, 1 if mode == "1" else 128 / 255, atol=1e-6)
    assert LIMIT == Image.MAX_IMAGE_PIXELS


def test_a_huge_jpeg_is_drafted_upright_and_looks_the_same(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth(601, 803)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    exact = images.load(tmp_path / "a.jpg", size=50)
    monkeypatch.setattr(images, "HUGE_PIXELS", 1000)
    drafted = images.load(tmp_path / "a.jpg", size=50)
    assert drafted.shape == exact.shape == (50, 37, 3)
    np.testing.assert_allclose(drafted, exact, atol=0.02)
    assert not np.array_equal(drafted, exact)  # that is, the draft was taken


def test_too_many_pixels_are_refused_by_the_header_alone(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(100_000, 100_000, 8, 2, []))
    assert "500,000,000" in refused(images.load, tmp_path / "bomb.png", size=64)


def test_too_large_a_result_is_refused(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    assert "lower the size" in refused(images.load, tmp_path / "a.png", size=30_000)


def test_a_short_side_under_the_minimum_is_refused(tmp_path):
    Image.new("RGB", (2000, 20)).save(tmp_path / "wide.png")
    assert images.load(tmp_path / "wide.png", size=800, minimum=8).shape == (8, 800, 3)
    message = refused(images.load, tmp_path / "wide.png", size=799, minimum=9)
    assert "2000x20 px becomes 799x8 px" in message and "9" in message and "wide.png" in message
    for size in (40, 0, -5, (0, 20)):  # 40 x 0, ...
        refused(images.load, tmp_path / "wide.png", size=size)


# Loading: memory

PEAK = """
import re, resource, sys
from PIL import Image
from nstjax import images
from nstjax.errors import InputError
Image.init()
images.load(sys.argv[1], size=64)  # a small one, so that every module is there
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
try:
    images.load(sys.argv[2], size=64, limit=float(sys.argv[3]))
except InputError as error:
    print(error)
print(peak() - before)
"""


def peak_of_loading(folder, path, limit):
    """(bytes by which loading raises the peak of a process's memory, the refusal or None)."""
    Image.new("RGB", (64, 64)).save(folder / "small.png")
    command = [sys.executable, "-c", PEAK, str(folder / "small.png"), str(path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *refusal, number = done.stdout.splitlines()
    return int(number), "".join(refusal) or None


def plain(width, height, depth, colour, row):
    return lambda: png(width, height, depth, colour, [row] * height)


LARGE = {  # (what the file holds, limit in bytes, whether that is enough)
    "1-bit.png": (plain(8000, 7000, 1, 0, b"\xff" * 1000), 150e6, True),
    "grey with alpha.png": (plain(3000, 3000, 8, 4, bytes(6000)), 130e6, True),
    "16-bit.pgm": (lambda: b"P5 3000 3000 65535\n" + bytes(18_000_000), 180e6, True),
    "colour.png": (plain(5000, 4000, 8, 2, bytes(15000)), 140e6, True),
    "colour too large.png": (plain(5000, 4000, 8, 2, bytes(15000)), 100e6, False),
    "header alone.png": (lambda: png(22_000, 22_000, 8, 2, []), 1e9, False),
    "header alone.gif": (lambda: b"GIF89a" + struct.pack("<HH", 60_000, 8000) + b"\0\0\0," + bytes(20), 300e6, False),
}


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells the peak of a process's memory")
@pytest.mark.parametrize("name", LARGE)
def test_memory_stays_under_the_limit(tmp_path, name):
    make, limit, enough = LARGE[name]
    (tmp_path / name).write_bytes(make())
    grown, refusal = peak_of_loading(tmp_path, tmp_path / name, limit)
    if enough:
        assert refusal is None and grown < limit
    else:
        assert "--memory-limit" in refusal and name in refusal and grown < 20e6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
def test_bands_are_the_whole(tmp_path, monkeypatch, mode, orientation):
    """Loading a few rows at a time changes nothing, in any orientation, with a profile and with alpha."""
    suffix = ".tif" if mode == "CMYK" else ".png"
    picture = Image.fromarray(noise(61, 47, 4), "RGBA").convert("RGB" if mode in ("P", "I;16") else mode)
    picture = picture.quantize(16) if mode == "P" else picture
    if mode == "I;16":
        picture = Image.fromarray(noise(61, 47, 0).astype(np.uint16) * 200)
    exif = Image.Exif()
    exif[0x0112] = orientation
    swapped = srgb().replace(b"rXYZ", b"tmp ").replace(b"gXYZ", b"rXYZ").replace(b"tmp ", b"gXYZ")
    picture.save(tmp_path / f"a{suffix}", exif=exif, icc_profile=swapped)

    def loaded():
        path = tmp_path / f"a{suffix}"
        sizes = None, 30, (20, 90)
        alpha = images.load_alpha(path, shape=(30, 30))
        return [*(images.load(path, size=size) for size in sizes), images.load_mask(path, shape=(50, 40)), alpha]

    whole = loaded()
    monkeypatch.setattr(pixels, "BAND", 200)
    for one, other in zip(loaded(), whole, strict=True):
        np.testing.assert_array_equal(one, other)
    monkeypatch.setattr(pixels, "WHOLE", 200)
    for number, (one, other) in enumerate(zip(loaded(), whole, strict=True)):
        if number != 2:
            np.testing.assert_array_equal(one, other)
        else:  # in another order Image.resize rounds and clips otherwise
            assert np.abs(one - other).mean() < 0.03


# Loading: what a file can hold


def pillow_modes():
    rgba, rgb, grey = noise(20, 24, 4), noise(20, 24), noise(20, 24, 0)
    over_white = (lambda c, a: np.asarray(Image.composite(c, Image.new("RGB", c.size, "white"), a)))(
        Image.fromarray(rgba[..., :3]), Image.fromarray(rgba[..., 3])
    )
    grey_over_white = np.asarray(
        Image.composite(Image.fromarray(grey), Image.new("L", (24, 20), 255), Image.fromarray(rgba[..., 3]))
    )
    palette = Image.fromarray(rgb).quantize(16)
    bits = grey > 127
    yield "rgb", Image.fromarray(rgb), (".png", ".tif", ".bmp", ".ppm"), rgb
    yield "grey", Image.fromarray(grey), (".png", ".tif", ".bmp", ".pgm", ".gif"), grey[..., None]
    yield "1-bit", Image.fromarray(bits), (".png", ".tif", ".bmp", ".pbm", ".gif"), bits[..., None] * 255
    yield "palette", palette, (".png", ".tif", ".bmp", ".gif"), np.asarray(palette.convert("RGB"))
    yield "rgba", Image.fromarray(rgba), (".png", ".tif"), over_white
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(rgba[..., 3])])
    yield "la", la, (".png", ".tif"), grey_over_white[..., None]
    cmyk = Image.fromarray(rgba, "CMYK")
    yield "cmyk", cmyk, (".tif",), np.asarray(cmyk.convert("RGB"))


CASES = [
    pytest.param(picture, suffix, oracle, id=f"{name}{suffix}")
    for name, picture, suffixes, oracle in pillow_modes()
    for suffix in suffixes
]


@pytest.mark.parametrize("picture, suffix, oracle", CASES)
def test_every_mode_becomes_rgb(tmp_path, picture, suffix, oracle):
    picture.save(tmp_path / f"a{suffix}")
    loaded = levels(images.load(tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(loaded, np.broadcast_to(oracle, loaded.shape))


def test_cmyk_jpeg(tmp_path):
    inks = np.zeros((20, 24, 4), np.uint8)
    inks[:, :12, 0], inks[:, 12:, 3] = 255, 128
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    loaded = levels(images.load(tmp_path / "a.jpg"))
    assert np.abs(loaded[5, 3] - [0, 255, 255]).max() <= 2 and np.abs(loaded[5, 20] - 127).max() <= 2


def test_transparency_of_a_palette(tmp_path):
    indices = np.repeat(np.arange(3, dtype=np.uint8), 8)[None].repeat(20, axis=0)
    picture = Image.fromarray(indices, "P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for name, transparency in {"half.png": bytes([255, 128, 0]), "one.png": 2, "one.gif": 2}.items():
        picture.save(tmp_path / name, transparency=transparency)
        row = levels(images.load(tmp_path / name))[0]
        middle = [127, 255, 127] if name == "half.png" else [0, 255, 0]
        np.testing.assert_array_equal(row[[0, 8, 16]], [[255, 0, 0], middle, [255, 255, 255]])


def test_a_transparent_colour_without_an_alpha_channel(tmp_path):
    pixels = np.full((20, 20, 3), 7, np.uint8)
    pixels[:10] = 200
    Image.fromarray(pixels).save(tmp_path / "rgb.png", transparency=(7, 7, 7))
    Image.fromarray(pixels[..., 0]).save(tmp_path / "l.png", transparency=7)
    for name in ("rgb.png", "l.png"):
        loaded = levels(images.load(tmp_path / name))
        assert (loaded[:10] == 200).all() and (loaded[10:] == 255).all()


def test_premultiplied_alpha_in_a_tiff(tmp_path):
    straight = np.zeros((20, 20, 4), np.uint8)
    straight[...] = [200, 100, 50, 128]
    premultiplied = straight.copy()
    premultiplied[..., :3] = np.rint(straight[..., :3] * (128 / 255))
    Image.fromarray(premultiplied).save(tmp_path / "a.tif")
    data = (tmp_path / "a.tif").read_bytes()
    entry = struct.pack("<HHIH", 338, 3, 1, 2)  # ExtraSamples: 2 is straight alpha, 1 is premultiplied
    assert entry in data
    (tmp_path / "a.tif").write_bytes(data.replace(entry, entry[:-2] + b"\1\0"))
    expected = straight[0, 0, :3] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(levels(images.load(tmp_path / "a.tif")) - expected).max() <= 2


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 18), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(images.load(tmp_path / f"a{suffix}"), np.asarray(frames[0]) / np.float32(255))


def test_16_bit_grey_is_scaled_value_by_value(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    oracle = np.rint(values / 257)[..., None]
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5 256 256 65535\n" + values.astype(">u2").tobytes())
    big_endian = Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes())
    big_endian.save(tmp_path / "b.tif")
    for name in ("a.png", "a.tif", "a.pgm", "b.tif"):
        loaded = levels(images.load(tmp_path / name))
        np.testing.assert_array_equal(loaded, np.broadcast_to(oracle, loaded.shape), err_msg=name)


def test_16_bit_colour_is_scaled_value_by_value(tmp_path):
    values = np.arange(0, 65536, 3, dtype=np.uint16)[: 128 * 48 * 3].reshape(48, 128, 3)
    (tmp_path / "a.png").write_bytes(png(128, 48, 16, 2, [row.astype(">u2").tobytes() for row in values]))
    assert np.abs(levels(images.load(tmp_path / "a.png")) - values / 257).max() <= 1
    opaque = np.concatenate([values, np.full_like(values[..., :1], 65535)], axis=-1)
    (tmp_path / "b.png").write_bytes(png(128, 48, 16, 6, [row.astype(">u2").tobytes() for row in opaque]))
    np.testing.assert_array_equal(images.load(tmp_path / "a.png"), images.load(tmp_path / "b.png"))


@pytest.mark.parametrize("scale", [1, 255, 65535])
def test_float_tiff(tmp_path, scale):
    values = np.linspace(0, 1, 400).reshape(20, 20).astype(np.float32)
    Image.fromarray(values * np.float32(scale)).save(tmp_path / "a.tif")
    loaded = images.load(tmp_path / "a.tif")
    np.testing.assert_allclose(loaded, np.broadcast_to(values[..., None], loaded.shape), atol=0.51 / 255)


def test_32_bit_integers(tmp_path):
    values = np.linspace(0, 2**31 - 1, 400).reshape(20, 20)
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "a.tif")
    loaded = images.load(tmp_path / "a.tif")
    np.testing.assert_allclose(loaded[..., 0], values / 2**31, atol=0.51 / 255)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_floats_without_a_scale_are_refused(tmp_path, value):
    values = np.ones((20, 20), np.float32)
    values[3, 4] = value
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert "8 bits" in refused(images.load, tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation, suffix):
    upright = smooth(24, 40)
    h, w = np.mgrid[:24, :40]
    stored = {  # EXIF 2.3, tag 0x0112: where row 0 and column 0 of the file belong in the picture
        1: (h, w),
        2: (h, 39 - w),
        3: (23 - h, 39 - w),
        4: (23 - h, w),
        5: (h, w),
        6: (h, 39 - w),
        7: (23 - h, 39 - w),
        8: (23 - h, w),
    }[orientation]
    pixels = upright[stored]
    pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.save(tmp_path / f"a{suffix}", exif=exif, **options)
    with Image.open(tmp_path / f"a{suffix}") as opened:
        np.testing.assert_allclose(np.asarray(ImageOps.exif_transpose(opened)).astype(int), upright, atol=4)
    np.testing.assert_allclose(levels(images.load(tmp_path / f"a{suffix}")), upright, atol=4)
    assert images.load(tmp_path / f"a{suffix}", size=20).shape == (12, 20, 3)


def test_a_broken_exif_is_ignored_quietly(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth(20, 24)).save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", quality=95)
    assert images.load(path).shape == (20, 24, 3)


# Loading: colour profiles


def srgb():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def profile(space, tags, *, pcs=b"XYZ ", kind=b"mntr"):
    """An ICC profile of version 2 by hand."""
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s12x4s", start + len(body), b"", 0x02100000, kind, space, pcs, b"acsp")
    header += bytes(68 - len(header)) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


WHITE = b"XYZ \0\0\0\0" + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)


def saved_with(path, picture, icc):
    picture.save(path, icc_profile=icc)
    return levels(images.load(path))


def test_the_srgb_profile_leaves_the_pixels(tmp_path):
    loaded = saved_with(tmp_path / "a.png", Image.fromarray(noise(20, 24)), srgb())
    np.testing.assert_array_equal(loaded, noise(20, 24))


def test_a_profile_that_is_srgb_but_for_rounding_leaves_the_pixels(tmp_path):
    nearly = bytearray(srgb())
    (red,) = struct.unpack_from(">I", nearly, nearly.index(b"rXYZ") + 4)
    nearly[red + 11] += 30  # the last byte of its X: by 0.1 percent
    picture, target = Image.fromarray(noise(64, 64)), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(picture, io.BytesIO(nearly), target)
    assert np.abs(np.asarray(converted).astype(int) - noise(64, 64)).max() in (1, 2)
    np.testing.assert_array_equal(saved_with(tmp_path / "a.png", picture, bytes(nearly)), noise(64, 64))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_a_profile_of_other_primaries_is_converted(tmp_path, suffix):
    swapped = srgb().replace(b"rXYZ", b"tmp ").replace(b"gXYZ", b"rXYZ").replace(b"tmp ", b"gXYZ")
    loaded = saved_with(tmp_path / f"a{suffix}", Image.new("RGB", (20, 20), (250, 30, 60)), swapped)
    np.testing.assert_allclose(loaded, np.broadcast_to([30, 250, 60], loaded.shape), atol=5)


def test_a_profile_and_alpha(tmp_path):
    swapped = srgb().replace(b"rXYZ", b"tmp ").replace(b"gXYZ", b"rXYZ").replace(b"tmp ", b"gXYZ")
    loaded = saved_with(tmp_path / "a.png", Image.new("RGBA", (20, 20), (255, 0, 0, 128)), swapped)
    np.testing.assert_allclose(loaded, np.broadcast_to([127, 255, 127], loaded.shape), atol=2)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile(tmp_path, mode):
    linear = profile(b"GRAY", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, 256), b"wtpt": WHITE})
    picture = Image.new("L", (20, 20), 128).convert(mode)
    assert np.abs(saved_with(tmp_path / "a.png", picture, linear) - 188).max() <= 1


def test_a_cmyk_profile(tmp_path):
    corners = np.zeros((2, 2, 2, 2, 3), np.uint8)  # Lab of C, M, Y, K; this press prints cyan as a mid grey
    corners[...] = [0, 128, 128]
    corners[0, 0, 0, 0], corners[1, 0, 0, 0] = [255, 128, 128], [137, 128, 128]
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut += 4 * ramp + corners.tobytes() + 3 * ramp
    press = profile(b"CMYK", {b"A2B0": lut, b"wtpt": WHITE}, pcs=b"Lab ", kind=b"prtr")
    for name in ("a.tif", "a.jpg"):
        loaded = saved_with(tmp_path / name, Image.new("CMYK", (20, 20), (255, 0, 0, 0)), press)
        assert np.ptp(loaded, axis=-1).max() <= 2 and abs(loaded.mean() - 128) < 12


@pytest.mark.parametrize("icc", [b"", b"rubbish", srgb()[:200], profile(b"CMYK", {}), b"\0" * 500])
def test_a_broken_or_foreign_profile_is_ignored(tmp_path, icc):
    loaded = saved_with(tmp_path / "a.png", Image.fromarray(noise(20, 24)), icc)
    np.testing.assert_array_equal(loaded, noise(20, 24))


def test_a_lab_picture(tmp_path):
    Image.new("LAB", (20, 20), (255, 128, 128)).save(tmp_path / "a.tif")
    assert (levels(images.load(tmp_path / "a.tif")) >= 254).all()


# Loading: what is refused


def written(data):
    return lambda path: path.write_bytes(data)


def too_small(*size):
    return lambda path: Image.new("RGB", size).save(path, "PNG")


BAD = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "pipe": (os.mkfifo, "regular file"),
    "empty": (written(b""), "empty"),
    "text": (written(b"hello, world\n" * 99), "not an image"),
    "html": (written(b"<!DOCTYPE html><html><body>404</body></html>"), "not an image"),
    "eps": (written(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n"), "not an image"),
    "signature alone": (written(b"\x89PNG\r\n\x1a\n"), "an image"),
    "rotten pixels": (
        written(png(20, 20, 8, 2, [bytes(60)] * 20).replace(b"IDAT\x78", b"IDAT\xff")),
        "corrupt or cut short",
    ),
    "1x1": (too_small(1, 1), "1x1 px is too small"),
    "15x40": (too_small(15, 40), "15x40 px is too small; each side needs 16 px"),
    "16x15": (too_small(16, 15), "too small"),
}


@pytest.mark.parametrize("make, why", BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused_in_one_line(tmp_path, make, why):
    path = tmp_path / "bad.png"
    make(path)
    if why == "regular file":  # a pipe blocks its reader until somebody writes
        threading.Thread(target=lambda: path.open("wb").close(), daemon=True).start()
    message = refused(images.load, path)
    assert message.startswith(str(path)) and why in message


@pytest.mark.parametrize(
    "error, why",
    [
        (PermissionError(errno.EACCES, "Permission denied"), "no permission"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_the_system_refuses(tmp_path, monkeypatch, error, why):
    def fail(*_):
        raise error

    monkeypatch.setattr(images, "open", fail, raising=False)
    for read in (images.load, images.metadata, lambda path: images.load_mask(path, shape=(4, 4))):
        assert why in refused(read, tmp_path / "a.png")


def test_a_strange_name_still_makes_one_line(tmp_path):
    refused(images.load, tmp_path / "two\nlines.png")
    refused(images.load, "nul\0.png")
    refused(images.load, "x" * 5000)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".bmp", ".tif", ".ppm", ".progressive.jpg"])
def test_no_half_pictures(tmp_path, suffix):
    """A file cut anywhere is refused, or still holds every pixel."""
    path = tmp_path / f"a{suffix}"
    options = {"progressive": True} if "progressive" in suffix else {}
    Image.fromarray(noise(48, 48)).save(path, **options)
    whole, data = images.load(path), path.read_bytes()
    cuts = [len(data) * part // 10 for part in range(1, 10)]
    for cut in cuts:
        path.write_bytes(data[:cut])
        refused(images.load, path)
    for cut in range(len(data) - 24, len(data)):
        path.write_bytes(data[:cut])
        try:
            np.testing.assert_array_equal(images.load(path), whole)
        except InputError as error:
            assert "cut short" in str(error) or "not an image" in str(error)  # noqa: PT017


@settings(max_examples=60, deadline=None)
@given(data=st.data(), suffix=st.sampled_from([".png", ".jpg", ".gif", ".tif", ".webp", ".bmp"]))
def test_any_damage_gives_a_picture_or_one_line(tmp_path_factory, data, suffix):
    buffer = io.BytesIO()
    Image.fromarray(smooth(18, 20)).save(buffer, Image.registered_extensions()[suffix])
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    path.write_bytes(damaged)
    try:
        levels(images.load(path, size=16))
    except InputError as error:
        assert len(str(error).splitlines()) == 1


# Masks


def test_a_mask_is_its_grey_value(tmp_path):
    pixels = noise(20, 30, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mask = images.load_mask(tmp_path / "a.png", shape=(20, 30))
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, pixels / np.float32(255))


def test_a_mask_shrinks_by_averaging_and_keeps_its_area(tmp_path):
    pixels = np.zeros((64, 64), np.uint8)
    pixels[::2] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mask = images.load_mask(tmp_path / "a.png", shape=(8, 16))
    assert mask.shape == (8, 16)
    np.testing.assert_allclose(mask, 0.5, atol=0.05)


def test_transparency_is_outside_a_mask(tmp_path):
    pixels = np.full((16, 16, 4), 255, np.uint8)
    pixels[:8, :, 3] = 0
    pixels[8:, :, 3] = 51
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mask = images.load_mask(tmp_path / "a.png", shape=(16, 16))
    np.testing.assert_allclose(mask[[0, -1]], np.array([[0.0], [0.2]]) * np.ones(16), atol=1e-6)


def test_a_colour_mask_is_its_luminance(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "a.png")
    np.testing.assert_allclose(images.load_mask(tmp_path / "a.png", shape=(4, 4)), 76 / 255)


def test_a_mask_is_no_colour_and_has_no_profile(tmp_path):
    linear = profile(b"GRAY", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, 256), b"wtpt": WHITE})
    Image.new("L", (16, 16), 128).save(tmp_path / "a.png", icc_profile=linear)
    np.testing.assert_allclose(images.load_mask(tmp_path / "a.png", shape=(4, 4)), 128 / 255, atol=1e-6)


def test_a_black_mask_is_refused(tmp_path):
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    assert "all black" in refused(images.load_mask, tmp_path / "a.png", shape=(8, 8))
    refused(images.load_mask, tmp_path / "none.png", shape=(8, 8))


# Resizing


@settings(max_examples=25, deadline=None)
@given(h=st.integers(1, 20), w=st.integers(1, 20), new=st.tuples(*[st.integers(1, 30)] * 2), c=st.integers(1, 4))
def test_resize(h, w, new, c):
    image = noise(h, w, c) / 255
    resized = images.resize(image, new)
    assert resized.shape == (*new, c) and resized.dtype == np.float32
    assert resized.min() >= 0 and resized.max() <= 1
    np.testing.assert_allclose(images.resize(np.full((h, w, c), 0.3), new), 0.3, atol=1e-6)
    np.testing.assert_allclose(images.resize(image, (h, w)), image, atol=1e-6)


def test_resize_does_not_round_to_8_bits_and_agrees_with_pillow():
    image = noise(31, 40) / np.float32(255)
    oracle = Image.fromarray(noise(31, 40)).resize((17, 13), Image.Resampling.LANCZOS)
    resized = images.resize(image, (13, 17))
    np.testing.assert_allclose(255 * resized, np.asarray(oracle), atol=1.01)
    assert len(np.unique(resized)) > 600


# Saving


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_save_and_load(tmp_path, suffix):
    pixels = smooth(40, 56)
    path = tmp_path / f"a{suffix.upper()}"
    images.save(path, pixels / np.float32(255), metadata={"style": "starry"})
    with Image.open(path) as picture:
        assert picture.mode == "RGB" and suffix in Image.registered_extensions()
        assert picture.format == Image.registered_extensions()[suffix]
    tolerance = 0 if suffix in LOSSLESS or suffix == ".tiff" else 4
    np.testing.assert_allclose(levels(images.load(path)), pixels, atol=tolerance)
    assert sorted(os.listdir(tmp_path)) == [path.name]


def test_jpeg_keeps_the_colour_of_every_pixel(tmp_path):
    pixels = np.zeros((32, 32, 3), np.float32)
    pixels[:, ::2] = [1, 0, 0]
    pixels[:, 1::2] = [0, 0, 1]
    images.save(tmp_path / "a.jpg", pixels)
    assert np.abs(images.load(tmp_path / "a.jpg") - pixels).mean() < 0.05  # 4:2:0 would make it purple: 0.3


@settings(max_examples=25, deadline=None)
@given(h=st.integers(1, 12), w=st.integers(1, 12), suffix=st.sampled_from(LOSSLESS), seed=st.integers(0, 99))
def test_save_rounds_and_clips(tmp_path_factory, h, w, suffix, seed):
    path = tmp_path_factory.mktemp("save") / f"a{suffix}"
    image = np.random.default_rng(seed).uniform(-0.5, 1.5, (h, w, 3)).astype(np.float32)
    images.save(path, image)
    expected = np.rint(255 * np.clip(image, 0, 1))
    np.testing.assert_array_equal(levels(images.load(path, source_minimum=1)), expected)


def test_save_takes_jax_arrays_of_any_float(tmp_path):
    import jax.numpy as jnp

    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        images.save(tmp_path / "a.png", jnp.full((16, 16, 3), 0.5, dtype))
        assert (levels(images.load(tmp_path / "a.png")) == 128).all()


@pytest.mark.parametrize(
    "image",
    [
        np.full((16, 16, 3), np.nan),
        np.full((16, 16, 3), -np.inf),
        np.zeros((16, 16)),
        np.zeros((1, 16, 16, 3)),
        np.zeros((16, 16, 4)),
        np.zeros((16, 16, 3), np.uint8),
    ],
    ids=["nan", "inf", "grey", "batch", "alpha", "bytes"],
)
def test_bad_pixels_are_the_programmers_fault(tmp_path, image):
    with pytest.raises(ValueError) as caught:
        images.save(tmp_path / "a.png", image)
    assert not isinstance(caught.value, InputError) and not os.listdir(tmp_path)


TEXTS = st.dictionaries(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20).filter(
        lambda name: name not in images._RESERVED
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
    max_size=4,
)


@settings(max_examples=40, deadline=None)
@given(text=TEXTS, suffix=st.sampled_from([".png", ".jpg", ".webp", ".tif"]))
def test_metadata_comes_back_and_bytes_are_the_same(tmp_path_factory, text, suffix):
    folder = tmp_path_factory.mktemp("metadata")
    image = smooth(16, 16) / np.float32(255)
    images.save(folder / f"a{suffix}", image, metadata=text)
    images.save(folder / f"b{suffix}", image, metadata=dict(reversed(text.items())))
    assert images.metadata(folder / f"a{suffix}") == text
    assert (folder / f"a{suffix}").read_bytes() == (folder / f"b{suffix}").read_bytes()
    assert images.load(folder / f"a{suffix}").shape == (16, 16, 3)


@pytest.mark.parametrize("name", ["exif", "xmp", "transparency"])
def test_metadata_that_would_spoil_the_picture_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        images.save(tmp_path / "a.png", np.zeros((16, 16, 3)), metadata={name: "hello"})
    assert not os.listdir(tmp_path)


def test_metadata_that_is_no_text_does_not_cost_the_picture(tmp_path):
    for suffix in (".png", ".jpg", ".webp", ".tif"):
        images.save(tmp_path / f"a{suffix}", np.zeros((16, 16, 3)), metadata={"name": "caf\udce9\0\x1b"})
        assert images.metadata(tmp_path / f"a{suffix}")["name"].startswith("caf")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((341, 512), (3000, 4500), True),
        ((64, 64), (56, 64), False),
        ((100, 33), (300, 100), True),
        ((3, 10), (300, 1000), True),
        ((1000, 1000), (1015, 1000), True),
        ((1000, 1000), (1025, 1000), False),
        ((4, 4), (100, 80), False),
        ((600, 800), (800, 600), False),
    ],
)
def test_aspects_agree_up_to_rounding(tmp_path, one, other, same):
    assert images.same_aspect(one, other) is images.same_aspect(other, one) is same
    Image.new("RGB", one[::-1]).save(tmp_path / "a.png")
    if same:
        images.check_aspect(tmp_path / "a.png", other, "--flag")
    else:
        message = refused(images.check_aspect, tmp_path / "a.png", other, "--flag")
        assert "a.png: --flag has" in message and "another aspect" in message


def test_metadata_of_foreign_files(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    Image.new("RGB", (16, 16)).save(tmp_path / "cat.jpg", exif=exif)
    Image.new("RGB", (16, 16)).save(tmp_path / "plain.jpg")
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "me", zip=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "text.png", pnginfo=text)
    assert images.metadata(tmp_path / "cat.jpg") == {"ImageDescription": "a cat"}
    assert images.metadata(tmp_path / "plain.jpg") == {}
    assert images.metadata(tmp_path / "text.png") == {"Author": "me"}
    assert "no such file" in refused(images.metadata, tmp_path / "none.png")


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, old):
    path = tmp_path / "a.png"
    if old:
        path.write_bytes(old)
    monkeypatch.setattr(os, step, no_space)
    message = refused(images.save, path, np.zeros((16, 16, 3)))
    assert "No space left" in message and "a.png" in message and "free some space" in message
    assert os.listdir(tmp_path) == (["a.png"] if old else [])
    assert not old or path.read_bytes() == old


def test_a_write_cut_short_by_the_system(tmp_path):
    path = tmp_path / "a.png"
    images.save(path, np.ones((16, 16, 3)))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        message = refused(images.save, path, noise(64, 64) / 255)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "File too large" in message and path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        images.save(tmp_path / "a.png", np.zeros((16, 16, 3)))
    assert not os.listdir(tmp_path)


def test_save_is_readable_by_others_and_follows_links(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "deep" / "real.png")
    images.save(tmp_path / "link.png", np.zeros((16, 16, 3)))
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "deep" / "real.png").stat().st_mode & 0o777 == 0o666 & ~umask


def test_save_makes_folders(tmp_path):
    path = tmp_path / "new" / "folder" / "a.png"
    images.check_writable(path)
    assert not os.listdir(tmp_path)
    images.save(path, np.zeros((16, 16, 3)))
    assert images.load(path).shape == (16, 16, 3)


def test_formats_that_cannot_hold_the_picture(tmp_path):
    assert "write a .png" in refused(images.save, tmp_path / "a.webp", np.zeros((1, 16384, 3), np.float32))
    assert "write a .png" in refused(
        images.save, tmp_path / "a.jpg", np.zeros((16, 16, 3)), metadata={"log": "x" * 70_000}
    )
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "name, why",
    [
        ("a.gif", ".png, .jpg"),
        ("a", ".png, .jpg"),
        (".png", ".png, .jpg"),
        ("folder.png", "is a folder"),
        ("file/a.png", "is a file"),
        ("file/deeper/a.png", "is a file"),
        ("closed/a.png", "not writable"),
        ("closed/deeper/a.png", "not writable"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, monkeypatch, name, why):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "closed").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: access(p, mode) and not (p.name == "closed" and mode & os.W_OK))
    before = sorted(tmp_path.rglob("*"))
    for check in (images.check_writable, lambda path: images.save(path, np.zeros((16, 16, 3)))):
        message = refused(check, tmp_path / name)
        assert why in message and name in message
    assert sorted(tmp_path.rglob("*")) == before


def test_check_writable_accepts_an_old_file_and_leaves_it(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"old")
    images.check_writable(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"old" and os.listdir(tmp_path) == ["a.png"]
    monkeypatch.chdir(tmp_path)
    images.check_writable("b.png")


def test_pictures_load_in_threads_and_leave_the_settings(tmp_path):
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.png")
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: results.append(images.load(tmp_path / "a.png", size=32))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and all(np.array_equal(results[0], other) for other in results)
    assert LIMIT == Image.MAX_IMAGE_PIXELS
