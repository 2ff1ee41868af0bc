"""DenseNet-121 (Huang 2017, arXiv 1608.06993) up to its last ReLU, as one pure function."""

import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nstjax.features.layers import average_pool, conv, overlapping_max_pool, relu
from nstjax.weights import layouts

BLOCKS = (6, 12, 24, 16)
GROWTH = 32  # channels that a dense layer adds


def layer_names() -> tuple[str, ...]:
    """Return the names of the layers in order: conv0, relu0, pool0, block1_1, ..."""
    names: tuple[str, ...] = ("conv0", "relu0", "pool0")
    for block, count in enumerate(BLOCKS, 1):
        names += tuple(f"block{block}_{i}" for i in range(1, count + 1))
        names += (f"block{block}", f"transition{block}" if block < len(BLOCKS) else "relu5")
    return names


def features(params: Mapping[str, Any], image: Float[Array | np.ndarray, "h w 3"]) -> dict[str, Float[Array, "_ _ _"]]:
    """Return the activations {layer: [h, w, channels]} of every layer; jit prunes.

    conv0, relu0, pool0; for each dense block block1_1 ... block1_6, what its layers add (not rectified), and block1,
    all of it side by side; transition1 to transition3, which halve it; at last relu5. For an RGB image in
    [0, 1] of at least 32 x 32 pixels; `params` come from `nstjax.features.load`. Batch norms that follow a convolution
    are part of it.
    """
    out = {"conv0": conv(image - params["mean"], params["conv0"])}
    out["relu0"] = relu(out["conv0"])
    x = out["pool0"] = overlapping_max_pool(out["relu0"])
    for block, count in enumerate(BLOCKS, 1):
        for name in (f"block{block}_{i}" for i in range(1, count + 1)):
            inner = relu(conv(_normed(x, params[f"{name}_norm"]), params[f"{name}_conv1"]))
            out[name] = conv(inner, params[f"{name}_conv2"])
            x = jnp.concatenate([x, out[name]], -1)
        out[f"block{block}"] = x
        if block < len(BLOCKS):
            # The net convolves first and pools then; a 1x1 convolution and a mean may change places.
            x = average_pool(_normed(x, params[f"transition{block}_norm"]))
            x = out[f"transition{block}"] = conv(x, params[f"transition{block}_conv"])
    return out | {"relu5": _normed(x, params["norm5"])}


def _normed(x: Float[Array, "h w c"], p: Mapping[str, Any]) -> Float[Array, "h w c"]:
    """A frozen batch norm, rectified."""
    return relu(x * p["scale"] + p["shift"])


def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Return {layer: {part: shape}} of the params."""
    result: dict[str, dict[str, tuple[int, ...]]] = {}

    def convolution(name: str, size: int, before: int, after: int, kind: str = "kernel") -> None:
        result[name] = {kind: (size, size, before, after), "bias": (after,)}

    def norm(name: str, channels: int) -> None:
        result[name] = {"scale": (channels,), "shift": (channels,)}

    channels = 2 * GROWTH
    convolution("conv0", 7, 3, channels, "strided")
    for block, count in enumerate(BLOCKS, 1):
        for name in (f"block{block}_{i}" for i in range(1, count + 1)):
            norm(f"{name}_norm", channels)
            convolution(f"{name}_conv1", 1, channels, 4 * GROWTH)
            convolution(f"{name}_conv2", 3, 4 * GROWTH, GROWTH)
            channels += GROWTH
        if block < len(BLOCKS):
            norm(f"transition{block}_norm", channels)
            convolution(f"transition{block}_conv", 1, channels, channels // 2)
            channels //= 2
    norm("norm5", channels)
    return result


def load(source: str | os.PathLike[str] = "torchvision") -> dict:
    """Return weights {"mean": [3], layer: {part: float32 array}}; see `nstjax.weights.layouts.load`."""
    return layouts.load("densenet121", source, lambda layout: shapes())
