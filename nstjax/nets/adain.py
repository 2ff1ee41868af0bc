"""AdaIN (Huang 2017, arXiv 1703.06868): one net for every style, also for those that were not in the training.

`stylize` gives the moments of a style's features (`targets`, or several of them `blend`ed) to the content's features,
and decodes them to an image.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from nstjax import losses
from nstjax.features import vgg
from nstjax.nets import layers
from nstjax.nets.convolutions import Features
from nstjax.nets.decoder import Decoder
from nstjax.typing import Array, Images

Activations = Mapping[str, Float[Array, "_ _ _"]]  # {layer: [h, w, c]} of one image
Moments = Float[Array, "n 2 c"]  # mean and standard deviation of each channel, of each image

# The layers whose moments the loss compares (Huang's eq. 13).
LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")


def encode(params: vgg.Params, images: Images) -> Float[jax.Array, "_ _ _ c"]:
    """relu4_1 of VGG-19, [N, ceil(H/8), ceil(W/8), C], for images in [0, 1]; `params` come from `features.load`.

    Sides are reflected to multiples of 8. Huang's VGG reflects for every convolution; ours pads by zeros.
    """
    needed = vgg.until(params, ["conv4_1"])
    return jax.vmap(lambda x: vgg.features(needed, x)["relu4_1"])(layers.pad_to_multiple(images, 8))


def moments(x: Features) -> Float[jax.Array, "n 2 c"]:
    """`losses.moments` of each image's features."""
    return jax.vmap(losses.moments)(x)


def targets(params: vgg.Params, styles: Images) -> Float[jax.Array, "_ 2 c"]:
    """What AdaIN takes from style images: mean and standard deviation of relu4_1, one pair for each image."""
    return moments(encode(params, styles))


def blend(targets: Float[Array, "k 2 c"], weights: Any) -> Float[jax.Array, "2 c"]:
    """Average several styles to one, by weights [k] >= 0 of any sum > 0.

    It is the same as blending the features that each style gives (Huang's eq. 15), which are linear in the moments.
    """
    weights = jnp.asarray(weights)
    return jnp.einsum("k,ksc->sc", weights / weights.sum(), targets)


def adain(
    x: Features, target: Float[Array, "*n_or_none 2 c"], *, alpha: float | Float[Array, "..."] = 1.0
) -> Float[jax.Array, "n h w c"]:
    """Features with the mean and standard deviation of `target` (Huang's eq. 8).

    Args:
        target: of one style for all images [2, c], or of one for each [n, 2, c].
        alpha: from 0, the features as they are, to 1 (eq. 14); a number, or one for each image [n].
    """
    mean, std = jnp.moveaxis(moments(x)[:, None, None], 3, 0)
    target_mean, target_std = jnp.moveaxis(jnp.asarray(target)[..., None, None, :, :], -2, 0)
    alpha = jnp.reshape(alpha, (-1, 1, 1, 1))
    return (1 - alpha) * x + alpha * ((x - mean) / std * target_std + target_mean)


def stylize(
    params: vgg.Params,
    decoder: Decoder,
    variables: Mapping[str, Any],
    images: Float[Array, "n h w 3"],
    target: Float[Array, "*n_or_none 2 c"],
    *,
    alpha: float | Float[Array, "..."] = 1.0,
) -> Float[Array, "n h w 3"]:
    """Return images in the style `target`, not clipped to [0, 1].

    Args:
        params: of VGG-19 (`features.load`).
        variables: the decoder's.
        target, alpha: see `adain`.
    """
    x = adain(encode(params, images), target, alpha=alpha)
    return jnp.asarray(decoder.apply(variables, x))[:, : images.shape[1], : images.shape[2]]


def layer_weights(acts: Activations) -> dict[str, dict[str, Float[Array, ""]]]:
    """Return {"content_layers", "style_layers"} for `compare`, from a typical image's features of any scale.

    Huang's VGG is normalized: the mean activation of each layer is 1. Here a layer's weight has the same effect.
    """
    weights = {name: 1 / x.mean() ** 2 for name, x in acts.items()}
    # Huang adds the distances of means and of standard deviations, of which `losses.mse` takes the mean.
    return {
        "content_layers": {"relu4_1": weights["relu4_1"]},
        "style_layers": {name: 2 * weight for name, weight in weights.items()},
    }


def compare(
    acts: Activations,
    wanted: Float[Array, "h w c"],
    style: Mapping[str, Float[Array, "2 _"]],
    *,
    content_layers: Mapping[str, Any],
    style_layers: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the losses {"content", "style"} of a decoded image's features (Huang's eq. 12 and 13), by `losses.mse`.

    Args:
        wanted: the features from which the image was decoded, as `adain` returned them.
        style: the moments of each layer for the style image.
        content_layers, style_layers: {layer: weight}.
    """
    return {
        "content": losses.content(acts, {"relu4_1": wanted}, weights=content_layers),
        "style": losses.style(acts, style, statistic=losses.moments, weights=style_layers),
    }


def loss(decoder: Decoder) -> Callable[..., tuple[Any, tuple[dict[str, Any], Any]]]:
    """Return the loss of the decoder's training (Huang's eq. 11 to 13), for `nstjax.train.make_step`.

    Its batch is {"content", "style": [N, H, W, 3]}, its data {"network": VGG's params, "weights": {"content", "style":
    number}, "rate": number} and `layer_weights`.
    """

    def loss(params: Any, stats: Any, batch: Any, keys: Any, data: Any) -> tuple[Any, tuple[dict[str, Any], Any]]:
        each = jax.vmap(lambda image: vgg.features(data["network"], image))
        style = each(batch["style"])
        wanted = adain(each(batch["content"])["relu4_1"], moments(style["relu4_1"]))
        targets = {name: moments(style[name]) for name in data["style_layers"]}
        layers = {name: data[name] for name in ("content_layers", "style_layers")}
        one = lambda *given: compare(*given, **layers)  # noqa: E731
        terms = jax.vmap(one)(each(decoder.apply({"params": params}, wanted)), wanted, targets)
        terms = {name: x.mean() * data["weights"][name] for name, x in terms.items()}
        return sum(terms.values()), (terms, stats)

    return loss
