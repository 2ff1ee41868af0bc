"""Painting with arrays: what `paint` yields, several images at once, own losses and extractors, and what it rejects."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from samples import picture

from nstjax import (
    features,
    images,
    jobs,
    losses,
    methods,
    metrics,
    neural_style,
    objectives,
    recipes,
    strotss,
    weights,
    whole,
)
from nstjax.errors import InputError
from nstjax.neural_style import Job, Style
from nstjax.recipes import PRESETS, Recipe

ROOT = Path(__file__).parent.parent


def image(seed, shape=(42, 48)):
    coarse = np.random.default_rng(seed).uniform(size=(5, 6, 3)).astype(np.float32)
    return images.resize(coarse, shape)


@pytest.fixture(autouse=True)
def quick(quickly, narrow_vgg, request, monkeypatch):
    if "trained" not in request.keywords:
        monkeypatch.setattr(features, "load", lambda *args, **kwargs: narrow_vgg)


def test_progress_tells_where_a_painting_is():
    content = image(1, (84, 96))
    every = list(neural_style.paint(content, [image(2)], preset="gatys", scales=2, steps=6))
    scales = neural_style.schedule(PRESETS["gatys"]._replace(scales=2, steps=6), (84, 96))
    assert [each.step for each in every] == list(range(1, 1 + sum(scale.steps for scale in scales)))
    assert {each.total for each in every} == {len(every)}
    assert [each.size for each in every] == [scale.size for scale in scales for _ in range(scale.steps)]
    assert all(each.image.shape == (each.size * 84 // 96, each.size, 3) for each in every)
    assert all(each.image.min() >= 0 and each.image.max() <= 1 for each in every)
    work = [0.0, *(each.work for each in every)]
    steps = np.diff(work)
    assert work[-1] == pytest.approx(1)
    # A step on a quarter of the pixels, with their border, is a quarter of the work and a little.
    assert steps[-1] / steps[0] == pytest.approx((96 / (48 + 2 * 3)) ** 2)
    assert all(
        each.terms["loss"] == pytest.approx(each.terms["content"] + each.terms["style"], rel=1e-5) for each in every
    )
    assert every[-1].terms["loss"] < next(each.terms["loss"] for each in every if each.size == 96)


def test_a_recipe_or_its_name_and_changes_are_one_thing():
    def last(**options):
        *_, progress = neural_style.paint(image(1), [image(2)], **options)
        return progress.image

    named = last(preset="fast", steps=8, strength=0.6)
    np.testing.assert_array_equal(named, last(preset=PRESETS["fast"]._replace(steps=8, strength=0.6)))
    assert np.abs(named - last(preset="fast", steps=8, strength=0.9)).max() > 0.01


def test_a_batch_is_its_images():
    jobs = [Job(image(i), [image(10 + i)], "noise", seed=i, style_weight=10.0**i) for i in range(3)]
    *_, together = neural_style.paint_batch(jobs, preset="gatys", steps=3)
    assert together.image.shape == (3, 42, 48, 3) and len(together.terms["loss"]) == 3
    for i, job in enumerate(jobs):
        how = {"init": "noise", "seed": i, "style_weight": job.style_weight}
        *_, alone = neural_style.paint(job.content, job.styles, preset="gatys", steps=3, **how)
        assert alone.terms["loss"] == pytest.approx(together.terms["loss"][i], rel=1e-3)
        assert np.abs(alone.image - together.image[i]).mean() < 1 / 255
    *_, one = neural_style.paint_batch(jobs[:1], preset="gatys", steps=3)
    assert one.image.shape == (1, 42, 48, 3) and len(one.terms["loss"]) == 1


def test_the_style_may_have_any_size_and_aspect():
    style = image(2, (90, 31))
    *_, small = neural_style.paint(image(1), [style], steps=2)
    *_, large = neural_style.paint(image(1), [images.resize(style, (180, 62))], steps=2)
    assert np.abs(small.image - large.image).mean() < 2 / 255


def test_a_style_is_painted_in_its_region_and_learned_from_its_mask():
    left = np.zeros((42, 48), np.float32)
    left[:, :24] = 1
    halves = np.concatenate([image(2, (48, 24)), image(3, (48, 24))], axis=1)
    mask = np.zeros((48, 48), np.float32)
    mask[:, :24] = 1
    *_, here = neural_style.paint(image(1), [Style(halves, mask, left)], preset="gatys", steps=4, content_weight=0.0)
    moved = np.abs(here.image - image(1)).mean((0, 2))
    assert moved[:12].mean() > 3 * moved[-12:].mean()
    *_, other = neural_style.paint(image(1), [Style(halves, 1 - mask, left)], preset="gatys", steps=4)
    assert np.abs(here.image - other.image)[:, :12].mean() > 0.01


@pytest.mark.parametrize("init", ["style", "image"])
def test_the_start_lies_inside_the_border_of_a_wider_canvas(init):
    start = image(3, (56, 64))
    job = Job(image(1, (56, 64)), [Style(start)], start if init == "image" else init)
    first = jobs.first_image(job, np.zeros((56 + 20, 64 + 20, 3), np.float32), 10)
    assert first.shape == (76, 84, 3)
    np.testing.assert_allclose(first[10:-10, 10:-10], start, atol=1e-6)


WHOLE = ("neighbor", "strotss", "sliced")


@pytest.fixture
def few_positions(monkeypatch):
    for module, name in ((strotss, "POSITIONS"), (strotss, "STYLE_POSITIONS"), (whole, "POSITIONS")):
        monkeypatch.setattr(module, name, 64)


@pytest.mark.usefixtures("few_positions")
@pytest.mark.parametrize("preset", WHOLE)
def test_presets_of_whole_images_paint_the_same_each_time(preset):
    def painted(seed=0):
        how = {"preset": preset, "scales": 2, "ratio": 2.0, "steps": 8, "seed": seed}
        return list(neural_style.paint(image(1, (64, 72)), [image(2)], **how))

    first, again, other = painted(), painted(), painted(seed=1)
    assert {each.size for each in first} == {36, 72}
    assert all(np.isfinite(each.image).all() and 0 <= each.image.min() <= each.image.max() <= 1 for each in first)
    np.testing.assert_array_equal(first[-1].image, again[-1].image)
    assert np.array_equal(first[-1].image, other[-1].image) == (not PRESETS[preset].method.random)
    fine = [each.terms["loss"] for each in first if each.size == 72]
    assert PRESETS[preset].method.random or fine[-1] < fine[0]


@pytest.mark.usefixtures("few_positions")
@pytest.mark.parametrize("preset", WHOLE)
def test_presets_of_whole_images_know_strength_and_regions(preset):
    content, dark = image(1), np.full((42, 48, 3), 0.05, np.float32)

    def last(styles, **changes):
        *_, progress = neural_style.paint(content, styles, preset=preset, steps=6, **changes)
        return progress.image

    moved = [np.abs(last([dark], strength=strength) - content).mean() for strength in (0.0, 0.1, 1.0)]
    assert moved[0] < 0.02 and moved[0] < moved[1] < moved[2]
    left = np.zeros((42, 48), np.float32)
    left[:, :24] = 1
    light = 1 - dark
    here, there = (last([Style(dark, region=region), Style(light, region=1 - region)]) for region in (left, 1 - left))
    assert (here - there)[:, :18].mean() < 0 < (here - there)[:, -18:].mean()


@pytest.mark.parametrize("preset", ["neighbor", "sliced"])
def test_a_batch_of_whole_images_is_its_images(preset):
    jobs = [Job(image(i), [image(10 + i)], seed=i) for i in range(2)]
    *_, together = neural_style.paint_batch(jobs, preset=preset, steps=3)
    *_, alone = neural_style.paint(image(1), [image(11)], preset=preset, steps=3, seed=1)
    assert np.abs(alone.image - together.image[1]).mean() < 1 / 255


def test_whole_images_need_one_device_and_their_memory():
    with pytest.raises(InputError, match="devices: "):
        neural_style.paint(image(1), [image(2)], preset="neighbor", devices=2)
    neural_style.budget(PRESETS["fast"], (1024, 1024), [(512, 512)], limit=3e9)
    with pytest.raises(InputError, match="needs .* GB"):
        neural_style.budget(PRESETS["neighbor"], (1024, 1024), [(512, 512)], limit=3e9)


def test_a_last_size_may_be_painted_twice():
    every = list(neural_style.paint(image(1), [image(2)], preset="neighbor", passes=2, steps=4))
    assert len(every) == every[0].total == 4 and {each.size for each in every} == {48}


def test_losses_of_your_own():
    base, targets = objectives.neural_style(tiny, statistic=losses.moments)

    def objective(pixels, data):
        loss, terms = base(pixels, data)
        dark = 100 * (pixels**2).mean()
        return loss + dark, terms | {"dark": dark}

    def last(pair):
        own = {"extract": tiny, "params": KERNEL, "content_layers": ("b",), "style_layers": ("a", "b")}
        *_, progress = neural_style.paint(image(1), [image(2)], preset="gatys", steps=8, objective=pair, **own)
        return progress

    plain, dark = last((base, targets)), last((objective, targets))
    assert set(dark.terms) == set(plain.terms) | {"dark"}
    assert dark.image.mean() < 0.9 * plain.image.mean()
    two = [Job(image(1), [image(2)]), Job(image(3), [image(2)])]
    own = {"extract": tiny, "params": KERNEL, "content_layers": ("b",), "style_layers": ("a", "b")}
    *_, batch = neural_style.paint_batch(two, preset="gatys", steps=8, objective=(objective, targets), **own)
    assert set(batch.terms) == set(dark.terms)
    np.testing.assert_allclose(batch.image[0], dark.image, atol=1 / 255)


KERNEL = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


def tiny(params, pixels):
    """An extractor of two layers."""
    x = jnp.tanh((pixels - 0.5) @ params)
    return {"a": x, "b": (x * jnp.roll(x, 1, axis=0))[::2, ::2]}


BAD = {
    "content": [
        {"content": 255 * image(1)},
        {"content": np.full((42, 48, 3), np.nan, np.float32)},
        {"content": image(1, (31, 48))},
    ],
    "styles": [
        {"styles": []},
        {"styles": [255 * image(2)]},
        {"styles": [Style(image(2), weight=-1.0)]},
        {"styles": [Style(image(2), weight=0.0)]},
        {"styles": [Style(image(2), region=np.ones((42, 48), np.float32)), image(3)]},
        {"styles": [Style(image(2), region=np.ones((42, 24), np.float32))]},
        {"styles": [Style(image(2), mask=np.ones((42, 48, 3), np.float32))]},
        {"styles": [Style(image(2), mask=np.zeros((42, 48), np.float32))]},
    ],
    "init": [{"init": "photo"}, {"init": image(1, (42, 42))}, {"init": 255 * image(1)}],
    "seed": [{"seed": -1}, {"seed": 2**32}],
    "preset": [{"preset": "slow"}],
    "stepps": [{"stepps": 3}],
    "steps": [{"steps": 0}],
    "optimizer": [{"optimizer": "sgd"}],
    "network": [{"network": "vgg11"}],
    "preserve_color": [{"preserve_color": "hue"}],
    "ratio": [{"ratio": 1.0}],
    "faded": [{"faded": -1}, {"faded": 0.5}],
    "passes": [{"passes": 0}],
    "average": [{"average": 1.0}],
    "scales": [{"scales": 3}],
    "strength": [{"strength": 1.1}, {"strength": 0.5, "style_weight": 3.0}],
    "style_layers": [{"style_layers": ("relu9_1",)}, {"strength": 0.0, "style_layers": ("relu1_1",)}],
    "style_layer_weights": [{"style_layer_weights": (1.0,)}],
    "content_layer_weights": [{"content_layer_weights": (1.0, 1.0)}, {"content_layer_weights": (0.0,)}],
    "beta1": [{"optimizer": "adam", "beta1": 1.0}, {"beta1": 0.5}],
    "beta2": [{"optimizer": "adamw", "beta2": -0.1}, {"beta2": 0.5}],
    "params": [{"extract": tiny}],
    "memory_limit": [{"memory_limit": 1e8}],
}


@pytest.mark.parametrize(("argument", "options"), [(name, each) for name, some in BAD.items() for each in some])
def test_arguments_that_cannot_be_are_named_before_the_first_step(argument, options):
    with pytest.raises(InputError) as error:
        neural_style.paint(**{"content": image(1), "styles": [image(2)]} | options)
    assert error.value.argument == argument and str(error.value).startswith(f"{argument}: ")


@pytest.mark.parametrize("wrong", [(255 * image(1)).astype(np.uint8), image(1)[..., :1], image(1)[None]])
def test_what_is_no_image_is_named(wrong):
    with pytest.raises(InputError, match=r"^content: an image is float \[H, W, 3\]"):
        jobs.image_array(wrong, "content")  # in the tests, `paint` itself stops at the types


def test_a_batch_of_several_shapes_is_rejected():
    with pytest.raises(InputError, match="different shapes"):
        neural_style.paint_batch([Job(image(1), [image(2)]), Job(image(1, (48, 42)), [image(2)])])


def test_presets_are_valid_and_only_gatyss_compares_gram_matrices():
    for name, recipe in PRESETS.items():
        recipes.check(recipe)
        assert (recipe.method is methods.GRAM) == (name == "gatys")


def test_gatys_weights_are_those_of_his_notebook():
    """1e3 / C^2 on the mean squared difference of F F^T / HW, and sums over C^2 entries of means: 1e3 on Johnson's."""
    x, y = (np.random.default_rng(i).normal(size=(7, 9, 4)) for i in (0, 1))
    grams = [np.einsum("hwi,hwj->ij", z, z) / 63 for z in (x, y)]
    his = 1e3 / 4**2 * np.mean((grams[0] - grams[1]) ** 2)
    statistic, distance = (Recipe().method.losses.keywords[name] for name in ("statistic", "style_distance"))
    ours = Recipe().style_weight * distance(statistic(jnp.asarray(x)), statistic(jnp.asarray(y)))
    assert float(ours) == pytest.approx(his, rel=1e-4)


def code_of_documents():
    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/painting.md")]
    return [code for text in texts for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


@pytest.mark.parametrize("code", code_of_documents())
def test_the_documents_code_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("photo.jpg", "painting.jpg", "left.png")):
        picture(tmp_path / name, seed)
    exec(code.replace("size=512", "size=48").replace("steps=100", "steps=2"), {})
    if "stylized.png" in code:
        assert len(code.strip().splitlines()) <= 12
        assert images.load("stylized.png").shape == images.load("photo.jpg", size=48).shape


@pytest.mark.trained
def test_the_default_recipe_paints_what_it_painted_before():
    """The bundled pair at 128 px with the bundled network: the loss, and a thumbnail of the image as it looked good."""
    content, style = (images.load(weights.PICTURES / f"{name}.jpg", size=128) for name in ("astronaut", "gale"))
    *_, progress = neural_style.paint(content, [style])
    assert progress.terms["loss"] == pytest.approx(8158, rel=0.05)
    thumbnail = images.load(ROOT / "tests" / "stylized.png")
    assert float(metrics.ssim(images.resize(progress.image, (64, 64)), thumbnail)) >= 0.95
