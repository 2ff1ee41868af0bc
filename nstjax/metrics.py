"""How near two images are, as numbers to report. Images are [H, W, 3] in [0, 1]; all is pure, under jit and vmap.

    mse, psnr, ssim                    pixels: against an image that should be equal, such as a reconstruction
    lpips                              what people see: against the content image, how much of it is still there
    content_distance, style_distance   0 is reached, 1 is as far as a start: how far a transfer has got
    frechet                            two clouds of features, of two images or of two collections
    edge_ssim, outside_affine          photo-realistic transfer: how far edges and local colors are those of the photo
    color_distance                     colors, region by region
    segmentation_agreement             what a segmentation network still recognizes
    warping_error                      two frames of a painted video: how much it flickers along the motion

ArtFID (Wright and Ommer 2022, arXiv 2207.12280) is (1 + LPIPS) (1 + FID), less being better: LPIPS of each stylized
image against its content image, FID between the stylized and the style images. It needs Inception weights that were
fine-tuned on art, which are not here, and hundreds of images. `lpips` and `frechet` are its ingredients; with other
features their product has no claim to the name, and compares with no figure of that paper.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nstjax import color, flow, losses, matting, weights
from nstjax.errors import InputError
from nstjax.losses import mse as mse  # 0 is equal, less is better; of images it is at most 1

Image = Float[Array | np.ndarray, "h w 3"]
Extract = Callable[[Any, Any], Mapping[str, Any]]  # (params, image) -> {layer: [h, w, c]}

# VGG-16's layers that LPIPS compares (Zhang 2018's published code), the last of each block.
LPIPS_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")

# --- pixels


def psnr(a: Float[Array | np.ndarray, "*shape"], b: Float[Array | np.ndarray, "*shape"]) -> losses.Scalar:
    """Peak signal-to-noise ratio 10 log10(1 / mse) in decibels: more is better, inf is equal."""
    return -10 * jnp.log10(mse(a, b))


def ssim(
    a: Float[Array | np.ndarray, "_ _ *c"],
    b: Float[Array | np.ndarray, "_ _ *c"],
    *,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> losses.Scalar:
    """Structural similarity in [-1, 1], more is better, 1 is equal (Wang 2004, doi 10.1109/TIP.2003.819861, eq. 13).

    Of images [h, w, c], the mean of the channels', or [h, w], in [0, 1]. Means, variances and the covariance are local,
    under a Gaussian of 11 x 11 pixels; mean over the places where it fits in (eq. 17). Raises ValueError for shapes
    that differ or a side under 11.
    """
    if a.shape != b.shape or min(a.shape[:2]) < 11:
        raise ValueError(f"images of one shape, of 11x11 pixels or more, are needed, not {a.shape} and {b.shape}")
    origin = a.mean((0, 1))  # variances are of differences from it, which rounding spares
    x, y = a - origin, b - origin
    mean_x, mean_y, xx, yy, xy = _blur(jnp.stack([x, y, x * x, y * y, x * y]), sigma)
    variances, covariance = xx - mean_x**2 + yy - mean_y**2, xy - mean_x * mean_y
    mean_x, mean_y = mean_x + origin, mean_y + origin
    light = (2 * mean_x * mean_y + k1**2) / (mean_x**2 + mean_y**2 + k1**2)
    return (light * (2 * covariance + k2**2) / (variances + k2**2)).mean()


def _blur(x: Float[Array, "n h w *c"], sigma: float) -> Float[Array, "n h-10 w-10 *c"]:
    """Mean under a Gaussian of 11 x 11 pixels."""
    window = np.exp(-0.5 * (np.arange(-5, 6) / sigma) ** 2)
    window = (window / window.sum()).astype(np.float32)
    for axis in (1, 2):
        x = sum(w * jax.lax.slice_in_dim(x, i, x.shape[axis] - 10 + i, axis=axis) for i, w in enumerate(window))
    return x


# --- features


def lpips(
    extract: Extract,
    params: Any,
    a: Image,
    b: Image,
    *,
    layers: Sequence[str] = LPIPS_LAYERS,
    heads: Mapping[str, Float[Array | np.ndarray, " _"]] | None = None,
) -> Any:
    """Learned perceptual distance of two images: 0 is equal, less is better (Zhang 2018, arXiv 1801.03924).

    Args:
        heads: `load_heads("vgg")`, calibrated by what people see: about 0 to 1. They weigh the channels of
            torchvision's VGG-16 and mean nothing for those of another training, such as the bundled one: use them with
            `features.load("vgg16", "torchvision")` alone. None weighs all channels by 1, the paper's uncalibrated form,
            for any network and layers: the sum of twice the cosine distances, each at most 2 for rectified features.
    """
    return losses.lpips(extract(params, a), _only(extract(params, b), layers), heads=heads)


def load_heads(network: str) -> dict[str, Float[np.ndarray, " _"]]:
    """Return LPIPS's bundled linear heads v0.1, {layer: weights >= 0 of torchvision's channels}.

    Args:
        network: "vgg" (VGG-16) or "squeeze" (SqueezeNet 1.1: relu1, fire3 and fire5 to fire9). See weights/README.md.

    Raises:
        InputError: another network, or the bundled file was changed.
    """
    from safetensors.numpy import load_file

    arrays = load_file(weights.bundled("lpips.safetensors"))
    heads = {name.removeprefix(f"{network}/"): x for name, x in arrays.items() if name.startswith(f"{network}/")}
    if not heads:
        raise InputError(f"no LPIPS heads for {network!r}; there are vgg, squeeze")
    return heads


def content_distance(
    extract: Extract,
    params: Any,
    image: Image,
    content: Image,
    *,
    layers: Sequence[str] = ("relu4_2",),
    distance: losses.Distance = mse,
) -> Any:
    """How much of a content image's structure is gone, mean over the layers: 0 is none, less is better.

    `losses.content` of the image against the content, in units of that of features that have lost all structure
    (replaced by their mean): with mse, the fraction of variance unexplained. 1 is a blank; unrelated images have
    about 2.
    """
    x, target = extract(params, image), _only(extract(params, content), layers)
    flat = {name: jnp.broadcast_to(y.mean((0, 1)), y.shape) for name, y in target.items()}
    return _relative(lambda x, name: losses.content(x, {name: target[name]}, distance=distance), x, flat, layers)


def style_distance(
    extract: Extract,
    params: Any,
    image: Image,
    style: Float[Array | np.ndarray, "_ _ 3"],
    content: Float[Array | np.ndarray, "_ _ 3"],
    *,
    layers: Sequence[str] = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"),
    statistic: losses.Statistic = losses.gram,
    distance: losses.Distance = mse,
    region: losses.Mask | None = None,
    learned: Float[Array | np.ndarray, "_ _"] | None = None,
) -> Any:
    """How much of the way from a content image to a style is left, mean over the layers: less is better.

    `losses.style` of the image against the style, in units of that of the untouched content: 1 is the content image, 0
    has the style image's statistics. By default it is of squares: 0.01 is a tenth of the difference of Gram matrices.

    Args:
        region: mask of the image and of the content image, if only a region of them counts.
        learned: mask of the style image.
    """
    x, start, wanted = (_only(extract(params, each), layers) for each in (image, content, style))
    target = {name: statistic(y, mask=_at(learned, y)) for name, y in wanted.items()}

    def loss(x: Mapping[str, Any], name: str) -> Any:
        return distance(statistic(x[name], mask=_at(region, x[name])), target[name])

    return _relative(loss, x, start, layers)


def _at(mask: Any, features: Any) -> Array | None:
    """A mask at the size of features; None stays None."""
    return None if mask is None else jax.image.resize(jnp.asarray(mask), features.shape[:2], "linear")


def _only(features: Mapping[str, Any], layers: Iterable[str]) -> dict[str, Any]:
    losses.check_layers(features, layers)
    return {name: features[name] for name in layers}


def _relative(
    loss: Callable[[Any, str], Any], x: Mapping[str, Any], unit: Mapping[str, Any], layers: Sequence[str]
) -> Any:
    """Mean over the layers of loss(x, layer) / loss(unit, layer), of features {layer: [h, w, C]}."""
    return sum(loss(x, name) / jnp.maximum(loss(unit, name), 1e-30) for name in layers) / len(layers)


def frechet(a: losses.Gaussian, b: losses.Gaussian) -> losses.Scalar:
    """Squared Fréchet distance of two `losses.Gaussian`s of features: 0 is equal, less is better.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2): FID (Heusel 2017, arXiv 1706.08500, eq. 6), whatever the features.
    Its unit is theirs squared, it grows with the channels, and few samples bias it upwards: compare like with like.
    Of two images: `losses.gaussian(features)` of one layer (as SIFID, Shaham 2019, arXiv 1905.01164); of collections:
    `losses.gaussian` of the total of `losses.sums` over the images. `losses.wasserstein2` is 1 / C of it, faster and
    with a gradient, but 1 to 2 % of the traces too great for features of VGG; this one is exact to about 1e-6 of them.
    """
    # tr (A B)^1/2 is the sum of the singular values of A^1/2 B^1/2.
    singular: Any = jnp.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False)
    means = ((a.mean - b.mean) ** 2).sum()
    return jnp.maximum(means + jnp.trace(a.covariance) + jnp.trace(b.covariance) - 2 * singular.sum(), 0)


def _root(a: losses.Matrix) -> Float[Array, "c c"]:
    """Square root of a symmetric matrix whose eigenvalues are at least 0 but for rounding."""
    values, vectors = jnp.linalg.eigh(a)
    return vectors * jnp.sqrt(jnp.maximum(values, 0)) @ vectors.T


# --- photo-realistic transfer


def edge_ssim(image: Image, content: Image) -> losses.Scalar:
    """SSIM of the edges of an image and of its content image: 1 is equal, more is better.

    Edges are Sobel gradients of luminance, whose lengths are scaled to the content's root mean square, so that an image
    may be darker or of less contrast (after Yoo 2019, arXiv 1903.09760, which compares a network's edge maps).
    """
    x, y = _edges(image), _edges(content)
    return ssim(x * jnp.sqrt((y**2).mean() / jnp.maximum((x**2).mean(), 1e-12)), y)


def _edges(image: Image) -> Float[Array, "_ _"]:
    """Lengths of the Sobel gradients of luminance, inside the border."""
    x = color.luminance(jnp.asarray(image))
    across, along = (lambda x: x[:, 2:] - x[:, :-2]), (lambda x: x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:])
    gradients = across(along(x.T).T), across(along(x).T).T
    return jnp.sqrt(sum(g**2 for g in gradients) + 1e-12) / 8


def outside_affine(image: Image, content: Image, *, tolerance: float = 2 / 255, epsilon: float = 1e-5) -> losses.Scalar:
    """The share of pixels that no locally affine function of the content's colors gives: 0 to 1, less is better.

    That of pixels whose residuals from the fits of the 3x3 windows that contain them are on average over the tolerance
    in some channel (`matting.product`). Strokes, noise and posterisation are outside; light and colors are not.

    Args:
        tolerance: in colors in [0, 1].
        epsilon: ridge of the fits, in squared colors.
    """
    residual = matting.product(content, image, epsilon=epsilon) / matting.degree(np.shape(image))
    return (jnp.abs(residual).max(-1) > tolerance).mean()


def color_distance(
    image: Image,
    style: Float[Array | np.ndarray, "_ _ 3"],
    region: losses.Mask | None = None,
    learned: Float[Array | np.ndarray, "_ _"] | None = None,
) -> losses.Scalar:
    """Fréchet distance of the colors of an image and a style image, not squared: 0 is equal, less is better.

    In colors in [0, 1]: 0.1 is a difference of means by 0.1, or of standard deviations, or of both together.

    Args:
        region, learned: masks of the image and of the style image, if only a region counts.
    """
    return jnp.sqrt(frechet(losses.gaussian(image, mask=region), losses.gaussian(style, mask=learned)))


class Agreement(NamedTuple):
    """How far two segmentations agree, each from 0 to 1."""

    accuracy: losses.Scalar  # share of pixels
    mean_iou: losses.Scalar  # intersection over union, mean over the classes that either has


def segmentation_agreement(
    net: Callable[[Any], Float[Array, "h w classes"]], image: Image, labels: Int[Array | np.ndarray, "h w"]
) -> Agreement:
    """FCN scores: what a segmentation network recognizes in an image, against labels (Isola 2017, arXiv 1611.07004).

    No such network is bundled. Labels may be the network's own for the content image.

    Args:
        net: image -> a score for each class at every pixel.
        labels: the number of the class at every pixel; others, such as -1, are left out.
    """
    scores = net(image)
    classes = jnp.arange(scores.shape[-1])
    known = ((labels >= 0) & (labels < len(classes)))[..., None]
    there, wanted = (x[..., None] == classes for x in (scores.argmax(-1), jnp.asarray(labels)))
    both = (there & wanted & known).sum((0, 1))
    either = ((there | wanted) & known).sum((0, 1))
    iou = jnp.where(either > 0, both / jnp.maximum(either, 1), 0)
    return Agreement(both.sum() / jnp.maximum(known.sum(), 1), iou.sum() / jnp.maximum((either > 0).sum(), 1))


def warping_error(
    image: Image, earlier: Image, motion: Float[Array | np.ndarray, "h w 2"], seen: Float[Array | np.ndarray, "h w"]
) -> losses.Scalar:
    """Mean squared difference of two painted frames along the motion of the video: less is better, 0 is none.

    sum c (image - warp(earlier))^2 / sum c over pixels, mean over channels (Lai 2018, arXiv 1808.00449, eq. 9). A
    video's is the mean over its pairs of frames; it compares only among results for one video, with one flow.

    Args:
        motion: from the image's frame to the earlier one, in pixels (`nstjax.flow`).
        seen: c, 1 where the earlier frame shows the same place, else 0 (`flow.consistent`).
    """
    difference = ((image - flow.warp(jnp.asarray(earlier), motion)) ** 2).mean(-1)
    return (seen * difference).sum() / jnp.maximum(seen.sum(), 1)
