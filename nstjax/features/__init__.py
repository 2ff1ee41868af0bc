"""Extractors: pure functions from params and a picture [H, W, 3] in [0, 1] to {layer: activation [h, w, C]}."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from nstjax import convolve, weights
from nstjax.errors import InputError
from nstjax.features import vgg


class Extractor(NamedTuple):
    """An extractor's function (params, image, **options) -> {layer: activation}, and its layers' names in order."""

    features: Callable[..., dict]
    layers: tuple[str, ...]


EXTRACTORS = {
    "vgg16": Extractor(vgg.features, vgg.layer_names("vgg16")),
    "vgg19": Extractor(vgg.features, vgg.layer_names("vgg19")),
}


def load(network, source="bundled", *, layers=None, like=None, winograd=None):
    """Params of an extractor, on the default device.

    source: "bundled", "keras", "torchvision" or a file (see `nstjax.weights.load`). layers: those wanted; convolutions
    after them are left out. like: a picture [H, W, 3]; its
    mean activations in the bundled network are given to every layer (`vgg.match_scale`), so that losses mean the same
    with weights of another scale, such as torchvision's. winograd: compute the wide convolutions by Winograd's
    algorithm; by default on CPU. Raises InputError for an unknown network or a file that does not hold its weights.
    """
    if network not in EXTRACTORS:
        raise InputError(f"no network {network!r}; there are {', '.join(EXTRACTORS)}")
    tree = weights.load(network, source)
    if like is not None and source != "bundled":
        tree = vgg.match_scale(tree, weights.load(network), like)
    return prepare(tree if layers is None else vgg.until(tree, layers), winograd=winograd)


def prepare(tree, *, winograd=None):
    """Params of `vgg.features` from {"mean": [3], layer: {"kernel", "bias"}}, in the fastest form for the platform."""
    if winograd is None:
        winograd = jax.default_backend() == "cpu"

    def form(name, layer):
        # Block 1 is bound by memory, not arithmetic: Winograd's transforms would cost more than they save.
        fast = convolve.direct if name.startswith("conv1_") else convolve.winograd
        return (fast if winograd else convolve.plain)(layer["kernel"], layer["bias"])

    convs = {name: form(name, layer) for name, layer in tree.items() if name != "mean"}
    return jax.device_put({"mean": tree["mean"]} | convs)
