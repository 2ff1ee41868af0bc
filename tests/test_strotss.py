"""STROTSS's samples of hypercolumns, and its two terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nstjax import distributions, strotss
from nstjax.objectives import Style

KERNEL = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
WEIGHTS = {"fine": 1.0, "coarse": 2.0}
KEY = jax.random.key(0)


@jax.jit
def style_loss(image, target):
    return strotss.style_loss(features(image), image, target, WEIGHTS, KEY)


@jax.jit
def content_loss(image, target):
    return strotss.content_loss(features(image), image, target, WEIGHTS, KEY)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(strotss, "POSITIONS", 128)
    monkeypatch.setattr(strotss, "STYLE_POSITIONS", 256)


def picture(seed, height=32, width=24):
    return np.random.default_rng(seed).uniform(size=(height, width, 3)).astype(np.float32)


def features(image):
    x = jnp.tanh(jnp.asarray(image) @ KERNEL)
    return {"fine": x, "coarse": x[::2, ::2]}


def test_samples_are_interpolated_linearly_between_the_middles_of_pixels():
    ramp = jnp.stack(jnp.meshgrid(jnp.arange(8.0), jnp.arange(12.0), indexing="ij"), axis=2)
    at = np.array([[1 / 16, 1 / 24], [0.5, 0.5], [0.33, 0.8], [0.0, 1.0]])
    found = strotss._interpolated(ramp, jnp.asarray(at))
    expected = np.clip(at * [8, 12] - 0.5, 0, [7, 11])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_samples_are_colors_and_weighted_layers():
    image = picture(0)
    middles = (jnp.stack(jnp.divmod(jnp.arange(32 * 24), 24), axis=1) + 0.5) / jnp.array([32, 24])
    found = strotss.sampled(features(image), image, middles, WEIGHTS)
    assert found.shape == (32 * 24, 3 + 6 + 6)
    np.testing.assert_allclose(found[:, :3], image.reshape(-1, 3), atol=1e-5)
    np.testing.assert_allclose(found[:, 3:9], features(image)["fine"].reshape(-1, 6), atol=1e-5)


def test_positions_are_in_the_mask():
    mask = np.zeros((10, 20), np.float32)
    mask[2:4, 5:15] = 1
    at = np.asarray(strotss.positions(KEY, 2000, mask=mask)) * [10, 20]
    assert at[:, 0].min() >= 2 and at[:, 0].max() <= 4 and at[:, 1].min() >= 5 and at[:, 1].max() <= 15
    assert at.mean(0) == pytest.approx([3, 10], abs=0.3)
    free = np.asarray(strotss.positions(KEY, 2000))
    assert free.min() >= 0 and free.max() <= 1 and free.mean(0) == pytest.approx([0.5, 0.5], abs=0.03)


def test_the_styles_loss_is_its_three_parts():
    image, style = picture(0), picture(1)
    target = strotss.style_target(features, image, image, [Style(style)], WEIGHTS, KEY)
    found = style_loss(image, target)
    at = strotss.positions(jax.random.fold_in(KEY, 0), strotss.POSITIONS)
    x, (y,) = strotss.sampled(features(image), image, at, WEIGHTS), target["vectors"]
    parts = distributions.relaxed_earth_movers(x, y) + distributions.moment_distance(x, y)
    parts += distributions.palette(x[:, :3], y[:, :3]) / 32  # 1024 / 32 pixels
    assert float(found) == pytest.approx(float(parts), rel=1e-4)


def test_an_image_is_at_no_distance_from_its_content_and_near_its_own_style():
    image, other = picture(0), picture(1)
    content = strotss.content_target(features, image, image, [], WEIGHTS, KEY)
    style = strotss.style_target(features, image, image, [Style(image)], WEIGHTS, KEY)
    losses = [
        (
            float(content_loss(x, content)),
            float(style_loss(x, style)),
        )
        for x in (image, 0.3 * other)
    ]
    assert losses[0][0] < 1e-4 < losses[1][0] and losses[0][1] < 0.5 * losses[1][1]


def test_regions_are_compared_with_their_own_style():
    left = np.zeros((32, 24), np.float32)
    left[:, :12] = 1
    dark, light = 0.2 * picture(1), 0.8 + 0.2 * picture(2)
    styles = [Style(dark, region=left, weight=0.5), Style(light, region=1 - left, weight=0.5)]
    right_way, wrong_way = (np.concatenate(each, axis=1)[:, 12:36] for each in ((dark, light), (light, dark)))
    target = strotss.style_target(features, right_way, right_way, styles, WEIGHTS, KEY)
    near, far = (float(style_loss(x, target)) for x in (right_way, wrong_way))
    assert near < 0.3 * far


def test_styles_without_regions_are_mixed_by_weight():
    dark, light = np.zeros((16, 16, 3), np.float32), np.ones((16, 16, 3), np.float32)
    styles = [Style(dark, weight=0.25), Style(light, weight=0.75)]
    (mixed,) = strotss.style_target(features, dark, dark, styles, WEIGHTS, KEY)["vectors"]
    assert float(mixed[:, 0].mean()) == pytest.approx(0.75, abs=0.1)
    assert mixed.shape[0] == strotss.STYLE_POSITIONS


@pytest.mark.parametrize("color", [0.0, 0.5])
def test_one_color_has_finite_gradients(color):
    plain = np.full((32, 24, 3), color, np.float32)
    style = strotss.style_target(features, plain, plain, [Style(plain)], WEIGHTS, KEY)
    content = strotss.content_target(features, plain, plain, [], WEIGHTS, KEY)
    for loss, target in ((style_loss, style), (content_loss, content)):
        value, gradient = jax.value_and_grad(loss)(plain, target)
        assert np.isfinite(value) and np.isfinite(gradient).all()
