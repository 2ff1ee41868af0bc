"""Metrics against scikit-image, scipy, numpy in float64 and the lpips package; and what they say of worse pictures."""

import sys
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from nstjax import features, images, losses, metrics, weights
from nstjax.errors import InputError
from nstjax.features import vgg

few = settings(max_examples=6, deadline=None, derandomize=True)
# Compiled whole, which is faster than operation by operation.
ssim, psnr, frechet = map(jax.jit, (metrics.ssim, metrics.psnr, metrics.frechet))
lpips = jax.jit(metrics.lpips, static_argnames=("extract", "layers"))
content_distance = jax.jit(metrics.content_distance, static_argnames=("extract", "layers"))
style_distance = jax.jit(metrics.style_distance, static_argnames=("extract", "layers", "statistic", "distance"))
SEEDS, SIDES = st.integers(0, 10_000), st.integers(11, 24)
LAYERS = {"layers": ("a", "b")}


def picture(seed=0, *shape):
    """float32 in [0, 1] with structure at several sizes, [24, 20, 3] by default."""
    noise = np.random.default_rng(seed).uniform(size=shape or (24, 20, 3))
    smooth = gaussian_filter(noise, (2, 2, 0)[: noise.ndim])
    return (0.3 * noise + 0.7 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def similarity(a, b):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return structural_similarity(a, b, channel_axis=-1 if a.ndim == 3 else None, **options)


KERNEL = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


def extract(params, image):
    """Two layers of rectified features, the second of pairs of pixels and half the size."""
    x = jax.nn.relu((image - 0.4) @ params)
    return {"a": x, "b": (x * jnp.roll(x, 1, axis=0))[::2, ::2]}


# Pixels


@few
@given(SEEDS, SIDES, SIDES, st.sampled_from([(), (1,), (3,)]), st.floats(0.01, 1))
def test_ssim_is_that_of_scikit_image(seed, h, w, channels, noise):
    a = picture(seed, h, w, *channels)
    b = np.clip(a + noise * np.random.default_rng(seed).normal(size=a.shape), 0, 1).astype(np.float32)
    assert float(ssim(a, b)) == pytest.approx(similarity(a, b), abs=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_ssim_of_nearly_flat_pictures(level):
    """Where variances are differences of nearly equal numbers."""
    a = (level + 1e-3 * (picture() - 0.5)).astype(np.float32)
    b = (level + 1e-3 * (picture(1) - 0.5)).astype(np.float32)
    assert float(ssim(a, b)) == pytest.approx(similarity(a, b), abs=1e-4)


@few
@given(SEEDS, SIDES, SIDES)
def test_a_picture_is_like_itself(seed, h, w):
    a = picture(seed, h, w, 3)
    assert float(ssim(a, a)) == pytest.approx(1, abs=1e-6)
    assert float(metrics.mse(a, a)) == 0 and float(psnr(a, a)) == np.inf


def test_a_negative_is_unlike():
    assert float(ssim(picture(), 1 - picture())) < -0.5


@few
@given(SEEDS, st.floats(0.01, 0.5))
def test_psnr_is_that_of_scikit_image(seed, noise):
    a = picture(seed)
    b = np.clip(a + noise, 0, 1).astype(np.float32)
    assert float(psnr(a, b)) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1), abs=1e-3)


def test_ssim_wants_pictures_of_one_shape_and_large_enough():
    for a, b in ((picture(0, 10, 20, 3),) * 2, (picture(), picture()[:, :-1])):
        with pytest.raises(ValueError, match="11x11"):
            ssim(a, b)


def test_ssim_has_a_gradient_that_makes_pictures_alike():
    a, b = jnp.asarray(picture()), jnp.asarray(picture(1))
    gradient = jax.jit(jax.grad(ssim, argnums=1))(a, b)
    assert np.isfinite(gradient).all() and float(ssim(a, b + 0.1 * gradient)) > float(ssim(a, b))
    assert np.isfinite(jax.grad(ssim)(a, a)).all()


# LPIPS


