"""How files lay out the weights of networks other than VGG: their arrays' names and shapes, and frozen batch norms.

A network's module describes the files that there are of it by a `Layout` each; `read` tells which one a file has.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nstjax import files, weights


class Layout(NamedTuple):
    """How a kind of file lays out a network's weights."""

    place: Callable[[str], tuple[str, str] | None]  # an array's name -> (layer, part), or None if it is not needed
    shapes: dict[str, dict[str, tuple[int, ...]]]  # {layer: {part: shape}} of all that such a file holds
    preprocessing: str
    turned: bool = False  # kernels are [out, in, ...], as Torch has them, instead of [..., in, out]


def read(network, source, layouts):
    """What a network's file holds: (its layout's name in `layouts`, its preprocessing, {layer: {part: float32 array}}).

    source: as for `nstjax.weights.load`. Raises InputError, one line that names the file, if it is missing, damaged,
    changed, or has not exactly the shapes of one of the layouts {name: Layout}.
    """
    path = weights.find(network, source)
    arrays = weights.read(
        path, lambda name: name == "preprocessing" or any(each.place(name) for each in layouts.values())
    )
    places = {kind: {name: each.place(name) for name in arrays} for kind, each in layouts.items()}
    kind = max(layouts, key=lambda kind: sum(map(bool, places[kind].values())))
    layout = layouts[kind]
    found: dict[tuple[str, str], np.ndarray] = {}
    for name, place in places[kind].items():
        if place is None:
            continue
        layer, part = place
        if part not in layout.shapes.get(layer, ()):
            raise files.refusal(path, f"has {name}, which {network} has not; is it of another network?")
        if place in found:
            raise files.refusal(path, f"has the {part} of {layer} more than once; keep one network in it")
        found[place] = arrays[name]
    tree = {
        layer: {
            part: _checked(path, layer, part, found.get((layer, part)), shape, layout) for part, shape in own.items()
        }
        for layer, own in layout.shapes.items()
    }
    return kind, weights.preprocessing_of(path, arrays, layout.preprocessing), tree


def _checked(path, layer, part, array, shape, layout):
    """A part of a layer in float32 and in our order, once seen to be as expected."""
    if array is None:
        raise files.refusal(path, f"has no {part} of {layer}; is it of another network?")
    turned = array
    if layout.turned and part == "kernel":
        turned = array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    if turned.shape != shape or array.dtype.kind not in "fiu":
        what = f"{array.dtype} {list(turned.shape)}, where float32 {list(shape)} is expected"
        raise files.refusal(path, f"the {part} of {layer} is {what}; is it of another network?")
    with np.errstate(over="ignore"):
        result = np.array(turned, np.float32, order="C")
    if not np.isfinite(result).all():
        raise files.refusal(path, f"{layer} has numbers that are not finite; get the file again")
    return result


def keras_part(name):
    """("conv1_bn", "gamma") of Keras's "conv1_bn/gamma:0", with the groups before; None of what is no layer's."""
    if name.startswith("optimizer"):  # Keras keeps Adam's moments under the layers' names
        return None
    match = re.fullmatch(r"(.+)/(kernel|bias|gamma|beta|moving_mean|moving_variance)(?::0)?", name)
    return (match[1], match[2].removeprefix("moving_")) if match else None


TORCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "variance"}


def batch_norm(parts, *, epsilon):
    """A frozen batch norm's (scale [C], shift [C]) from its "gamma", "beta", "mean" and "variance", in float64."""
    gamma, beta, mean, variance = (np.float64(parts[name]) for name in ("gamma", "beta", "mean", "variance"))
    scale = gamma / np.sqrt(np.maximum(variance, 0) + epsilon)
    return scale, beta - mean * scale


def fold_norm(parts, *, epsilon):
    """{"kernel", "bias"} of a convolution and the batch norm that follows it: one convolution."""
    scale, shift = batch_norm(parts, epsilon=epsilon)
    kernel, bias = parts["kernel"] * scale, parts.get("bias", 0) * scale + shift
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
