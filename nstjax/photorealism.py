"""Photo-realistic style transfer: a photo gets the light and the colors of another, and keeps every edge.

    pairs = [(region, mask)] of the content and the style image, at the size that is painted
    painting = photorealism.paint(small, style, pairs)    # Progress after each step, as `neural_style.paint`
    result = photorealism.rendered(photo, small, painted, pairs)  # at any size

After Deep Photo (Luan 2017, arXiv 1703.07511), with three departures. The start is not the photo, but its colors in
closed form, region by region (`nstjax.wct`), so that 30 steps do. The style loss is the Wasserstein distance, whose
means carry the light. And an image is painted small: what is kept of it is the locally affine function of the photo's
colors that is nearest, which is then applied to the photo itself, at its size. So lines stay straight, whatever is
painted.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nstjax import matting, neural_style, recipes, wct
from nstjax.features import vgg
from nstjax.nets import Decoder
from nstjax.nets import wct as decoding
from nstjax.neural_style import Progress, Style
from nstjax.typing import Array, Image, Mask

# Without a pyramid, since the start has the right colors already. The matting weight keeps strokes out.
# On pixels, since on a pyramid's levels tints spread over skies.
RECIPE = recipes.PRESETS["fast"]._replace(
    variables="pixels", steps=30, scales=1, strength=0.9, matting_weight=1e6, tv_weight=0.0
)
SIZE = 256  # long side in pixels at which is painted
FEATHER, FEATHER_RIDGE = 1 / 64, 1e-3  # of the masks: radius as a share of the long side, ridge in squared colors
RADIUS, RIDGE = 1 / 32, 1e-4  # of the local affine functions
LEAST_SHARE = 0.01  # of a mask that counts somewhere
NOISE = 1e-3  # variance of colors that may be noise, which is not made into colors of the style

_affine = jax.jit(matting.affine, static_argnames=("radius", "epsilon"))
_of_style, _decoded = jax.jit(decoding.style), jax.jit(decoding.stylize, static_argnames="decoder")
Pair = tuple[Mask, Mask]  # where a style is painted in the content image, and where it is learned in the style image


def refined(content: Image, pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs whose regions follow the content's edges, by the guided filter; where they overlap they sum to 1."""
    regions = np.stack([region for region, _ in pairs], -1)
    function = _affine(content, regions, radius=_radius(content, FEATHER), epsilon=FEATHER_RIDGE)
    masks = np.clip(np.asarray(matting.applied(function, content)), 0, 1)
    masks /= np.maximum(masks.sum(-1, keepdims=True), 1)
    return [(masks[..., i], learned) for i, (_, learned) in enumerate(pairs)]


def recolored(content: Image, style: Image, pairs: Sequence[Pair]) -> Image:
    """The content image with the mean and covariance of the style's colors in every region, in [0, 1]."""
    return np.clip(np.asarray(wct.by_regions(content, style, pairs, ridge=NOISE, least=0)[0]), 0, 1)


def paint(
    content: Image, style: Image, pairs: Sequence[Pair], *, recipe: recipes.Recipe = RECIPE, **more: Any
) -> Iterator[Progress]:
    """Paint a content image in the style's light and colors, from `recolored`; yields a `Progress` after each step.

    Args:
        pairs: of the images' sizes.
        recipe: with a matting weight.
        more: arguments of `neural_style.paint`.
    """
    styles = [Style(style, learned, region) for region, learned in pairs]
    return neural_style.paint(content, styles, preset=recipe, init=recolored(content, style, pairs), **more)


def decoded(
    content: Image,
    style: Image,
    pairs: Sequence[Pair],
    *,
    params: vgg.Params,
    decoder: Decoder,
    variables: Mapping[str, Any],
) -> Image:
    """The content image with the mean and covariance of the style's features in every region: PhotoWCT (Li 2018).

    Args:
        pairs: of the images' sizes.
        params: of VGG-19, up to relu4_1 (`features.load`).
        decoder, variables: such as the bundled "wct" (`nstjax.nets.io.load`).
    """
    targets = [_of_style(params, style, mask=learned) for _, learned in pairs]
    out = _decoded(params, decoder, variables, content, targets, regions=[region for region, _ in pairs])
    return np.clip(np.asarray(out), 0, 1)


def rendered(
    photo: Image, content: Image, painted: Image, pairs: Sequence[Pair], *, strength: float = 1.0
) -> Float[Array, "_ _ 3"]:
    """The photo by the locally affine functions that make the content image nearly the painted one, in [0, 1].

    Each region has functions of its own, since at an edge between regions light and dark may change places, for which
    no affine function of colors can account.

    Args:
        photo: of any size.
        content, painted: of one size, the photo's aspect.
        pairs: whose regions are of that size. What no region covers is one more.
        strength: from 0, which returns the photo, to 1.
    """
    photo = jnp.asarray(photo)
    masks = [region for region, _ in pairs]
    rest = np.maximum(1 - sum(masks), 0)
    total, out = jnp.zeros(()), jnp.zeros_like(photo)
    for mask in (*masks, rest):
        if mask.max() < LEAST_SHARE:
            continue
        function = _affine(content, painted, radius=_radius(content, RADIUS), epsilon=RIDGE, weights=mask)
        where = _affine(content, mask[..., None], radius=_radius(content, FEATHER), epsilon=FEATHER_RIDGE)
        share = _applied(where, photo) + 1e-6
        total, out = total + share, out + share * _applied(function, photo)
    return np.asarray(jnp.clip(photo + strength * (out / total - photo), 0, 1))


@jax.jit
def _applied(function: matting.Affine, photo: Any) -> Any:
    """Affine functions, enlarged to a photo's size, of its colors; in [0, 1]."""
    enlarged = [jax.image.resize(x, (*photo.shape[:2], *x.shape[2:]), "linear") for x in function]
    return jnp.clip(matting.applied(matting.Affine(*enlarged), photo), 0, 1)


def _radius(image: Image, share: float) -> int:
    return max(1, round(share * max(image.shape[:2])))
