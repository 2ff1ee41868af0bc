"""The whitening and colouring transform: its properties, and an oracle in numpy."""

import jax
import numpy as np
import pytest

from nstjax import losses, wct

RNG = np.random.default_rng(0)


def features(seed, shape=(9, 11, 5)):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(shape[-1], shape[-1]))
    return (rng.normal(size=shape) @ mixing + rng.normal(size=shape[-1])).astype(np.float32)


def oracle(x, style):
    """Li 2017, eq. 1 and 2, in float64."""
    flat, target = (np.float64(each).reshape(-1, each.shape[-1]) for each in (x, style))
    centered = flat - flat.mean(0)
    values, vectors = np.linalg.eigh(centered.T @ centered / len(flat))
    white = centered @ vectors / np.sqrt(values) @ vectors.T
    around = target - target.mean(0)
    values, vectors = np.linalg.eigh(around.T @ around / len(target))
    return (white @ (vectors * np.sqrt(values)) @ vectors.T + target.mean(0)).reshape(x.shape)


def test_it_equals_the_oracle():
    x, style = features(1), features(2, (7, 6, 5))
    np.testing.assert_allclose(wct.transform(x, losses.gaussian(style)), oracle(x, style), atol=2e-3)


def test_the_result_has_the_styles_mean_and_covariance():
    x, style = features(1), losses.gaussian(features(2, (7, 6, 5)))
    result = losses.gaussian(jax.jit(wct.transform)(x, style))
    np.testing.assert_allclose(result.mean, style.mean, atol=1e-3)
    np.testing.assert_allclose(result.covariance, style.covariance, atol=2e-3 * np.abs(style.covariance).max())


def test_strength_goes_from_the_identity_to_the_style():
    x, style = features(1), losses.gaussian(features(2))
    np.testing.assert_array_equal(wct.transform(x, style, strength=0.0), x)
    half, whole = (wct.transform(x, style, strength=s) for s in (0.5, 1.0))
    np.testing.assert_allclose(half, (x + whole) / 2, atol=1e-4)


def test_directions_without_variance_are_dropped():
    x = np.repeat(features(1, (9, 11, 1)), 3, -1)  # gray
    x = x + 1e-4 * features(3, x.shape)
    result = losses.gaussian(wct.transform(x, losses.gaussian(features(2, (9, 11, 3)))))
    assert np.linalg.matrix_rank(result.covariance, tol=1e-3) == 1
    flat = np.full((5, 5, 3), 0.25, np.float32)
    style = losses.gaussian(features(2, (9, 11, 3)))
    np.testing.assert_allclose(wct.transform(flat, style), np.broadcast_to(style.mean, flat.shape), atol=1e-5)


def test_a_ridge_limits_what_becomes_of_noise():
    x = 0.01 * features(1, (9, 11, 3))
    style = losses.gaussian(features(2, (9, 11, 3)))
    variance = [np.trace(losses.gaussian(wct.transform(x, style, ridge=r)).covariance) for r in (0, 1e-3, 1)]
    assert variance[0] > 1.2 * variance[1] > 10 * variance[2]


def test_each_region_gets_its_own_style_and_small_ones_are_skipped():
    x, style = features(1, (12, 12, 3)), features(2, (10, 10, 3))
    left, top = np.zeros((12, 12), np.float32), np.zeros((10, 10), np.float32)
    left[:, :6], top[:5] = 1, 1
    dot = np.zeros((12, 12), np.float32)
    dot[0, 11] = 1
    left_style, rest = losses.gaussian(style[:5]), 1 - left - dot
    result, skipped = wct.by_regions(x, style, [(left, top), (dot, top), (rest, 1 - top)])
    assert skipped == [1]
    np.testing.assert_allclose(result[:, :6], wct.transform(x[:, :6], left_style), atol=1e-3)
    np.testing.assert_array_equal(result[0, 11], x[0, 11])
    np.testing.assert_allclose(
        losses.gaussian(result, mask=rest).covariance, losses.gaussian(style[5:]).covariance, rtol=0.01, atol=0.05
    )


@pytest.mark.parametrize("learned", [0, 1])
def test_empty_regions_leave_the_image_as_it_is(learned):
    x, style = features(1, (6, 6, 3)), features(2, (6, 6, 3))
    masks = np.zeros((2, 6, 6), np.float32)
    masks[learned] = 1
    result, skipped = wct.by_regions(x, style, [(masks[0], masks[1])])
    assert skipped == [0]
    np.testing.assert_array_equal(result, x)
