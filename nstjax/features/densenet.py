"""DenseNet-121 (Huang 2017, arXiv 1608.06993) up to its last ReLU, as one pure function."""

import re

import jax.numpy as jnp
import numpy as np

from nstjax import layouts
from nstjax.features.layers import conv, max_pool
from nstjax.features.vgg import average_pool, relu
from nstjax.weights import IMAGENET, MEANS, fold

BLOCKS = (6, 12, 24, 16)
GROWTH = 32  # channels that a dense layer adds


def layer_names():
    """Names of the layers in order: conv0, relu0, pool0, block1_1, ..."""
    names: tuple[str, ...] = ("conv0", "relu0", "pool0")
    for block, count in enumerate(BLOCKS, 1):
        names += tuple(f"block{block}_{i}" for i in range(1, count + 1))
        names += (f"block{block}", f"transition{block}" if block < len(BLOCKS) else "relu5")
    return names


def features(params, image):
    """Activations {layer: [h, w, channels]} of every layer; jit prunes.

    conv0, relu0, pool0; for each dense block block1_1 ... block1_6, what its layers add (not rectified), and block1,
    all of it side by side; transition1 to transition3, which halve it; at last relu5. For an RGB picture [H, W, 3] in
    [0, 1] of at least 32 x 32 pixels; `params` come from `nstjax.features.load`. Batch norms that follow a convolution
    are part of it.
    """
    out = {"conv0": conv(image - params["mean"], params["conv0"])}
    out["relu0"] = relu(out["conv0"])
    x = out["pool0"] = max_pool(out["relu0"])
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


def _normed(x, p):
    """A frozen batch norm, rectified."""
    return relu(x * p["scale"] + p["shift"])


def shapes():
    """{layer: {part: shape}} of the params."""
    result: dict[str, dict[str, tuple[int, ...]]] = {}

    def convolution(name, size, before, after, kind="kernel"):
        result[name] = {kind: (size, size, before, after), "bias": (after,)}

    def norm(name, channels):
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


def load(source="torchvision"):
    """Weights {"mean": [3], layer: {part: float32 array}}: keras', torchvision's, or a file's of either's names."""
    in_files = {layer: _in_files(layer, own) for layer, own in shapes().items()}
    known = {
        "torchvision": layouts.Layout(_torchvision, in_files, IMAGENET, turned=True),
        "keras": layouts.Layout(_keras, in_files, IMAGENET),
    }
    kind, preprocessing, found = layouts.read("densenet121", source, known)
    epsilon = {"torchvision": 1e-5, "keras": 1.001e-5}[kind]
    tree: dict = {"mean": MEANS[preprocessing].copy()}
    for layer, parts in found.items():
        if "kernel" not in parts:
            both = layouts.batch_norm(parts, epsilon=epsilon)
            tree[layer] = {"scale": both[0].astype(np.float32), "shift": both[1].astype(np.float32)}
        elif "gamma" in parts:
            tree[layer] = layouts.fold_norm(parts, epsilon=epsilon)
        else:
            tree[layer] = {"kernel": parts["kernel"], "bias": np.zeros(parts["kernel"].shape[3], np.float32)}
    tree["conv0"] = {"strided": fold(tree["conv0"]["kernel"], preprocessing), "bias": tree["conv0"]["bias"]}
    return tree


def _in_files(layer, own):
    """{part: shape} of a layer in files: kernels have no bias, and conv0 and each conv1 are followed by a norm."""
    kernel = own.get("kernel", own.get("strided"))
    norm = dict.fromkeys(("gamma", "beta", "mean", "variance"), own.get("bias", own.get("scale")))
    if kernel is None:
        return norm
    return {"kernel": kernel} | (norm if layer == "conv0" or layer.endswith("_conv1") else {})


def _torchvision(name):
    """The official file says denselayer1.norm.1 for what torchvision calls denselayer1.norm1 now."""
    pattern = r"(?:^|\.)features\.(?:denseblock(\d)\.denselayer(\d+)\.|transition(\d)\.)?(conv|norm)\.?(\d?)\."
    match = re.search(pattern + "(weight|bias|running_mean|running_var)$", name)
    if not match:
        return None
    block, number, transition, kind, index, part = match.groups()
    part = layouts.TORCH_NORM[part] if kind == "norm" else {"weight": "kernel"}.get(part, part)
    if block:
        return _dense_layer(block, number, {"norm1": "norm", "norm2": "conv1"}.get(kind + index, kind + index), part)
    if transition:
        return f"transition{transition}_{kind}", part
    return {"norm0": "conv0"}.get(kind + index, kind + index), part


def _keras(name):
    layer, part = layouts.keras_part(name) or ("", "")
    if match := re.search(r"(?:^|/)conv(\d)_block(\d+)_(0_bn|1_conv|1_bn|2_conv)$", layer):
        kinds = {"0_bn": "norm", "1_conv": "conv1", "1_bn": "conv1", "2_conv": "conv2"}
        return _dense_layer(int(match[1]) - 1, match[2], kinds[match[3]], part)
    if match := re.search(r"(?:^|/)pool(\d)_(conv|bn)$", layer):
        return f"transition{int(match[1]) - 1}_{'norm' if match[2] == 'bn' else 'conv'}", part
    if re.search(r"(?:^|/)conv1[/_](?:conv|bn)$", layer):
        return "conv0", part
    return ("norm5", part) if re.search(r"(?:^|/)bn$", layer) else None


def _dense_layer(block, number, kind, part):
    return f"block{block}_{number}_{kind}", part
