"""Strips and shards of a picture: their loss and gradient are the whole picture's."""

from functools import partial

import jax
import numpy as np
import pytest
from networks import narrow_vgg

from nstjax import features, losses, objectives, stream
from nstjax.errors import InputError
from nstjax.features import vgg

CONTENT, STYLE = {"relu4_2": 1.0, "pool1": 0.5}, {f"relu{i}_1": 1.0 for i in range(1, 6)} | {"pool2": 0.5}
GRAM = {"statistic": losses.gram}
WASSERSTEIN = {
    "statistic": losses.gaussian,
    "style_distance": losses.wasserstein2,
    "prepare": losses.with_root,
    "centered": True,
}
MOMENTS = {
    "statistic": losses.moments,
    "style_distance": losses.charbonnier,
    "content_distance": losses.charbonnier,
    "centered": True,
}


def loss_and_gradient(
    shape, recipe, *, edge="zero", pool=vgg.max_pool, norm=None, masked=False, winograd=False, **options
):
    """Of a random picture, with two styles; options: those of `stream.measure`, none for the network at once."""
    rng = np.random.default_rng(0)
    image, content, style = (rng.uniform(size=(*s, 3)).astype(np.float32) for s in (shape, shape, (70, 45)))
    region, mask = (rng.uniform(size=s).astype(np.float32) for s in (shape, (70, 45)))
    styles = [
        objectives.Style(style, mask if masked else None, region if masked else None),
        objectives.Style(style[::-1], None, 1 - region if masked else None, 0.5),
    ]
    measure = partial(stream.measure, edge=edge, pool=pool, norm=norm, **options) if options else None
    extract = partial(vgg.features, edge=edge, pool=pool, norm=norm)
    objective, targets = objectives.neural_style(extract, measure=measure, **recipe)
    params = features.prepare(narrow_vgg(), winograd=winograd)
    weights = {"content": 1.0, "style": 1e3, "tv": 1.0}
    data = jax.jit(targets)(params, content, styles, weights=weights, content_layers=CONTENT, style_layers=STYLE)
    (loss, _), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(image, data)
    return float(loss), np.asarray(gradient)


def strips(rows):
    """A plan with strips of so many rows of the picture."""
    return lambda shape, layers: stream.segments(layers, rows=lambda blocks: max(1, rows >> blocks[0] - 1))


CASES = {
    "odd": ((97, 51), GRAM, {"edge": "replicate"}, 16),
    "masks": ((97, 51), WASSERSTEIN, {"masked": True}, 48),
    "charbonnier": ((80, 33), MOMENTS, {"masked": True, "edge": "replicate"}, 32),
    "sums of squares": (
        (65, 40),
        GRAM | {"content_distance": losses.half_squares, "style_distance": losses.squares},
        {},
        32,
    ),
    "norms": ((65, 40), GRAM | {"content_distance": losses.frobenius, "style_distance": losses.frobenius}, {}, 32),
    "lower than a strip": ((40, 64), GRAM, {"pool": vgg.average_pool}, 48),
    "a row too many": ((65, 40), WASSERSTEIN, {"edge": "replicate"}, 64),
}


@pytest.mark.parametrize("name", CASES)
def test_strips_equal_the_whole(name):
    shape, recipe, options, rows = CASES[name]
    loss, gradient = loss_and_gradient(shape, recipe, **options)
    streamed, its_gradient = loss_and_gradient(shape, recipe, **options, plan=strips(rows))
    assert streamed == pytest.approx(loss, rel=3e-5)
    assert np.linalg.norm(its_gradient - gradient) < 3e-5 * np.linalg.norm(gradient)


def test_strips_with_winograd_equal_the_whole():
    loss, gradient = loss_and_gradient((97, 51), GRAM)
    streamed, its_gradient = loss_and_gradient((97, 51), GRAM, winograd=True, plan=strips(32))
    assert streamed == pytest.approx(loss, rel=1e-4)
    assert np.linalg.norm(its_gradient - gradient) < 1e-3 * np.linalg.norm(gradient)


@pytest.mark.parametrize(("name", "devices"), [("odd", 2), ("masks", 4), ("a row too many", 8)])
def test_devices_equal_the_whole(name, devices):
    shape, recipe, options, _ = CASES[name]
    loss, gradient = loss_and_gradient(shape, recipe, **options)
    sharded, its_gradient = loss_and_gradient(shape, recipe, **options, plan=None, mesh=stream.mesh(devices))
    assert sharded == pytest.approx(loss, rel=3e-5)
    assert np.linalg.norm(its_gradient - gradient) < 3e-5 * np.linalg.norm(gradient)


def test_a_norm_needs_whole_layers():
    normed = partial(loss_and_gradient, (65, 40), GRAM, norm=vgg.instance_norm)
    loss, gradient = normed()
    at_once, its_gradient = normed(plan=None)
    assert at_once == pytest.approx(loss, rel=3e-5) != loss_and_gradient((65, 40), GRAM)[0]
    assert np.linalg.norm(its_gradient - gradient) < 3e-5 * np.linalg.norm(gradient)
    for split in ({"plan": strips(32)}, {"plan": None, "mesh": stream.mesh(2)}):
        with pytest.raises(InputError, match="norm: strips of rows lack"):
            normed(**split)


def test_memory_of_a_device_falls_as_devices_are_added():
    def temporary(mesh):
        measure = partial(stream.measure, plan=partial(stream.plan, limit=1e12), mesh=mesh)
        objective, targets = objectives.neural_style(vgg.features, measure=measure)
        params = features.prepare(narrow_vgg(), winograd=False)
        image = jax.ShapeDtypeStruct((512, 64, 3), np.float32)
        styles = [objectives.Style(np.zeros((64, 64, 3), np.float32))]
        layers = {"content_layers": CONTENT, "style_layers": STYLE}
        data = jax.eval_shape(partial(targets, weights={"content": 1.0, "style": 1.0}, **layers), params, image, styles)
        step = jax.jit(jax.value_and_grad(objective, has_aux=True)).lower(image, data).compile()
        return step.memory_analysis().temp_size_in_bytes

    alone, *shared = [temporary(mesh) for mesh in (None, stream.mesh(2), stream.mesh(4), stream.mesh(8))]
    for devices, memory in zip((2, 4, 8), shared, strict=True):
        assert memory < alone * (1 / devices + 0.2), (devices, memory / alone)


@pytest.mark.parametrize("size", [256, 1024, 2048, 8192])
def test_plans_use_strips_only_where_they_must(size):
    layers = ("relu4_2", "relu5_1")
    roomy = stream.plan((256, 256, 3), layers, limit=1e12)
    assert [segment.rows for segment in roomy] == [None] * 4
    shape = (size, size, 3)
    tight = stream.plan(shape, layers, limit=1.5e8 + 4 * stream.KEPT * size * size)
    for segment in tight:
        work = 4 * stream.WORKSPACE[segment.blocks] * size * size
        if segment.rows is None:
            assert work <= 1.5e8
        else:
            rows = segment.rows + 2 * segment.halo
            height = size >> segment.blocks[0] - 1
            assert work * rows / height <= 1.5e8 or segment.rows == 16
    limit = 1.5e8 + 4 * stream.KEPT * size * size
    assert stream.needed(roomy, (256, 256, 3)) == 4 * stream.WORKSPACE[1, 2] * 256 * 256
    assert stream.needed(tight, shape) <= limit or any(segment.rows == 16 for segment in tight)
