"""EfficientNet-Lite0 (Tan 2019, arXiv 1905.11946; Lite: its authors' later release), as one pure function.

A small residual network with trained weights under a free license: inverted bottlenecks of depthwise convolutions,
without squeeze-and-excitation and with ReLU6, which is what Lite means.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nstjax.weights import layouts


class Stage(NamedTuple):
    """Blocks of one size (Tan 2019, table 1)."""

    blocks: int
    kernel: int  # of the depthwise convolutions
    stride: int  # of the first block
    expansion: int  # channels inside a block, in those that come in
    channels: int  # that come out


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM = 32  # channels of the first convolution
MAXIMUM = 6.0  # of ReLU6


def layer_names() -> tuple[str, ...]:
    """Return the names of the layers in order: stem, stage1_0, stage2_0, stage2_1, ..."""
    return ("stem", *(f"stage{s}_{i}" for s, stage in enumerate(STAGES, 1) for i in range(stage.blocks)))


def features(params: Mapping[str, Any], image: Float[Array | np.ndarray, "h w 3"]) -> dict[str, Float[Array, "_ _ _"]]:
    """Return the activations {layer: [h, w, channels]} of the stem and of every block; jit prunes.

    For an RGB image in [0, 1]; `params` come from `nstjax.features.load`. The stem is rectified; a block's result, as
    its last convolution is linear, is not. Stages are at 1/2, 1/4, 1/8, 1/16, 1/16, 1/32 and 1/32 of the image's size.
    Batch norms are part of the convolutions.
    """
    x = _relu6(_conv(image - params["mean"], params["stem"]))
    out = {"stem": x}
    for s, stage in enumerate(STAGES, 1):
        for i in range(stage.blocks):
            name, y = f"stage{s}_{i}", x
            if f"{name}_expand" in params:
                y = _relu6(_conv(y, params[f"{name}_expand"]))
            y = _relu6(_conv(y, params[f"{name}_depthwise"]))
            y = _conv(y, params[f"{name}_project"])
            x = out[name] = x + y if i > 0 else y
    return out


def _relu6(x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    return jnp.clip(x, 0, MAXIMUM)


def _conv(x: Float[Array, "h w in_"], p: Mapping[str, Any]) -> Float[Array, "_ _ out"]:
    """`layers.conv`, but padded as TensorFlow's SAME, and depthwise if the kernel has one input channel."""
    kernel, stride = (p["strided"], 2) if "strided" in p else (p["kernel"], 1)
    groups = x.shape[-1] if kernel.shape[2] == 1 else 1
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x[None], kernel, (stride, stride), "SAME", dimension_numbers=dims, feature_group_count=groups
    )
    return y[0] + p["bias"]


def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Return {layer: {part: shape}} of the params; kernels that move by two pixels are called "strided"."""
    result: dict[str, dict[str, tuple[int, ...]]] = {"stem": {"strided": (3, 3, 3, STEM), "bias": (STEM,)}}
    before = STEM
    for s, stage in enumerate(STAGES, 1):
        for i in range(stage.blocks):
            inside = stage.expansion * before
            kernels = {
                "expand": (1, 1, before, inside),
                "depthwise": (stage.kernel, stage.kernel, 1, inside),
                "project": (1, 1, inside, stage.channels),
            }
            for name, shape in kernels.items():
                halving = name == "depthwise" and i == 0 and stage.stride == 2
                if name != "expand" or stage.expansion > 1:
                    kind = "strided" if halving else "kernel"
                    result[f"stage{s}_{i}_{name}"] = {kind: shape, "bias": shape[3:]}
            before = stage.channels
    return result


def load(source: str | os.PathLike[str] = "bundled") -> dict:
    """Return weights {"mean": [3], layer: {part: float32 array}}; see `nstjax.weights.layouts.load`."""
    return layouts.load("efficientnet_lite0", source, lambda layout: shapes())
