"""experiments/reconstruct.py: its groups of layers, and the whole command at tiny size with a narrow network."""

import csv
from functools import partial

import commands
import pytest
from commands import assert_refused, module

from nstjax import features, images

reconstruct = module("reconstruct")


@pytest.fixture
def run(narrow_vgg, tmp_path, monkeypatch):
    """Runs reconstruct.py in this process with a narrow_vgg network; returns the study's folder."""
    monkeypatch.setattr(features, "load", lambda *args, **kwargs: narrow_vgg)

    def run(*given, output="study"):
        command = ["--output", tmp_path / output, "--size", 32, "--steps", 8, "--layers", "relu1_1", "relu2_1", *given]
        commands.run(monkeypatch, "reconstruct", *command)
        return tmp_path / output

    return run


def test_reconstructions_by_both_methods_of_every_layer(run, capsys):
    folder = run()
    table = {row["run"]: row for row in csv.DictReader((folder / "results.csv").read_text().splitlines())}
    whats = ["content of relu1_1", "style of relu1_1", "content of relu2_1", "style of relu2_1", "style up to relu2_1"]
    assert set(table) == {f"{what} by {method}" for what in whats for method in ("gradient descent", "L-BFGS")}
    assert all(0 < float(row["left"]) < 1 and float(row["mse"]) > 0 for row in table.values())
    assert float(table["content of relu1_1 by L-BFGS"]["loss"]) < 2  # an error as large as the features is 1
    card = (folder / "card.html").read_text()
    assert card.count("<img src=") == 2 * 2 + 10 and len(card) < 10e6
    assert images.load(folder / "sheet.png").std() > 0.1
    run()
    assert "10 of 10 runs are done already" in capsys.readouterr().out


def test_images_of_a_block_are_one_program_and_the_last_holds_the_styles_of_several_layers():
    Task = reconstruct.Task
    blocks = reconstruct.by_block(("relu3_1", "relu1_1", "conv1_2"))
    assert blocks == [
        [Task(of, (name,)) for name in ("relu1_1", "conv1_2") for of in ("content", "style")],
        [Task("content", ("relu3_1",)), Task("style", ("relu3_1",)), Task("style", ("relu3_1", "relu1_1"))],
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--layers", "relu6_1"], "--layers: no layer 'relu6_1' in vgg19"),
        (["--layers", "pool1"], "--layers: no layer 'pool1' in vgg19"),
        (["--size", "0"], "--size: 0: give a number above 0"),
        (["--size", "20"], "--size: 20: at least 32 pixels are needed"),
        (["--steps", "-1"], "--steps: -1: give a number above 0"),
        (["--step", "nan"], "--step: nan: give a number above 0"),
        (["--content", "none.jpg"], "none.jpg: no such file"),
        (["--output", "{file}"], "is a file, not a folder"),
        (["--output", "/proc/study"], "is not writable"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(run, tmp_path, capsys, monkeypatch, given, told):
    (tmp_path / "file").write_text("")
    given = [part.format(file=tmp_path / "file") for part in given]
    assert_refused(partial(run, *given), told, capsys, monkeypatch)


def test_augustins_recipe_has_his_steps_and_transfers(run):
    folder = run("--recipe", "augustins", "--steps", 20)
    table = {row["run"]: row for row in csv.DictReader((folder / "results.csv").read_text().splitlines())}
    plain = {f"content of {name} by gradient descent": row for name, row in {"relu1_1": "20", "relu2_1": "50"}.items()}
    assert {name: str(int(table[name]["evaluations"]) - 1) for name in plain} == plain
    assert {row["step"] for name, row in table.items() if name in plain} == {"0.01", "0.0001"}
    transfers = [name for name in table if name.startswith("transfer")]
    assert len(transfers) == 6 and len(table) == 2 + 4 + 6
    assert {table[name]["size"] for name in transfers} == {"32", "64"}
    assert all(float(table[name]["content_distance"]) > 0 for name in transfers)
    assert (folder / "card.html").read_text().count("<img src=") == 2 * 2 + 6 + 6 * 2
    assert images.load(folder / "sheet.png").std() > 0.1


def test_augustins_recipe_takes_no_step_size(run, capsys, monkeypatch):
    given = ["--recipe", "augustins", "--step", "0.1"]
    assert_refused(partial(run, *given), "--step: would change nothing", capsys, monkeypatch)
