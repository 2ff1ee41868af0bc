"""What keeping the colours means, against numpy."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nstjax import color

SEEDS = st.integers(0, 10_000)
fast = settings(max_examples=20, deadline=None)


def picture(seed=0, h=24, w=32):
    """float32 [h, w, 3] in [0, 1] with correlated channels, as photographs have."""
    rng = np.random.default_rng(seed)
    mixed = rng.uniform(0, 1, (h, w, 3)) @ (rng.uniform(0, 1, (3, 3)) + 2 * np.eye(3))
    return (mixed / mixed.max()).astype(np.float32)


def without_ties(seed, h, w):
    """float32 [h, w, 3] in which no value comes twice in a channel."""
    rng = np.random.default_rng(seed)
    channels = [rng.permutation(h * w).reshape(h, w) for _ in range(3)]
    return (np.stack(channels, axis=-1) / (h * w)).astype(np.float32)


def moments(image):
    pixels = np.asarray(image, np.float64).reshape(-1, 3)
    return pixels.mean(axis=0), np.cov(pixels.T, bias=True)


# YIQ


def test_yiq_against_the_standard_library():
    image = picture()[:4, :4]
    oracle = np.array([[colorsys.rgb_to_yiq(*map(float, pixel)) for pixel in row] for row in image])
    np.testing.assert_allclose(color.rgb_to_yiq(image), oracle, atol=6e-3)  # which rounds to two or three digits


def test_yiq_there_and_back():
    np.testing.assert_allclose(color.yiq_to_rgb(color.rgb_to_yiq(picture())), picture(), atol=1e-6)


def test_grey_has_no_chroma_and_white_has_luma_1():
    grey = np.linspace(0, 1, 48, dtype=np.float32).reshape(4, 12, 1).repeat(3, axis=-1)
    yiq = np.asarray(color.rgb_to_yiq(grey))
    np.testing.assert_allclose(yiq[..., 0], grey[..., 0], atol=1e-6)
    np.testing.assert_allclose(yiq[..., 1:], 0, atol=1e-6)


def test_luminance():
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(color.luminance(picture()), picture() @ weights, atol=1e-6)
    assert color.luminance(picture()).shape == (24, 32)


# Luminance transfer


@fast
@given(seed=SEEDS)
def test_with_luminance_has_the_luma_exactly_and_the_hue(seed):
    content = np.random.default_rng(seed).uniform(0, 1, (12, 12, 3)).astype(np.float32)
    y = np.random.default_rng(seed + 1).uniform(-0.1, 1.1, (12, 12)).astype(np.float32)
    result = np.asarray(color.with_luminance(content, y))
    assert result.min() >= 0 and result.max() <= 1
    np.testing.assert_allclose(color.luminance(result), np.clip(y, 0, 1), atol=1e-6)
    before, after = (np.asarray(color.rgb_to_yiq(image))[..., 1:] for image in (content, result))
    cross = before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]
    np.testing.assert_allclose(cross, 0, atol=1e-6)  # the same direction in the plane of I and Q ...
    assert (np.sum(before * after, axis=-1) >= -1e-6).all()  # ... and not the opposite one
    norms = [np.linalg.norm(chroma, axis=-1) for chroma in (after, before)]
    assert (norms[0] <= norms[1] + 1e-6).all()


@fast
@given(seed=SEEDS)
def test_with_luminance_shrinks_chroma_only_as_far_as_it_must(seed):
    content, y = picture(seed), np.asarray(color.luminance(picture(seed + 1)))
    result = np.asarray(color.with_luminance(content, y))
    plain = content + (y - np.asarray(color.luminance(content)))[..., None]
    inside = ((plain >= 0) & (plain <= 1)).all(axis=-1)
    np.testing.assert_allclose(result[inside], plain[inside], atol=1e-6)
    edge = np.minimum(result, 1 - result).min(axis=-1)
    np.testing.assert_allclose(edge[~inside], 0, atol=1e-5)


def test_its_own_luma_gives_the_picture_back():
    content = picture()
    np.testing.assert_allclose(color.with_luminance(content, color.luminance(content)), content, atol=1e-6)


@pytest.mark.parametrize("y", [0.0, 1.0])
def test_with_luminance_at_black_and_white(y):
    np.testing.assert_allclose(color.with_luminance(picture(), jnp.full((24, 32), y)), y, atol=1e-6)


def test_with_luminance_has_a_finite_gradient():
    y = jnp.linspace(0, 1, 24 * 32).reshape(24, 32)
    for content in (picture(), jnp.zeros((24, 32, 3)), jnp.full((24, 32, 3), 0.5)):
        grads = jax.grad(lambda c, y: jnp.sum(color.with_luminance(c, y) ** 2), (0, 1))(content, y)
        assert all(jnp.isfinite(grad).all() for grad in grads)


@fast
@given(seed=SEEDS)
def test_match_luminance_matches_mean_and_deviation(seed):
    style, content = picture(seed)[..., 0], picture(seed + 1, 9, 41)[..., 1] * 0.5
    matched = np.asarray(color.match_luminance(style, content, clip=False))
    assert matched.shape == style.shape
    np.testing.assert_allclose([matched.mean(), matched.std()], [content.mean(), content.std()], atol=1e-5)
    ratio = content.std() / style.std()
    np.testing.assert_allclose(matched, ratio * (style - style.mean()) + content.mean(), atol=1e-5)


def test_match_luminance_clips_and_bears_a_constant_style():
    content = np.array([[0.0, 1.0, 1.0, 1.0]], np.float32)
    matched = np.asarray(color.match_luminance(picture()[..., 0], content))
    free = np.asarray(color.match_luminance(picture()[..., 0], content, clip=False))
    assert free.max() > 1
    np.testing.assert_allclose(matched, np.clip(free, 0, 1))
    np.testing.assert_allclose(color.match_luminance(jnp.full((4, 4), 0.3), content), 0.75, atol=1e-6)


# Covariance


@fast
@given(seed=SEEDS)
def test_match_covariance_matches_mean_and_covariance(seed):
    style, content = picture(seed), picture(seed + 1, 17, 40)
    matched = color.match_covariance(style, content, clip=False)
    assert matched.shape == style.shape
    for ours, theirs in zip(moments(matched), moments(content), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_match_covariance_is_the_symmetric_choice():
    style, content = picture(1), picture(2)
    (mean_s, cov_s), (mean_c, cov_c) = moments(style), moments(content)

    def power(covariance, exponent):
        values, vectors = np.linalg.eigh(covariance)
        return vectors @ np.diag(values**exponent) @ vectors.T

    oracle = (style - mean_s) @ (power(cov_c, 0.5) @ power(cov_s, -0.5)).T + mean_c
    np.testing.assert_allclose(color.match_covariance(style, content, clip=False), oracle, atol=1e-4)
    np.testing.assert_allclose(color.match_covariance(style, content), oracle.clip(0, 1), atol=1e-4)


def test_its_own_colours_leave_a_picture_as_it_is():
    np.testing.assert_allclose(color.match_covariance(picture(), picture()), picture(), atol=1e-4)
    np.testing.assert_allclose(color.match_histogram(picture(), picture()), picture(), atol=1e-6)


def test_match_covariance_of_degenerate_pictures():
    content, grey = picture(), np.repeat(picture(3)[..., :1], 3, axis=-1)
    constant = np.full_like(content, 0.25)
    mean = content.mean(axis=(0, 1))
    from_constant = np.asarray(color.match_covariance(constant, content))
    np.testing.assert_allclose(from_constant, np.broadcast_to(mean, content.shape), atol=1e-4)
    to_constant = color.match_covariance(content, constant)
    np.testing.assert_allclose(to_constant, constant, atol=1e-4)
    to_grey = np.asarray(color.match_covariance(content, grey))
    np.testing.assert_allclose(np.ptp(to_grey, axis=-1), 0, atol=1e-6)
    from_grey = np.asarray(color.match_covariance(grey, content, clip=False))
    np.testing.assert_allclose(from_grey.mean(axis=(0, 1)), mean, atol=1e-4)
    assert np.abs(from_grey).max() < 3  # no noise blown up


def test_noise_of_rounding_is_not_blown_up():
    """A grey JPEG has chroma of a level at random; it must not turn into the content's full colours."""
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.uniform(0.2, 0.8, (32, 32, 1)), 3, axis=-1)
    noisy = (grey + rng.uniform(-0.1, 0.1, grey.shape) / 255).astype(np.float32)
    clean = color.match_covariance(grey.astype(np.float32), picture(), clip=False)
    np.testing.assert_allclose(color.match_covariance(noisy, picture(), clip=False), clean, atol=0.15)


