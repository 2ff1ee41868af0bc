"""Files of trained nets, and the commands that make and use them, at tiny size."""

import json
import pickle
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from commands import run
from networks import TINY
from samples import photo as photograph
from scipy.ndimage import gaussian_filter

import nstjax
from nstjax import images, nets, styles, tensors, weights
from nstjax.errors import InputError
from nstjax.nets import TransformNet, io, layers, texture


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(nets.NETS, "fast", TINY)
    return TINY.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))


def test_a_net_comes_back_from_its_file(tiny, tmp_path):
    io.save(tmp_path / "a.safetensors", tiny, {"net": "fast", "steps": 3})
    net, variables, about = styles.load(tmp_path / "a.safetensors")
    assert net is TINY and about["steps"] == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), variables, tiny)
    assert jax.tree.structure(variables) == jax.tree.structure(tiny)


def named(variables):
    """The arrays of a style's file."""
    pairs = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x, np.float16) for path, x in pairs}


def raw(entries, about, data=b""):
    """A safetensors file of any header."""
    header = json.dumps(entries | {"__metadata__": {"nstjax": about}}).encode()
    return len(header).to_bytes(8, "little") + header + data


def net(**changes):
    """A file of the tiny net with some arrays changed (None: left out), in a form without checksum."""
    return lambda good: safetensors.numpy.save(
        {name: x for name, x in (good | changes).items() if x is not None}, {"nstjax": '{"net": "fast"}'}
    )


def about(text):
    return lambda good: safetensors.numpy.save(good, {"nstjax": text})


def rotten(good):
    data = bytearray(tensors.dump(good, {"net": "fast"}))
    data[-900:-500] = bytes(400)
    return bytes(data)


def kernel(dtype):
    return lambda good: net(**{KERNEL: np.ones(good[KERNEL].shape, dtype)})(good)


def in_kernel(number):
    return lambda good: net(**{KERNEL: np.full_like(good[KERNEL], number)})(good)


def texture_of(scales):
    names = {f"params/join{i}/conv1/kernel": np.ones((3, 3, 3, 1), np.float16) for i in range(scales - 1)}
    data = names | {"params/scale0/conv1/kernel": np.ones((3, 3, 3, 8), np.float16)}
    return lambda good: safetensors.numpy.save(data, {"nstjax": '{"net": "ulyanov"}'})


