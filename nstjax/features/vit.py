"""ViT-B/16 (Dosovitskiy 2021, arXiv 2010.11929), as one pure function."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nstjax.weights import layouts

DEPTH, HEADS, PATCH = 12, 12, 16
WIDTH = 768
GRID = 14  # patches a side of the 224 px that the positions were trained at


def layer_names() -> tuple[str, ...]:
    """Return the names of the layers in order: patches, block1, ..., norm."""
    return ("patches", *(f"block{i}" for i in range(1, DEPTH + 1)), "norm")


def features(params: Mapping[str, Any], image: Float[Array | np.ndarray, "h w 3"]) -> dict[str, Float[Array, "_ _ _"]]:
    """Return the activations {layer: [h, w, 768]} of patches, block1 ... block12 and norm; jit prunes.

    A block's activation is its residual stream's tokens, without the class token, on the grid of patches from which
    they come: [i, j] stands for the 16 x 16 pixels at [16 i, 16 j]. For an RGB image in [0, 1] of any size;
    `params` come from `nstjax.features.load`. Sides that are no multiple of 16 are continued by their last row or
    column, so that every pixel is in a patch: h = ceil(H/16). The positions' embeddings, learned for 14 x 14 patches,
    are interpolated (bicubic) to the grid.
    """
    pads = [(0, -side % PATCH) for side in image.shape[:2]]
    x = jnp.pad(image, (*pads, (0, 0)), mode="edge") - params["mean"]
    h, w = x.shape[0] // PATCH, x.shape[1] // PATCH
    x = jnp.einsum("hiwjc,ijcd->hwd", x.reshape(h, PATCH, w, PATCH, 3), params["patches"]["kernel"])
    out = {"patches": x + params["patches"]["bias"]}
    tokens = params["tokens"]
    grid = tokens["positions"][1:].reshape(GRID, GRID, -1)
    if (h, w) != (GRID, GRID):
        grid = jax.image.resize(grid, (h, w, grid.shape[2]), "cubic")
    x = (out["patches"] + grid).reshape(h * w, -1)
    x = jnp.concatenate([(tokens["class"] + tokens["positions"][0])[None], x])
    for i in range(1, DEPTH + 1):
        x = x + _attention(_norm(x, params[f"block{i}_norm1"]), params[f"block{i}_qkv"], params[f"block{i}_out"])
        inner = _linear(_norm(x, params[f"block{i}_norm2"]), params[f"block{i}_mlp1"])
        x = x + _linear(jax.nn.gelu(inner, approximate=False), params[f"block{i}_mlp2"])
        out[f"block{i}"] = x[1:].reshape(h, w, -1)
    return out | {"norm": _norm(x[1:], params["norm"]).reshape(h, w, -1)}


def _linear(x: Float[Array, "n c"], p: Mapping[str, Any]) -> Float[Array, "n out"]:
    return x @ p["kernel"] + p["bias"]


def _norm(x: Float[Array, "n c"], p: Mapping[str, Any]) -> Float[Array, "n c"]:
    """Layer norm of tokens."""
    return jax.nn.standardize(x, axis=-1, epsilon=1e-6) * p["scale"] + p["shift"]


def _attention(x: Float[Array, "n c"], qkv: Mapping[str, Any], out: Mapping[str, Any]) -> Float[Array, "n c"]:
    """Self-attention of tokens."""
    n, c = x.shape
    q, k, v = jnp.moveaxis(_linear(x, qkv).reshape(n, 3, HEADS, c // HEADS), 1, 0)
    share = jax.nn.softmax(jnp.einsum("nhc,mhc->hnm", q, k) * (c // HEADS) ** -0.5)
    return _linear(jnp.einsum("hnm,mhc->nhc", share, v).reshape(n, c), out)


def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Return {layer: {part: shape}} of the params."""

    def norm() -> dict[str, tuple[int, ...]]:
        return {"scale": (WIDTH,), "shift": (WIDTH,)}

    def linear(before: int, after: int) -> dict[str, tuple[int, ...]]:
        return {"kernel": (before, after), "bias": (after,)}

    result: dict[str, dict[str, tuple[int, ...]]] = {
        "patches": {"kernel": (PATCH, PATCH, 3, WIDTH), "bias": (WIDTH,)},
        "tokens": {"class": (WIDTH,), "positions": (1 + GRID**2, WIDTH)},
    }
    for i in range(1, DEPTH + 1):
        result |= {
            f"block{i}_norm1": norm(),
            f"block{i}_qkv": linear(WIDTH, 3 * WIDTH),
            f"block{i}_out": linear(WIDTH, WIDTH),
            f"block{i}_norm2": norm(),
            f"block{i}_mlp1": linear(WIDTH, 4 * WIDTH),
            f"block{i}_mlp2": linear(4 * WIDTH, WIDTH),
        }
    return result | {"norm": norm()}


def load(source: str | os.PathLike[str] = "torchvision") -> dict:
    """Return weights {"mean": [3], layer: {part: float32 array}}; see `nstjax.weights.layouts.load`."""
    return layouts.load("vit_b16", source, lambda layout: shapes())