# Histograms


@fast
@given(seed=SEEDS)
def test_match_histogram_is_exact_for_equal_sizes(seed):
    style, content = without_ties(seed, 24, 32), picture(seed + 1)
    matched = np.asarray(color.match_histogram(style, content))
    for c in range(3):
        np.testing.assert_array_equal(np.sort(matched[..., c], axis=None), np.sort(content[..., c], axis=None))
        order = np.argsort(style[..., c], axis=None)
        assert (np.diff(matched[..., c].ravel()[order]) >= 0).all()


@fast
@given(seed=SEEDS, h=st.sampled_from([1, 5, 31]), w=st.sampled_from([1, 8]))
def test_match_histogram_for_different_sizes_is_by_quantiles(seed, h, w):
    style, content = without_ties(seed, 12, 16), picture(seed + 1, h, w)
    apart = [np.abs(content[..., i] - content[..., j]).max() for i, j in ((0, 1), (1, 2), (2, 0))]
    assume(min(apart) >= color.LEVEL)  # channels that are equal stay equal
    matched = np.asarray(color.match_histogram(style, content))
    for c in range(3):
        rank = np.argsort(np.argsort(style[..., c], axis=None))
        quantile = (rank + 0.5) / style[..., c].size
        oracle = np.quantile(content[..., c].astype(np.float64), quantile, method="hazen")
        np.testing.assert_allclose(matched[..., c].ravel(), oracle, atol=1e-5)


