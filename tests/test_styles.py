"""Files of trained nets, and the commands that make and use them, at tiny size."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from PIL import Image
from scipy.ndimage import gaussian_filter

import nstjax
from nstjax import features, images, nets, styles, terminal, weights
from nstjax.errors import InputError
from nstjax.nets import TransformNet, adain

ROOT = Path(__file__).parent.parent
TINY = TransformNet(width=4, blocks=1)


def photograph(path, seed, size=(40, 36)):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(nets.NETS, "fast", TINY)
    return TINY.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))


def command(monkeypatch, name, *flags):
    """Run an experiment in this process."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
    try:
        with terminal.refusals(f"{name}.py"):
            tyro.cli(module.main)
    finally:
        del sys.modules[name]


def test_a_net_comes_back_from_its_file(tiny, tmp_path):
    styles.save(tmp_path / "a.safetensors", tiny, {"net": "fast", "steps": 3})
    net, variables, about = styles.load(tmp_path / "a.safetensors")
    assert net is TINY and about["steps"] == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), variables, tiny)
    assert jax.tree.structure(variables) == jax.tree.structure(tiny)


def damaged(path, tiny):
    styles.save(path, tiny, {"net": "fast"})
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path, tiny):
    styles.save(path, tiny, {"net": "other"})


def empty(path, tiny):
    path.write_bytes(b"")


@pytest.mark.parametrize("make", [damaged, foreign, empty])
def test_bad_files_are_refused_in_one_line(tiny, tmp_path, make):
    make(tmp_path / "bad.safetensors", tiny)
    with pytest.raises(InputError, match=r"^[^\n]*bad\.safetensors[^\n]*$"):
        styles.load(tmp_path / "bad.safetensors")


PICTURES = Path(nstjax.__file__).parent / "pictures"
STYLES = weights.bundled_folder() / "styles"
BUNDLED = sorted(path.stem for path in STYLES.glob("*.safetensors"))


def test_the_styles_that_ship_are_small_and_tell_how_they_were_made():
    manifest = json.loads((STYLES / "manifest.json").read_text())
    assert set(manifest) == {f"{name}.safetensors" for name in BUNDLED}
    assert {"starry_night", "great_wave", "composition_vii", "the_scream"} <= set(BUNDLED)
    for name, entry in manifest.items():
        assert (STYLES / name).stat().st_size == entry["bytes"] < 7e6
        assert entry["seconds"] > 0 and entry["hardware"] and entry["painting"] and entry["photographs"]
        _, _, about = styles.load(name.removesuffix(".safetensors"))
        assert about["net"] == entry["net"] and about["steps"] == entry["steps"]
        source = "styles" if about["net"] == "adain" else "style"
        for flag in ("steps", source, "crop"):
            assert f"--{flag} {about[flag]}" in entry["command"]


@pytest.mark.parametrize("name", BUNDLED)
def test_a_style_that_ships_paints(name):
    """Something else than the photograph, its main shapes still there, without regions of plain white or black."""
    net, variables, _ = styles.load(name)
    photo, painting = (images.load(PICTURES / file, size=96) for file in ("astronaut.jpg", "gale.jpg"))
    if isinstance(net, nets.Decoder):
        params = features.load("vgg19", layers=("relu4_1",))
        picture = adain.stylize(params, net, variables, photo[None], adain.targets(params, painting[None]))[0]
    else:
        picture = jax.jit(net.apply)(variables, photo[None])[0]
    picture = np.asarray(picture)
    assert np.abs(picture - photo).mean() > 0.05
    assert ((picture > 0.002) & (picture < 0.998)).mean() > 0.95
    light, painted = (gaussian_filter(each.mean(-1), 2).ravel() for each in (photo, picture))
    assert np.corrcoef(light, painted)[0, 1] > 0.3


def test_a_style_that_was_changed_is_refused(monkeypatch, tmp_path):
    (tmp_path / "styles").mkdir()
    name = f"{BUNDLED[0]}.safetensors"
    for file in (name, "manifest.json"):
        shutil.copy(STYLES / file, tmp_path / "styles")
    for module in (weights, styles):
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
    styles.save(tmp_path / "a.safetensors", tiny, {"net": "fast"})
    path, output = photograph(tmp_path / "photo.png", 1), tmp_path / "out.png"
    command(
        monkeypatch, "stylize", "--content", path, "--style", tmp_path / "a.safetensors", "--output", output, *flags
    )
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
    styles.save(tmp_path / "a.safetensors", tiny, {"net": "fast"})
    for i in range(3):
        photograph(tmp_path / "in" / f"{i}.png", i, size=(40, 36 + i))
    flags = ["--content", tmp_path / "in", "--style", tmp_path / "a.safetensors", "--output", tmp_path / "out"]
    command(monkeypatch, "stylize", *flags)
    assert [images.load(tmp_path / "out" / f"{i}.png").shape for i in range(3)] == [(36 + i, 40, 3) for i in range(3)]
    assert "saved 3 of 3" in capsys.readouterr().out
