"""Keep the content's colors: transfer of luminance, matching of covariances or histograms.

Gatys et al. 2016, "Preserving Color in Neural Artistic Style Transfer" (arXiv 1606.05897), and 2017,
"Controlling Perceptual Factors in Neural Style Transfer" (arXiv 1611.07865), give two ways. One recolors the style
before the transfer: `match_covariance(style, content)` or `match_histogram(style, content)`. The other transfers
luminance alone: it gives the style `match_luminance(luminance(style), luminance(content))`, stylizes in gray, and puts
the content's chroma back: `with_luminance(content, luminance(result))`. A style that is recolored by a gray content is
gray. All functions are pure, and work under jit and vmap.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from nstjax.typing import Array, Image

Method = Literal["none", "luminance", "covariance", "histogram"]

Luma = Float[Array, "h w"]
Matrix = Float[Array, "3 3"]

# NTSC's YIQ on Rec. 601 luma. Rows I and Q sum to 0: gray has no chroma.
RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)

# About the variance of rounding to 8 bits, 1 / (12 * 255**2): what varies less holds noise, no color.
VARIANCE_FLOOR = 1e-6
# Channels that differ by less than half a level of 8 bits look the same, and are the same in a file.
LEVEL = 0.5 / 255


def rgb_to_yiq(image: Image) -> Float[jax.Array, "_ _ 3"]:
    """RGB in [0, 1] -> YIQ, with Y in [0, 1], |I| <= 0.596, |Q| <= 0.523."""
    return _transform(RGB_TO_YIQ, image)


def yiq_to_rgb(image: Image) -> Float[jax.Array, "_ _ 3"]:
    """YIQ -> RGB, not clipped: the inverse of `rgb_to_yiq`."""
    return _transform(YIQ_TO_RGB, image)


def luminance(image: Float[Array, "h w 3"]) -> Float[jax.Array, "h w"]:
    """Rec. 601 luma in [0, 1] of an RGB image: the Y of YIQ."""
    return rgb_to_yiq(image)[..., 0]


def is_gray(image: Image) -> Bool[jax.Array, ""]:
    """Whether an image has no chroma: its channels differ by less than half a level of 8 bits."""
    return jnp.ptp(jnp.asarray(image), axis=-1).max() < LEVEL


def with_luminance(content: Float[Array, "h w 3"], y: Luma) -> Float[jax.Array, "h w 3"]:
    """The content's chroma with the luma y, in [0, 1] (Gatys et al. 2016, section 3.2).

    Where their sum leaves the gamut, the chroma shrinks toward gray just enough. That keeps hue and luma exact, while
    clipping each channel would shift them. y is clipped to [0, 1] first.
    """
    y = jnp.clip(y, 0, 1)[..., None]
    chroma = content - luminance(content)[..., None]
    limit = jnp.where(chroma > 0, 1 - y, y)
    excess = jnp.max(jnp.abs(chroma) / jnp.maximum(limit, 1e-12), axis=-1, keepdims=True)
    return jnp.clip(y + chroma / jnp.maximum(excess, 1), 0, 1)


def gray(image: Image) -> Image:
    """The luma of an image in all three channels."""
    return jnp.repeat(luminance(image)[..., None], 3, axis=-1)


def recolored(style: Image, content: Image, *, method: Method) -> Image:
    """A style image in the colors of a content image, before the transfer: "none" leaves it as it is.

    By "luminance" it is gray, with the luma's mean and contrast of the content.
    """
    content = content if method == "none" else with_least_contrast(content)
    match method:
        case "luminance":
            y = match_luminance(luminance(style), luminance(content))
            return jnp.repeat(y[..., None], 3, axis=-1)
        case "covariance":
            return match_covariance(style, content)
        case "histogram":
            return match_histogram(style, content)
    return style


def kept(content: Image, stylized: Image, *, method: Method) -> Image:
    """A stylized image with the content's chroma where only its luma was painted, or where the content has none."""
    if method == "luminance" or (method != "none" and is_gray(content)):
        return with_luminance(content, luminance(stylized))
    return stylized


def with_least_contrast(content: Float[Array, "h w 3"], *, contrast: float = 0.05) -> Float[jax.Array, "h w 3"]:
    """The content as a reference to recolor by, in [0, 1], whose luma has at least the standard deviation `contrast`.

    A style that is recolored by one color alone becomes that color, and nothing of it could be seen. If the content
    varies too little, a horizontal ramp of grays is added; otherwise it is returned as it is.
    """
    missing = jnp.sqrt(jnp.maximum(contrast**2 - jnp.var(luminance(content)), 0))
    ramp = jnp.linspace(-(3**0.5), 3**0.5, content.shape[1])  # of variance 1
    return jnp.clip(content + missing * ramp[:, None], 0, 1)


def match_luminance(style_y: Luma, content_y: Float[Array, "_ _"], *, clip: bool = True) -> Float[jax.Array, "h w"]:
    """The style's luma with the mean and deviation of the content's (Gatys et al. 2016, section 3.2).

    It is clipped to [0, 1] at the end, which moves both a little, unless clip=False. A constant style stays constant.
    """
    spread = jnp.std(style_y)
    flat = spread**2 < VARIANCE_FLOOR
    scale = jnp.where(flat, 0, jnp.std(content_y) / jnp.where(flat, 1, spread))
    return _clipped(scale * (style_y - jnp.mean(style_y)) + jnp.mean(content_y), clip)