def test_match_histogram_keeps_flat_areas_flat():
    style = np.round(picture(1) * 7) / 7
    matched = np.asarray(color.match_histogram(style, picture(2)))
    for c in range(3):
        for value in np.unique(style[..., c]):
            assert len(np.unique(matched[..., c][style[..., c] == value])) == 1
    constant = color.match_histogram(np.full((5, 5, 3), 0.1, np.float32), picture(2))
    np.testing.assert_allclose(constant[0, 0], np.median(picture(2), axis=(0, 1)), atol=1e-6)


def test_match_histogram_agrees_with_scikit_image():
    exposure = pytest.importorskip("skimage.exposure")
    style, content = (np.rint(picture(seed, 64, 64) * 255) / 255 for seed in (1, 2))
    oracle = exposure.match_histograms(style, content, channel_axis=-1)
    assert np.abs(np.asarray(color.match_histogram(style, content)) - oracle).mean() < 0.01


def grey_contents():
    grey = np.repeat(picture(3)[..., 1:2], 3, axis=-1)
    return {
        "photo": grey,
        "8 bits": np.rint(grey * 255) / np.float32(255),
        "black and white": (grey > 0.4).astype(np.float32),
        "pale": 0.9 + 0.05 * grey,
        "one grey": np.full_like(grey, 0.3),
        "black": np.zeros_like(grey),
        "white": np.ones_like(grey),
    }


