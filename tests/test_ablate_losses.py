"""experiments/ablate_losses.py: its losses and figures, and the whole command at tiny size with narrow networks."""

import csv
import itertools
import json
import sys
from functools import partial
from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import PARAMS, assert_refused, module, smooth

from nstjax import features, images, nets
from nstjax.nets import io
from nstjax.studies import measures, runner, terms

pytestmark = pytest.mark.usefixtures("quickly")


ablate = module("ablate_losses")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder of pictures, and of a tiny decoder for AdaIN."""
    folder = tmp_path_factory.mktemp("losses")
    for i, name in enumerate(("photo", "painting", "adain")):
        images.save(folder / f"{name}.png", smooth(i))
    decoder = nets.Decoder(channels=(6, 5, 4), level=1.0)
    images.save(folder / "long.png", smooth(0, (60, 320)))
    variables = decoder.init(jax.random.key(0), np.zeros((1, 4, 5, 7), np.float32))
    io.save(folder / "adain.safetensors", variables, {"net": "adain"})
    net = nets.TransformNet(width=4, blocks=1)
    variables = net.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    io.save(folder / "fast.safetensors", variables, {"net": "fast"})
    return folder


@pytest.fixture
def run(here, tmp_path, monkeypatch):
    """Runs ablate_losses.py in this process with narrow networks; returns the study's folder."""
    return partial(command, here, tmp_path, monkeypatch)


def command(here, folder, patch, *given, output="study"):
    patch.setattr(features, "load", lambda network, *args, **kwargs: PARAMS[network])
    patch.setitem(nets.NETS, "adain", nets.Decoder(channels=(6, 5, 4), level=1.0))
    patch.setitem(nets.NETS, "fast", nets.TransformNet(width=4, blocks=1))
    flags = ["--output", folder / output, "--size", 40, "--steps", 12]
    flags += ["--content", here / "photo.png", "--style", here / "painting.png", *given]
    commands.run(patch, "ablate_losses", *flags)
    return folder / output


@pytest.fixture(scope="module")
def whole(here, quickly, tmp_path_factory):
    """The folder of a study of everything."""
    with pytest.MonkeyPatch.context() as patch:
        yield command(here, tmp_path_factory.mktemp("whole"), patch, "--adain", here / "adain.safetensors")


def table(folder):
    rows = csv.DictReader((folder / "results.csv").read_text().splitlines())
    return {row["run"]: {name: float(row[name]) for name in (*measures.FIGURES, "left")} for row in rows}


def test_every_loss_of_every_group_paints_an_image(whole):
    figures = table(whole)
    names = [name for group in ablate.GROUPS.values() for name in group]
    augustins = [f"Augustins’s α of {alpha} at 40 px" for alpha in ("5×10⁻⁶", "0.05", "0.01", "0.001")]
    assert list(figures) and set(figures) == {ablate.BASELINE, *names, *augustins}
    assert all(np.isfinite(list(row.values())).all() for row in figures.values())
    # All of them leave the content image for a smaller loss.
    assert {name for name, row in figures.items() if not (row["left"] < 1 and row["mse"] > 1e-5)} == set()
    assert all(figures[name]["style_distance"] < 1 for name in (ablate.BASELINE, *ablate.GROUPS["distances"]))
    card = (whole / "card.html").read_text()
    assert card.count("<img src=") == 4 + len(names) + 4
    assert "uncalibrated" in card and all(heading in card for heading in ablate.HEADING.values())
    assert images.load(whole / "sheet.png").std() > 0.1


