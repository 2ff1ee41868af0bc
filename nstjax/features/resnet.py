"""ResNet-50 (He 2016, arXiv 1512.03385) up to its last residual block, as one pure function."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from nstjax.features.layers import conv, overlapping_max_pool, relu
from nstjax.weights import layouts

BLOCKS = (3, 4, 6, 3)
WIDTH = 64  # channels of conv1 and of the first stage's bottlenecks


def layer_names() -> tuple[str, ...]:
    """Return the names of the layers in order: conv1, relu1, pool1, layer1_0, ..."""
    return ("conv1", "relu1", "pool1", *(f"layer{s}_{i}" for s, n in enumerate(BLOCKS, 1) for i in range(n)))


def features(params: Mapping[str, Any], image: Float[Array | np.ndarray, "h w 3"]) -> dict[str, Float[Array, "_ _ _"]]:
    """Return the activations {layer: [h, w, channels]} of conv1, relu1, pool1 and layer1_0 ... layer4_2; jit prunes.

    For an RGB image in [0, 1]; `params` come from `nstjax.features.load`. layer2_3, named as torchvision
    does, is the fourth residual block of the second stage (Keras's conv3_block4_out, the papers' conv3_4), after its
    last ReLU; stages are at 1/4, 1/8, 1/16 and 1/32 of the image's size. Batch norms are part of the convolutions.
    """
    out = {"conv1": conv(image - params["mean"], params["conv1"])}
    out["relu1"] = relu(out["conv1"])
    x = out["pool1"] = overlapping_max_pool(out["relu1"])
    for name in layer_names()[3:]:
        short = conv(x, params[f"{name}_shortcut"]) if f"{name}_shortcut" in params else x
        for i in (1, 2):
            x = relu(conv(x, params[f"{name}_conv{i}"]))
        x = out[name] = relu(short + conv(x, params[f"{name}_conv3"]))
    return out


def shapes(layout: str = "torchvision") -> dict[str, dict[str, tuple[int, ...]]]:
    """Return {layer: {part: shape}} of the params.

    The convolution by which a stage halves the image, whose kernel is called "strided", is conv2 in torchvision's net
    ("v1.5") and conv1 in Keras's, as in the paper.
    """
    strided = {"torchvision": "conv2", "keras": "conv1"}[layout]
    result = {"conv1": {"strided": (7, 7, 3, WIDTH), "bias": (WIDTH,)}}
    before = WIDTH
    for stage, count in enumerate(BLOCKS):
        width = WIDTH * 2**stage
        for i in range(count):
            kernels = {"conv1": (1, 1, before, width), "conv2": (3, 3, width, width), "conv3": (1, 1, width, 4 * width)}
            if i == 0:
                kernels["shortcut"] = (1, 1, before, 4 * width)
            for name, shape in kernels.items():
                halving = stage > 0 and i == 0 and name in (strided, "shortcut")
                kind = "strided" if halving else "kernel"
                result[f"layer{stage + 1}_{i}_{name}"] = {kind: shape, "bias": shape[3:]}
            before = 4 * width
    return result


def load(source: str | os.PathLike[str] = "torchvision") -> dict:
    """Return weights {"mean": [3], layer: {part: float32 array}}; see `nstjax.weights.layouts.load`."""
    return layouts.load("resnet50", source, shapes)
