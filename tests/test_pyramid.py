"""Coarse to fine: sizes, shares of the work, and enlarging without losing detail."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nstjax import images, pyramid, solvers


@given(size=st.integers(32, 8192), ratio=st.sampled_from([2**0.5, 2.0]), smallest=st.integers(16, 256))
def test_sizes_end_at_the_size_and_start_no_smaller_than_asked(size, ratio, smallest):
    sizes = pyramid.sizes(size, smallest=smallest, ratio=ratio)
    assert sizes[-1] == size and sizes == sorted(set(sizes))
    assert len(sizes) == 1 or smallest - 1 <= sizes[0] < ratio * smallest + 1


@given(size=st.integers(64, 4096), scales=st.integers(1, 4), work=st.integers(1, 1000), coarse=st.floats(0.1, 2))
def test_steps_cost_as_much_as_asked(size, scales, work, coarse):
    sizes = pyramid.sizes(size, scales=scales)
    every = pyramid.scales(sizes, work, coarse=coarse)
    assert [scale.size for scale in every] == sizes and min(scale.steps for scale in every) >= 1
    cost = sum(scale.steps * (scale.size / size) ** 2 for scale in every)
    assert abs(cost - work) <= sum((s / size) ** 2 for s in sizes) + 1


@given(
    short=st.integers(32, 4096), aspect=st.floats(1, 2), upright=st.booleans(), scale=st.sampled_from([0.5, 1.0, 2.0])
)
def test_a_style_is_as_long_as_a_content_of_usual_aspect(short, aspect, upright, scale):
    content = (short, int(short * aspect))[:: 1 if upright else -1]
    assert pyramid.style_size((300, 400), content, scale=scale) == round(scale * max(content))


@pytest.mark.parametrize(
    ("style", "content", "expected"),
    [
        ((300, 400), (40, 8000), 800),  # 2:1 with the area of the content
        ((300, 400), (8000, 40), 800),
        ((300, 400), (400, 8000), 2530),
        ((300, 400), (256, 513), 513),
        ((100, 900), (128, 128), 144),  # 16 px high
        ((100, 900), (512, 512), 512),
        ((900, 100), (40, 8000), 800),
        ((900, 100), (128, 128), 144),
        ((100, 900), (16, 16), 16),  # too small for any style
    ],
)
def test_elongated_styles_and_contents(style, content, expected):
    assert pyramid.style_size(style, content) == expected


@given(short=st.integers(32, 200), aspect=st.floats(1, 300))
def test_a_style_costs_no_more_than_twice_the_content(short, aspect):
    content = (short, round(short * aspect))
    assert pyramid.style_size((1, 1), content) ** 2 <= 2.1 * content[0] * content[1]


def test_one_scale_takes_all_steps():
    assert pyramid.scales([384], 200) == (pyramid.Scale(384, 200, 0, 1.0),)


def test_every_size_has_at_least_the_border():
    every = pyramid.scales([64, 128, 256], 40, coarse=1.0, margin=1 / 16, border=6)
    assert [scale.margin for scale in every] == [6, 8, 6]
    assert every[-1].cost == 1.0 and every[0].cost == (76 / 268) ** 2


def test_enlarging_an_untouched_picture_gives_all_its_detail():
    after = np.random.default_rng(0).uniform(0.2, 0.8, (24, 32, 3)).astype(np.float32)
    before = images.resize(after, (12, 16))
    np.testing.assert_allclose(pyramid.enlarge(before, before, after), after, atol=1e-6)


def test_run_paints_every_size_in_turn():
    contents = {size: np.full((size, size, 3), 0.5, np.float32) for size in (8, 16)}

    def objective(image, data):
        loss = ((image - data) ** 2).sum()
        return loss, {"content": loss}

    solver = solvers.lbfgs(objective)
    seen = [
        (scale.size, image.shape[0])
        for scale, image, _ in pyramid.run(
            solver,
            lambda scale, image: (contents[scale.size], 0.25),
            [pyramid.Scale(8, 3), pyramid.Scale(16, 20)],
        )
    ]
    assert seen == [(8, 8)] * 3 + [(16, 16)] * 20


def test_run_starts_a_size_from_the_one_before():
    def prepare(scale, image):
        shape = (scale.size, scale.size)
        return np.full((*shape, 3), 0.5, np.float32) if image is None else images.resize(image, shape), {}

    def objective(image, data):
        loss = ((image - 0.25) ** 2).sum()
        return loss, {"content": loss}

    losses = [
        (scale.size, terms["loss"])
        for scale, _, terms in pyramid.run(
            solvers.lbfgs(objective), prepare, [pyramid.Scale(8, 20), pyramid.Scale(16, 1)]
        )
    ]
    assert losses[0][1] > 1 and losses[-1] == (16, losses[-1][1]) and losses[-1][1] < 1e-3


def test_a_margin_is_a_reflection_and_comes_off_again():
    image = np.random.default_rng(0).uniform(size=(9, 7, 3)).astype(np.float32)
    wide = pyramid.continued(image, 3)
    assert wide.shape == (15, 13, 3)
    np.testing.assert_array_equal(wide[2, 3:-3], image[1])
    np.testing.assert_array_equal(pyramid.continued(wide, -3), image)
    np.testing.assert_array_equal(pyramid.continued(image, 0), image)


def test_coarse_sizes_with_margins_yield_pictures_without():
    """A solver that paints what lies on the margin black never touches the picture."""
    photograph = np.full((16, 16, 3), 0.5, np.float32)

    def prepare(scale, image):
        shape = (scale.size, scale.size)
        return pyramid.continued(images.resize(photograph, shape), scale.margin), {}

    def step(image, state, data):
        rim = np.ones(image.shape[:2], np.float32)
        if image.shape[0] == 24:
            rim[:4], rim[-4:], rim[:, :4], rim[:, -4:] = 0, 0, 0, 0
        return image * rim[..., None], state, {"loss": 0.0, "failures": 0}

    solver = solvers.Solver(lambda image, data: (), step)
    shapes = [
        (scale.size, image.shape, float(image.min()))
        for scale, image, _ in pyramid.run(solver, prepare, [pyramid.Scale(16, 1, margin=4), pyramid.Scale(32, 1)])
    ]
    assert [each[:2] for each in shapes] == [(16, (16, 16, 3)), (32, (32, 32, 3))]
    assert all(least == pytest.approx(0.5, abs=0.01) for *_, least in shapes)


@pytest.mark.parametrize("shape", [(32, 48), (33, 17), (1, 9), (1, 1)])
def test_a_laplacian_pyramid_is_inverted_exactly(shape):
    image = np.random.default_rng(0).uniform(size=(*shape, 3)).astype(np.float32)
    levels = pyramid.laplacian(image)
    np.testing.assert_allclose(pyramid.collapsed(levels), image, atol=1e-6)
    sides = [level.shape[:2] for level in levels]
    assert sides[0] == shape and all(
        below == tuple(-(-n // 2) for n in above) for above, below in itertools.pairwise(sides)
    )


def test_detail_is_in_the_finest_levels_and_can_fade():
    plain = np.broadcast_to(np.float32([0.2, 0.5, 0.8]), (24, 32, 3))
    fine = np.where(np.indices((24, 32)).sum(0)[..., None] % 2, 0.1, -0.1).astype(np.float32)
    *detail, left = pyramid.laplacian(plain)
    assert max(float(jnp.abs(level).max()) for level in detail) < 1e-6
    np.testing.assert_allclose(left, plain[: left.shape[0], : left.shape[1]], atol=1e-6)
    np.testing.assert_allclose(pyramid.faded(plain + fine, levels=1)[2:-2, 2:-2], plain[2:-2, 2:-2], atol=1e-3)
    np.testing.assert_allclose(pyramid.faded(plain + fine, levels=3, share=1.0), plain + fine, atol=1e-6)


@pytest.mark.parametrize("make", [solvers.lbfgs, functools.partial(solvers.gradient, transformation=optax.adam(0.02))])
def test_levels_are_optimized_to_the_image_that_pixels_are(make):
    wanted = np.random.default_rng(0).uniform(-0.2, 1.2, (9, 13, 3)).astype(np.float32)

    def objective(image, data):
        loss = ((image - data) ** 2).mean()
        return loss, {"content": loss}

    solver = pyramid.on_levels(make, objective)
    start = np.full(wanted.shape, 0.5, np.float32)
    *_, (_, image, terms) = solvers.run(solver, start, wanted, steps=150)
    assert np.abs(image - np.clip(wanted, 0, 1)).mean() < 0.02
    assert image.min() >= 0 and image.max() <= 1
    assert terms["loss"] == pytest.approx(float(objective(image, wanted)[0]), abs=1e-4)


def test_a_step_on_levels_moves_whole_areas():
    """By Adam a pixel that alone has a gradient moves its neighbors, which it never does on pixels."""

    def objective(image, data):
        loss = image[8, 8].sum()
        return loss, {"content": loss}

    make = functools.partial(solvers.gradient, transformation=optax.adam(0.01))
    start = np.full((16, 16, 3), 0.5, np.float32)
    *_, (_, image, _) = solvers.run(pyramid.on_levels(make, objective), start, {}, steps=3)
    assert (image < 0.5).mean() > 0.5 and image[8, 8].max() < image[0, 0].min()
