"""AdaIN (Huang 2017, arXiv 1703.06868): one net for every style, which need not have been seen in training.

The styles' `targets`, perhaps `blend`ed, are what `stylize` gives to the content's features before they are decoded.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nstjax import losses
from nstjax.features import vgg
from nstjax.nets import layers

# Whose moments the loss compares (Huang's eq. 13).
LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")


def encode(params, images):
    """relu4_1 of VGG-19, [N, ceil(H/8), ceil(W/8), C], for pictures [N, H, W, 3] in [0, 1]; params: `features.load`.

    Sides are reflected to multiples of 8. Huang's VGG reflects for every convolution; nstjax's pads zeros.
    """
    needed = vgg.until(params, ["conv4_1"])
    return jax.vmap(lambda x: vgg.features(needed, x)["relu4_1"])(layers.pad_to_multiple(images, 8))


def moments(x):
    """`losses.moments` of each picture's features: [N, h, w, C] -> [N, 2, C]."""
    return jax.vmap(losses.moments)(x)


def targets(params, styles):
    """What a style is to AdaIN: mean and standard deviation of relu4_1, [K, 2, C], of styles [K, H, W, 3]."""
    return moments(encode(params, styles))


def blend(targets, weights):
    """One style [2, C] between several [K, 2, C], by weights [K] >= 0 of any sum > 0.

    The same as blending the features that each style gives (Huang's eq. 15), in which the moments are linear.
    """
    weights = jnp.asarray(weights)
    return jnp.einsum("k,ksc->sc", weights / weights.sum(), targets)


def adain(x, target, *, alpha=1.0):
    """Features [N, h, w, C] with the mean and standard deviation of `target`, [2, C] or [N, 2, C] (Huang's eq. 8).

    alpha: from 0, the features as they are, to 1 (eq. 14); a number or one for each picture [N].
    """
    mean, std = jnp.moveaxis(moments(x)[:, None, None], 3, 0)
    target_mean, target_std = jnp.moveaxis(jnp.asarray(target)[..., None, None, :, :], -2, 0)
    alpha = jnp.reshape(alpha, (-1, 1, 1, 1))
    return (1 - alpha) * x + alpha * ((x - mean) / std * target_std + target_mean)


class Decoder(nn.Module):
    """relu4_1 [N, h, w, C] -> pictures [N, 8h, 8w, 3]: VGG-19 mirrored, reflection padding, `nearest`, no norm.

    Nothing keeps the result in [0, 1]: `images.save` clips it. level: of relu4_1 in the bundled weights (root mean
    square), by which it is divided, so that the decoder trains at the usual rates. channels: of VGG's blocks 3, 2, 1.
    """

    channels: tuple[int, int, int] = (256, 128, 64)
    level: float = 1600.0
    fast: bool = False

    @nn.compact
    def __call__(self, x):
        third, second, first = self.channels
        x = nn.relu(layers.Conv(third, bias=True, fast=self.fast, name="conv4_1")(x / self.level))
        for block, count, inside, after in ((3, 4, third, second), (2, 2, second, first), (1, 2, first, 3)):
            for i in range(count, 0, -1):
                features, gain = (after if i == 1 else inside), (1.0 if (block, i) == (1, 1) else 2.0)
                upsample = layers.nearest if i == count else None
                name = f"conv{block}_{i}"
                x = layers.Conv(features, upsample=upsample, bias=True, gain=gain, fast=self.fast, name=name)(x)
                x = x if (block, i) == (1, 1) else nn.relu(x)
        return x


def stylize(params, decoder, variables, images, target, *, alpha=1.0):
    """Pictures [N, H, W, 3] in the style `target` (as for `adain`), of the same size; not clipped to [0, 1].

    params: VGG-19's (`features.load`); variables: the decoder's.
    """
    x = adain(encode(params, images), target, alpha=alpha)
    return decoder.apply(variables, x)[:, : images.shape[1], : images.shape[2]]


def layer_weights(acts):
    """{"content_layers", "style_layers"} for `compare`, whatever the scale of features {layer: [h, w, C]} of a picture.

    Huang's VGG is normalised: the mean activation of each layer is 1. Here a layer's weight has the same effect.
    """
    weights = {name: 1 / x.mean() ** 2 for name, x in acts.items()}
    # Huang adds the distances of means and of standard deviations, of which `losses.mse` takes the mean.
    return {
        "content_layers": {"relu4_1": weights["relu4_1"]},
        "style_layers": {name: 2 * weight for name, weight in weights.items()},
    }


def compare(acts, wanted, style, *, content_layers, style_layers):
    """Huang's eq. 12 and 13, {"content", "style"}, of a picture's features {layer: [h, w, C]}.

    wanted: what `adain` made of the photograph's relu4_1 [h, w, C]; style: each layer's moments {layer: [2, C]}; both
    are compared by `losses.mse`, the layers weighed {layer: number}.
    """
    return {
        "content": losses.content(acts, {"relu4_1": wanted}, weights=content_layers),
        "style": losses.style(acts, style, statistic=losses.moments, weights=style_layers),
    }


def loss(decoder):
    """The loss of the decoder's training (Huang's eq. 11 to 13), for `nstjax.train.make_step`.

    batch: {"content", "style": [N, H, W, 3]}. data: {"network": VGG's params, "weights": {"content", "style": number},
    "rate": number} and `layer_weights`.
    """

    def loss(params, stats, batch, keys, data):
        each = jax.vmap(lambda picture: vgg.features(data["network"], picture))
        style = each(batch["style"])
        wanted = adain(each(batch["content"])["relu4_1"], moments(style["relu4_1"]))
        targets = {name: moments(style[name]) for name in data["style_layers"]}
        layers = {name: data[name] for name in ("content_layers", "style_layers")}
        one = lambda *given: compare(*given, **layers)  # noqa: E731
        terms = jax.vmap(one)(each(decoder.apply({"params": params}, wanted)), wanted, targets)
        terms = {name: x.mean() * data["weights"][name] for name, x in terms.items()}
        return sum(terms.values()), (terms, stats)

    return loss
