"""experiments/ablate_iterations.py: where a knee is, and the whole command at tiny size with narrow networks."""

import csv
import json
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
from commands import PARAMS, assert_refused, module, smooth
from hypothesis import given, settings
from hypothesis import strategies as st

from nstjax import features, images

pytestmark = pytest.mark.usefixtures("quickly")
ablate = module("ablate_iterations")


# --- the knee


def test_the_knee_of_known_curves():
    assert ablate.knee([0, 1, 2, 3, 4], [9, 3, 1, 0.5, 0]) == 1
    corner = [(0, 10), (0, 5), (0, 1), (4, 1), (9, 1), (10, 0)]
    assert ablate.knee(*zip(*corner, strict=True)) == 2
    # y = 1 / x from 1/9 to 9 is symmetrical about 1.
    x = np.geomspace(1 / 9, 9, 41)
    assert ablate.knee(x, 1 / x) == 20
    # d/dx of exp(-x) is the chord's slope at log(a / (1 - exp(-a))).
    x = np.linspace(0, 5, 5001)
    assert x[ablate.knee(x, np.exp(-x))] == pytest.approx(np.log(5 / (1 - np.exp(-5))), abs=1e-3)


@pytest.mark.parametrize("y", [[3, 2, 1, 0], [3, 2.9, 2.5, 0], [1, 1, 1, 1], [3, 0], [1, 4, 4.5, 5]])
def test_no_knee_on_a_line_a_bulge_a_flat_two_points_or_a_rise(y):
    assert ablate.knee(range(len(y)), y) is None
    assert ablate.knee([1] * len(y), y) is None


@settings(deadline=None)
@given(st.floats(0.01, 100), st.floats(-50, 50), st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 1000))
def test_a_knee_does_not_depend_on_units(a, b, c, d, seed):
    rng = np.random.default_rng(seed)
    x, y = np.cumsum(rng.random(9)), 1 / np.cumsum(rng.random(9) + 0.1)
    assert ablate.knee(x, y) == ablate.knee(a * x + b, c * y + d)


@given(st.integers(1, 5000))
def test_steps_looked_at(steps):
    some = ablate.spaced(steps)
    assert some[0] == 0 and some[1] == 1 and some[-1] == steps and len(set(some)) == len(some)
    assert len(some) <= 3 + 3 * np.log2(steps + 1)
    assert all(after <= max(step + 1, 1.5 * step) for step, after in zip(some[1:], some[2:], strict=False))


@pytest.mark.parametrize(("count", "turn"), [(3, None), (3, 1), (25, 4), (25, 0), (25, 24), (1, None)])
def test_pictures_shown(count, turn):
    some = ablate.shown(count, turn)
    assert some[0] == 0 and some[-1] == count - 1 and len(some) <= ablate.SHOWN
    assert turn is None or turn in some


# --- the command


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("iterations")
    for i, name in enumerate(("a", "b", "painting", "another")):
        images.save(folder / f"{name}.png", smooth(i, (32, 40) if name != "b" else (40, 32)))
    return folder


@pytest.fixture
def run(here, tmp_path, monkeypatch):
    """Runs ablate_iterations.py in this process with narrow networks; returns the study's folder."""
    monkeypatch.setattr(features, "load", lambda network, *args, **kwargs: PARAMS[network])

    def run(*given, output="study"):
        flags = ["--output", tmp_path / output, "--size", 40, "--steps", 10, *given]
        flags = [str(flag).replace("HERE", str(here)) for flag in flags]
        commands.run(monkeypatch, "ablate_iterations", *flags)
        return tmp_path / output

    return run


PAIRS = ["--content", "HERE/a.png", "HERE/a.png", "HERE/b.png"]
PAIRS += ["--style", "HERE/painting.png", "HERE/another.png", "HERE/painting.png"]


