"""The benchmarks' check of the Python that has Torch, and the known motion of their frames."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import smooth

from nstjax import metrics


@pytest.fixture
def torch_python(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    import torch_python

    return torch_python


def test_a_python_that_lacks_packages_is_told_how_to_install_them(torch_python, monkeypatch, capsys):
    monkeypatch.setattr(torch_python, "PACKAGES", {"json": "json", "nowhere_at_all": "nowhere", "PIL": "pillow"})
    with pytest.raises(SystemExit) as stop:
        torch_python.check(sys.executable)
    told = f"--torch-python {sys.executable}: lacks nowhere: {sys.executable} -m pip install nowhere\n"
    assert stop.value.code == 2 and capsys.readouterr().err == told


@pytest.mark.parametrize("python", ["no/such/python", "/", "false"])
def test_what_is_no_python_is_refused(torch_python, capsys, python):
    with pytest.raises(SystemExit) as stop:
        torch_python.check(python)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.startswith(f"--torch-python {python}: is no Python") and line.count("\n") == 1


def test_a_python_that_has_them_passes(torch_python, monkeypatch, capsys):
    monkeypatch.setattr(torch_python, "PACKAGES", {"json": "json", "numpy": "numpy", "ml_dtypes": "ml_dtypes"})
    torch_python.check(sys.executable)
    assert capsys.readouterr().err == ""


def test_the_motion_of_flickers_frames_is_known(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    flicker = importlib.import_module("flicker")
    shape, ground, mover = (72, 96), smooth(1, (150, 200)), smooth(2, (150, 200))
    before, after = (flicker.frame(t, ground, mover, shape) for t in (3, 4))
    motion, seen = flicker.truth(4, shape)
    assert 0.8 < seen.mean() < 1
    along = metrics.warping_error(after, before, motion, seen)
    noise = 2 * flicker.NOISE**2
    assert along < 1.5 * noise < 0.2 * metrics.warping_error(after, before, np.zeros_like(motion), seen)
