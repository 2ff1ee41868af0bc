"""What other libraries call the arrays of a network, and how they lay them out: one table for all networks.

`load` finds which of a network's layouts a file has, and returns its weights in the one form that our extractors take.
The networks define the shapes of that form (`features.vgg.shapes` etc.).
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nstjax import files
from nstjax.weights.download import find
from nstjax.weights.reading import read

Place = tuple[str, str | None]  # layer and part; None if the array itself tells the part (`part_of`)
Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]  # {layer: {part: shape}}
Layer = dict[str, np.ndarray]  # {part: array}

# The two kinds of preprocessing, as they are written in the manifest and in metadata. The means are RGB, in [0, 1].
CAFFE = "BGR, 0..255, minus [103.939, 116.779, 123.68]"
IMAGENET = "RGB, 0..1, minus [0.485, 0.456, 0.406], divided by [0.229, 0.224, 0.225]"
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
MEANS: dict[str, np.ndarray] = {
    CAFFE: np.array([123.68, 116.779, 103.939], np.float32) / 255,
    IMAGENET: np.array([0.485, 0.456, 0.406], np.float32),
}


class Layout(NamedTuple):
    """How a kind of file lays out a network's weights, where that differs from ours."""

    place: Callable[[str], Place | None]  # an array's name -> where it belongs, or None if it is not needed
    preprocessing: str  # unless the file has a text "preprocessing"
    transposed: bool = False  # kernels are [out, in, ...]; that of a convolution may be in either order
    biases: bool = True  # convolutions have biases
    normed: Callable[[str], bool] = lambda layer: False  # convolutions that a batch norm follows, which they absorb
    epsilon: float | None = None  # of the frozen batch norms; None if "scale" and "shift" are those of layer norms


def load(network: str, source: str | os.PathLike[str], shapes: Callable[[str], Shapes]) -> dict:
    """Return a network's weights {"mean": [3], layer: {part: float32 array}} for RGB images in [0, 1].

    Args:
        source: "bundled"; "keras" or "torchvision", downloaded once; or a .h5, .pth, .pt, .onnx, .npz or .safetensors
            file. Its text "preprocessing" (in safetensors metadata, or an array of that name in .npz) overrides that of
            its layout.
        shapes: a layout's name -> the shapes of the weights to return.

    Raises:
        InputError: one line that names the file, if it is missing, damaged, changed, or of another network.
    """
    path, layouts = find(network, source), LAYOUTS[network].values()
    arrays = read(path, lambda name: name == "preprocessing" or any(each.place(name) for each in layouts))
    return assemble(path, arrays, network, shapes)


def assemble(path: Path, arrays: Mapping[str, np.ndarray], network: str, shapes: Callable[[str], Shapes]) -> dict:
    """Return the weights that `load` returns, from a file's arrays; the path is for messages.

    Raises:
        InputError: the arrays are not exactly the network's, in finite numbers.
    """
    places = {kind: sum(map(bool, map(each.place, arrays))) for kind, each in LAYOUTS[network].items()}
    kind = max(places, key=places.__getitem__)
    layout, own = LAYOUTS[network][kind], shapes(kind)
    found = _by_layer(path, arrays, network, layout, own)
    preprocessing = str(arrays.get("preprocessing", layout.preprocessing))
    if preprocessing not in MEANS:
        raise files.refusal(path, f"its preprocessing is {preprocessing[:80]!r}; known are {' | '.join(MEANS)}")
    with np.errstate(over="ignore", invalid="ignore"):  # infinite numbers are rejected below
        tree: dict = {name: _params(found[name], own[name], layout) for name in own}
        first = next(iter(tree.values()))
        kernel = "strided" if "strided" in first else "kernel"
        first[kernel] = fold(first[kernel], preprocessing)
    for layer, parts in tree.items():
        _check_finite(path, layer, parts)
    return {"mean": MEANS[preprocessing].copy()} | tree


def fold(kernel: np.ndarray, preprocessing: str) -> np.ndarray:
    """Return the first kernel [h, w, 3, out] for RGB images in [0, 1] instead of what the network expects."""
    if preprocessing == CAFFE:
        return kernel[:, :, ::-1] * np.float32(255)
    return kernel / IMAGENET_STD[:, None]


