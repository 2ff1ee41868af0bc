"""Distances of distributions against numpy in float64, and what they do not depend on."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nstjax import distributions, losses

KEY = jax.random.key(3)
DISTANCES = {
    "earth movers": distributions.relaxed_earth_movers,
    "moments": distributions.moment_distance,
    "sliced": partial(distributions.sliced_wasserstein, key=KEY),
    "histogram": distributions.histogram,
}


def randoms(seed, *shape):
    return np.random.default_rng(seed).normal(1, 2, size=shape).astype(np.float32)


def cosine(a, b):
    a, b = np.float64(a), np.float64(b)
    return 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def table(distance, x, y):
    return np.array([[distance(a, b) for b in y] for a in x])


@pytest.mark.parametrize("name", DISTANCES)
def test_an_image_has_distance_0_to_itself_and_to_its_permutation(name):
    x = randoms(0, 6, 5, 4)
    shuffled = np.random.default_rng(1).permutation(x.reshape(30, 4)).reshape(x.shape)
    other = DISTANCES[name](x, randoms(2, 6, 5, 4))
    assert float(DISTANCES[name](x, x)) < 1e-5 < 1e-2 < float(other)
    assert float(DISTANCES[name](x, shuffled)) < 1e-5
    assert float(DISTANCES[name](shuffled, randoms(2, 6, 5, 4))) == pytest.approx(float(other), rel=1e-4)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_may_compare_layers(name):
    x, y = randoms(0, 6, 5, 4), randoms(1, 3, 4, 4)
    found = losses.layerwise(
        {"a": x}, {"a": y}, statistic=losses.activations, distance=DISTANCES[name], weights={"a": 2.0}
    )
    assert float(found) == pytest.approx(2 * float(DISTANCES[name](x, y)), rel=1e-5)


@pytest.mark.parametrize("distance", [*DISTANCES.values(), distributions.self_similarity])
@pytest.mark.parametrize("x", [np.zeros((3, 4, 4)), np.full((3, 4, 4), 0.7), np.repeat(randoms(0, 3, 1, 4), 4, axis=1)])
def test_gradients_are_finite_at_ties_and_constant_images(distance, x):
    for y in (x, randoms(1, 3, 4, 4)):
        value, gradient = jax.value_and_grad(distance)(jnp.float32(x), jnp.float32(y))
        assert np.isfinite(value) and np.isfinite(gradient).all()
    assert float(distance(jnp.float32(x), jnp.float32(x))) < 1e-5


def test_the_relaxed_earth_movers_distance_is_the_greater_of_its_halves():
    for x, y in ((randoms(0, 7, 3), randoms(1, 4, 3)), (randoms(0, 3, 3), randoms(1, 9, 3))):
        c = table(cosine, x, y)
        expected = max(c.min(1).mean(), c.min(0).mean())
        assert float(distributions.relaxed_earth_movers(x, y)) == pytest.approx(expected, rel=1e-4)


def test_it_is_never_more_than_the_earth_movers_distance():
    """Which between as many points is that of the best permutation."""
    x, y = randoms(0, 5, 3), randoms(1, 5, 3)
    c = table(cosine, x, y)
    exact = min(c[range(5), order].mean() for order in itertools.permutations(range(5)))
    assert float(distributions.relaxed_earth_movers(x, y)) <= exact


def test_the_moment_distance_by_numpy():
    x, y = randoms(0, 7, 3), randoms(1, 40, 3)
    expected = np.abs(x.mean(0) - y.mean(0)).mean()
    expected += np.abs(np.cov(x.T, bias=True) - np.cov(y.T, bias=True)).mean()
    assert float(distributions.moment_distance(x, y)) == pytest.approx(expected, rel=1e-4)


def test_the_palette_is_compared_on_orthogonal_axes():
    x, y = (np.random.default_rng(i).uniform(size=(n, 3)).astype(np.float32) for i, n in ((0, 6), (1, 9)))
    np.testing.assert_allclose(distributions.DECORRELATED @ distributions.DECORRELATED.T, np.eye(3), atol=1e-12)
    u, v = (np.float64(z) @ distributions.DECORRELATED.T for z in (x, y))
    c = table(lambda a, b: cosine(a, b) + np.linalg.norm(a - b), u, v)
    assert float(distributions.palette(x, y)) == pytest.approx(max(c.min(1).mean(), c.min(0).mean()), rel=1e-4)
    assert float(distributions.palette(x, x[::-1])) < 1e-5
    black = jnp.zeros((4, 3))
    assert np.isfinite(jax.grad(distributions.palette)(black, black)).all()


def test_self_similarity_by_numpy_and_its_invariances():
    x, y = randoms(0, 6, 4), randoms(1, 6, 4)
    a, b = (table(cosine, z, z) for z in (x, y))
    expected = 6 * np.abs(a / a.sum(0) - b / b.sum(0)).mean()
    assert float(distributions.self_similarity(x, y)) == pytest.approx(expected, rel=1e-3)
    turn = np.linalg.qr(randoms(2, 4, 4))[0]
    assert float(distributions.self_similarity(x, 3 * x @ turn)) < 1e-4
    order = np.random.default_rng(0).permutation(6)
    assert float(distributions.self_similarity(x[order], y[order])) == pytest.approx(expected, rel=1e-3)
    assert float(distributions.self_similarity(x, x[order])) > 0.1  # a content loss


def test_sliced_wasserstein_by_numpy():
    x, y = randoms(0, 5, 4, 3), randoms(1, 4, 5, 3)
    v = np.asarray(jax.random.normal(KEY, (3, 3)))
    v = v / np.linalg.norm(v, axis=0)
    expected = np.mean((np.sort(x.reshape(-1, 3) @ v, axis=0) - np.sort(y.reshape(-1, 3) @ v, axis=0)) ** 2)
    assert float(distributions.sliced_wasserstein(x, y, key=KEY)) == pytest.approx(expected, rel=1e-4)


def test_of_normal_distributions_it_is_about_the_wasserstein_distance():
    """Along v between N(0, 1) and N(m, s^2 1) it is (m v)^2 + (s - 1)^2, whatever the numbers of vectors."""
    rng = np.random.default_rng(0)
    m, s = np.array([1.0, -2.0]), 3.0
    x, y = rng.normal(size=(6_000, 2)), m + s * rng.normal(size=(3_000, 2))
    found = distributions.sliced_wasserstein(jnp.float32(x), jnp.float32(y), key=KEY, directions=200)
    assert float(found) == pytest.approx((m**2).sum() / 2 + (s - 1) ** 2, rel=0.1)


def test_weights_are_as_many_copies():
    x, y = randoms(0, 4, 3), randoms(1, 64, 3)
    weights = np.array([1, 0, 2, 3], np.float32)
    copies = np.repeat(x, weights.astype(int) * 200, axis=0)
    for distance in (DISTANCES["sliced"], distributions.histogram):
        assert float(distance(x, copies, weights=weights)) < 1e-5
        alone = jax.grad(lambda x: distance(x, y, weights=weights))(x)  # noqa: B023
        assert not np.asarray(alone[1]).any() and np.asarray(alone[2]).any()


def test_histogram_is_channel_by_channel():
    x, y = randoms(0, 50, 2), randoms(1, 50, 2)
    expected = ((np.sort(x, axis=0) - np.sort(y, axis=0)) ** 2).mean()
    assert float(distributions.histogram(x, y)) == pytest.approx(expected, rel=1e-4)
    apart = np.stack([x[:, 0], np.roll(x[:, 1], 7)], axis=1)  # other pairs, equal histograms
    assert float(distributions.histogram(x, apart)) < 1e-6 < 1e-2 < float(DISTANCES["sliced"](x, apart))
