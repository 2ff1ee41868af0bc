"""experiments/ablate_optimizers.py: rates that come with the data, what is read off curves, the study at tiny size."""

import csv
import json
from functools import partial
from pathlib import Path

import commands
import jax.numpy as jnp
import numpy as np
import pytest
from commands import assert_refused, module
from networks import narrow_vgg as narrow

from nstjax import features, images, solvers
from nstjax.studies import runner

pytestmark = pytest.mark.usefixtures("quickly")
SHAPE = (8, 9, 3)


ablate = module("ablate_optimizers")


def objective(image, data):
    near = jnp.mean(data["scale"] * (image - data["target"]) ** 2)
    return near, {"near": near}


def toy(rate=None):
    rng = np.random.default_rng(0)
    data = {"params": None, "target": rng.random(SHAPE, np.float32), "scale": rng.uniform(0.2, 3, SHAPE)}
    data = {name: None if x is None else jnp.asarray(x, jnp.float32) for name, x in data.items()}
    return np.full(SHAPE, 0.5, np.float32), data | ({} if rate is None else {"rate": jnp.float32(rate)})


def descent(solver, image, data, steps=8):
    return np.array([terms["loss"] for _, _, terms in solvers.run(solver, image, data, steps=steps)])


@pytest.mark.parametrize("optimizer", ablate.OPTIMIZERS)
def test_a_rate_in_the_data_is_a_rate_in_the_program(optimizer):
    rate = ablate.OPTIMIZERS[optimizer].rate
    sweep = ablate.at_rate(optimizer, objective, 8)
    solver = partial(ablate.OPTIMIZERS[optimizer].solver, objective, steps=8)
    fixed = [descent(solver(rate=rate * f), *toy()) for f in (0.5, 1)]
    for factor, expected in zip((0.5, 1), fixed, strict=True):
        np.testing.assert_allclose(descent(sweep, *toy(rate * factor)), expected, rtol=1e-4)
        assert expected[-1] < expected[0]
    assert abs(fixed[0][-1] / fixed[1][-1] - 1) > 1e-3  # or a rate would mean nothing
    first, data = toy()
    rates = jnp.float32([0.5 * rate, rate])
    many = {name: None if x is None else jnp.stack([x, x]) for name, x in data.items()} | {"rate": rates}
    together = descent(solvers.batched(sweep), np.stack([first, first]), many)
    np.testing.assert_allclose(together.T, fixed, rtol=1e-4)


def result(optimizer, losses, *, factor=1.0, pace=0.1, failures=None):
    """A run whose every evaluation but the first took `pace` seconds."""
    count = len(losses)
    curve = {
        "evaluations": list(range(1, count + 1)),
        "seconds": [pace * i for i in range(count)],
        "loss": losses,
        "failures": failures or [0] * count,
    }
    good = [loss for loss, failed in zip(losses, curve["failures"], strict=True) if not failed]
    rate = factor * ablate.OPTIMIZERS[optimizer].rate
    configuration = {"optimizer": optimizer, "factor": factor, "rate": rate}
    moments = [{"step": step} for step in range(0, count, 2)]
    figures = {"loss": good[-1] if good else None, "evaluations": count, "reference_ssim": rate / 10}
    made = runner.Result(optimizer, configuration, figures, moments, curve, 1.0, 1.0, {}, Path("x.png"))
    return ablate.with_failures(made)


def test_the_sweep_picks_the_rate_that_ends_lowest():
    sweep = [
        result("adam", [9.0, 3.0, 2.0], factor=0.5),
        result("adam", [9.0, 1.0, 0.5], factor=1),
        result("adam", [9.0, None, None], factor=2, failures=[0, 1, 2]),
        result("gd", [9.0, 8.0, 0.1], failures=[0, 0, 1]),
    ]
    best = {name: min(some, key=ablate.end) for name, some in ablate.sweeps_of(sweep).items()}
    assert {name: r.configuration["factor"] for name, r in best.items()} == {"Adam": 1, "gradient descent": 1}
    assert best["gradient descent"].figures["loss"] == 8.0 and best["gradient descent"].figures["rejected"] == 1
    assert ablate.end(result("gd", [None], failures=[1])) == np.inf


