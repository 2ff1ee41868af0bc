"""Files of trained nets, and the commands that make and use them, at tiny size."""

import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from PIL import Image

from nstjax import features, images, nets, styles, terminal, train
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


@pytest.fixture
def training(tiny, tmp_path, monkeypatch):
    """Runs train_transform.py with a tiny net and narrow features; returns the trained style."""
    from test_vgg import narrow

    pytest.importorskip("grain", reason="training data needs grain (the train extra)")
    params = features.prepare(narrow("vgg16"), winograd=False)
    monkeypatch.setattr(features, "load", lambda *args, **kwargs: params)
    for i in range(6):
        photograph(tmp_path / "photos" / f"{i}.png", i)
    painting = photograph(tmp_path / "painting.png", 9)

    def run(*flags, folder="run", steps=4):
        output = tmp_path / f"{folder}.safetensors"
        standard = ["--style", painting, "--data", tmp_path / "photos", "--crop", 16, "--batch-size", 8]
        standard += ["--style-size", 40, "--checkpoint-dir", tmp_path / folder, "--output", output, "--steps", steps]
        command(monkeypatch, "train_transform", *standard, *flags)
        return output

    return run


def test_training_resumes_to_the_bit(training, tmp_path):
    whole = training("--checkpoint-every", "2", folder="whole", steps=6)
    training("--checkpoint-every", "2", folder="parts", steps=4)
    parts = training("--checkpoint-every", "2", "--resume", folder="parts", steps=6)
    first, second = (styles.load(path)[1] for path in (whole, parts))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert (tmp_path / "whole" / "loss.csv").read_bytes() == (tmp_path / "parts" / "loss.csv").read_bytes()
    assert images.load(tmp_path / "parts" / "sample-00000006.jpg").shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--checkpoint-every", "2"], "--resume"),
        (["--resume", "--seed", "5"], "seed"),
        (["--resume", "--steps", "0"], "--steps"),
        (["--resume", "--batch-size", "3"], "--batch-size"),
        (["--resume", "--data", "nowhere"], "nowhere"),
    ],
    ids=str,
)
def test_training_refuses_in_one_line(training, capsys, flags, named):
    training(steps=2)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        training(*flags, steps=4)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train_transform.py:")]
    assert len(lines) == 1 and named in lines[0]


def test_a_loss_that_is_not_finite_goes_back_with_half_the_rate(tmp_path, capsys):
    """A step that fails whenever the rate is above a quarter."""

    def step(state, batch, data):
        rate = float(data["rate"])
        broken = rate > 0.3 and int(state.step) >= 5
        state = state._replace(step=state.step + 1, params=state.params + rate)
        return state, {"loss": np.nan if broken else 1.0 / (1 + int(state.step))}

    start = train.State(np.int32(0), np.float32(0), {}, (), jax.random.key(0))

    def stream(position):
        number = position or 0
        while True:
            number += 1
            yield np.zeros(1), number

    end = train.fit(step, start, stream, {}, steps=12, folder=tmp_path, every=2)
    assert int(end.step) == 12
    # Four steps at the full rate were saved; the others were made at a quarter.
    assert float(end.params) == 4 + 8 * 0.25
    assert "0.25 of the learning rate" in capsys.readouterr().out

    def hopeless(state, batch, data):
        return state, {"loss": np.inf}

    with pytest.raises(InputError, match="--learning-rate"):
        train.fit(hopeless, start, stream, {}, steps=12, folder=tmp_path / "other")
