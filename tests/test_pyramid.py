"""Coarse to fine: sizes, shares of the work, and enlarging without losing detail."""

import numpy as np
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
    steps = pyramid.steps(sizes, work, coarse=coarse)
    assert len(steps) == scales and min(steps) >= 1
    cost = sum(n * (s / size) ** 2 for n, s in zip(steps, sizes, strict=True))
    assert abs(cost - work) <= sum((s / size) ** 2 for s in sizes) + 1


def test_one_scale_takes_all_steps():
    assert pyramid.steps([384], 200) == [200]


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
        (size, picture.shape[0])
        for size, picture, _ in pyramid.run(
            solver, lambda size: (contents[size], 0.25), lambda content: content, sizes=[8, 16], steps=[3, 20]
        )
    ]
    assert seen == [(8, 8)] * 3 + [(16, 16)] * 20


def test_run_starts_a_size_from_the_one_before():
    def prepare(size):
        return np.full((size, size, 3), 0.5, np.float32), {"size": size}

    def objective(image, data):
        loss = ((image - 0.25) ** 2).sum()
        return loss, {"content": loss}

    losses = [
        (size, terms["loss"])
        for size, _, terms in pyramid.run(
            solvers.lbfgs(objective), prepare, lambda content: content, sizes=[8, 16], steps=[20, 1]
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

    def prepare(size):
        shape = (size, size)
        return pyramid.continued(images.resize(photograph, shape), 4 if size == 16 else 0), {}

    def step(image, state, data):
        rim = np.ones(image.shape[:2], np.float32)
        if image.shape[0] == 24:
            rim[:4], rim[-4:], rim[:, :4], rim[:, -4:] = 0, 0, 0, 0
        return image * rim[..., None], state, {"loss": 0.0, "failures": 0}

    solver = solvers.Solver(lambda image, data: (), step)
    shapes = [
        (size, picture.shape, float(picture.min()))
        for size, picture, _ in pyramid.run(solver, prepare, lambda c: c, sizes=[16, 32], steps=[1, 1], margins=[4, 0])
    ]
    assert [each[:2] for each in shapes] == [(16, (16, 16, 3)), (32, (32, 32, 3))]
    assert all(least == pytest.approx(0.5, abs=0.01) for *_, least in shapes)