def test_weights_do_what_they_are_for(whole):
    figures = table(whole)
    base = figures[ablate.BASELINE]
    sweep = [figures[name] for name in ablate.GROUPS["alpha"]]
    sweep.insert(len(sweep) // 2, base)
    assert sweep[0]["content_distance"] > sweep[-1]["content_distance"]
    assert sweep[0]["style_distance"] < sweep[-1]["style_distance"]
    # Compared where α is 1: a weak weight in few steps says little.
    assert figures["total variation (power 1)"]["roughness"] < base["roughness"]


def test_a_first_loss_is_its_weight(whole):
    """Style is measured in the content image's own loss, with which a run begins; content has no loss there."""
    for run in json.loads((whole / "results.json").read_text())["runs"]:
        weights = run["configuration"]["losses"]
        first = json.loads((whole / run["files"].replace("*", "json")).read_text())["curve"]
        for name, weight in weights.items():
            if terms.TERMS[name].kind == "change":
                assert first[name][0] == pytest.approx(weight, rel=1e-3)
            elif name not in ("gatys_style", "content_charbonnier"):
                assert first[name][0] == pytest.approx(0, abs=1e-5)


def test_what_is_done_is_not_done_again(whole, here, capsys):
    folder = whole.parent
    with pytest.MonkeyPatch.context() as patch:
        command(here, folder, patch, "--groups", "alpha", "adain", "--adain", here / "adain.safetensors")
    assert "7 of 7 runs are done already" in capsys.readouterr().out
    assert (whole / "card.html").read_text().count("<img src=") == 4 + 4 + 2
    # Against another reference they are other runs.
    with pytest.MonkeyPatch.context() as patch:
        command(here, folder, patch, "--groups", "adain", "--reference", here / "adain.png")
    assert "done already" not in capsys.readouterr().out


def test_runs_that_differ_in_numbers_alone_share_a_program(run, here, monkeypatch):
    caught = []

    def stop(flags, programs, measure):
        caught.extend(programs)
        sys.exit(0)

    monkeypatch.setattr(runner, "run", stop)
    with pytest.raises(SystemExit):
        reference = ("--reference", here / "adain.png")
        run("--groups", "distances", "tv", "alpha", "laplacian", "augustins", "patches", "wasserstein", *reference)
    assert [len(program.runs) for program in caught] == [1 + 4 + 4 + 4 + 2 + 4, 2, 1]
    for program in caught:
        prepared = [each.prepare() for each in program.runs]
        shapes = [jax.tree.map(jnp.shape, each) for each in prepared]
        assert all(each == shapes[0] for each in shapes)
        weights = [{name: float(x) for name, x in data["weights"].items()} for _, data in prepared]
        for one, other in itertools.combinations(weights, 2):
            assert one != other
    # Nothing that is dear is computed for those that do not want it.
    assert "wasserstein" not in caught[0].runs[0].prepare()[1]["weights"]


def result(name, group, weights, content, style, size=256, **more):
    figures = {"content_distance": content, "style_distance": style, "moments_distance": 2 * style, "ssim": 0.5}
    figures |= {"reference_mse": 0.1, "reference_ssim": 0.5, "reference_lpips": 1, "evaluations": 9} | more
    configuration = {"group": group, "losses": weights, "size": size}
    return runner.Result(name, configuration, figures, [], {}, 1.0, 1.0, {}, Path("x.png"))


SWEEP = [
    result("base", "distances", {"style": 10.0}, 0.4, 0.01),
    result("α 100", "alpha", {"style": 100.0}, 0.8, 0.001),
    result("α 1", "alpha", {"style": 1.0}, 0.2, 0.1),
]


def test_against_the_sweep():
    """On the sweep it is 1, twice above it 2; between its points by logarithms; beyond it nothing is known."""
    for point in SWEEP:
        assert ablate.against(SWEEP, point, "style_distance") == pytest.approx(1)
    between = result("x", "tv", {}, (0.4 * 0.8) ** 0.5, 2 * (0.01 * 0.001) ** 0.5)
    assert ablate.against(SWEEP, between, "style_distance") == pytest.approx(2)
    for content in (0.19, 0.81):
        assert ablate.against(SWEEP, result("x", "tv", {}, content, 0.1), "style_distance") is None


def test_losses_are_ranked_by_style_at_equal_content():
    some = [("other", 0.4, 0.02), ("far", 0.1, 0.3), ("half", 0.4, 0.005)]
    ranks = ablate.ranked(SWEEP, [result(name, "tv", {}, *distances) for name, *distances in some])
    assert [row["run"] for row in ranks] == ["half", "other", "far"]
    assert [row["moments_distance"] for row in ranks] == [pytest.approx(0.5), pytest.approx(2), None]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--adain", "{here}/adain.safetensors", "--reference", "{here}/adain.png"], "--adain, --reference: both"),
        (["--adain", "{here}/none.safetensors"], "none.safetensors: no such file"),
        (["--adain", "{here}/fast.safetensors"], "fast.safetensors: is another net than AdaIN's decoder"),
        (["--adain", "{here}/photo.png"], "photo.png: is no trained style"),
        (["--reference", "{here}/none.png"], "none.png: no such file"),
        (["--content", "{here}/none.png"], "none.png: no such file"),
        (["--style", "{here}/none.png"], "none.png: no such file"),
        (["--size", "34"], "becomes 34x27 px"),
        (["--content", "{here}/long.png", "--size", "256"], "long.png: 320x60 px becomes 128x24 px"),
        (["--style", "{here}/long.png", "--size", "256"], "long.png: 320x60 px becomes 128x24 px"),
        (["--weights", "{here}/none.h5"], "none.h5: cannot be read"),
        (["--seed", "-1"], "--seed: -1: give a number of 0 or more"),
        (["--seed", "1"], "--seed: would change nothing"),
        (["--size", "0"], "--size: 0: give a number above 0"),
        (["--steps", "-3"], "--steps: -3: give a number above 0"),
        (["--output", "{here}/photo.png"], "is a file, not a folder"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(run, here, capsys, monkeypatch, given, told):
    given = [part.format(here=here) for part in given]
    assert_refused(partial(run, *given), told, capsys, monkeypatch)