KERNEL, HALF = "params/conv1/kernel", np.ones(4, np.float16)
NESTED = "[" * 100_000 + "]" * 100_000
# {what is wrong: (its file's bytes, given the arrays of the tiny net, and a word of the message)}
HOSTILE = {
    "empty": (lambda good: b"", "cut short"),
    "cut short": (lambda good: about('{"net": "fast"}')(good)[:-100], "cut short"),
    "longer": (lambda good: about('{"net": "fast"}')(good) + b"more", "cut short"),
    "rotten": (rotten, "checksum"),
    "a pickle": (lambda good: pickle.dumps(good), "cut short"),
    "no metadata": (lambda good: safetensors.numpy.save(good), "not a trained style"),
    "metadata of others": (lambda good: safetensors.numpy.save(good, {"format": "pt"}), "not a trained style"),
    "metadata not JSON": (about("{"), "not a trained style"),
    "metadata no dict": (about('["net", "fast"]'), "not a trained style"),
    "metadata a number": (about("3"), "not a trained style"),
    "metadata nested deep": (about('{"net": ' + NESTED + "}"), "not a trained style"),
    "metadata of many digits": (about('{"net": "fast", "steps": ' + "9" * 10_000 + "}"), "not a trained style"),
    "no net": (about("{}"), "None"),
    "net unhashable": (about('{"net": ["fast"]}'), "fast"),
    "net a dict": (about('{"net": {"fast": 1}}'), "fast"),
    "net unknown": (about('{"net": "other"}'), "other"),
    "net of control codes": (about(r'{"net": "\u001b[2J\n"}'), "x1b"),
    "steps a text": (about('{"net": "fast", "steps": "many"}'), "many"),
    "steps negative": (about('{"net": "fast", "steps": -1}'), "-1"),
    "of another net": (about('{"net": "depsep"}'), "depsep"),
    "of AdaIN": (about('{"net": "adain"}'), "adain"),
    "of textures": (about('{"net": "texture"}'), "texture"),
    "no arrays": (lambda good: safetensors.numpy.save({}, {"nstjax": '{"net": "fast"}'}), "has no"),
    "an array less": (net(**{KERNEL: None}), KERNEL),
    "an array more": (net(extra=HALF), "extra"),
    "an array in an array": (net(**{f"{KERNEL}/inner": HALF}), f"{KERNEL}/inner"),
    "an array for a layer": (net(**{"params/conv1": HALF}), "params/conv1"),
    "an array for all": (net(params=HALF), "params"),
    "empty name": (net(**{"": HALF}), "''"),
    "slashes": (net(**{"params//": HALF}), "params//"),
    "control codes": (net(**{"\x1b[2J\n": HALF}), "x1b"),
    "a long name": (net(**{"x" * 100_000: HALF}), "xxx"),
    "other collection": (net(**{"batch_stats/conv1_norm/mean": HALF}), "batch_stats"),
    "another shape": (net(**{KERNEL: np.ones((3, 3, 3, 4), np.float16)}), "[9, 9, 3, 4]"),
    "transposed": (lambda good: net(**{KERNEL: good[KERNEL].transpose(3, 2, 0, 1).copy()})(good), "[4, 3, 9, 9]"),
    "a scalar": (net(**{KERNEL: np.array(1, np.float16)}), "[]"),
    "whole numbers": (kernel(np.int16), "int16"),
    "bytes": (kernel(np.uint8), "uint8"),
    "booleans": (kernel(bool), "bool"),
    "double precision": (kernel(np.float64), "float64"),
    "complex": (kernel(np.complex64), "complex64"),
    "NaN": (in_kernel(np.nan), "not finite"),
    "infinity": (in_kernel(-np.inf), "not finite"),
    "an unknown dtype": (
        lambda good: raw({"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 1]}}, "{}", b"0"),
        "trained style",
    ),
    "eight bits": (
        lambda good: raw({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}, '{"net": "fast"}', b"0"),
        "bad.safetensors",
    ),
    "too large a shape": (
        lambda good: raw({"a": {"dtype": "F16", "shape": [2**62, 8], "data_offsets": [0, 0]}}, '{"net": "fast"}'),
        "trained style",
    ),
    "an empty shape": (
        lambda good: raw({"a": {"dtype": "F16", "shape": [0, 2**62], "data_offsets": [0, 0]}}, '{"net": "fast"}'),
        "bad.safetensors",
    ),
    "overlapping": (
        lambda good: raw(
            {name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in "ab"}, '{"net": "fast"}', b"0000"
        ),
        "trained style",
    ),
    "a header of no text": (lambda good: (9).to_bytes(8, "little") + b"\xff" * 9, "trained style"),
    "a huge header": (lambda good: (2**62).to_bytes(8, "little") + b"{}", "trained style"),
    "of 1000 scales": (texture_of(1000), "1000 scales"),
    "of 3 scales": (texture_of(3), "ulyanov"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_bad_files_are_refused_in_one_line(tiny, tmp_path, case):
    make, word = HOSTILE[case]
    (tmp_path / "bad.safetensors").write_bytes(make(named(tiny)))
    with pytest.raises(InputError) as error:
        styles.load(tmp_path / "bad.safetensors")
    line = str(error.value)
    assert line.isprintable() and "bad.safetensors: " in line and word in line and len(line) < 1000, line


def test_a_huge_file_is_not_read(tmp_path):
    for name in ("a.safetensors", "a.pth", "a.npz"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(2**36)  # takes no space on the disk
        with pytest.raises(InputError, match=rf"^[^\n]*{name}[^\n]*at most 128 MiB[^\n]*$"):
            styles.load(tmp_path / name)


NETS = {
    "fast": (TINY, (np.zeros((1, 16, 16, 3), np.float32),)),
    "johnson": (TransformNet(width=4, blocks=1, norm=layers.BatchNorm), (np.zeros((1, 16, 16, 3), np.float32),)),
    "adain": (nets.Decoder(channels=(6, 5, 4)), (np.zeros((1, 2, 2, 8), np.float32),)),
    "texture": (nets.TextureNet(width=2, norm=layers.BatchNorm), 3),
    "ulyanov": (nets.TextureNet(width=2), 2),
}


@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_net_comes_back_as_it_was_saved(monkeypatch, tmp_path, name):
    module, inputs = NETS[name]
    if isinstance(inputs, int):
        z = texture.noise(jax.random.key(0), (1, 16, 16), scales=inputs)
        inputs = (z, None if name == "texture" else np.zeros((1, 16, 16, 3), np.float32))
    monkeypatch.setitem(nets.NETS, name, module)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float16).astype(np.float32), shapes)
    io.save(tmp_path / "a.safetensors", variables, {"net": name, "steps": 1})
    found, loaded, about = styles.load(tmp_path / "a.safetensors")
    assert found is module and about == {"net": name, "steps": 1}
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39])
def test_numbers_that_are_not_finite_are_never_saved(tiny, tmp_path, number):
    tiny = jax.tree.map(lambda x: np.array(x, np.float64), tiny)
    tiny["params"]["conv1"]["kernel"][0, 0, 0, 0] = number
    (tmp_path / "a.safetensors").write_bytes(b"an older one")
    with pytest.raises(InputError, match=r"^[^\n]*a\.safetensors[^\n]*params/conv1/kernel[^\n]*not finite[^\n]*$"):
        io.save(tmp_path / "a.safetensors", tiny, {"net": "fast"})
    assert (tmp_path / "a.safetensors").read_bytes() == b"an older one"


@pytest.mark.parametrize("number, dtype", [(65504, "float16"), (65520, "float32"), (-3e38, "float32")])
def test_numbers_beyond_half_precision_keep_their_values(tiny, tmp_path, number, dtype):
    tiny = jax.tree.map(lambda x: np.array(x, np.float32), tiny)
    tiny["params"]["conv1"]["kernel"][0, 0, 0, 0] = number
    io.save(tmp_path / "a.safetensors", tiny, {"net": "fast"})
    _, variables, _ = styles.load(tmp_path / "a.safetensors")
    assert variables["params"]["conv1"]["kernel"][0, 0, 0, 0] == np.float32(number)
    arrays = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert arrays.pop(KERNEL).dtype == dtype and {x.dtype.name for x in arrays.values()} == {"float16"}


@pytest.mark.parametrize("name", ["style.bin", "style", "style.pth", "style.npz", "style.safetensors.tmp", "a/.."])
def test_nets_are_not_saved_under_names_that_are_not_read(tiny, tmp_path, name):
    for call in (io.check_output, lambda path: io.save(path, tiny, {"net": "fast"})):
        with pytest.raises(InputError, match=r"^[^\n]*\.safetensors[^\n]*$"):
            call(tmp_path / name)
    assert not list(tmp_path.iterdir())


PICTURES = Path(nstjax.__file__).parent / "pictures"
STYLES = weights.bundled_folder() / "styles"
PANDEY = ("depsep", "depsep-nn", "depsep-nn-bil")
BUNDLED = sorted(path.stem for path in STYLES.glob("*.safetensors"))


def test_the_styles_that_ship_are_small_and_tell_how_they_were_made():
    manifest = json.loads((STYLES / "manifest.json").read_text())
    assert set(manifest) == {f"{name}.safetensors" for name in BUNDLED}
    assert sum("-" not in name for name in BUNDLED) == 10
    assert {"wct", "starry_night_stable", *(f"udnie-{net}" for net in PANDEY)} <= set(BUNDLED)
    for name, entry in manifest.items():
        assert (STYLES / name).stat().st_size == entry["bytes"] < 7.1e6
        assert entry["seconds"] > 0 and entry["hardware"] and entry["painting"] and entry["photographs"]
        _, _, about = styles.load(name.removesuffix(".safetensors"))
        assert about["net"] == entry["net"] and about["steps"] == entry["steps"]
        source = "data" if about["net"] == "wct" else "style"
        for flag in ("steps", source, "crop"):
            assert f"--{flag} {about[flag]}" in entry["command"]


@pytest.mark.parametrize("name", BUNDLED)
def test_a_style_that_ships_paints(name):
    """Something else than the photograph, its main shapes still there, without regions of plain white or black."""
    trained = styles.load(name)
    photo, painting = (images.load(PICTURES / file, size=96) for file in ("astronaut.jpg", "gale.jpg"))
    picture = trained.stylize(photo, styles=[painting] if isinstance(trained.net, nets.Decoder) else ())
    assert np.abs(picture - photo).mean() > 0.05
    assert ((picture > 0.002) & (picture < 0.998)).mean() > 0.95
    light, painted = (gaussian_filter(each.mean(-1), 2).ravel() for each in (photo, picture))
    assert np.corrcoef(light, painted)[0, 1] > 0.3


def test_stylizing_is_the_net_alone_or_in_a_batch():
    trained = styles.Trained(TINY, TINY.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32)), {})
    photos = np.random.default_rng(0).uniform(size=(2, 24, 20, 3)).astype(np.float32)
    expected = np.clip(TINY.apply(trained.variables, photos), 0, 1)
    np.testing.assert_allclose(trained.stylize(photos), expected, atol=1e-4)
    np.testing.assert_allclose(trained.stylize(photos[1]), expected[1], atol=1e-4)
    np.testing.assert_allclose(trained.stylize(photos, strength=0.25), 0.75 * photos + 0.25 * expected, atol=1e-4)
    np.testing.assert_array_equal(trained.stylize(photos, strength=0), photos)
    for argument, options in (
        ("styles", {"styles": [photos[0]]}),
        ("strength", {"strength": 1.5}),
        (None, {"memory_limit": 1e8}),
    ):
        with pytest.raises(InputError) as error:
            trained.stylize(photos, **options)
        assert error.value.argument == argument