def match_covariance(style: Float[Array, "h w 3"], content: Image, *, clip: bool = True) -> Float[jax.Array, "h w 3"]:
    """The style recolored by an affine map to the mean and covariance of the content.

    x -> A (x - mean_s) + mean_c with A = S_c^1/2 S_s^-1/2 (Gatys et al. 2016, section 3.1) and symmetric roots, as in
    Image Analogies, which the paper finds to look better than Cholesky's. Directions in which style or content has no
    color, as all but one in a gray image, stay empty. The result is clipped to [0, 1], which moves both moments a
    little, unless clip=False.
    """
    style_mean, style_covariance = _moments(style)
    content_mean, content_covariance = _moments(content)
    whiten = _symmetric_power(style_covariance, -0.5, floor=VARIANCE_FLOOR)
    root = _root_of_color(content_covariance)
    matrix = jnp.matmul(root, whiten, precision="highest")
    return _clipped(_transform(matrix, style - style_mean) + content_mean, clip)


def match_histogram(style: Float[Array, "h w c"], content: Float[Array, "_ _ c"]) -> Float[jax.Array, "h w c"]:
    """The style with the content's histogram in each channel, by quantiles; sizes may differ.

    It is exact where the style has no ties. Equal values share their middle rank and stay equal, so that flat areas
    stay flat. Channels that are equal in the content, as all of a gray image's are, stay equal: they take the ranks of
    their mean in the style. In float32 the ranks are exact up to 8 megapixels, and off by a few beyond that.
    """
    pixels, reference = (jnp.asarray(image).reshape(-1, image.shape[-1]) for image in (style, content))
    pixels, reference = _with_equal_channels(pixels, reference)
    return jax.vmap(_match_quantiles, in_axes=1, out_axes=1)(pixels, reference).reshape(style.shape)


def _match_quantiles(x: Float[Array, " n"], reference: Float[Array, " m"]) -> Float[jax.Array, " n"]:
    """The values at the same quantiles of the reference as those of x, interpolated linearly."""
    ordered, reference = jnp.sort(x), jnp.sort(reference)
    below, upto = (jnp.searchsorted(ordered, x, side=side) for side in ("left", "right"))
    middle = (below + upto).astype(reference.dtype) / 2  # rank + 1/2, in [1/2, n - 1/2]
    position = jnp.clip(middle * (reference.size / x.size) - 0.5, 0, reference.size - 1)
    lower = position.astype(jnp.int32)
    upper = jnp.minimum(lower + 1, reference.size - 1)
    weight = position - lower
    return reference[lower] * (1 - weight) + reference[upper] * weight


def _with_equal_channels(
    x: Float[Array, "n c"], reference: Float[Array, "m c"]
) -> tuple[Float[jax.Array, "n c"], Float[jax.Array, "m c"]]:
    """x and the reference, in both of which the channels that are equal in the reference become their mean."""
    channels = range(reference.shape[1])
    equal = jnp.stack([jnp.abs(reference - reference[:, i : i + 1]).max(0) for i in channels]) < LEVEL
    first = jnp.argmax(equal, axis=1)  # of the channels that are equal to each
    share = (equal / equal.sum(1, keepdims=True)).astype(x.dtype)
    x, reference = (jnp.einsum("ij,nj->ni", share, y, precision="highest")[:, first] for y in (x, reference))
    return x, reference


def _moments(image: Image) -> tuple[Float[Array, "3"], Matrix]:
    """Mean and covariance of the colors of an image."""
    mean = jnp.mean(image, axis=(-3, -2))
    centered = image - mean
    total = jnp.einsum("hwi,hwj->ij", centered, centered, precision="highest")
    return mean, total / (image.shape[-3] * image.shape[-2])


def _symmetric_power(covariance: Matrix, power: float, *, floor: float = 0.0) -> Matrix:
    """U max(L, floor)^power U^T of a covariance U L U^T."""
    values, vectors = jnp.linalg.eigh(covariance)
    return _transform(vectors * jnp.maximum(values, floor) ** power, vectors)


def _root_of_color(covariance: Matrix) -> Matrix:
    """The root of a covariance, with 0 for what varies less than by rounding, whose root would be a visible color."""
    values, vectors = jnp.linalg.eigh(covariance)
    roots = jnp.where(values < VARIANCE_FLOOR, 0, jnp.sqrt(jnp.maximum(values, VARIANCE_FLOOR)))
    return _transform(vectors * roots, vectors)


def _transform(matrix: Matrix, image: Float[Array, "*shape 3"]) -> Float[jax.Array, "*shape 3"]:
    """The matrix times each pixel; in full precision, since GPUs and TPUs would round it by default."""
    return jnp.einsum("ij,...j->...i", jnp.asarray(matrix, image.dtype), image, precision="highest")


def _clipped(image: Float[jax.Array, "*shape"], clip: bool) -> Float[jax.Array, "*shape"]:
    return jnp.clip(image, 0, 1) if clip else image
