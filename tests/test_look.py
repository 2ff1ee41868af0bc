"""benchmarks/look.py: paints pairs by presets, measures them, and goes on where it was."""

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from commands import PARAMS, smooth

from nstjax import features, images, metrics, recipes

PRESETS = ("fast", "neighbor")


@pytest.fixture
def look(monkeypatch):
    """The benchmark, with presets of two steps and narrow networks."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    look, nets = importlib.import_module("look"), PARAMS | {"squeezenet11": features.load("squeezenet11")}
    monkeypatch.setattr(look, "params", nets.__getitem__)
    for name in PRESETS:
        monkeypatch.setitem(recipes.PRESETS, name, recipes.PRESETS[name]._replace(steps=2, scales=1))
    return look


def test_every_preset_paints_every_pair_once(look, tmp_path, monkeypatch):
    given = {name: tmp_path / name for name in ("contents", "styles")}
    for number, (name, file) in enumerate((("contents", "a"), ("styles", "b"), ("styles", "c"))):
        images.save(given[name] / f"{file}.png", smooth(number, (48, 56)))
    output = tmp_path / "out"
    look.main(**given, output=output, presets=PRESETS, pairs=2, size=40)
    rows = json.loads((output / "results.json").read_text())
    order = [(row["content"], row["style"], row["preset"]) for row in rows["images"]]
    assert order == [("a.png", style, preset) for style in ("b.png", "c.png") for preset in PRESETS]
    numbers = [x for row in (*rows["means"], *rows["images"]) for x in row.values() if not isinstance(x, str)]
    assert all(map(math.isfinite, numbers)) and (output / "card.html").read_text().count("data:image/jpeg") == 2 * (
        2 + 2
    )

    content, style = (
        images.cover(images.load(path), (40, 40)) for path in (given["contents"] / "a.png", given["styles"] / "c.png")
    )
    image, judge = images.load(output / "01-neighbor.png"), features.EXTRACTORS["squeezenet11"]
    distance = metrics.style_distance(
        judge.features, look.params("squeezenet11"), image, style, content, layers=judge.style
    )
    np.testing.assert_allclose(rows["images"][3]["style_squeezenet11"], distance, rtol=1e-3)
    np.testing.assert_allclose(rows["images"][3]["ssim"], metrics.ssim(image, content), rtol=1e-4)
    mean = np.mean([row["lpips"] for row in rows["images"] if row["preset"] == "neighbor"])
    np.testing.assert_allclose(rows["means"][1]["lpips"], mean, rtol=1e-6)

    # Only what is missing is painted again, and the figures are the same.
    (output / "00-fast.png").unlink()
    calls, paint = [], look.paint
    monkeypatch.setattr(look, "paint", lambda *args: calls.append(args[2]) or paint(*args))
    look.main(**given, output=output, presets=PRESETS, pairs=2, size=40)
    again = json.loads((output / "results.json").read_text())["images"]
    assert calls == ["fast"]
    for old, new in zip(rows["images"], again, strict=True):
        assert old["lpips"] == pytest.approx(new["lpips"], rel=1e-4)
    # An image of other settings is no finished one.
    look.main(**given, output=output, presets=("fast",), pairs=1, size=36)
    assert calls == ["fast", "fast"] and images.shape(output / "00-fast.png") == (36, 36)
