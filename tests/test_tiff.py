"""TIFFs of every layout, written by tifffile with known pixels."""

import importlib.util
import io
import itertools
import struct
import sys

import numpy as np
import pytest

from nstjax import images, tiff
from nstjax.errors import InputError

tifffile = pytest.importorskip("tifffile", reason='pip install "nstjax[formats]"')

SHAPE = 19, 23


def samples(dtype, channels=1, seed=0):
    """Random values over the whole range of a type; floats in [0, 1]."""
    rng = np.random.default_rng(seed)
    shape = (*SHAPE, channels) if channels > 1 else SHAPE
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def unit(values):
    """What the samples mean, in [0, 1]."""
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    return np.clip(values / np.iinfo(values.dtype).max, 0, 1)


def written(path, values, **options):
    options = {"metadata": None, "rowsperstrip": None if "tile" in options else 7} | options
    if options.get("planarconfig") == "separate" and values.ndim == 3:
        values = np.moveaxis(values, -1, 0)
    tifffile.imwrite(path, values, **options)
    return images.load(path)


def check(loaded, expected):
    """Within half a level of 8 bits (Pillow keeps the high byte of 16-bit colour: a level), and of [H, W, 3]."""
    expected = expected[..., None] if expected.ndim == 2 else expected
    assert loaded.shape == (*SHAPE, 3)
    np.testing.assert_allclose(loaded, np.broadcast_to(expected, loaded.shape), atol=1.01 / 255)


