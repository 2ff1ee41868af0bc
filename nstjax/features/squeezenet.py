"""SqueezeNet 1.1 (Iandola 2016, arXiv 1602.07360; 1.1 is its authors' later release), as one pure function."""

import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nstjax.features.layers import conv, overlapping_max_pool, relu
from nstjax.weights import layouts

# Channels that each fire module squeezes to, and four times as many that each half of it expands to.
SQUEEZED = {"fire2": 16, "fire3": 16, "fire4": 32, "fire5": 32, "fire6": 48, "fire7": 48, "fire8": 64, "fire9": 64}
POOLS = {"fire3": "pool3", "fire5": "pool5"}


def layer_names() -> tuple[str, ...]:
    """Return the names of the layers in order: conv1, relu1, pool1, fire2, fire3, pool3, ..."""
    names: tuple[str, ...] = ("conv1", "relu1", "pool1")
    for name in SQUEEZED:
        names += (name, POOLS[name]) if name in POOLS else (name,)
    return names


def features(params: Mapping[str, Any], image: Float[Array | np.ndarray, "h w 3"]) -> dict[str, Float[Array, "_ _ _"]]:
    """Return the activations of conv1, relu1, pool1, fire2 ... fire9, pool3 and pool5; jit prunes.

    For an RGB image in [0, 1] of at least 16 x 16 pixels; `params` come from `nstjax.features.load`. A fire
    module's activation is its two halves (1x1 and 3x3, rectified) side by side. conv1 pads nothing and pools may extend
    over the edge, as in Caffe.
    """
    out = {"conv1": conv(image - params["mean"], params["conv1"], padding=0)}
    out["relu1"] = relu(out["conv1"])
    x = out["pool1"] = overlapping_max_pool(out["relu1"], padding=0, ceil=True)
    for name in SQUEEZED:
        x = relu(conv(x, params[f"{name}_squeeze"]))
        halves = [conv(x, params[f"{name}_expand{size}"]) for size in ("1x1", "3x3")]
        x = out[name] = relu(jnp.concatenate(halves, -1))
        if name in POOLS:
            x = out[POOLS[name]] = overlapping_max_pool(x, padding=0, ceil=True)
    return out


def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Return {layer: {part: shape}} of the params; conv1's kernel moves by two pixels."""
    kernels, before = {"conv1": (3, 3, 3, 64)}, 64
    for name, channels in SQUEEZED.items():
        kernels[f"{name}_squeeze"] = (1, 1, before, channels)
        kernels[f"{name}_expand1x1"] = (1, 1, channels, 4 * channels)
        kernels[f"{name}_expand3x3"] = (3, 3, channels, 4 * channels)
        before = 8 * channels
    return {
        name: {"strided" if name == "conv1" else "kernel": shape, "bias": shape[3:]} for name, shape in kernels.items()
    }


def load(source: str | os.PathLike[str] = "bundled") -> dict:
    """Return weights {"mean": [3], layer: {part: float32 array}}; see `nstjax.weights.layouts.load`."""
    return layouts.load("squeezenet11", source, lambda layout: shapes())
