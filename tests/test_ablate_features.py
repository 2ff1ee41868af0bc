"""experiments/ablate_features.py: units, judges, weights that cannot be had, the study at tiny size."""

import csv
from functools import partial

import commands
import jax
import numpy as np
import pytest
from commands import assert_refused, module
from networks import narrow_vgg as narrow

from nstjax import features, images, losses, objectives
from nstjax.errors import InputError
from nstjax.studies import measures, runner

pytestmark = pytest.mark.usefixtures("quickly")
RNG = np.random.default_rng(0)
CONTENT, STYLE = (
    np.asarray(jax.image.resize(RNG.random((6, 7, 3), np.float32), (36, 40, 3), "cubic")).clip(0, 1) for _ in range(2)
)


ablate = module("ablate_features")


def narrow_squeezenet():
    rng, tree = np.random.default_rng(1), {"mean": np.full(3, 0.45, np.float32)}
    for layer, parts in features.EXTRACTORS["squeezenet11"].shapes().items():
        kind = "strided" if "strided" in parts else "kernel"
        h, w, before, after = parts[kind]
        before, after = (before if before == 3 else before // 8), after // 8
        kernel = rng.normal(0, (2 / (h * w * before)) ** 0.5, (h, w, before, after)).astype(np.float32)
        tree[layer] = {kind: kernel, "bias": np.zeros(after, np.float32)}
    return tree


def tiny(network, source="bundled", *, seed=0, **more):
    """`features.load` of narrow networks; official weights cannot be had."""
    if source in ("keras", "torchvision") or "." in str(source):
        raise InputError(f"https://example.org/{network}: cannot be downloaded (no network)")
    tree = narrow_squeezenet() if network == "squeezenet11" else narrow(network, seed + (source == "random"))
    return features.prepare(tree, winograd=False)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs ablate_features.py in this process with narrow networks; returns the study's folder."""
    monkeypatch.setattr(features, "load", tiny)

    def run(*given, output="study"):
        command = ["--output", tmp_path / output, "--size", 40, "--steps", 6, *given]
        commands.run(monkeypatch, "ablate_features", *command)
        return tmp_path / output

    return run


def test_layers_are_those_of_the_networks():
    for variant in ablate.VARIANTS.values():
        known = features.EXTRACTORS[variant.network].layers
        assert set(sum(variant.layers, ())) <= set(known)
        depths = [known.index(name) for name in variant.layers[1]]
        assert depths == sorted(set(depths))
    assert set(ablate.Name.__args__) == set(ablate.VARIANTS) >= set(ablate.QUICK)


@pytest.mark.parametrize("swag", [False, True])
@pytest.mark.parametrize("name", ["vgg19", "squeezenet11"])
def test_every_loss_begins_in_units_of_its_own(name, swag):
    variant = ablate.VARIANTS[name]
    objective, balanced = ablate.loss_of(variant, swag=swag, strength=0.25, temperature=1.0)
    objective = jax.jit(objective)
    for louder in (1, 30):
        tree = narrow_squeezenet() if name == "squeezenet11" else narrow(name)
        last = "fire9_expand3x3" if name == "squeezenet11" else "conv5_1"
        tree[last] = {part: louder * array for part, array in tree[last].items()}
        data = balanced(features.prepare(tree, winograd=False), CONTENT, STYLE)
        loss, terms = objective(CONTENT, data)
        assert terms["content"] == pytest.approx(0, abs=1e-6)
        np.testing.assert_allclose(loss, objectives.SCALE * 300 * 0.25**2, rtol=1e-4)
        for only in variant.layers[1]:
            one = {layer: weight * (layer == only) for layer, weight in data["style_layers"].items()}
            alone, _ = objective(CONTENT, data | {"style_layers": one})
            np.testing.assert_allclose(alone, loss / len(variant.layers[1]), rtol=1e-3)


def test_swag_compares_softened_features():
    variant = ablate.VARIANTS["vgg19"]
    params = features.prepare(narrow(), winograd=False)
    _, balanced = ablate.loss_of(variant, swag=True, strength=0.5, temperature=2.0)
    data = balanced(params, CONTENT, STYLE)
    acts = features.EXTRACTORS["vgg19"].features(params, CONTENT)["relu4_2"]
    expected = np.exp(np.asarray(acts / (2 * acts.std()), np.float64))
    np.testing.assert_allclose(data["content"]["relu4_2"], expected / expected.mean(), rtol=1e-3)
    goal = features.EXTRACTORS["vgg19"].features(params, STYLE)["relu1_1"]
    deviation = features.EXTRACTORS["vgg19"].features(params, CONTENT)["relu1_1"].std()
    soft = losses.swag(goal, temperature=2 * deviation)
    target = data["styles"][0]["targets"]["relu1_1"]
    np.testing.assert_allclose(target, losses.gram(soft), rtol=1e-3)


def test_judges_see_what_is_there_and_never_their_own(monkeypatch):
    monkeypatch.setattr(features, "load", tiny)
    measure = measures.judged(CONTENT, STYLE, STYLE)
    by = lambda network: runner.Run("", {"network": network}, lambda: ())  # noqa: E731
    same, other = measure(by("resnet50"), CONTENT), measure(by("resnet50"), STYLE)
    assert same["ssim"] == pytest.approx(1) and same["lpips"] == pytest.approx(0, abs=1e-6)
    assert other["reference_ssim"] == pytest.approx(1) and other["reference_mse"] == 0 < same["reference_mse"]
    for judge in measures.JUDGES:
        assert same[f"style_{judge}"] == pytest.approx(1, rel=1e-4) and same[f"content_{judge}"] == 0
        assert other[f"style_{judge}"] == pytest.approx(0, abs=1e-6) and other[f"content_{judge}"] > 0.05
    own = {judge: measure(by(judge), STYLE) for judge in measures.JUDGES}
    assert own["vgg16"] == other | dict.fromkeys(("content_vgg16", "style_vgg16", "lpips", "reference_lpips"))
    assert own["squeezenet11"] == other | dict.fromkeys(("content_squeezenet11", "style_squeezenet11"))


def test_the_study_from_end_to_end(run, capsys):
    chosen = ["--extractors", "vgg19", "vgg19-average", "vgg19-instance-norm", "vgg16", "resnet50"]
    folder = run(*chosen)
    table = {row["run"]: row for row in csv.DictReader((folder / "results.csv").read_text().splitlines())}
    titles = [ablate.VARIANTS[name].name for name in chosen[1:-1]]
    assert list(table) == [more + title for title in titles for more in ("", "SWAG on ")]
    assert all(float(row["left"]) < 1 for row in table.values())
    blank = {name for name, row in table.items() if not row["style_vgg16"]}
    assert blank == {"VGG-16", "SWAG on VGG-16"}
    assert len({row["loss"] for row in table.values()}) == len(table)  # pooling, norms, weights and softmax all count
    card = (folder / "card.html").read_text()
    assert '<b class="run">ResNet-50</b>: https://example.org/resnet50: cannot be downloaded (no network).' in card
    assert card.count("<img src=") == 3 + 8
    assert images.load(folder / "sheet.png").std() > 0.1
    capsys.readouterr()
    run(*chosen)
    assert "8 of 8 runs are done already" in capsys.readouterr().out


def test_one_network_alone_that_must_not_judge_itself(run):
    folder = run("--extractors", "vgg16", "--init", "noise", "--steps", 1)
    (row, _) = csv.DictReader((folder / "results.csv").read_text().splitlines())
    assert not row["style_vgg16"] and float(row["style_squeezenet11"]) > 0


def test_weights_are_given_by_network():
    given = ablate.sources(("resnet50=a=b.pth", "vgg19=keras"))
    assert given == {"resnet50": "a=b.pth", "vgg19": "keras"}
    sources = {name: variant.given(given).source for name, variant in ablate.VARIANTS.items()}
    assert sources["resnet50"] == "a=b.pth" and sources["resnet50-random"] == sources["vgg19-random"] == "random"
    assert sources["vgg19-average"] == "keras" and sources["vit_b16"] == "torchvision"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--weights", "resnet50"], "--weights: resnet50: give NETWORK=SOURCE, of vgg19, vgg16"),
        (["--weights", "alexnet=a.pth"], "--weights: alexnet=a.pth: give NETWORK=SOURCE"),
        (["--extractors", "resnet50", "--weights", "resnet50=torchvision"], "resnet50: cannot be downloaded"),
        (["--extractors", "vgg19", "resnet50", "--weights", "resnet50=a.pth"], "resnet50: cannot be downloaded"),
        (["--extractors", "resnet50", "vit_b16"], "--extractors: no weights of resnet50, vit_b16 can be had (https:"),
        (["--strength", "0"], "--strength: 0.0: give a number between 0 and 1"),
        (["--temperature", "0"], "--temperature: 0.0: give a number above 0"),
        (["--style", "none.jpg"], "none.jpg: no such file"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(run, capsys, monkeypatch, given, told):
    assert_refused(partial(run, *given), told, capsys, monkeypatch)