def part_of(name: str, array: np.ndarray) -> str:
    """Return what an array is to its layer: "kernel", "bias", or "codes" and "palette" (together a kernel)."""
    if array.dtype == np.uint8:
        return "codes"
    if name.endswith(("palette", "_W_table")):
        return "palette"
    return "bias" if array.ndim == 1 else "kernel"


def _by_layer(
    path: Path, arrays: Mapping[str, np.ndarray], network: str, layout: Layout, own: Shapes
) -> dict[str, Layer]:
    """{layer: {part: float32 array in our order}}, after checking that these are exactly the arrays expected."""
    expected = {layer: _in_files(layer, parts, layout) for layer, parts in own.items()}
    found: dict[str, Layer] = {layer: {} for layer in expected}
    for name, array in arrays.items():
        if (place := layout.place(name)) is None:
            continue
        layer, part = place[0], place[1] or part_of(name, array)
        if {"codes": "kernel", "palette": "kernel"}.get(part, part) not in expected.get(layer, ()):
            raise files.refusal(path, f"has {name}, which {network} does not have; is it of another network?")
        if found[layer].setdefault(part, array) is not array:
            raise files.refusal(path, f"has the {part} of {layer} more than once; keep one network in it")
    return {
        layer: {part: _converted(path, layer, part, found[layer], shape, layout) for part, shape in parts.items()}
        for layer, parts in expected.items()
    }


def _in_files(layer: str, own: Mapping[str, tuple[int, ...]], layout: Layout) -> dict[str, tuple[int, ...]]:
    """{part: shape} of a layer in files of a layout."""
    kernel = own.get("kernel", own.get("strided"))
    norm = dict.fromkeys(("gamma", "beta", "mean", "variance"), own.get("bias", own.get("scale", ())))
    if kernel is None:
        return dict(own) if layout.epsilon is None else norm
    bias = {"bias": own["bias"]} if layout.biases else {}
    return {"kernel": kernel} | bias | (norm if layout.normed(layer) else {})


def _converted(path: Path, layer: str, part: str, parts: Layer, shape: tuple[int, ...], layout: Layout) -> np.ndarray:
    """A part of a layer in float32 and in our order, after checking that it is as expected."""
    if part == "kernel" and "codes" in parts and "palette" in parts:
        codes, palette = parts["codes"], parts["palette"]
        if palette.ndim != 1 or codes.max(initial=0) >= len(palette):
            raise files.refusal(path, f"the codes of {layer} are not in its palette; download the file again")
        parts = parts | {"kernel": palette[codes]}
    if part not in parts:
        raise files.refusal(path, f"has no {part} of {layer}; is it of another network?")
    array = parts[part]
    if part == "kernel" and array.ndim == 2 and layout.transposed:
        array = array.T
    if part == "kernel" and array.ndim == 4 and array.shape != shape:  # Torch's and ONNX's order
        array = array.transpose(2, 3, 1, 0)
    while array.ndim > len(shape) and array.shape[0] == 1:  # a ViT's tokens
        array = array[0]
    if array.shape != shape or array.dtype.kind not in "fiu":
        found = array if layout.transposed else parts[part]
        what = f"{array.dtype} {list(found.shape)}, where float32 {list(shape)} is expected"
        raise files.refusal(path, f"the {part} of {layer} is {what}; is it of another network?")
    with np.errstate(over="ignore"):
        result = np.array(array, np.float32, order="C")
    _check_finite(path, layer, {part: result})
    return result


def _check_finite(path: Path, layer: str, parts: Layer) -> None:
    if not all(np.isfinite(part).all() for part in parts.values()):
        raise files.refusal(path, f"{layer} has numbers that are not finite; download the file again")


def _params(parts: Layer, own: Mapping[str, tuple[int, ...]], layout: Layout) -> Layer:
    """A layer's weights from those in files: a convolution absorbs the batch norm that follows it."""
    if layout.epsilon is not None and "gamma" in parts:
        gamma, beta, mean, variance = (np.float64(parts[name]) for name in ("gamma", "beta", "mean", "variance"))
        scale = gamma / np.sqrt(np.maximum(variance, 0) + layout.epsilon)
        shift = beta - mean * scale
        if "kernel" not in parts:
            return {"scale": scale.astype(np.float32), "shift": shift.astype(np.float32)}
        kernel, bias = parts["kernel"] * scale, parts.get("bias", 0) * scale + shift
        parts = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    elif "kernel" in parts and "bias" not in parts:
        parts = parts | {"bias": np.zeros(parts["kernel"].shape[-1], np.float32)}
    return {"strided" if part == "kernel" and "strided" in own else part: array for part, array in parts.items()}