def test_several_pairs_against_references(run, capsys):
    # Where the reference is the photograph itself, no picture is nearer to it than the first.
    given = [*PAIRS, "--reference", "HERE/a.png", "HERE/another.png", "HERE/b.png"]
    folder = run(*given)
    rows = list(csv.DictReader((folder / "iterations.csv").read_text().splitlines()))
    names = ["a in the style of painting", "a in the style of another", "b in the style of painting"]
    steps = ablate.spaced(10)
    assert [row["pair"] for row in rows] == [name for name in names for _ in steps]
    assert [int(row["step"]) for row in rows] == list(steps) * 3
    for row in rows[:: len(steps)]:
        same = {"content_distance": 0, "style_distance": 1, "mse": 0, "ssim": 1, "lpips": 0, "roughness": 1}
        assert {name: float(row[name]) for name in same} == pytest.approx(same, abs=1e-4)
    for i, name in enumerate(names):
        own = rows[i * len(steps) : (i + 1) * len(steps)]
        assert float(own[-1]["style_distance"]) < 0.9 and float(own[-1]["content_distance"]) > 1e-3
        to_reference = [float(row["reference_ssim"]) for row in own]
        assert (to_reference[0] == pytest.approx(1)) == (name != "a in the style of another") and max(to_reference) <= 1
    # The last row is the finished picture's.
    whole = json.loads((folder / "results.json").read_text())
    assert [each["figures"]["ssim"] for each in whole["runs"]] == [
        float(row["ssim"]) for row in rows[len(steps) - 1 :: len(steps)]
    ]
    card = (folder / "card.html").read_text()
    assert (
        "LPIPS to AdaIN against iterations" in card and "those given by --reference" in card and "uncalibrated" in card
    )
    assert images.load(folder / "sheet.png").std() > 0.1
    capsys.readouterr()
    run(*given)
    assert "3 of 3 runs are done already" in capsys.readouterr().out


def test_without_a_reference_adains_loss_is_minimised(run, here, capsys):
    given = ("--content", "HERE/a.png", "--style", "HERE/painting.png", "--steps", 8)
    folder = run(*given)
    path = next((folder / "adain" / "runs").glob("*.json"))
    made, reference = json.loads(path.read_text()), images.load(path.with_suffix(".png"))
    assert made["curve"]["loss"][-1] < 0.5 * made["curve"]["loss"][0]
    row = list(csv.DictReader((folder / "iterations.csv").read_text().splitlines()))[0]
    photograph = images.load(here / "a.png", size=40)
    assert float(row["reference_mse"]) == pytest.approx(float(((photograph - reference) ** 2).mean()), rel=1e-4)
    capsys.readouterr()
    run(*given)
    assert capsys.readouterr().out.count("1 of 1 runs are done already") == 2


def test_a_single_iteration_leaves_the_photograph(run):
    given = ("--content", "HERE/a.png", "--style", "HERE/painting.png", "--reference", "HERE/b.png")
    folder = run(*given, "--steps", 1)
    first, last = csv.DictReader((folder / "iterations.csv").read_text().splitlines())
    assert (first["step"], last["step"]) == ("0", "1") and float(last["ssim"]) == pytest.approx(1, abs=1e-3)


def test_one_painting_goes_with_all_photographs():
    a, b, c = Path("x/a.jpg"), Path("x/b.jpg"), Path("y/a.jpg")
    assert ablate.paired((a, b), (c,)) == {"a in the style of a": (a, c), "b in the style of a": (b, c)}
    assert ablate.paired((a, c), (b, b)) == {"a in the style of b": (a, b), "a in the style of b’": (c, b)}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["--content", "HERE/a.png", "HERE/b.png", "--style", "HERE/a.png", "HERE/b.png", "HERE/a.png"],
            "--content: 2 given for 3",
        ),
        (["--content", "HERE/a.png", "HERE/a.png", "--style", "HERE/b.png"], "is given twice"),
        (["--reference", "HERE/a.png", "HERE/b.png"], "--reference: 2 given for 1 pairs"),
        (["--reference", "HERE/a.png", "--adain", "x.safetensors"], "--adain, --reference: both are given"),
        (["--reference", "HERE/none.png"], "none.png: no such file"),
        (["--adain", "HERE/none.safetensors"], "none.safetensors: no such file"),
        (["--content", "HERE/none.png"], "none.png: no such file"),
        (["--strength", "0"], "--strength: 0.0: give a number between 0 and 1"),
        (["--strength", "nan"], "--strength: nan: give a number between 0 and 1"),
        (["--size", "20"], "--size: 20: at least 32 pixels are needed"),
        (["--output", "HERE/a.png"], "is a file, not a folder"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(run, capsys, monkeypatch, given, told):
    assert_refused(partial(run, *given), told, capsys, monkeypatch)
