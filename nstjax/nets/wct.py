"""Any style in one pass, in closed form: whitening and coloring of a network's features (`nstjax.wct`), decoded.

WCT (Li 2017, arXiv 1705.08086) and PhotoWCT (Li 2018, arXiv 1802.06474). Their features are transformed at relu4_1,
3_1, 2_1 and 1_1, with a decoder and another encoding for each. Here one decoder passes through all four layers, and
its own features are transformed on the way (PhotoWCT2: Chiu 2022, arXiv 2110.11995): one encoding, one decoding.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from nstjax import losses, wct
from nstjax.features import vgg
from nstjax.nets import layers
from nstjax.nets.convolutions import Features
from nstjax.nets.decoder import LEVELS, POOLED, Decoder, places
from nstjax.typing import Array, Image, Images, Mask

NEEDED = (*LEVELS, *POOLED.values())
COMPARED = ("relu1_1", "relu2_1", "relu3_1")  # layers of the decoded image that training compares
TRUE = 0.25  # share of images whose decoding goes on with VGG's own features, at each layer, in training
PIXELS = 0.05  # about the variance of photos' pixels
# Added to eigenvalues of the content's features of a mean square of 1, so that what hardly varies is not made strokes.
RIDGE = 0.1

Style = Mapping[str, losses.Gaussian]  # of each layer in LEVELS


def encode(params: vgg.Params, images: Images) -> dict[str, Float[Array, "n _ _ _"]]:
    """The layers of VGG-19 that a decoder needs, for images in [0, 1]; sides are reflected to multiples of 8."""
    needed = vgg.until(params, LEVELS)
    acts = jax.vmap(lambda x: vgg.features(needed, x))(layers.pad_to_multiple(images, 8))
    return {name: acts[name] for name in NEEDED}


def style(params: vgg.Params, image: Image, *, mask: Mask | None = None) -> dict[str, losses.Gaussian]:
    """Mean and covariance of a style image's features in each layer, scaled to a mean square of about 1.

    Args:
        params: of VGG-19, up to relu4_1 (`features.load`).
        mask: where in the image they are taken.
    """
    acts = encode(params, image[None])
    masks = {name: None if mask is None else _resized(mask, acts[name]) for name in LEVELS}
    return {name: losses.gaussian(acts[name][0] / scale, mask=masks[name]) for name, scale in LEVELS.items()}


def stylize(
    params: vgg.Params,
    decoder: Decoder,
    variables: Mapping[str, Any],
    image: Image,
    styles: Sequence[Style],
    *,
    regions: Sequence[Mask] = (),
    strength: float | losses.Scalar = 1.0,
) -> Float[Array, "h w 3"]:
    """An image with the style's mean and covariance of features in every layer, not clipped to [0, 1].

    Args:
        params: of VGG-19, up to relu4_1 (`features.load`).
        variables: the decoder's.
        styles: from `style`, one for each region.
        regions: masks of the image's shape which sum to 1 where all is to be stylized; by default one of everything.
        strength: from 0, the decoded content, to 1.
    """
    acts = encode(params, image[None])
    masks = regions or [jnp.ones(image.shape[:2])]

    def change(name: str, x: Features) -> Float[Array, "1 _ _ _"]:
        pairs = [(_resized(region, x), wanted[name]) for region, wanted in zip(masks, styles, strict=True)]
        return LEVELS[name] * wct.mixed(x[0] / LEVELS[name], pairs, strength=strength, ridge=RIDGE)[None]

    first = change("relu4_1", acts["relu4_1"])
    decoded: Any = decoder.apply(variables, first, places(acts), change=change, method=Decoder.levels)
    return decoded["image"][0, : image.shape[0], : image.shape[1]]


def _resized(mask: Mask, like: Features) -> Float[Array, "_ _"]:
    """A mask at the size of features, which cover what was reflected to multiples of 8."""
    whole = layers.pad_to_multiple(jnp.asarray(mask)[None, ..., None], 8)
    n, m = like.shape[1:3]
    return whole.reshape(n, whole.shape[1] // n, m, whole.shape[2] // m).mean((1, 3))


def reconstruction(decoder: Decoder) -> Callable[..., tuple[Any, tuple[dict[str, Any], Any]]]:
    """The loss of a decoder that is to give back images from their features, for `nstjax.train.make_step`.

    Its terms compare pixels (mean square over PIXELS), features of the decoded image in COMPARED, and the decoder's own
    features with VGG's (mean squares relative to VGG's). At each layer, a quarter of the images go on with VGG's own
    features, so that every block of the decoder learns from true features as from those of the blocks before.

    Its batch is images [N, H, W, 3] with sides divisible by 8, its data {"network": VGG's params, "weights": {"pixels",
    "features", "levels": number}, "rate": number}.
    """

    def loss(params: Any, stats: Any, batch: Any, keys: Any, data: Any) -> tuple[Any, tuple[dict[str, Any], Any]]:
        acts, found = encode(data["network"], batch), {}

        def change(name: str, x: Features) -> Features:
            found[name] = x
            true = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, len(found)), TRUE))(keys)
            return jnp.where(true[:, None, None, None], acts[name], x)

        given = {"params": params}, acts["relu4_1"], places(acts)
        image = decoder.apply(*given, change=change, method=Decoder.levels)["image"]  # type: ignore[index, call-overload]
        again = jax.vmap(lambda x: vgg.features(vgg.until(data["network"], COMPARED), x))(image)
        terms = {
            "pixels": losses.mse(image, batch) / PIXELS,
            "features": sum(_relative(again[name], acts[name]) for name in COMPARED) / len(COMPARED),
            "levels": sum(_relative(x, acts[name]) for name, x in found.items()) / len(found),
        }
        terms = {name: data["weights"][name] * x for name, x in terms.items()}
        return sum(terms.values()), (terms, stats)

    return loss


def _relative(x: Features, wanted: Features) -> Float[Array, ""]:
    return losses.mse(x, wanted) / (jnp.square(wanted).mean() + 1e-6)