def oracle_lpips(a, b, heads=None):
    total = 0.0
    for name in a:
        x, y = (np.asarray(each[name], np.float64) for each in (a, b))
        x, y = (each / (np.sqrt((each**2).sum(2, keepdims=True)) + 1e-10) for each in (x, y))
        total += ((x - y) ** 2 @ (np.ones(x.shape[2]) if heads is None else heads[name])).mean()
    return total


@few
@given(SEEDS, st.booleans())
def test_lpips_against_numpy(seed, calibrated):
    a, b = picture(seed), picture(seed + 1)
    heads = {name: np.random.default_rng(seed).uniform(size=8) for name in "ab"} if calibrated else None
    expected = oracle_lpips(extract(KERNEL, a), extract(KERNEL, b), heads)
    found = lpips(extract, KERNEL, a, b, **LAYERS, heads=heads)
    assert float(found) == pytest.approx(expected, rel=1e-4)
    assert float(lpips(extract, KERNEL, b, a, **LAYERS, heads=heads)) == pytest.approx(float(found), rel=1e-5)
    assert float(lpips(extract, KERNEL, a, a, **LAYERS, heads=heads)) < 1e-12


def test_lpips_without_heads_is_twice_the_cosine_distance():
    a, b = (np.asarray(extract(KERNEL, picture(seed))["a"]).reshape(-1, 8) for seed in (0, 1))
    both = (a.any(1)) & (b.any(1))
    cosines = (a * b).sum(1)[both] / np.linalg.norm(a[both], axis=1) / np.linalg.norm(b[both], axis=1)
    alone = (a.any(1) != b.any(1)).sum()  # one of them is 0: the squared length of the other's direction
    expected = (2 * (1 - cosines).sum() + alone) / len(a)
    assert float(lpips(extract, KERNEL, picture(0), picture(1), layers=("a",))) == pytest.approx(expected, rel=1e-4)


def test_lpips_has_a_gradient_where_features_vanish():
    dark = jnp.full((24, 20, 3), 0.4)  # all features are 0
    gradient = jax.grad(lambda x: lpips(extract, KERNEL, x, picture(), **LAYERS))(dark)
    assert np.isfinite(gradient).all()


def test_lpips_of_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match="no layer 'c'; there are a, b"):
        lpips(extract, KERNEL, picture(), picture(), layers=("c",))


@pytest.fixture(scope="module")
def photograph():
    """The bundled photograph, [64, 64, 3]."""
    return np.asarray(images.load(weights.PICTURES / "astronaut.jpg", size=64))


@pytest.fixture(scope="module")
def perceived():
    """LPIPS, uncalibrated, by the bundled VGG-16."""
    return partial(lpips, vgg.features, features.load("vgg16", winograd=False))


def test_lpips_grows_with_blur_and_with_noise(photograph, perceived):
    noise = np.random.default_rng(0).normal(size=photograph.shape)
    blurred = [gaussian_filter(photograph, (sigma, sigma, 0)) for sigma in (0.5, 1, 2, 4)]
    noisy = [np.clip(photograph + level * noise, 0, 1) for level in (0.02, 0.05, 0.1, 0.3)]
    for worse in (blurred, noisy):
        distances = [float(perceived(photograph, x.astype(np.float32))) for x in (photograph, *worse)]
        assert distances[0] < 1e-12 and (np.diff(distances) > 0.01).all() and distances[-1] < 10


def test_lpips_minds_structure_more_than_brightness(photograph, perceived):
    """Unlike mse: a darker picture is nearer than a blurred one of the same mse."""
    blurred = gaussian_filter(photograph, (1.5, 1.5, 0))
    darker = photograph * (1 - np.sqrt(((photograph - blurred) ** 2).sum() / (photograph**2).sum()))
    assert float(metrics.mse(photograph, darker)) == pytest.approx(float(metrics.mse(photograph, blurred)), rel=1e-3)
    assert float(perceived(photograph, darker)) < 0.5 * float(perceived(photograph, blurred))


