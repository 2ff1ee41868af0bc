"""ViT-B/16 (Dosovitskiy 2021, arXiv 2010.11929), as one pure function."""

import re

import jax
import jax.numpy as jnp

from nstjax import layouts
from nstjax.weights import IMAGENET, MEANS, fold

DEPTH, HEADS, PATCH = 12, 12, 16
WIDTH = 768
GRID = 14  # patches a side of the 224 px that the positions were trained at


def layer_names():
    """Names of the layers in order: patches, block1, ..., norm."""
    return ("patches", *(f"block{i}" for i in range(1, DEPTH + 1)), "norm")


def features(params, image):
    """Activations {layer: [h, w, 768]} of patches, block1 ... block12 and norm; jit prunes.

    A block's activation is its residual stream's tokens, without the class token, on the grid of patches from which
    they come: [i, j] stands for the 16 x 16 pixels at [16 i, 16 j]. For an RGB picture [H, W, 3] in [0, 1] of any size;
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


def _linear(x, p):
    return x @ p["kernel"] + p["bias"]


def _norm(x, p):
    """Layer norm of tokens [N, C]."""
    return jax.nn.standardize(x, axis=-1, epsilon=1e-6) * p["scale"] + p["shift"]


def _attention(x, qkv, out):
    """Self-attention of tokens [N, C]."""
    n, c = x.shape
    q, k, v = jnp.moveaxis(_linear(x, qkv).reshape(n, 3, HEADS, c // HEADS), 1, 0)
    share = jax.nn.softmax(jnp.einsum("nhc,mhc->hnm", q, k) * (c // HEADS) ** -0.5)
    return _linear(jnp.einsum("hnm,mhc->nhc", share, v).reshape(n, c), out)


def shapes():
    """{layer: {part: shape}} of the params."""

    def norm():
        return {"scale": (WIDTH,), "shift": (WIDTH,)}

    def linear(before, after):
        return {"kernel": (before, after), "bias": (after,)}

    result = {
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


def load(source="torchvision"):
    """Weights {"mean": [3], layer: {part: float32 array}}: torchvision's, or a file's of the same names."""
    in_files = shapes()
    in_files["tokens"] = {"class": (1, 1, WIDTH), "positions": (1, 1 + GRID**2, WIDTH)}
    known = {"torchvision": layouts.Layout(_torchvision, in_files, IMAGENET, turned=True)}
    _, preprocessing, tree = layouts.read("vit_b16", source, known)
    tree["tokens"] = {"class": tree["tokens"]["class"][0, 0], "positions": tree["tokens"]["positions"][0]}
    tree["patches"]["kernel"] = fold(tree["patches"]["kernel"], preprocessing)
    return {"mean": MEANS[preprocessing].copy()} | tree


def _torchvision(name):
    """The official file says mlp.linear_1 for what torchvision calls mlp.0 now."""
    if match := re.search(r"(?:^|\.)(class_token|encoder\.pos_embedding)$", name):
        return "tokens", "class" if match[1] == "class_token" else "positions"
    if match := re.search(r"(?:^|\.)(conv_proj|encoder\.ln)\.(weight|bias)$", name):
        return {"conv_proj": "patches", "encoder.ln": "norm"}[match[1]], _part(match[1], match[2])
    match = re.search(r"(?:^|\.)encoder\.layers\.encoder_layer_(\d+)\.(.+?)[._](weight|bias)$", name)
    if not match:
        return None
    inner = {
        "ln_1": "norm1",
        "self_attention.in_proj": "qkv",
        "self_attention.out_proj": "out",
        "ln_2": "norm2",
        "mlp.linear_1": "mlp1",
        "mlp.0": "mlp1",
        "mlp.linear_2": "mlp2",
        "mlp.3": "mlp2",
    }.get(match[2], match[2])
    return f"block{int(match[1]) + 1}_{inner}", _part(inner, match[3])


def _part(layer, part):
    norm = layer == "encoder.ln" or layer.startswith("norm")
    return {"weight": "scale", "bias": "shift"}[part] if norm else {"weight": "kernel"}.get(part, part)