def refused(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


DTYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8")
LAYOUTS = list(itertools.product(("minisblack", "miniswhite", "rgb"), ("contig", "separate"), "<>", (None, (16, 16))))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_in_every_layout(tmp_path, dtype):
    for photometric, planar, order, tile in LAYOUTS:
        values = samples(dtype, 3 if photometric == "rgb" else 1)
        options = {"tile": tile} if tile else {}
        if photometric == "rgb":
            options["planarconfig"] = planar
        loaded = written(tmp_path / "a.tif", values, photometric=photometric, byteorder=order, **options)
        expected = 1 - unit(values) if photometric == "miniswhite" else unit(values)
        check(loaded, expected)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4"])
def test_compressions_and_predictors(tmp_path, dtype, compression, predictor):
    if predictor and compression == "packbits":
        pytest.skip("no such files")
    for order, channels in itertools.product("<>", (1, 3)):
        values = samples(dtype, channels)
        options = {"compression": compression, "predictor": predictor, "byteorder": order}
        try:
            tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb" if channels == 3 else None, **options)
        except (ValueError, KeyError, AttributeError, ImportError):
            pytest.skip("tifffile writes such files by imagecodecs")
        check(images.load(tmp_path / "a.tif"), unit(values))


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("extra", ["unspecified", "assocalpha", "unassalpha"])
def test_extra_samples(tmp_path, dtype, planar, channels, extra):
    values = samples(dtype, channels + 1)
    colour, alpha = unit(values)[..., :-1], unit(values)[..., -1:]
    if extra == "assocalpha":
        values[..., :-1] = (values[..., :-1].astype(np.float64) * alpha).astype(dtype)
        tolerance = 4 / 255
    else:
        tolerance = 2 / 255
    options = {"photometric": "rgb" if channels == 3 else "minisblack", "extrasamples": [extra]}
    loaded = written(tmp_path / "a.tif", values, planarconfig=planar, **options)
    over_white = colour if extra == "unspecified" else colour * alpha + 1 - alpha
    np.testing.assert_allclose(loaded, np.broadcast_to(over_white, loaded.shape), atol=tolerance)
    opacity = images.load_alpha(tmp_path / "a.tif", shape=SHAPE)
    if extra == "unspecified":
        assert opacity is None
    else:
        np.testing.assert_allclose(opacity, alpha[..., 0], atol=1.01 / 255)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_inks(tmp_path, dtype, planar):
    values = samples(dtype, 4)
    loaded = written(tmp_path / "a.tif", values, photometric="separated", planarconfig=planar)
    cyan_magenta_yellow, black = unit(values)[..., :3], unit(values)[..., 3:]
    np.testing.assert_allclose(loaded, (1 - cyan_magenta_yellow) * (1 - black), atol=2 / 255)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_palettes(tmp_path, dtype):
    bits = 8 * np.dtype(dtype).itemsize
    colormap = np.random.default_rng(1).integers(0, 65536, (3, 2**bits), dtype=np.uint16)
    values = samples(dtype)
    loaded = written(tmp_path / "a.tif", values, photometric="palette", colormap=colormap)
    np.testing.assert_array_equal(np.rint(255 * loaded), np.moveaxis(colormap[:, values] >> 8, 0, -1))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("photometric", [0, 1])
def test_fewer_bits_than_a_byte(tmp_path, bits, photometric):
    values = np.random.default_rng(0).integers(0, 2**bits, (19, 24), dtype=np.uint8)
    planes = [(values >> bit & 1) for bit in reversed(range(bits))]
    packed = np.packbits(np.stack(planes, axis=-1).reshape(19, -1), axis=1)
    (tmp_path / "a.tif").write_bytes(by_hand(packed.tobytes(), 24, 19, bits=bits, photometric=photometric))
    expected = values / (2**bits - 1)
    loaded = images.load(tmp_path / "a.tif")
    expected = expected if photometric else 1 - expected
    np.testing.assert_allclose(loaded, np.broadcast_to(expected[..., None], loaded.shape), atol=0.51 / 255)


def by_hand(data, width, height, *, bits=8, photometric=1, order="<", **tags):
    """An uncompressed TIFF with any further tags {"t262": (type, [values])}."""
    entries = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits]), 259: (3, [1]), 262: (3, [photometric])}
    entries |= {273: (4, [8]), 278: (4, [height]), 279: (4, [len(data)])}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    at = 8 + len(data) + len(data) % 2
    far = at + 2 + 12 * len(entries) + 4
    table, rest = struct.pack(order + "H", len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        if isinstance(values, bytes):
            body, count = values, len(values)
        else:
            letter = {1: "B", 3: "H", 4: "I", 5: "II", 9: "i", 11: "f", 12: "d"}[kind]
            body, count = struct.pack(f"{order}{len(values) * len(letter)}{letter[0]}", *np.ravel(values)), len(values)
        if len(body) > 4:
            body, rest = struct.pack(order + "I", far + len(rest)), rest + body
        table += struct.pack(order + "HHI", tag, kind, count) + body.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", at) + data + bytes(len(data) % 2) + table + bytes(4) + rest


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
def test_ycbcr(tmp_path, subsampling):
    """ITU-R BT.601 by hand; TIFF 6.0, section 21: blocks of luminance, then the two differences."""
    rng, (across, down), (cb, cr) = np.random.default_rng(0), subsampling, (100, 180)
    luma = rng.integers(16, 235, (20, 24), dtype=np.uint8)
    blocks = [luma[y : y + down, x : x + across] for y in range(0, 20, down) for x in range(0, 24, across)]
    data = b"".join(block.tobytes() + bytes([cb, cr]) for block in blocks)
    tags = {"t277": (3, [3]), "t258": (3, [8] * 3), "t530": (3, list(subsampling))}
    (tmp_path / "a.tif").write_bytes(by_hand(data, 24, 20, photometric=6, **tags))
    shifts = 1.402 * (cr - 128), -0.344136 * (cb - 128) - 0.714136 * (cr - 128), 1.772 * (cb - 128)
    expected = np.clip(luma[..., None] + shifts, 0, 255)
    np.testing.assert_allclose(255 * images.load(tmp_path / "a.tif"), expected, atol=1)


@pytest.mark.parametrize("photometric, channels", [(0, 1), (1, 1), (2, 3)])
def test_bytes_with_their_bits_reversed(tmp_path, photometric, channels):
    mirrored = np.array([int(f"{byte:08b}"[::-1], 2) for byte in range(256)], np.uint8)
    values = samples("u1", channels)
    tags = {"t277": (3, [channels]), "t258": (3, [8] * channels), "t266": (3, [2])}
    (tmp_path / "a.tif").write_bytes(by_hand(mirrored[values].tobytes(), 23, 19, photometric=photometric, **tags))
    check(images.load(tmp_path / "a.tif"), unit(values) if photometric else 1 - unit(values))


@pytest.mark.parametrize("compression", ["jpeg2000", "lerc", "png"])
def test_compressions_that_only_imagecodecs_knows(tmp_path, compression):
    pytest.importorskip("imagecodecs", reason='pip install "nstjax[formats]"')
    values = samples("u2", 3)
    check(written(tmp_path / "a.tif", values, photometric="rgb", compression=compression), unit(values))


def test_a_compression_without_its_package_is_named(tmp_path):
    data = by_hand(bytes(800), 20, 20, bits=16, photometric=0)
    lzw = struct.pack("<HHIHH", 259, 3, 1, 5, 0)
    (tmp_path / "a.tif").write_bytes(data.replace(struct.pack("<HHIHH", 259, 3, 1, 1, 0), lzw))
    if importlib.util.find_spec("imagecodecs"):
        refused(images.load, tmp_path / "a.tif")  # as damaged
    else:
        assert 'pip install "nstjax[formats]"' in refused(images.load, tmp_path / "a.tif")


def test_big_tiff(tmp_path):
    for dtype, order in itertools.product(("u1", "u2", "f4"), "<>"):
        values = samples(dtype, 3)
        check(written(tmp_path / "a.tif", values, photometric="rgb", bigtiff=True, byteorder=order), unit(values))


def test_undefined_samples_are_unsigned(tmp_path):
    pixels = samples("u1")
    (tmp_path / "a.tif").write_bytes(by_hand(pixels.tobytes(), 23, 19, t339=(3, [4])))
    check(images.load(tmp_path / "a.tif"), unit(pixels))


UNSUPPORTED = {
    "mask": ({"photometric": 4}, "transparency mask"),
    "camera": ({"photometric": 32803}, "raw camera data"),
    "logluv": ({"photometric": 32845}, "LogLuv"),
    "icclab": ({"photometric": 9, "t277": (3, [3]), "t258": (3, [8, 8, 8])}, "ICC L*a*b*"),
    "unknown": ({"photometric": 77}, "photometric interpretation 77"),
    "complex": ({"t339": (3, [6]), "t258": (3, [64])}, "complex"),
    "mixed": ({"photometric": 2, "t277": (3, [3]), "t258": (3, [5, 6, 5])}, "different"),
    "inks": ({"photometric": 5, "t277": (3, [4]), "t258": (3, [8] * 4), "t332": (3, [2])}, "inks"),
}


@pytest.mark.parametrize("options, why", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_what_cannot_be_read_is_named(tmp_path, options, why):
    (tmp_path / "a.tif").write_bytes(by_hand(bytes(20 * 20 * 8), 20, 20, **options))
    for read in (images.load, images.shape):
        message = refused(read, tmp_path / "a.tif")
        assert why in message and "corrupt" not in message


def test_without_tifffile_the_line_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    tiff_of_planes = io.BytesIO()
    tifffile.imwrite(tiff_of_planes, np.zeros((3, 20, 20), np.uint16), photometric="rgb", planarconfig="separate")
    (tmp_path / "a.tif").write_bytes(tiff_of_planes.getvalue())
    assert 'pip install "nstjax[formats]"' in refused(images.load, tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_half_a_file_is_refused(tmp_path, dtype):
    values = samples(dtype, 3)
    written(tmp_path / "a.tif", values, photometric="rgb", planarconfig="separate")
    data = (tmp_path / "a.tif").read_bytes()
    for cut in (len(data) // 4, len(data) // 2, len(data) - 10):
        (tmp_path / "a.tif").write_bytes(data[:cut])
        refused(images.load, tmp_path / "a.tif")


def test_floats_without_a_scale_are_refused_in_colour_too(tmp_path):
    for value in (np.nan, np.inf, 1e9):
        values = samples("f4", 3)
        values[3, 4, 1] = value
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
        assert "8 bits" in refused(images.load, tmp_path / "a.tif")


@pytest.mark.parametrize("scale", [255, 65535])
def test_floats_of_other_scales(tmp_path, scale):
    values = samples("f4", 3) * scale
    values[0, 0] = scale
    tifffile.imwrite(tmp_path / "a.tif", values.astype(np.float32), photometric="rgb")
    check(images.load(tmp_path / "a.tif"), values / scale)


def test_32_bits_that_hold_16(tmp_path):
    values = samples("u2").astype(np.uint32)
    check(written(tmp_path / "a.tif", values, photometric="minisblack"), values / 65535)


BAD_METADATA = {
    "resolution": {"t282": (2, b"x\0"), "t296": (3, [3])},
    "text": {"t270": (2, b"\xff" * 40), "t305": (7, b"\0\1\2\3\4\5")},
    "beyond the file": {"t34675": (7, b"12345"), "t700": (1, b"<x:xmpmeta")},
    "exif": {"t34665": (4, [9])},
}


@pytest.mark.parametrize("tags", BAD_METADATA.values(), ids=BAD_METADATA.keys())
def test_damaged_metadata_leave_the_pixels(tmp_path, tags):
    pixels = samples("u1")
    data = by_hand(pixels.tobytes(), 23, 19, **tags)
    if 0x8773 in [int(name[1:]) for name in tags]:
        entry = data.index(struct.pack("<HHI", 0x8773, 7, 5))
        data = data[: entry + 4] + struct.pack("<II", 10**6, 10**6) + data[entry + 12 :]
    (tmp_path / "a.tif").write_bytes(data)
    check(images.load(tmp_path / "a.tif"), unit(pixels))


def test_a_layout_is_read_from_the_tags():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((20, 30, 4), np.uint16), photometric="rgb", extrasamples=["assocalpha"])
    about = tiff.layout(tiff.directory(buffer))
    assert (about.size, about.bits, about.kind, about.samples, about.alpha) == ((30, 20), 16, "u", 4, 3)
    assert about.premultiplied and not about.planar