def test_a_style_that_was_changed_is_refused(monkeypatch, tmp_path):
    (tmp_path / "styles").mkdir()
    name = f"{BUNDLED[0]}.safetensors"
    for file in (name, "manifest.json"):
        shutil.copy(STYLES / file, tmp_path / "styles")
    for module in (weights.download, io):
        monkeypatch.setattr(module, "bundled_folder", lambda: tmp_path)
    styles.load(BUNDLED[0])
    with open(tmp_path / "styles" / name, "ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"^[^\n]*checksum[^\n]*$"):
        styles.load(BUNDLED[0])


def test_unknown_styles_are_refused():
    with pytest.raises(InputError, match="no style 'nobody'"):
        styles.load("nobody")


@pytest.mark.parametrize(
    "flags", [[], ["--strength", "0.5"], ["--preserve-color", "luminance"], ["--size", "64"]], ids=str
)
def test_stylize_paints_with_the_net(tiny, tmp_path, monkeypatch, flags):
    io.save(tmp_path / "a.safetensors", tiny, {"net": "fast"})
    path, output = photograph(tmp_path / "photo.png", 1), tmp_path / "out.png"
    run(monkeypatch, "stylize", "--content", path, "--style", tmp_path / "a.safetensors", "--output", output, *flags)
    picture, original = images.load(output), images.load(path)
    if flags[:1] == ["--size"]:
        assert picture.shape == (58, 64, 3)
        return
    assert picture.shape == original.shape
    plain = np.asarray(TINY.apply(tiny, original[None])[0])
    expected = original + (0.5 if flags[:1] == ["--strength"] else 1) * (plain - original)
    if flags[:1] != ["--preserve-color"]:
        np.testing.assert_allclose(picture, expected, atol=0.01)
    else:
        assert np.abs(picture - expected).mean() > 0.01


def test_stylize_paints_folders(tiny, tmp_path, monkeypatch, capsys):
    io.save(tmp_path / "a.safetensors", tiny, {"net": "fast"})
    for i in range(3):
        photograph(tmp_path / "in" / f"{i}.png", i, size=(40, 36 + i))
    flags = ["--content", tmp_path / "in", "--style", tmp_path / "a.safetensors", "--output", tmp_path / "out"]
    run(monkeypatch, "stylize", *flags)
    assert [images.load(tmp_path / "out" / f"{i}.png").shape for i in range(3)] == [(36 + i, 40, 3) for i in range(3)]
    assert "saved 3 of 3" in capsys.readouterr().out