@pytest.mark.parametrize("match", [color.match_covariance, color.match_histogram], ids=["covariance", "histogram"])
@pytest.mark.parametrize("content", grey_contents().values(), ids=grey_contents().keys())
@pytest.mark.parametrize("style", [picture(7, 17, 40), np.full((9, 9, 3), [1, 0, 0.2], np.float32)], ids=["", "flat"])
def test_after_a_grey_content_all_is_gray(match, content, style):
    matched = np.asarray(match(style, content))
    assert matched.shape == style.shape and np.isfinite(matched).all()
    np.testing.assert_allclose(np.ptp(matched, axis=-1), 0, atol=1e-6)
    if match is color.match_histogram and np.ptp(style) > 0.9 and len(style) > 9:
        # And its histogram is the content's, as that of the style's mean would be.
        oracle = match(np.repeat(style.mean(-1, keepdims=True), 3, -1), content)
        np.testing.assert_allclose(np.sort(matched, axis=None), np.sort(oracle, axis=None), atol=1e-6)


def test_channels_equal_in_content_stay_equal_and_the_others_their_own():
    content = picture(4)[..., [0, 1, 0, 2]]
    style = without_ties(5, 12, 16)[..., [0, 1, 2, 0]]
    matched = np.asarray(color.match_histogram(style, content))
    np.testing.assert_array_equal(matched[..., 0], matched[..., 2])
    np.testing.assert_array_equal(matched[..., 1], color.match_histogram(style[..., 1:2], content[..., 1:2])[..., 0])
    assert np.abs(matched[..., 3] - matched[..., 0]).max() > 0.1


def test_is_gray():
    assert all(color.is_gray(grey) for grey in grey_contents().values())
    spot = grey_contents()["photo"].copy()
    spot[3, 4, 1] += 2 / 255
    assert not color.is_gray(spot) and not color.is_gray(picture())


# Composition


PAIRS = {
    "with_luminance": lambda a, b: color.with_luminance(a, color.luminance(b)),
    "match_luminance": lambda a, b: color.match_luminance(color.luminance(a), color.luminance(b)),
    "match_covariance": color.match_covariance,
    "match_histogram": color.match_histogram,
}


@pytest.mark.parametrize("function", PAIRS.values(), ids=PAIRS.keys())
def test_under_jit_and_vmap_in_float32(function):
    a, b = (jnp.stack([picture(seed, 12, 10) for seed in seeds]) for seeds in ((1, 2, 3), (4, 5, 6)))
    plain = jnp.stack([function(x, y) for x, y in zip(a, b, strict=True)])
    batched = jax.jit(jax.vmap(function))(a, b)
    assert batched.dtype == jnp.float32 and batched.min() >= 0 and batched.max() <= 1
    np.testing.assert_allclose(batched, plain, atol=1e-5)


@pytest.mark.parametrize("function", PAIRS.values(), ids=PAIRS.keys())
def test_numpy_pictures_will_do(function):
    assert isinstance(function(picture(1), picture(2)), jax.Array)


@pytest.mark.parametrize("value", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.8, 0.1, 0.1)])
def test_a_reference_of_one_color_leaves_contrast_to_what_is_recolored_by_it(value):
    flat = np.broadcast_to(np.float32(value), (24, 32, 3))
    reference = color.with_least_contrast(flat)
    style = np.random.default_rng(0).uniform(size=(20, 20, 3)).astype(np.float32)
    assert reference.min() >= 0 and reference.max() <= 1
    for match in (color.match_covariance, color.match_histogram):
        recolored = np.asarray(match(style, reference))
        assert np.asarray(color.luminance(recolored)).std() > 0.02
        assert np.abs(recolored.mean((0, 1)) - value).max() < 0.05
    inside = min(value) > 0.1 and max(value) < 0.9
    if inside:
        np.testing.assert_allclose(np.asarray(color.luminance(reference)).std(), 0.05, rtol=0.05)


def test_a_reference_of_usual_contrast_is_the_content():
    content = np.random.default_rng(0).uniform(size=(24, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(color.with_least_contrast(content), content)
