"""Keep the content's colours: transfer of luminance, matching of covariances or histograms.

Gatys et al. 2016, "Preserving Color in Neural Artistic Style Transfer" (arXiv 1606.05897), and 2017,
"Controlling Perceptual Factors in Neural Style Transfer" (arXiv 1611.07865), give two ways. Recolour the
style before the transfer: `match_covariance(style, content)` or `match_histogram(style, content)`. Or
transfer luminance alone: give the style `match_luminance(luminance(style), luminance(content))`, stylise in
grey, and put the content's chroma back: `with_luminance(content, luminance(result))`. What is recoloured after
a grey content is grey. All is pure, and works under jit and vmap.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from nstjax.typing import Image

Method = Literal["none", "luminance", "covariance", "histogram"]

# NTSC's YIQ on Rec. 601 luma. Rows I and Q sum to 0: grey has no chroma.
RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)

# About the variance of rounding to 8 bits, 1 / (12 * 255**2): what varies less holds noise, no colour.
VARIANCE_FLOOR = 1e-6
# Channels that differ by less than half a level of 8 bits are the same to an eye, and in a file.
LEVEL = 0.5 / 255


def rgb_to_yiq(image):
    """RGB [H, W, 3] in [0, 1] -> YIQ [H, W, 3], Y in [0, 1], |I| <= 0.596, |Q| <= 0.523."""
    return _transform(RGB_TO_YIQ, image)


def yiq_to_rgb(image):
    """YIQ [H, W, 3] -> RGB [H, W, 3], unclipped: the inverse of `rgb_to_yiq`."""
    return _transform(YIQ_TO_RGB, image)


def luminance(image):
    """Rec. 601 luma [H, W] in [0, 1] of RGB [H, W, 3]: the Y of YIQ."""
    return rgb_to_yiq(image)[..., 0]


def is_grey(image):
    """Whether an image [H, W, 3] has no chroma: its channels differ by less than half a level of 8 bits, [] bool."""
    return jnp.ptp(jnp.asarray(image), axis=-1).max() < LEVEL


def with_luminance(content, y):
    """The chroma of content [H, W, 3] on the luma y [H, W], in [0, 1] (Gatys et al. 2016, section 3.2).

    Where their sum leaves the gamut, the chroma shrinks toward grey just enough: hue and luma stay exact,
    which clipping each channel would bend. y is clipped to [0, 1] first.
    """
    y = jnp.clip(y, 0, 1)[..., None]
    chroma = content - luminance(content)[..., None]
    room = jnp.where(chroma > 0, 1 - y, y)
    excess = jnp.max(jnp.abs(chroma) / jnp.maximum(room, 1e-12), axis=-1, keepdims=True)
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
    if method == "luminance" or (method != "none" and is_grey(content)):
        return with_luminance(content, luminance(stylized))
    return stylized


def with_least_contrast(content, *, contrast=0.05):
    """The content [H, W, 3] as a reference to recolor by, whose luma has at least the standard deviation `contrast`.

    What is recolored by one color alone becomes that color, so that nothing of it would be seen. Where the content
    varies less, a horizontal ramp of greys is added; elsewhere the content is returned as it is. Within [0, 1].
    """
    missing = jnp.sqrt(jnp.maximum(contrast**2 - jnp.var(luminance(content)), 0))
    ramp = jnp.linspace(-(3**0.5), 3**0.5, content.shape[1])  # of variance 1
    return jnp.clip(content + missing * ramp[:, None], 0, 1)


def match_luminance(style_y, content_y, *, clip=True):
    """Luma style_y [h, w] with the mean and deviation of content_y [H, W] (Gatys et al. 2016, section 3.2).

    Clipped to [0, 1] at the end, which moves both a little, unless clip=False. A constant style stays
    constant.
    """
    spread = jnp.std(style_y)
    flat = spread**2 < VARIANCE_FLOOR
    scale = jnp.where(flat, 0, jnp.std(content_y) / jnp.where(flat, 1, spread))
    return _clipped(scale * (style_y - jnp.mean(style_y)) + jnp.mean(content_y), clip)


def match_covariance(style, content, *, clip=True):
    """style [h, w, 3] recoloured by an affine map to the mean and covariance of content [H, W, 3].

    x -> A (x - mean_s) + mean_c with A = S_c^1/2 S_s^-1/2 (Gatys et al. 2016, section 3.1) and symmetric
    roots, as in Image Analogies, which the paper finds to look better than Cholesky's. Directions in which
    style or content has no colour, as all but one in a grey image, stay empty. Clipped to [0, 1] at the end,
    which moves both moments a little, unless clip=False.
    """
    style_mean, style_covariance = _moments(style)
    content_mean, content_covariance = _moments(content)
    whiten = _symmetric_power(style_covariance, -0.5, floor=VARIANCE_FLOOR)
    colour = _root_of_colour(content_covariance)
    matrix = jnp.matmul(colour, whiten, precision="highest")
    return _clipped(_transform(matrix, style - style_mean) + content_mean, clip)


def match_histogram(style, content):
    """style [h, w, C] with the histogram of content [H, W, C] per channel, by quantiles; sizes may differ.

    Exact where style has no ties. Equal values share their middle rank and stay equal, so flat areas stay
    flat. Channels that are equal in content, as all of a grey image's are, stay so: they take the ranks of
    their mean in style. In float32 the ranks are exact up to 8 megapixels, and a few off beyond.
    """
    pixels, reference = (jnp.asarray(image).reshape(-1, image.shape[-1]) for image in (style, content))
    pixels, reference = _with_equal_channels(pixels, reference)
    return jax.vmap(_match_quantiles, in_axes=1, out_axes=1)(pixels, reference).reshape(style.shape)


def _match_quantiles(x, reference):
    """x [n] -> [n]: the values at the same quantiles of reference [m], interpolated linearly."""
    ordered, reference = jnp.sort(x), jnp.sort(reference)
    below, upto = (jnp.searchsorted(ordered, x, side=side) for side in ("left", "right"))
    middle = (below + upto).astype(reference.dtype) / 2  # rank + 1/2, in [1/2, n - 1/2]
    position = jnp.clip(middle * (reference.size / x.size) - 0.5, 0, reference.size - 1)
    lower = position.astype(jnp.int32)
    upper = jnp.minimum(lower + 1, reference.size - 1)
    weight = position - lower
    return reference[lower] * (1 - weight) + reference[upper] * weight


def _with_equal_channels(x, reference):
    """x [n, C] and reference [m, C], in both of which channels that are equal in reference are their mean."""
    channels = range(reference.shape[1])
    equal = jnp.stack([jnp.abs(reference - reference[:, i : i + 1]).max(0) for i in channels]) < LEVEL
    first = jnp.argmax(equal, axis=1)  # of the channels that are equal to each
    share = (equal / equal.sum(1, keepdims=True)).astype(x.dtype)
    return tuple(jnp.einsum("ij,nj->ni", share, y, precision="highest")[:, first] for y in (x, reference))


def _moments(image):
    """Mean [3] and covariance [3, 3] of the colours of an image [H, W, 3]."""
    mean = jnp.mean(image, axis=(-3, -2))
    centred = image - mean
    total = jnp.einsum("hwi,hwj->ij", centred, centred, precision="highest")
    return mean, total / (image.shape[-3] * image.shape[-2])


def _symmetric_power(covariance, power, *, floor=0.0):
    """U max(L, floor)^power U^T of a covariance U L U^T [3, 3]."""
    values, vectors = jnp.linalg.eigh(covariance)
    return _transform(vectors * jnp.maximum(values, floor) ** power, vectors)


def _root_of_colour(covariance):
    """The root of a covariance [3, 3], with 0 for what varies less than rounding; its root would be visible colour."""
    values, vectors = jnp.linalg.eigh(covariance)
    roots = jnp.where(values < VARIANCE_FLOOR, 0, jnp.sqrt(jnp.maximum(values, VARIANCE_FLOOR)))
    return _transform(vectors * roots, vectors)


def _transform(matrix, image):
    """matrix [3, 3] times each pixel of [..., 3]; in full precision, as GPU and TPU would round it."""
    return jnp.einsum("ij,...j->...i", jnp.asarray(matrix, image.dtype), image, precision="highest")


def _clipped(image, clip):
    return jnp.clip(image, 0, 1) if clip else image