@pytest.mark.parametrize(
    "network, channels", [("vgg", [64, 128, 256, 512, 512]), ("squeeze", [64, 128, 256, 384, 384, 512, 512])]
)
def test_heads(network, channels):
    heads = metrics.load_heads(network)
    assert sorted(map(len, heads.values())) == channels
    assert all(x.dtype == np.float32 and x.min() >= 0 and x.max() > 0.1 for x in heads.values())
    if network == "vgg":
        assert tuple(heads) == metrics.LPIPS_LAYERS


def test_heads_of_another_network():
    with pytest.raises(InputError, match="no LPIPS heads for 'alex'; there are vgg, squeeze"):
        metrics.load_heads("alex")


def test_lpips_is_that_of_the_package(tmp_path, monkeypatch):
    """Its own forward pass and heads on a VGG-16 of random weights, for it to need no download."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    sequence, tensors, before = [], {}, 3
    for channels in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if not channels:
            sequence.append(torch.nn.MaxPool2d(2))
            continue
        layer = torch.nn.Conv2d(before, channels, 3, padding=1)
        kernel = (rng.normal(size=(channels, before, 3, 3)) * np.sqrt(2 / 9 / before)).astype(np.float32)
        layer.weight.data, layer.bias.data = torch.tensor(kernel), torch.zeros(channels)
        tensors[f"features.{len(sequence)}.weight"] = kernel
        tensors[f"features.{len(sequence)}.bias"] = np.zeros(channels, np.float32)
        sequence += [layer, torch.nn.ReLU()]
        before = channels
    models = types.ModuleType("torchvision.models")
    models.vgg16 = lambda pretrained: types.SimpleNamespace(features=torch.nn.Sequential(*sequence))  # type: ignore
    torchvision = types.ModuleType("torchvision")
    torchvision.models = models  # type: ignore
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    package = pytest.importorskip("lpips")
    save_file(tensors, tmp_path / "vgg16.safetensors", {"preprocessing": weights.IMAGENET})
    params = features.load("vgg16", tmp_path / "vgg16.safetensors", winograd=False)
    a, b = picture(0, 45, 38, 3), picture(1, 45, 38, 3)
    for heads in (None, metrics.load_heads("vgg")):
        oracle = package.LPIPS(net="vgg", lpips=heads is not None, verbose=False)
        first, second = (torch.tensor(x.transpose(2, 0, 1)[None]) for x in (a, b))
        expected = oracle(first, second, normalize=True).item()
        assert float(lpips(vgg.features, params, a, b, heads=heads)) == pytest.approx(expected, rel=1e-4)


# Content and style


def test_content_distance_is_the_variance_unexplained():
    content = picture()
    distance = partial(content_distance, extract, KERNEL, content=content, layers=("a",))
    x, y = (np.asarray(extract(KERNEL, each)["a"], np.float64) for each in (picture(1), content))
    expected = ((x - y) ** 2).mean() / ((y - y.mean((0, 1))) ** 2).mean()
    assert float(distance(picture(1))) == pytest.approx(expected, rel=1e-4)
    assert float(distance(content)) < 1e-12


def test_content_distance_is_a_mean_over_layers():
    distance = partial(content_distance, extract, KERNEL, picture(1), picture())
    one, other, both = (float(distance(layers=layers)) for layers in (("a",), ("b",), ("a", "b")))
    assert both == pytest.approx((one + other) / 2, rel=1e-5)


def test_style_distance_goes_from_the_photograph_to_the_painting():
    content, style = picture(), picture(1, 30, 26, 3)
    distance = partial(style_distance, extract, KERNEL, style=style, content=content, **LAYERS)
    turned = style[::-1, ::-1]  # style forgets position
    assert float(distance(content)) == pytest.approx(1, rel=1e-6)
    assert float(style_distance(extract, KERNEL, style, style, content, **LAYERS)) < 1e-12
    assert float(style_distance(extract, KERNEL, turned, style, content, layers=("a",))) < 1e-6


@pytest.mark.parametrize("scale", [1e-3, 57.0])
def test_distances_do_not_depend_on_the_scale_of_features(scale):
    for distance, pictures in (
        (content_distance, (picture(1), picture())),
        (style_distance, (picture(1), picture(2), picture())),
    ):
        plain, scaled = (distance(extract, factor * KERNEL, *pictures, layers=("a",)) for factor in (1, scale))
        assert float(scaled) == pytest.approx(float(plain), rel=1e-4)


def test_style_distance_by_wasserstein():
    options = {"statistic": losses.gaussian, "distance": losses.wasserstein2}
    far, near = (
        float(style_distance(extract, KERNEL, x, picture(1), picture(), **LAYERS, **options))
        for x in (picture(), (0.2 * picture() + 0.8 * picture(1)))
    )
    assert far == pytest.approx(1, rel=1e-6) and near < 0.5


# Fréchet


def gaussian(seed, c=6, rank=6):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rank, c))
    return losses.Gaussian(rng.normal(size=c).astype(np.float32), (x.T @ x / rank).astype(np.float32))


@few
@given(SEEDS, st.integers(1, 12))
def test_frechet_against_scipy(seed, c):
    a, b = gaussian(seed, c, 2 * c), gaussian(seed + 1, c, 2 * c)
    first, second = (x.covariance.astype(np.float64) for x in (a, b))
    cross = np.real(np.trace(scipy.linalg.sqrtm(first @ second)))
    expected = ((a.mean - b.mean) ** 2.0).sum() + np.trace(first) + np.trace(second) - 2 * cross
    assert float(frechet(a, b)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@few
@given(SEEDS, st.integers(1, 8))
def test_frechet_of_few_samples(seed, rank):
    """Covariances of less than full rank, as small collections have."""
    a, b = gaussian(seed, 8, rank), gaussian(seed + 1, 8, rank)
    size = float(np.trace(a.covariance))
    assert 0 <= float(frechet(a, a)) < 1e-4 * size
    assert float(frechet(a, b)) == pytest.approx(float(frechet(b, a)), rel=1e-4)


def test_frechet_of_collections_adds_up_their_sums():
    collections = [[np.asarray(extract(KERNEL, picture(10 * i + j))["a"]) for j in range(3)] for i in range(2)]
    total = lambda each: jax.tree.map(lambda *x: sum(x), *map(losses.sums, each))  # noqa: E731
    added = frechet(*(losses.gaussian(total(each)) for each in collections))
    whole = frechet(*(losses.gaussian(np.concatenate(each)) for each in collections))
    assert float(added) == pytest.approx(float(whole), rel=1e-3)


def test_frechet_agrees_with_wasserstein():
    a, b = gaussian(0, 6, 60), gaussian(1, 6, 60)
    assert float(frechet(a, b)) == pytest.approx(6 * float(losses.wasserstein2(a, b)), rel=1e-3)


def test_all_work_under_jit_and_vmap():
    a, b = (np.stack([picture(i) for i in seeds]) for seeds in ((0, 1), (2, 3)))
    spread = lambda image: losses.gaussian(extract(KERNEL, image)["a"])  # noqa: E731
    for metric in (
        metrics.mse,
        metrics.psnr,
        metrics.ssim,
        partial(metrics.lpips, extract, KERNEL, **LAYERS),
        partial(metrics.content_distance, extract, KERNEL, **LAYERS),
        partial(metrics.style_distance, extract, KERNEL, content=picture(4), **LAYERS),
        lambda a, b: metrics.frechet(spread(a), spread(b)),
    ):
        alone, together = jax.jit(metric), jax.jit(jax.vmap(metric))(a, b)
        np.testing.assert_allclose(together, [alone(x, y) for x, y in zip(a, b, strict=True)], rtol=1e-3)


# Photo-realistic transfer


def test_edges_survive_light_and_not_blur_or_strokes():
    content = picture(0, 40, 36, 3)
    edge_ssim = jax.jit(metrics.edge_ssim)
    assert float(edge_ssim(content, content)) == pytest.approx(1)
    assert float(edge_ssim(0.3 * content + 0.1, content)) == pytest.approx(1, abs=1e-3)
    blurred = gaussian_filter(content, (1.5, 1.5, 0))
    assert edge_ssim(blurred, content) < 0.9
    assert edge_ssim(picture(1, 40, 36, 3), content) < edge_ssim(blurred, content)


def test_edges_are_sobels():
    from skimage.filters import sobel

    image = picture(0, 24, 20, 3)
    expected = sobel(image.astype(np.float64) @ [0.299, 0.587, 0.114])[1:-1, 1:-1] / np.sqrt(2) * 2
    np.testing.assert_allclose(2 * metrics._edges(image), expected, atol=1e-4)


def test_what_is_affine_in_the_content_is_inside_and_strokes_are_outside():
    content = picture(0, 40, 36, 3)
    night = 0.2 * content @ np.array([[1, 0.2, 0], [0, 1, 0], [0.1, 0, 1]], np.float32)
    stroke = night.copy()
    stroke[10:13, 5:30] += 0.3
    assert metrics.outside_affine(night, content) == 0
    assert 25 * 3 / (40 * 36) <= float(metrics.outside_affine(stroke, content)) < 27 * 7 / (40 * 36)


def test_colors_and_grams_are_compared_within_regions():
    style, image = picture(0, 24, 20, 3), picture(1, 24, 20, 3)
    image[:, 10:] = style[:, :10] + 0.1
    region, learned = np.zeros((2, 24, 20), np.float32)
    region[:, 10:], learned[:, :10] = 1, 1
    assert float(metrics.color_distance(image, style, region, learned)) == pytest.approx(0.1 * 3**0.5, rel=1e-2)
    image[:, 10:] = style[:, :10]
    assert float(metrics.color_distance(image, style, region, learned)) < 1e-2 < metrics.color_distance(image, style)
    masked = partial(style_distance, content=picture(2), region=region, learned=learned, layers=("a",))
    assert float(masked(extract, KERNEL, image, style)) < 1e-6
    whole = style_distance(extract, KERNEL, image, style, picture(2), layers=("a",))
    assert float(whole) > 1e-3


def test_segmentation_agreement_of_a_toy_network():
    scene = np.zeros((8, 8, 3), np.float32)
    scene[:, :4, 0], scene[:, 4:, 2] = 1, 1  # red is class 0, blue class 2, green class 1
    net = lambda image: image  # noqa: E731
    labels = np.where(np.arange(8) < 4, 0, 2) * np.ones((8, 1), int)
    agreement = jax.jit(partial(metrics.segmentation_agreement, net))
    assert tuple(agreement(scene, labels)) == (1, 1)
    scene[:, 2:4] = [0, 1, 0]  # a quarter turns green, which the labels do not have: IoU 1/2, 0, 1
    found = agreement(scene, labels)
    assert (float(found.accuracy), float(found.mean_iou)) == (0.75, 0.5)
    labels[:, 2:4] = -1
    assert tuple(agreement(scene, labels)) == (1, 1)


def test_warping_error_is_the_mean_along_the_motion():
    """Of an image that moves by whole pixels, with one changed pixel: by hand."""
    earlier = np.random.default_rng(0).random((6, 8, 3)).astype(np.float32)
    motion = np.broadcast_to(np.float32([-2, 1]), (6, 8, 2))
    image = np.roll(earlier, (-1, 2), (0, 1))
    image[1, 4] += [0.3, 0, -0.6]
    seen = np.zeros((6, 8), np.float32)
    seen[:5, 2:] = 1
    expected = (0.3**2 + 0.6**2) / 3 / 30
    assert float(metrics.warping_error(image, earlier, motion, seen)) == pytest.approx(expected, rel=1e-4)
    seen[1, 4] = 0
    assert float(metrics.warping_error(image, earlier, motion, seen)) == pytest.approx(0, abs=1e-9)
    assert float(metrics.warping_error(image, earlier, motion, 0 * seen)) == 0