# --- names


TORCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "variance"}
# torchvision's numbers of the convolutions of each block, counting ReLUs and pools too.
VGG_NUMBERS = {
    "vgg16": ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)),
    "vgg19": ((0, 2), (5, 7), (10, 12, 14, 16), (19, 21, 23, 25), (28, 30, 32, 34)),
}
SQUEEZENET_NUMBERS = {0: "conv1"} | {n: f"fire{i}" for i, n in enumerate((3, 4, 6, 7, 9, 10, 11, 12), 2)}


def _keras_part(name: str) -> tuple[str, str]:
    """("conv1_bn", "gamma") for Keras's "conv1_bn/gamma:0", with its groups; ("", "") if it belongs to no layer."""
    if name.startswith("optimizer"):  # Keras stores Adam's moments under the layers' names
        return "", ""
    match = re.fullmatch(r"(.+)/(kernel|bias|gamma|beta|moving_mean|moving_variance)(?::0)?", name)
    return (match[1], match[2].removeprefix("moving_")) if match else ("", "")


def vgg(name: str) -> Place | None:
    """The layer of our "conv1_2/bias", and of names with "block1_conv2", as in Keras and its ports."""
    if name.startswith("optimizer"):
        return None
    keras, own = r"(?<![a-z0-9])block(\d)_conv(\d)(?!\d)", r"(?<!\w)conv(\d)_(\d)(?!\d)"
    match = re.search(keras, name) or re.search(own, name)
    return (f"conv{match[1]}_{match[2]}", None) if match else None


def _vgg_torchvision(network: str) -> Callable[[str], Place | None]:
    layers = {
        f"features.{number}": f"conv{block}_{i}"
        for block, numbers in enumerate(VGG_NUMBERS[network], 1)
        for i, number in enumerate(numbers, 1)
    }

    def place(name: str) -> Place | None:
        match = re.search(r"(?:^|\.)(features\.\d+)\.(?:weight|bias)$", name)
        return (layers.get(match[1], match[1]), None) if match else None

    return place


def _squeezenet(name: str) -> Place | None:
    """Our "fire2_squeeze/kernel", and "fire2/squeeze1x1/kernel" of Keras's ports."""
    layer, part = _keras_part(name)
    match = re.search(r"(?:^|/)(conv1|fire\d[/_](?:squeeze|expand[13]x[13]))(?:1x1)?$", layer)
    return (match[1].replace("/", "_"), part) if match else None


def _squeezenet_torchvision(name: str) -> Place | None:
    match = re.search(r"(?:^|\.)features\.(\d+)\.(?:(squeeze|expand1x1|expand3x3)\.)?(weight|bias)$", name)
    if not match:
        return None
    layer = SQUEEZENET_NUMBERS.get(int(match[1]), f"features.{match[1]}")
    return f"{layer}_{match[2]}" if match[2] else layer, {"weight": "kernel"}.get(match[3], match[3])


def _resnet_torchvision(name: str) -> Place | None:
    pattern = r"(?:^|\.)(layer\d\.\d+\.)?(conv|bn|downsample\.)(\d)\.(weight|bias|running_mean|running_var)$"
    match = re.search(pattern, name)
    if not match:
        return None
    block, kind, number, part = match.groups()
    shortcut = kind == "downsample."
    layer = (block or "").replace(".", "_") + ("shortcut" if shortcut else f"conv{number}")
    norm = kind == "bn" or (shortcut and number == "1")
    return layer, TORCH_NORM[part] if norm else {"weight": "kernel"}.get(part, part)


def _resnet_keras(name: str) -> Place | None:
    layer, part = _keras_part(name)
    match = re.search(r"(?:^|/)conv(\d)_(?:block(\d+)_(\d)_)?(?:conv|bn)$", layer)
    if not match:
        return None
    stage, block, number = match.groups()
    if block is None:
        return f"conv{stage}", part
    inner = "shortcut" if number == "0" else f"conv{number}"
    return f"layer{int(stage) - 1}_{int(block) - 1}_{inner}", part


