"""What other libraries call the arrays of a network, and how they lay them out: one table for all networks.

`load` finds which of a network's layouts a file has, and returns its weights in the one form that our extractors take.
The networks define the shapes of that form (`features.vgg.shapes` etc.).
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nstjax import files
from nstjax.weights import names
from nstjax.weights.download import find
from nstjax.weights.reading import read

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]  # {layer: {part: shape}}
Layer = dict[str, np.ndarray]  # {part: array}

# The kinds of preprocessing, as they are written in the manifest and in metadata. The means are RGB, in [0, 1].
CAFFE = "BGR, 0..255, minus [103.939, 116.779, 123.68]"
IMAGENET = "RGB, 0..1, minus [0.485, 0.456, 0.406], divided by [0.229, 0.224, 0.225]"
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
CENTERED = "RGB, 0..255, minus 127, divided by 128"
MEANS: dict[str, np.ndarray] = {
    CAFFE: np.array([123.68, 116.779, 103.939], np.float32) / 255,
    IMAGENET: np.array([0.485, 0.456, 0.406], np.float32),
    CENTERED: np.full(3, 127 / 255, np.float32),
}


class Layout(NamedTuple):
    """How a kind of file lays out a network's weights, where that differs from ours."""

    place: Callable[[str], names.Place | None]  # an array's name -> where it belongs, or None if it is not needed
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
    if preprocessing == CENTERED:
        return kernel * np.float32(255 / 128)
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


# {network: {the layout's name: layout}}
LAYOUTS: dict[str, dict[str, Layout]] = {
    **{
        network: {
            "own": Layout(names.vgg, CAFFE),
            "torchvision": Layout(names.vgg_torchvision(network), IMAGENET, transposed=True),
        }
        for network in names.VGG_NUMBERS
    },
    "squeezenet11": {
        "own": Layout(names.squeezenet, CAFFE),
        "torchvision": Layout(names.squeezenet_torchvision, IMAGENET, transposed=True),
    },
    "resnet50": {
        "torchvision": Layout(
            names.resnet_torchvision, IMAGENET, transposed=True, biases=False, normed=lambda layer: True, epsilon=1e-5
        ),
        "keras": Layout(names.resnet_keras, CAFFE, normed=lambda layer: True, epsilon=1.001e-5),
    },
    "densenet121": {
        "torchvision": Layout(
            names.densenet_torchvision,
            IMAGENET,
            transposed=True,
            biases=False,
            normed=names.in_dense_layers,
            epsilon=1e-5,
        ),
        "keras": Layout(names.densenet_keras, IMAGENET, biases=False, normed=names.in_dense_layers, epsilon=1.001e-5),
    },
    "efficientnet_lite0": {
        "own": Layout(names.efficientnet, CENTERED),
        "torch": Layout(
            names.efficientnet_torch, CENTERED, transposed=True, biases=False, normed=lambda layer: True, epsilon=1e-3
        ),
    },
    "vit_b16": {"torchvision": Layout(names.vit_torchvision, IMAGENET, transposed=True)},
}
