"""Extractors: pure functions from params and a picture [H, W, 3] in [0, 1] to {layer: activation [h, w, C]}."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from nstjax import convolve, losses, weights
from nstjax.errors import InputError
from nstjax.features import densenet, resnet, squeezenet, vgg, vit

SOURCES = ("bundled", "keras", "torchvision", "random")  # of weights, beside files


class Extractor(NamedTuple):
    """An extractor's function (params, image, **options) -> {layer: activation}, and what goes with it."""

    features: Callable[..., dict]
    layers: tuple[str, ...]  # all names, in order
    content: tuple[str, ...]  # the layers that usually keep the content
    style: tuple[str, ...]  # and those that usually carry the style
    shapes: Callable[[], dict]  # {layer: {part: shape}} of its weights
    load: Callable[..., dict]  # source -> weights {"mean": [3], layer: {part: array}}


def _vgg(network):
    style = tuple(f"relu{block}_1" for block in range(1, 6))
    shapes = partial(vgg.shapes, network)
    return Extractor(
        vgg.features, vgg.layer_names(network), ("relu4_2",), style, shapes, partial(weights.load, network)
    )


EXTRACTORS = {
    "vgg16": _vgg("vgg16"),
    "vgg19": _vgg("vgg19"),
    "squeezenet11": Extractor(
        squeezenet.features,
        squeezenet.layer_names(),
        ("fire5",),
        ("relu1", "fire2", "fire4", "fire6", "fire9"),
        squeezenet.shapes,
        squeezenet.load,
    ),
    # After SWAG (arXiv 2104.05623), which takes the last block of each stage.
    "resnet50": Extractor(
        resnet.features,
        resnet.layer_names(),
        ("layer3_5",),
        ("layer1_2", "layer2_3", "layer3_5", "layer4_2"),
        resnet.shapes,
        resnet.load,
    ),
    "densenet121": Extractor(
        densenet.features,
        densenet.layer_names(),
        ("transition2",),
        ("relu0", "transition1", "transition2", "transition3", "relu5"),
        densenet.shapes,
        densenet.load,
    ),
    "vit_b16": Extractor(
        vit.features,
        vit.layer_names(),
        ("block6",),
        ("block1", "block3", "block5", "block7", "block9"),
        vit.shapes,
        vit.load,
    ),
}


def load(network, source="bundled", *, layers=None, like=None, winograd=None, compact=False, seed=0):
    """Params of an extractor, on the default device.

    source: "bundled", "keras", "torchvision", a file (see `nstjax.weights.load`), or "random" (`random_weights` from
    `seed`). layers: those wanted; VGG's convolutions after them are left out. like: a picture [H, W, 3]; its mean
    activations in the bundled network are given to every layer of VGG (`vgg.match_scale`), so that losses mean the same
    with weights of another scale, such as torchvision's or random ones; nothing to other networks. winograd: compute
    the wide convolutions by Winograd's algorithm; by default on CPU. compact: with an eighth of the memory for its
    kernels (`convolve.compact`). Raises InputError for an unknown network, one that has no such weights, or a file that
    does not hold them.
    """
    if network not in EXTRACTORS:
        raise InputError(f"no network {network!r}; there are {', '.join(EXTRACTORS)}")
    tree = random_weights(network, seed) if source == "random" else EXTRACTORS[network].load(source)
    if EXTRACTORS[network].features is vgg.features:
        if like is not None and source != "bundled":
            tree = vgg.match_scale(tree, weights.load(network), like)
        tree = tree if layers is None else vgg.until(tree, layers)
    return prepare(tree, winograd=winograd, compact=compact)


def random_weights(network, seed=0):
    """Weights of an untrained network, as its module's `load` returns them: the same for the same seed.

    Kernels are normal with variance 2 / inputs (He 2015, arXiv 1502.01852), shifts and biases 0, batch norms as they
    are before training, a ViT's tokens normal with deviation 0.02 (Dosovitskiy 2021). Pictures are normalised by
    ImageNet's mean and deviation. Without trained batch norms a ResNet's activations double in variance with every
    block.
    """
    rng = np.random.default_rng(seed)

    def part(name, shape):
        if name in ("kernel", "strided"):
            return rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape).astype(np.float32)
        if name in ("class", "positions"):
            return rng.normal(0, 0.02, shape).astype(np.float32)
        return np.full(shape, 1.0 if name == "scale" else 0.0, np.float32)

    tree = {
        layer: {name: part(name, shape) for name, shape in parts.items()}
        for layer, parts in EXTRACTORS[network].shapes().items()
    }
    first = next(iter(tree.values()))
    kind = "strided" if "strided" in first else "kernel"
    first[kind] = weights.fold(first[kind], weights.IMAGENET)
    return {"mean": weights.MEANS[weights.IMAGENET].copy()} | tree


def prepare(tree, *, winograd=None, compact=False):
    """Params of an extractor's function from {"mean": [3], layer: {part: array}}, in the fastest form for the platform.

    That is another one for 3x3 convolutions that move by one pixel. winograd, compact: see `load`. Layer by layer, so
    that only one layer's new form is in memory twice, in numpy and on the device.
    """
    if winograd is None:
        winograd = jax.default_backend() == "cpu"

    def form(name, layer):
        if name == "mean" or np.shape(layer.get("kernel"))[:2] != (3, 3):
            return layer
        # Block 1 is bound by memory, not arithmetic: Winograd's transforms would cost more than they save.
        fast = convolve.compact if compact else convolve.winograd
        fast = convolve.direct if name.startswith("conv1_") else fast
        return (fast if winograd else convolve.plain)(layer["kernel"], layer["bias"])

    return {name: jax.block_until_ready(jax.device_put(form(name, layer))) for name, layer in tree.items()}


def softened(features, *, temperature=1.0):
    """An extractor (params, image) -> {layer: `losses.swag` of what `features` gives}, for content and style alike.

    temperature: a number, or {layer: number}, whose layers are then those of the result; about ten standard
    deviations of a layer suit networks of any scale (see `losses.swag`).
    """

    def softened_features(params, image, **options):
        acts = features(params, image, **options)
        each = temperature if isinstance(temperature, dict) else dict.fromkeys(acts, temperature)
        return {name: losses.swag(acts[name], temperature=t) for name, t in each.items()}

    return softened_features
