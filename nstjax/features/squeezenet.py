"""SqueezeNet 1.1 (Iandola 2016, arXiv 1602.07360; 1.1 is its authors' later release), as one pure function."""

import re

import jax.numpy as jnp

from nstjax import layouts
from nstjax.features.layers import conv, max_pool
from nstjax.features.vgg import relu
from nstjax.weights import CAFFE, IMAGENET, MEANS, fold

# Channels that each fire module squeezes to, and four times as many that each half of it expands to.
SQUEEZED = {"fire2": 16, "fire3": 16, "fire4": 32, "fire5": 32, "fire6": 48, "fire7": 48, "fire8": 64, "fire9": 64}
POOLS = {"fire3": "pool3", "fire5": "pool5"}


def layer_names():
    """Names of the layers in order: conv1, relu1, pool1, fire2, fire3, pool3, ..."""
    names: tuple[str, ...] = ("conv1", "relu1", "pool1")
    for name in SQUEEZED:
        names += (name, POOLS[name]) if name in POOLS else (name,)
    return names


def features(params, image):
    """Activations {layer: [h, w, channels]} of conv1, relu1, pool1, fire2 ... fire9 and pool3, pool5; jit prunes.

    For an RGB picture [H, W, 3] in [0, 1] of at least 16 x 16 pixels; `params` come from `nstjax.features.load`. A fire
    module's activation is its two halves (1x1 and 3x3, rectified) side by side. conv1 pads nothing and pools may hang
    over the edge, as in Caffe.
    """
    out = {"conv1": conv(image - params["mean"], params["conv1"], padding=0)}
    out["relu1"] = relu(out["conv1"])
    x = out["pool1"] = max_pool(out["relu1"], padding=0, ceil=True)
    for name in SQUEEZED:
        x = relu(conv(x, params[f"{name}_squeeze"]))
        halves = [conv(x, params[f"{name}_expand{size}"]) for size in ("1x1", "3x3")]
        x = out[name] = relu(jnp.concatenate(halves, -1))
        if name in POOLS:
            x = out[POOLS[name]] = max_pool(x, padding=0, ceil=True)
    return out


def shapes():
    """{layer: {part: shape}} of the params; conv1's kernel moves by two pixels."""
    kernels, before = {"conv1": (3, 3, 3, 64)}, 64
    for name, channels in SQUEEZED.items():
        kernels[f"{name}_squeeze"] = (1, 1, before, channels)
        kernels[f"{name}_expand1x1"] = (1, 1, channels, 4 * channels)
        kernels[f"{name}_expand3x3"] = (3, 3, channels, 4 * channels)
        before = 8 * channels
    return {
        name: {"strided" if name == "conv1" else "kernel": shape, "bias": shape[3:]} for name, shape in kernels.items()
    }


def load(source="bundled"):
    """Weights {"mean": [3], layer: {part: float32 array}}: bundled, torchvision's, or a file's of either's names."""
    in_files = {
        layer: {part.replace("strided", "kernel"): s for part, s in own.items()} for layer, own in shapes().items()
    }
    known = {
        "own": layouts.Layout(_own, in_files, CAFFE),
        "torchvision": layouts.Layout(_torchvision, in_files, IMAGENET, turned=True),
    }
    _, preprocessing, tree = layouts.read("squeezenet11", source, known)
    tree["conv1"] = {"strided": fold(tree["conv1"]["kernel"], preprocessing), "bias": tree["conv1"]["bias"]}
    return {"mean": MEANS[preprocessing].copy()} | tree


def _own(name):
    """Ours, "fire2_squeeze/kernel", and those of Keras's ports, "fire2/squeeze1x1/kernel"."""
    layer, part = layouts.keras_part(name) or ("", "")
    match = re.search(r"(?:^|/)(conv1|fire\d[/_](?:squeeze|expand[13]x[13]))(?:1x1)?$", layer)
    return (match[1].replace("/", "_"), part) if match else None


def _torchvision(name):
    match = re.search(r"(?:^|\.)features\.(\d+)\.(?:(squeeze|expand1x1|expand3x3)\.)?(weight|bias)$", name)
    if not match:
        return None
    numbers = {number: f"fire{i}" for i, number in enumerate((3, 4, 6, 7, 9, 10, 11, 12), 2)} | {0: "conv1"}
    layer = numbers.get(int(match[1]), f"features.{match[1]}")
    return f"{layer}_{match[2]}" if match[2] else layer, {"weight": "kernel", "bias": "bias"}[match[3]]
