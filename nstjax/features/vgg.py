"""VGG-16 and VGG-19 (Simonyan and Zisserman 2015, arXiv 1409.1556) up to pool5, as one pure function."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nstjax import convolve
from nstjax.features.layers import average_pool as average_pool
from nstjax.features.layers import instance_norm as instance_norm
from nstjax.features.layers import max_pool as max_pool
from nstjax.features.layers import relu
from nstjax.weights import layouts

Params = Mapping[str, Any]  # {"mean": [3], layer: parameters of `nstjax.convolve`}


class Block(NamedTuple):
    """Convolutions of 3x3 pixels, each followed by a ReLU, and a pool."""

    number: int
    convolutions: int
    channels: int


# Table 1 of the paper, columns D and E.
BLOCKS = {
    "vgg16": (Block(1, 2, 64), Block(2, 2, 128), Block(3, 3, 256), Block(4, 3, 512), Block(5, 3, 512)),
    "vgg19": (Block(1, 2, 64), Block(2, 2, 128), Block(3, 4, 256), Block(4, 4, 512), Block(5, 4, 512)),
}


class Place(NamedTuple):
    """Where a layer is in the network; the first two are in the order of computation."""

    block: int
    number: int  # of the convolution in its block, from 1; a pool comes after the last one
    kind: str  # "conv", "relu" or "pool"


def _places(network: str) -> dict[str, Place]:
    """{layer: its place} in order."""
    result = {}
    for block, count, _ in BLOCKS[network]:
        for i, kind in itertools.product(range(1, count + 1), ("conv", "relu")):
            result[f"{kind}{block}_{i}"] = Place(block, i, kind)
        result[f"pool{block}"] = Place(block, count + 1, "pool")
    return result


_PLACES = _places("vgg19")  # VGG-16's layers are among them
FIRST = tuple(name for name, (block, *_) in _PLACES.items() if block == 1)  # layers of the first block


def place(layer: str) -> Place:
    """Return where a layer is, from its name: block 4, number 2 for relu4_2. Raises ValueError for other names."""
    if layer not in _PLACES:
        raise ValueError(f"no layer {layer!r} in VGG; there are {', '.join(_PLACES)}")
    return _PLACES[layer]


def layer_names(network: str) -> tuple[str, ...]:
    """Return the names of a network's layers in order: conv1_1, relu1_1, conv1_2, relu1_2, pool1, ..."""
    return tuple(_places(network))


def shapes(network: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return {layer: {part: shape}} of a network's params."""
    result: dict[str, dict[str, tuple[int, ...]]] = {}
    before = 3
    for block, count, channels in BLOCKS[network]:
        for i in range(1, count + 1):
            result[f"conv{block}_{i}"] = {"kernel": (3, 3, before, channels), "bias": (channels,)}
            before = channels
    return result


def load(network: str, source: str | os.PathLike[str] = "bundled") -> dict:
    """Return weights {"mean": [3], layer: {part: float32 array}}; see `nstjax.weights.layouts.load`."""
    return layouts.load(network, source, lambda layout: shapes(network))


def numbers(layer: str) -> float:
    """Return how many activations a layer has for each pixel of the image: 64 for conv1_1, 8 for relu4_2."""
    block, _, kind = place(layer)
    return BLOCKS["vgg19"][block - 1].channels / 4 ** (block - 1 + (kind == "pool"))


def features(
    params: Params,
    image: Float[Array | np.ndarray, "h w 3"],
    *,
    pool: Callable[[Any], Array] = max_pool,
    edge: str = "zero",
    norm: Callable[[Any], Array] | None = None,
) -> dict[str, Float[Array, "_ _ _"]]:
    """Return the activations {layer: [h, w, channels]} of every layer for an RGB image in [0, 1]; jit prunes.

    Args:
        params: from `nstjax.features.load`.
        pool: `max_pool` or `average_pool`.
        edge: "replicate" continues the image past its border for the first convolution (as Crowson does); with "zero"
            the border counts as a jump to the mean color.
        norm: applied to each convolution's output before its ReLU, such as `instance_norm`; conv1_1 etc. are the
            outputs without it.
    """
    out: dict[str, Array] = {}
    x = image
    for number in range(1, 1 + max(place(name).block for name in params if name != "mean")):
        out |= block(params, x, number, pool=pool, edge=edge, norm=norm)
        x = out[f"pool{number}"]
    return out


def until(params: Params, layers: Iterable[str]) -> dict[str, Any]:
    """Return the params of the convolutions that the layers need, and no more."""
    deepest = max(place(name)[:2] for name in layers)
    return {name: p for name, p in params.items() if name == "mean" or place(name)[:2] <= deepest}


def block(
    params: Params,
    x: Float[Array | np.ndarray, "h w c"],
    number: int,
    *,
    pool: Callable[[Any], Array] = max_pool,
    edge: str = "zero",
    norm: Callable[[Any], Array] | None = None,
    inside: Callable[[Array], Array] = lambda x: x,
) -> dict[str, Float[Array, "_ _ _"]]:
    """Return one block's activations {layer: [h, w, C]} from the block before's pool, or from the image for block 1.

    `inside` is given what each convolution sees beside its own padding: a strip of an image (`nstjax.stream`) puts
    zeros there in the rows outside the image.
    """
    out = {}
    names = ((f"conv{number}_{i}", f"relu{number}_{i}") for i in itertools.count(1))
    for name, rectified in itertools.takewhile(lambda pair: pair[0] in params, names):
        if name == "conv1_1" and edge == "replicate":
            x = jnp.pad(x - params["mean"], ((1, 1), (1, 1), (0, 0)), mode="edge")
            x = convolve.conv(x, params[name])[1:-1, 1:-1]
        else:
            x = convolve.conv(inside(x - params["mean"]) if name == "conv1_1" else x, params[name])
        x = out[name] = inside(x)
        x = out[rectified] = relu(norm(x) if norm else x)
    return out | {f"pool{number}": pool(x)}


def match_scale(tree: Params, reference: Params, image: Float[Array | np.ndarray, "h w 3"]) -> dict[str, Any]:
    """Return a network whose every layer has the mean activation of `reference` on an image, otherwise the same.

    A ReLU network computes the same function up to a factor per layer when a layer's kernel and bias are multiplied
    by it and the next kernel is divided by it (Gatys 2015 normalizes his network so). Trees as from `load`.
    """
    level, wanted = (_mean_activations(each, image) for each in (tree, reference))
    scaled: dict[str, Any] = {"mean": tree["mean"]}
    before = 1.0
    for name in (name for name in tree if name != "mean"):
        factor = wanted[name] / level[name]
        kernel, bias = tree[name]["kernel"], tree[name]["bias"]
        scaled[name] = {"kernel": kernel * (factor / before), "bias": bias * factor}
        before = factor
    return scaled


@jax.jit
def _mean_activations(tree: Params, image: Float[Array, "h w 3"]) -> dict[str, Float[Array, ""]]:
    """{conv layer: mean of its rectified activations}."""
    activations = features(tree, image)
    places = {name: place(name) for name in tree if name != "mean"}
    return {name: activations[f"relu{block}_{i}"].mean() for name, (block, i, _) in places.items()}
