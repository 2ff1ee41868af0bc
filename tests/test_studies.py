"""The runs of a study, what it leaves behind, and inputs that no study overwrites."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import commands
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import assert_refused

from nstjax import images, metrics, solvers
from nstjax.errors import InputError
from nstjax.studies import cards, report, runner
from nstjax.studies.settings import Settings

ROOT = Path(__file__).parent.parent
SHAPE = (32, 40, 3)
TARGETS = {f"target {i}": np.random.default_rng(i).random(SHAPE, np.float32) for i in range(5)}


def objective(image, data):
    near = jnp.mean((image - data["target"]) ** 2)
    return data["weight"] * near, {"near": near}


ADAM = solvers.gradient(objective, optax.adam(0.05))


def program(names=TARGETS, *, steps=6, weight=1.0, prepared=None, **more):
    """Runs towards targets; `prepared` collects the names of those that are really run."""

    def prepare(name):
        if prepared is not None:
            prepared.add(name)
        return np.full(SHAPE, 0.5, np.float32), {"params": None, "target": TARGETS[name], "weight": jnp.float32(weight)}

    runs = [runner.Run(name, {"weight": weight, "seed": 3}, lambda name=name: prepare(name)) for name in names]
    return runner.Program(ADAM, steps, SHAPE[:2], runs, **more)


def measure(run, image):
    return {"mse": float(metrics.mse(image, TARGETS[run.name]))}


@pytest.fixture
def settings(tmp_path):
    return Settings(output=tmp_path / "study")


def test_runs_come_back_in_order_with_image_figures_and_curve(settings):
    results = runner.run(settings, [program()], measure=measure)
    assert [result.name for result in results] == list(TARGETS)
    for result in results:
        assert result.curve["evaluations"] == list(range(1, 7))
        assert result.curve["seconds"][0] == 0 and np.all(np.diff(result.curve["seconds"]) > 0)
        assert result.figures["loss"] == result.curve["loss"][-1] == result.figures["near"]
        assert result.left == result.curve["loss"][-1] / result.curve["loss"][0] < 0.8
        # Measured on what is saved.
        assert result.figures["mse"] == float(metrics.mse(result.image(), TARGETS[result.name]))
        assert result.line("near")[2] == (3, result.curve["near"][2])
        assert result.line("loss", "seconds")[5] == (result.curve["seconds"][5], result.figures["loss"])
        assert result.seconds > 0 and result.peak_memory > 1e6


def test_together_is_as_alone(settings):
    together = runner.run(settings, [program()], measure=measure)
    for result in together:
        alone = runner.run(
            settings._replace(output=settings.output / "alone"), [program([result.name])], measure=measure
        )
        np.testing.assert_allclose(alone[0].curve["loss"], result.curve["loss"], rtol=1e-4)
        np.testing.assert_allclose(alone[0].image(), result.image(), atol=1.01 / 255)


def test_what_is_done_is_skipped_and_what_changed_is_run_again(settings, capsys):
    first = runner.run(settings, [program()], measure=measure)
    prepared: set[str] = set()
    again = runner.run(settings, [program(prepared=prepared)], measure=measure)
    assert not prepared and again == first
    assert "5 of 5 runs are done already" in capsys.readouterr().out

    names = list(TARGETS)
    programs = [program(names[:4], prepared=prepared), program(names[4:], weight=2.0, prepared=prepared)]
    changed = runner.run(settings, programs, measure=measure)
    assert prepared == {"target 4"} and changed[:4] == first[:4]
    assert changed[4].configuration["weight"] == 2.0 and changed[4].figures["loss"] != first[4].figures["loss"]
    prepared.clear()
    runner.run(settings, [program(steps=7, prepared=prepared)], measure=measure)
    assert prepared == set(names)


@pytest.mark.parametrize("damage", ["no image", "half an image", "half a table", "no table", "another table"])
def test_what_is_damaged_is_run_again(settings, damage):
    results = runner.run(settings, [program()], measure=measure)
    image, table = results[1].path, results[1].path.with_suffix(".json")
    assert image == settings.output / "runs" / "target-1.png"
    if damage == "no image":
        image.unlink()
    elif damage == "half an image":
        image.write_bytes(image.read_bytes()[:500])
    elif damage == "half a table":
        table.write_text(table.read_text()[:100])
    elif damage == "no table":
        table.unlink()
    else:
        table.write_text("[1, 2]")
    prepared: set[str] = set()
    again = runner.run(settings, [program(prepared=prepared)], measure=measure)
    assert prepared == {"target 1"}
    assert again[0] == results[0] and again[1].figures == pytest.approx(results[1].figures, rel=1e-4)


def test_chosen_steps_are_kept_and_measured(settings):
    chosen = program(["target 0"], keep=(0, 2, 4, 6, 99))
    result = runner.run(settings, [chosen], measure=measure)[0]
    assert [moment["step"] for moment in result.moments] == [0, 2, 4]
    errors = [moment["mse"] for moment in result.moments] + [result.figures["mse"]]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] == float(metrics.mse(result.image(2), TARGETS["target 0"]))
    assert runner.run(settings, [chosen], measure=measure) == [result]
    runner._moment(result.path, 2).unlink()
    prepared: set[str] = set()
    runner.run(settings, [program(["target 0"], keep=(0, 2, 4, 6, 99), prepared=prepared)], measure=measure)
    assert prepared == {"target 0"}


def test_a_run_that_diverges_is_a_result(settings):
    result = runner.run(settings, [program(["target 0"], weight=np.nan, steps=30)], measure=measure)[0]
    assert result.figures["loss"] is None and result.left is None
    assert json.loads(result.path.with_suffix(".json").read_text())["curve"]["loss"] == [None] * 9
    np.testing.assert_allclose(result.image(), 0.5, atol=1 / 255)


def test_a_rejected_step_does_not_count():
    curve = {"evaluations": [1, 2, 3], "seconds": [0.0, 1.0, 2.0], "loss": [3.0, 2.0, 9.0], "failures": [0, 0, 1]}
    assert runner._last(curve) == {"loss": 2.0, "evaluations": 3}
    taken = runner.Result("", {}, {"loss": 2.0}, [], curve, 1.0, 1.0, {}, Path("x.png"))
    assert taken.line("loss") == [(1, 3.0), (2, 2.0)] and taken.left == pytest.approx(2 / 3)


def test_names_may_be_anything_but_the_same(settings):
    names = ["../../etc", "a/b", "a?b", "ä" * 300, ".", "<b>", "caf\udce9"]
    runs = [runner.Run(name, {}, program(["target 0"]).runs[0].prepare) for name in names]
    results = runner.run(settings, [runner.Program(ADAM, 1, SHAPE[:2], runs)])
    assert {result.path.parent for result in results} == {settings.output / "runs"}
    assert len({result.path for result in results}) == len(names)
    with pytest.raises(ValueError, match="same name"):
        runner.run(settings, [runner.Program(ADAM, 1, SHAPE[:2], runs[:1] * 2)])


def written(settings, results, title="A <study>"):
    thumbnails = [cards.Thumbnail(r.image(), r.name) for r in results]
    text, blocks = report.Text(title, "", "Lower is better."), [cards.gallery([("row", thumbnails)], caption="c")]
    sheet = report.sheet([("row", thumbnails)], cell=80)
    report.write(settings, results, text, blocks=blocks, sheet=sheet, table={"run": "Run", "loss": "Loss"})


def test_a_study_leaves_a_card_tables_and_a_sheet(settings):
    results = runner.run(settings, [program()], measure=measure)
    written(settings, results)
    table = list(csv.DictReader((settings.output / "results.csv").read_text().splitlines()))
    assert [row["run"] for row in table] == list(TARGETS)
    assert [float(row["mse"]) for row in table] == [result.figures["mse"] for result in results]
    whole = json.loads((settings.output / "results.json").read_text())
    assert whole["evaluations"] == 5 * 6 and whole["seeds"] == "3"
    assert whole["seconds"] == sum(result.seconds for result in results)
    assert "jaxopt" in whole["versions"] and "cores" in whole["hardware"] and whole["peak_memory"] > 1e6
    sheet = images.load(settings.output / "sheet.png")
    assert sheet.shape[1] > 5 * 80 and sheet.std() > 0.1  # enlarged, in a row
    card = (settings.output / "card.html").read_text()
    assert "A &lt;study&gt;" in card and card.count("<img src=") == 5
    for told in (
        "Lower is better.",
        "Command",
        "Hardware",
        "Versions",
        "Evaluations",
        "Peak memory",
        "Seeds",
        "target 4",
    ):
        assert told in card


def test_names_of_files_that_are_no_unicode_can_be_told(settings, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments/study.py", "--content", "caf\udce9.jpg"])
    written(settings, runner.run(settings, [program()], measure=measure))
    assert "--content 'caf\ufffd.jpg'" in json.loads((settings.output / "results.json").read_text())["command"]


def test_where_nothing_is_random_there_is_no_seed(settings):
    results = [each._replace(configuration={}) for each in runner.run(settings, [program()], measure=measure)]
    written(settings, results)
    assert json.loads((settings.output / "results.json").read_text())["seeds"].startswith("none")


def test_a_full_disk_is_told_and_the_old_card_stays(settings, monkeypatch):
    results = runner.run(settings, [program()], measure=measure)
    written(settings, results)
    before = (settings.output / "card.html").read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device.*free some space") as error:
        written(settings, results, title="Another")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="free some space"):
        runner.run(settings, [program(steps=2)], measure=measure)
    monkeypatch.undo()
    assert (settings.output / "card.html").read_bytes() == before
    assert not [path for path in settings.output.rglob("*") if path.suffix == ".tmp"]


STUDY = """
import sys, time
sys.path[:0] = [{tests!r}]
import test_studies as t
def slowly(run, image):
    print(run.name, flush=True)
    time.sleep({pause})
    return t.measure(run, image)