def _densenet_torchvision(name: str) -> Place | None:
    """The official file says denselayer1.norm.1 for what torchvision calls denselayer1.norm1 now."""
    pattern = r"(?:^|\.)features\.(?:denseblock(\d)\.denselayer(\d+)\.|transition(\d)\.)?(conv|norm)\.?(\d?)\."
    match = re.search(pattern + "(weight|bias|running_mean|running_var)$", name)
    if not match:
        return None
    block, number, transition, kind, index, part = match.groups()
    part = TORCH_NORM[part] if kind == "norm" else {"weight": "kernel"}.get(part, part)
    if block:
        inner = {"norm1": "norm", "norm2": "conv1"}.get(kind + index, kind + index)
        return f"block{block}_{number}_{inner}", part
    if transition:
        return f"transition{transition}_{kind}", part
    return {"norm0": "conv0"}.get(kind + index, kind + index), part


def _densenet_keras(name: str) -> Place | None:
    layer, part = _keras_part(name)
    if match := re.search(r"(?:^|/)conv(\d)_block(\d+)_(0_bn|1_conv|1_bn|2_conv)$", layer):
        inner = {"0_bn": "norm", "1_conv": "conv1", "1_bn": "conv1", "2_conv": "conv2"}[match[3]]
        return f"block{int(match[1]) - 1}_{match[2]}_{inner}", part
    if match := re.search(r"(?:^|/)pool(\d)_(conv|bn)$", layer):
        return f"transition{int(match[1]) - 1}_{'norm' if match[2] == 'bn' else 'conv'}", part
    if re.search(r"(?:^|/)conv1[/_](?:conv|bn)$", layer):
        return "conv0", part
    return ("norm5", part) if re.search(r"(?:^|/)bn$", layer) else None


VIT_LAYERS = {
    "ln_1": "norm1",
    "self_attention.in_proj": "qkv",
    "self_attention.out_proj": "out",
    "ln_2": "norm2",
    "mlp.linear_1": "mlp1",  # in the official file
    "mlp.0": "mlp1",  # in torchvision now
    "mlp.linear_2": "mlp2",
    "mlp.3": "mlp2",
}


def _vit_torchvision(name: str) -> Place | None:
    if match := re.search(r"(?:^|\.)(class_token|encoder\.pos_embedding)$", name):
        return "tokens", "class" if match[1] == "class_token" else "positions"
    kernel, norm = {"weight": "kernel", "bias": "bias"}, {"weight": "scale", "bias": "shift"}
    if match := re.search(r"(?:^|\.)(conv_proj|encoder\.ln)\.(weight|bias)$", name):
        return ("patches", kernel[match[2]]) if match[1] == "conv_proj" else ("norm", norm[match[2]])
    match = re.search(r"(?:^|\.)encoder\.layers\.encoder_layer_(\d+)\.(.+?)[._](weight|bias)$", name)
    if not match:
        return None
    inner = VIT_LAYERS.get(match[2], match[2])
    return f"block{int(match[1]) + 1}_{inner}", (norm if inner.startswith("norm") else kernel)[match[3]]


def _in_dense_layers(layer: str) -> bool:
    return layer == "conv0" or layer.endswith("_conv1")


# {network: {the layout's name: layout}}
LAYOUTS: dict[str, dict[str, Layout]] = {
    **{
        network: {
            "own": Layout(vgg, CAFFE),
            "torchvision": Layout(_vgg_torchvision(network), IMAGENET, transposed=True),
        }
        for network in VGG_NUMBERS
    },
    "squeezenet11": {
        "own": Layout(_squeezenet, CAFFE),
        "torchvision": Layout(_squeezenet_torchvision, IMAGENET, transposed=True),
    },
    "resnet50": {
        "torchvision": Layout(
            _resnet_torchvision, IMAGENET, transposed=True, biases=False, normed=lambda layer: True, epsilon=1e-5
        ),
        "keras": Layout(_resnet_keras, CAFFE, normed=lambda layer: True, epsilon=1.001e-5),
    },
    "densenet121": {
        "torchvision": Layout(
            _densenet_torchvision, IMAGENET, transposed=True, biases=False, normed=_in_dense_layers, epsilon=1e-5
        ),
        "keras": Layout(_densenet_keras, IMAGENET, biases=False, normed=_in_dense_layers, epsilon=1.001e-5),
    },
    "vit_b16": {"torchvision": Layout(_vit_torchvision, IMAGENET, transposed=True)},
}