def test_who_reaches_whose_loss_in_what_part():
    fast, slow = result("lbfgs", [8.0, 4.0, 2.0, 1.0], pace=0.3), result("gd", [8.0, 6.0, 5.0, 4.0])
    assert fast.figures["pace"] == pytest.approx(0.3) and slow.figures["pace"] == pytest.approx(0.1)
    assert ablate.share(fast, slow) == 2 / 4
    assert ablate.share(fast, slow, "seconds") == pytest.approx(0.3 / 0.3)
    assert ablate.share(slow, fast) is None and ablate.share(fast, fast) == 1
    jumped = result("gd", [8.0, 0.5, 6.0, 5.0], failures=[0, 1, 0, 0])
    assert ablate.share(jumped, result("gd", [8.0, 5.5])) == 4 / 2  # a rejected step reaches nothing


def test_images_of_equal_seconds():
    run = result("adam", [5.0, 4.0, 3.0, 2.0, 1.0], pace=0.1)  # kept: 0, 2, 4, and 5 is the last
    assert [ablate.kept_until(run, seconds) for seconds in (0, 0.05, 0.1, 0.29, 0.3, 0.39, 0.4, 9)] == [
        *(0, 0, 2, 2, 4, 4, 5, 5)
    ]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs ablate_optimizers.py in this process with a narrow network; returns the study's folder."""
    monkeypatch.setattr(features, "load", lambda network, *args, **kwargs: features.prepare(narrow(network)))

    def run(*given, output="study"):
        command = ["--output", tmp_path / output, "--size", 32, "--steps", 9, *given]
        commands.run(monkeypatch, "ablate_optimizers", *command)
        return tmp_path / output

    return run


def test_the_study_from_end_to_end(run, capsys):
    chosen = ["--optimizers", "lbfgs", "adam", "--factors", "1", "0.5"]
    folder = run(*chosen)
    table = {row["run"]: row for row in csv.DictReader((folder / "results.csv").read_text().splitlines())}
    assert list(table) == [
        *("L-BFGS (jaxopt) at rate 0.5", "L-BFGS (jaxopt) at rate 1", "Adam at rate 0.04", "Adam at rate 0.08")
    ]
    whole = json.loads((folder / "results.json").read_text())
    curves = [json.loads(path.read_text())["curve"] for path in sorted((folder / "runs").glob("*.json"))]
    assert len(curves) == 4 and whole["evaluations"] == 4 * 9
    for curve in curves:
        assert curve["evaluations"] == list(range(1, 10)) and len(curve["loss"]) == len(curve["seconds"]) == 9
        assert curve["seconds"][0] == 0
        assert curve["loss"][0] == pytest.approx(curves[0]["loss"][0], rel=1e-4)  # the same start
        assert min(curve["loss"]) < curve["loss"][0]
    card = (folder / "card.html").read_text()
    assert card.count("<img src=") == 2 * (3 + 2 * 4) and len(card) < 10e6
    assert images.load(folder / "sheet.png").std() > 0.1
    capsys.readouterr()
    run(*chosen)
    assert "4 of 4 runs are done already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--strength", "1"], "--strength: 1.0: give a number between 0 and 1"),
        (["--factors", "1", "-2"], "--factors: -2.0: give a number above 0"),
        (["--factors", "inf"], "--factors: inf: give a number above 0"),
        (["--steps", "0"], "--steps: 0: give a number above 0"),
        (["--content", "none.jpg"], "none.jpg: no such file"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(run, capsys, monkeypatch, given, told):
    assert_refused(partial(run, *given), told, capsys, monkeypatch)
