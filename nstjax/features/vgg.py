"""VGG-16 and VGG-19 (Simonyan and Zisserman 2015, arXiv 1409.1556) up to pool5, as one pure function."""

import jax
import jax.numpy as jnp

from nstjax import convolve, weights
from nstjax.weights import BLOCKS


def layer_names(network):
    """Names of a network's layers in order: conv1_1, relu1_1, conv1_2, relu1_2, pool1, ..."""
    names: tuple[str, ...] = ()
    for block, count in enumerate(BLOCKS[network], 1):
        names += tuple(f"{kind}{block}_{i}" for i in range(1, count + 1) for kind in ("conv", "relu"))
        names += (f"pool{block}",)
    return names


def shapes(network):
    """{layer: {part: shape}} of a network's params."""
    return {name: {"kernel": shape, "bias": shape[3:]} for name, shape in weights.shapes(network).items()}


def numbers(layer):
    """How many activations a layer has for each pixel of the image: 64 for conv1_1, 8 for relu4_2, 4 for pool3."""
    block = int(layer[4])
    return min(64 * 2 ** (block - 1), 512) / 4 ** (block - 1 + layer.startswith("pool"))


@jax.custom_vjp
def relu(x):
    """max(x, 0), whose gradient is told from its result, so that the convolution's result need not be kept."""
    return jnp.maximum(x, 0)


relu.defvjp(lambda x: (relu(x),) * 2, lambda y, g: (jnp.where(y > 0, g, 0),))


def _quads(x):
    """[H, W, C] -> [H/2, 2, W/2, 2, C]; an odd last row or column is left out, as in Caffe's and Torch's floor mode."""
    h, w, c = x.shape
    return x[: h // 2 * 2, : w // 2 * 2].reshape(h // 2, 2, w // 2, 2, c)


@jax.custom_vjp
def max_pool(x):
    """Maximum over 2x2 pixels, [H, W, C] -> [H/2, W/2, C].

    Its gradient goes to every maximum: after a ReLU ties are zeros, where it makes no difference, and a comparison is
    several times faster than XLA's select-and-scatter.
    """
    return _quads(x).max((1, 3))


def _max_pool_backward(residuals, g):
    x, y = residuals
    g = jnp.where(_quads(x) == y[:, None, :, None], g[:, None, :, None], 0)
    h, _, w, _, c = g.shape
    pad = [(0, n - m) for n, m in zip(x.shape, (2 * h, 2 * w, c), strict=True)]
    return (jnp.pad(g.reshape(2 * h, 2 * w, c), pad),)


max_pool.defvjp(lambda x: (max_pool(x), (x, max_pool(x))), _max_pool_backward)


def average_pool(x):
    """Mean over 2x2 pixels, [H, W, C] -> [H/2, W/2, C] (Gatys 2015 prefers it for synthesis)."""
    return _quads(x).mean((1, 3))


def features(params, image, *, pool=max_pool, edge="zero"):
    """Activations {layer: [h, w, channels]} of every layer for an RGB picture [H, W, 3] in [0, 1]; jit prunes.

    `params` come from `nstjax.features.load`. `edge="replicate"` continues the picture past its border for the first
    convolution (as Crowson does), where "zero" lets the border be seen as a jump to the mean colour.
    """
    out: dict[str, jax.Array] = {}
    x = image
    for number in range(1, 1 + max(int(name[4]) for name in params if name != "mean")):
        out |= block(params, x, number, pool=pool, edge=edge)
        x = out[f"pool{number}"]
    return out


def until(params, layers):
    """The params of the convolutions that the layers need, and no more."""
    deepest = max((int(name[4]), int(name[6:] or 9)) for name in layers)
    return {name: p for name, p in params.items() if name == "mean" or (int(name[4]), int(name[6:])) <= deepest}


def block(params, x, number, *, pool=max_pool, edge="zero", inside=lambda x: x):
    """One block's activations {layer: [h, w, C]} from the block before's pool, or from the picture for block 1.

    `inside` is given what each convolution sees beside its own padding: a strip of a picture (`nstjax.stream`) puts
    zeros there in the rows outside the picture.
    """
    out = {}
    for name in sorted(name for name in params if name.startswith(f"conv{number}_")):
        if name == "conv1_1" and edge == "replicate":
            x = jnp.pad(x - params["mean"], ((1, 1), (1, 1), (0, 0)), mode="edge")
            x = convolve.conv(x, params[name])[1:-1, 1:-1]
        else:
            x = convolve.conv(inside(x - params["mean"]) if name == "conv1_1" else x, params[name])
        x = out[name] = inside(x)
        x = out["relu" + name[4:]] = relu(x)
    return out | {f"pool{number}": pool(x)}


def match_scale(tree, reference, image):
    """A network whose every layer has the mean activation of `reference` on a picture [H, W, 3], otherwise the same.

    A ReLU network computes the same function up to a factor per layer when a layer's kernel and bias are multiplied
    by it and the next kernel is divided by it (Gatys 2015 normalises his network so). Trees as from
    `nstjax.weights.load`.
    """
    level, wanted = (_mean_activations(each, image) for each in (tree, reference))
    scaled, before = {"mean": tree["mean"]}, 1.0
    for name in (name for name in tree if name != "mean"):
        factor = wanted[name] / level[name]
        kernel, bias = tree[name]["kernel"], tree[name]["bias"]
        scaled[name] = {"kernel": kernel * (factor / before), "bias": bias * factor}
        before = factor
    return scaled


@jax.jit
def _mean_activations(tree, image):
    """{conv layer: mean of its rectified activations}."""
    activations = features(tree, image)
    return {name: activations["relu" + name[4:]].mean() for name in tree if name != "mean"}