t.runner.run(t.Settings(output=t.Path({folder!r})), [t.program([name]) for name in t.TARGETS], measure=slowly)
print("finished")
"""


def start(settings, pause):
    code = STUDY.format(tests=str(ROOT / "tests"), folder=str(settings.output), pause=pause)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_a_killed_study_goes_on_where_it_was(settings):
    process = start(settings, pause=1.0)
    while not list(settings.output.glob("runs/*.json")):
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {path.stem for path in settings.output.glob("runs/*.json")}
    assert 1 <= len(done) < 5
    prepared: set[str] = set()
    results = runner.run(settings, [program([name], prepared=prepared) for name in TARGETS], measure=measure)
    assert {name.replace(" ", "-") for name in prepared} == {name.replace(" ", "-") for name in TARGETS} - done
    fresh = settings._replace(output=settings.output / "fresh")
    whole = runner.run(fresh, [program([name]) for name in TARGETS], measure=measure)
    assert [result.figures for result in whole] == [result.figures for result in results]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_done_and_says_how_to_go_on(settings, number, status):
    process = start(settings, pause=0.5)
    assert process.stdout.readline() == "target 0\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    done = len(list(settings.output.glob("runs/*.json")))
    assert process.returncode == status and "finished" not in out
    assert f"{done} of 5 runs are done and kept in {settings.output}; the same command goes on from there" in error
    assert "Traceback" not in error and done >= 1


def test_shares_in_words():
    assert [report.percent(share) for share in (0.1234, 0.001234, 6.647, np.inf, None)] == [
        "12\N{NO-BREAK SPACE}%",
        "0.12\N{NO-BREAK SPACE}%",
        "660\N{NO-BREAK SPACE}%",
        "\N{INFINITY}\N{NO-BREAK SPACE}%",
        "–",
    ]
    assert report.short(0.12345) == "0.12" and report.short(None) == "–"


@pytest.mark.parametrize("name", ["reconstruct", "ablate_features", "ablate_iterations", "ablate_losses"])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--content", "{here}/sheet.png"], "sheet.png: is an input"),
        (["--style", "{here}/runs/a.png"], "runs/a.png: is an input"),
        (["--style", "{here}/link.png"], "runs/a.png: is an input ("),
        (["--seed", "-1"], "--seed: -1: give a number of 0 or more"),
        (["--seed", str(2**32)], "--seed: 4294967296"),
    ],
)
def test_a_study_writes_over_no_input(tmp_path, capsys, monkeypatch, name, given, told):
    (tmp_path / "runs").mkdir()
    for path in (tmp_path / "sheet.png", tmp_path / "runs" / "a.png"):
        images.save(path, np.zeros((40, 40, 3)))
    (tmp_path / "link.png").symlink_to(tmp_path / "runs" / "a.png")
    given = ["--output", tmp_path, "--quick", *(part.format(here=tmp_path) for part in given)]
    assert_refused(partial(commands.run, monkeypatch, name, *given), told, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--weights", "{here}/results.json"], "results.json: is an input"),
        (["--adain", "{here}/runs/a.png"], "runs/a.png: is an input"),
        (["--reference", "{here}/sheet.png"], "sheet.png: is an input"),
        (["--style", "{here}/pipe"], "pipe: is a FIFO, not a regular file"),
    ],
)
def test_every_input_counts(tmp_path, capsys, monkeypatch, given, told):
    (tmp_path / "runs").mkdir()
    for path in (tmp_path / "sheet.png", tmp_path / "runs" / "a.png", tmp_path / "results.json"):
        images.save(path.with_suffix(".png"), np.zeros((40, 40, 3)))
        path.with_suffix(".png").rename(path)
    images.save(tmp_path / "content.png", np.ones((40, 40, 3)))
    os.mkfifo(tmp_path / "pipe")
    given = ["--content", "{here}/content.png", "--output", "{here}", "--quick", *given]
    given = [part.format(here=tmp_path) for part in given]
    assert_refused(partial(commands.run, monkeypatch, "ablate_optimizers", *given), told, capsys, monkeypatch)
