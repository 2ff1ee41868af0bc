"""experiments/ablate_schedules.py: the schedules by hand, rates that come with the data, the study at tiny size."""

import csv
from functools import partial

import commands
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import assert_refused, module
from networks import narrow_vgg as narrow

from nstjax import features, images, solvers

pytestmark = pytest.mark.usefixtures("quickly")
ablate = module("ablate_schedules")


def half_cosine(lengths):
    """SGDR's eq. 5 with rates from 0.1 to 0, cycle by cycle."""
    return [0.05 * (1 + np.cos(np.pi * i / length)) for length in lengths for i in range(length)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [0.1] * 14),
        ("cosine", half_cosine([14])),
        ("step decay", [0.1] * 7 + [0.01] * 4 + [0.001] * 3),
        ("warm restarts", half_cosine([2, 4, 8])),
    ],
)
def test_schedules_by_hand(name, expected):
    schedule = ablate.SCHEDULES[name](0.1, 14)
    np.testing.assert_allclose([schedule(i) for i in range(14)], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_short_runs_have_cycles_too(steps):
    ends = ablate.cycle_ends(steps)
    assert ends == sorted(set(ends)) and ends[0] > 0 and ends[-1] == steps
    for of in ablate.SCHEDULES.values():
        assert of(0.1, steps)(0) == pytest.approx(0.1)


def objective(image, data):
    loss = jnp.mean((image - data["target"]) ** 2)
    return loss, {"loss": loss}


@pytest.mark.parametrize("name", ablate.SCHEDULES)
def test_rates_in_the_data_are_adams(name):
    first, target = np.full((4, 5, 3), 0.5, np.float32), np.random.default_rng(0).random((4, 5, 3), np.float32)
    schedule = ablate.SCHEDULES[name](0.05, 9)

    def descent(solver, data):
        return [terms["loss"] for _, _, terms in solvers.run(solver, first, data | {"target": target}, steps=9)]

    found = descent(ablate.adam(objective), {"rates": jnp.stack([schedule(i) for i in range(9)])})
    expected = descent(solvers.gradient(objective, optax.adam(schedule, b2=0.99)), {})
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    constant = descent(ablate.adam(objective), {"rates": jnp.full(9, 0.05)})
    assert name == "constant" or abs(found[-1] / constant[-1] - 1) > 0.01


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs ablate_schedules.py in this process with a narrow network; returns the study's folder."""
    monkeypatch.setattr(features, "load", lambda network, *args, **kwargs: features.prepare(narrow(network)))

    def run(*given, output="study"):
        commands.run(
            monkeypatch, "ablate_schedules", *("--output", tmp_path / output, "--size", 32, "--steps", 9), *given
        )
        return tmp_path / output

    return run


def test_the_study_from_end_to_end(run, capsys):
    chosen = ["--rates", "0.08", "0.02"]
    folder = run(*chosen)
    table = {row["run"]: row for row in csv.DictReader((folder / "results.csv").read_text().splitlines())}
    assert list(table) == [f"{name} from rate {rate}" for name in ablate.SCHEDULES for rate in ("0.02", "0.08")]
    assert all(float(row["left"]) < 1 for row in table.values())
    assert len({row["loss"] for row in table.values()}) == len(table)  # schedules and rates all count
    card = (folder / "card.html").read_text()
    assert card.count("<img src=") == 3 + 4 * 2 + 4 * 3  # originals, runs, and three ends of cycles
    assert images.load(folder / "sheet.png").std() > 0.1
    capsys.readouterr()
    run(*chosen)
    assert "8 of 8 runs are done already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--strength", "1"], "--strength: 1.0: give a number between 0 and 1"),
        (["--rates", "0.1", "-2"], "--rates: -2.0: give a number above 0"),
        (["--rates", "nan"], "--rates: nan: give a number above 0"),
        (["--content", "none.jpg"], "none.jpg: no such file"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(run, capsys, monkeypatch, given, told):
    assert_refused(partial(run, *given), told, capsys, monkeypatch)
