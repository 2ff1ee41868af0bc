"""Nearest neighbors among hypercolumns against numpy, vector by vector, and what regions, masks and weights do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nstjax import neighbors
from nstjax.neighbors import Pool
from nstjax.objectives import Style

KERNEL = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
WEIGHTS = {"fine": 1.0, "coarse": 2.0}


def randoms(seed, *shape):
    return np.random.default_rng(seed).normal(1, 2, size=shape).astype(np.float32)


def picture(seed, height=16, width=24):
    return np.random.default_rng(seed).uniform(size=(height, width, 3)).astype(np.float32)


def features(image):
    x = jnp.tanh(jnp.asarray(image) @ KERNEL)
    h, w, c = x.shape
    return {"fine": x, "coarse": x[: h // 2 * 2, : w // 2 * 2].reshape(h // 2, 2, w // 2, 2, c).mean((1, 3))[..., :4]}


def pool(x, **options):
    return Pool(jnp.asarray(x), **{"allowed": jnp.ones(x.shape[:2], bool)} | options)


def target(styles, content=None, **options):
    content = picture(0) if content is None else content
    styles = [style if isinstance(style, Style) else Style(style) for style in styles]
    return np.asarray(
        neighbors.target(features, content, content, styles, WEIGHTS, jax.random.key(0), **{"spread": 0.0} | options)
    )


def test_hypercolumns_are_the_layers_at_one_shape():
    acts = features(picture(0))
    found = neighbors.hypercolumns(acts, WEIGHTS, shape=(4, 6))
    assert found.shape == (4, 6, 10)
    np.testing.assert_allclose(
        neighbors.hypercolumns(acts, WEIGHTS, shape=(8, 12))[..., 6:], acts["coarse"] / 4 * 2, rtol=1e-5
    )
    constant = neighbors.hypercolumns(features(np.full((16, 24, 3), 0.3, np.float32)), WEIGHTS, shape=(4, 6))
    np.testing.assert_allclose(constant, np.broadcast_to(constant[:1, :1], constant.shape), rtol=1e-5)


@pytest.mark.parametrize("block", [1, 4, 64])
def test_nearest_is_the_greatest_cosine(block):
    x, y = randoms(0, 11, 5), randoms(1, 7, 5)
    cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T
    gains, index = neighbors.nearest(x, y, block=block)
    np.testing.assert_array_equal(index, cosines.argmax(1))
    np.testing.assert_allclose(gains, cosines.max(1), atol=1e-5)
    allowed = np.array([0, 1, 0, 1, 1, 0, 0], bool)
    _, index = neighbors.nearest(x, y, allowed=allowed, block=block)
    np.testing.assert_array_equal(index, np.where(allowed, cosines, -np.inf).argmax(1))
    cost = np.linspace(0, 1, 7, dtype=np.float32)
    _, index = neighbors.nearest(x, y, prices=cost, block=block)
    np.testing.assert_array_equal(index, (cosines - cost).argmax(1))


def test_replaced_is_centered_and_takes_vectors_as_they_are():
    x, y = randoms(0, 4, 5, 6), randoms(1, 3, 7, 6)
    a, b = (z.reshape(-1, 6) - z.mean((0, 1)) for z in (x, y))
    cosines = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    found = neighbors.replaced(x, [pool(y)])
    np.testing.assert_array_equal(found, y.reshape(-1, 6)[cosines.argmax(1)].reshape(x.shape))
    np.testing.assert_allclose(neighbors.replaced(3 * x + 5, [pool(y)]), found)  # scale and shift are the content's


def test_an_image_is_its_own_neighbor_in_any_order():
    x = randoms(0, 4, 5, 6)
    shuffled = np.random.default_rng(1).permutation(x.reshape(-1, 6)).reshape(5, 4, 6)
    for spread in (0.0, 1.0):
        np.testing.assert_array_equal(neighbors.replaced(x, [pool(shuffled)], spread=spread), x)


def test_pools_are_one():
    x, y = randoms(0, 4, 5, 6), randoms(1, 4, 8, 6)
    whole = neighbors.replaced(x, [pool(y)])
    np.testing.assert_array_equal(neighbors.replaced(x, [pool(y[:1]), pool(y[1:])]), whole)


def test_prices_spread_what_is_taken():
    """A hundred vectors that nearly equal each other have one nearest neighbor; by its price others are taken, too."""
    x = (np.ones(6) + 0.02 * randoms(0, 10, 10, 6)).astype(np.float32)
    x[0] = randoms(2, 10, 6)
    y = randoms(1, 10, 10, 6)

    def taken(spread):
        found = np.asarray(neighbors.replaced(x, [pool(y)], spread=spread))
        return len(np.unique(found.reshape(-1, 6), axis=0))

    assert taken(0.0) < 40 and taken(1.0) > 1.5 * taken(0.0)
    allowed = np.arange(100) < 50
    found = neighbors.prices(x.reshape(-1, 6), y.reshape(-1, 6), weights=jnp.ones(100), allowed=allowed)
    assert np.isfinite(found).all() and not np.asarray(found)[50:].any() and abs(float(found.sum())) < 1e-4


def test_masks_and_regions_restrict_what_is_taken():
    content, left = picture(0), np.zeros((16, 24), np.float32)
    left[:, :12] = 1
    dark, light = 0.2 * picture(1), 0.8 + 0.2 * picture(2)
    halves = np.concatenate([dark, light], axis=1)
    mask = np.zeros((16, 48), np.float32)
    mask[:, 24:] = 1
    columns = {
        name: np.asarray(neighbors.hypercolumns(features(image), WEIGHTS, shape=(4, 6)))
        for name, image in {"dark": dark, "light": light}.items()
    }

    def come_from(found, name):
        return np.abs(found[:, :, None] - columns[name][1:-1, 1:-1].reshape(-1, 10)).sum(3).min(2) < 1e-5

    both = target([Style(dark, region=left), Style(light, region=1 - left)], content)
    assert come_from(both, "dark")[:, :3].all() and come_from(both, "light")[:, 3:].all()
    masked = target([Style(halves, mask)], content)
    at_seam = np.asarray(neighbors.hypercolumns(features(halves), WEIGHTS, shape=(4, 12)))[:, 6:]
    assert (np.abs(masked[:, :, None] - at_seam.reshape(-1, 10)).sum(3).min(2) < 1e-5).all()
    only = target([Style(dark, region=left)], content)
    own = np.asarray(neighbors.hypercolumns(features(content), WEIGHTS, shape=(4, 6)))
    np.testing.assert_allclose(only[:, 4:], own[:, 4:], atol=1e-5)  # where no style is painted, the content stays


def test_a_style_of_weight_0_is_not_in_the_pool():
    one, other = picture(1), picture(2)
    np.testing.assert_array_equal(target([Style(one, weight=0.0), Style(other)]), target([other]))
    np.testing.assert_array_equal(target([Style(one, weight=0.3), Style(other, weight=0.3)]), target([one, other]))


@pytest.mark.parametrize("style", [np.zeros((16, 16, 3), np.float32), np.full((5, 40, 3), 0.5, np.float32)])
@pytest.mark.parametrize("content", [picture(0), np.ones((16, 24, 3), np.float32)])
def test_one_color_and_few_pixels_are_a_target_like_any_other(style, content):
    found = target([style], content, spread=0.5)
    assert np.isfinite(found).all()
    own = features(style)
    np.testing.assert_allclose(found[..., :6], np.broadcast_to(own["fine"][0, 0] / 6, (4, 6, 6)), rtol=1e-4)
    gradient = jax.grad(lambda image: neighbors.loss(features(image), image, found, WEIGHTS, None))(content)
    assert np.isfinite(gradient).all()


def test_the_loss_is_a_share_of_the_target():
    content = picture(0)
    own = neighbors.hypercolumns(features(content), WEIGHTS, shape=(4, 6))
    assert float(neighbors.loss(features(content), content, own, WEIGHTS, None)) == 0
    for moments in (0.0, 4.0):  # the squares of means and deviations sum to the mean square
        found = neighbors.loss(features(content), content, 2 * own, WEIGHTS, None, moments=moments)
        assert float(found) == pytest.approx((1 + moments) / 4, rel=1e-3)


def test_the_rim_of_a_style_is_left_out_unless_nothing_else_may_be_taken():
    framed = picture(1, 32, 48)
    framed[:4] = framed[-4:] = framed[:, :4] = framed[:, -4:] = 1
    mask = np.zeros((32, 48), np.float32)
    mask[:4] = 1
    white = np.asarray(neighbors.hypercolumns(features(framed), WEIGHTS, shape=(8, 12)))[0, :, :6]
    for style, expected in ((Style(framed), False), (Style(framed, mask), True)):
        found = target([style], np.ones((16, 24, 3), np.float32), spread=1.0)[..., :6]
        assert (np.abs(found[:, :, None] - white).max(3).min(2) < 1e-5).all() == expected


def test_where_nothing_may_be_taken_the_content_stays():
    x = randoms(0, 4, 5, 6)
    none = pool(randoms(1, 3, 3, 6), allowed=jnp.zeros((3, 3), bool))
    np.testing.assert_array_equal(neighbors.replaced(x, [none], spread=1.0), x)
