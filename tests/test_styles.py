"""Files of trained nets, and the commands that make and use them, at tiny size."""

import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from PIL import Image

from nstjax import images, nets, styles, terminal
from nstjax.errors import InputError
from nstjax.nets import TransformNet

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
