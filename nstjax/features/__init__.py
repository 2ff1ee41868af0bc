"""Extractors: pure functions from params and an image [H, W, 3] in [0, 1] to {layer: activation [h, w, C]}."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from nstjax import convolve, losses, weights
from nstjax.errors import InputError
from nstjax.features import densenet, efficientnet, resnet, squeezenet, vgg, vit

SOURCES = ("bundled", "keras", "torchvision", "random")  # of weights, beside files


class Extractor(NamedTuple):
    """An extractor's function (params, image, **options) -> {layer: activation}, and what goes with it."""

    features: Callable[..., dict[str, Array]]
    layers: tuple[str, ...]  # all names, in order
    content: tuple[str, ...]  # the layers that usually keep the content
    style: tuple[str, ...]  # and those that usually carry the style
    shapes: Callable[[], dict[str, dict[str, tuple[int, ...]]]]  # {layer: {part: shape}} of its weights
    load: Callable[..., dict[str, Any]]  # source -> weights {"mean": [3], layer: {part: array}}


def _vgg(network: str) -> Extractor:
    return Extractor(
        vgg.features,
        vgg.layer_names(network),
        ("relu4_2",),
        ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"),
        partial(vgg.shapes, network),
        partial(vgg.load, network),
    )


EXTRACTORS: dict[str, Extractor] = {
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
    "efficientnet_lite0": Extractor(
        efficientnet.features,
        efficientnet.layer_names(),
        ("stage4_2",),
        ("stem", "stage2_1", "stage3_1", "stage4_2", "stage5_2"),
        efficientnet.shapes,
        efficientnet.load,
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


def load(
    network: str,
    source: str | os.PathLike[str] = "bundled",
    *,
    layers: Iterable[str] | None = None,
    like: Float[Array | np.ndarray, "h w 3"] | None = None,
    winograd: bool | None = None,
    compact: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Return params of an extractor, on the default device.

    Args:
        source: "bundled", "keras", "torchvision", a file (see `nstjax.weights.layouts.load`), or "random"
            (`random_weights` from `seed`).
        layers: those wanted; VGG's convolutions after them are left out.
        like: an image whose mean activations in the bundled network are given to every layer of VGG
            (`vgg.match_scale`), so that losses mean the same with weights of another scale, such as torchvision's or
            random ones; ignored for other networks.
        winograd: compute the wide convolutions by Winograd's algorithm; by default on CPU.
        compact: with an eighth of the memory for its kernels (`convolve.compact`).

    Raises:
        InputError: an unknown network, one that has no such weights, or a file that does not hold them.
    """
    if network not in EXTRACTORS:
        raise InputError(f"no network {network!r}; there are {', '.join(EXTRACTORS)}")
    tree = random_weights(network, seed) if source == "random" else EXTRACTORS[network].load(source)
    if EXTRACTORS[network].features is vgg.features:
        if like is not None and source != "bundled":
            tree = vgg.match_scale(tree, vgg.load(network), like)
        tree = tree if layers is None else vgg.until(tree, layers)
    return prepare(tree, winograd=winograd, compact=compact)


def random_weights(network: str, seed: int = 0) -> dict[str, Any]:
    """Return weights of an untrained network, as its module's `load` returns them: the same for the same seed.

    Kernels are normal with variance 2 / inputs (He 2015, arXiv 1502.01852), shifts and biases 0, batch norms as they
    are before training, a ViT's tokens normal with deviation 0.02 (Dosovitskiy 2021). Images are normalized by
    ImageNet's mean and deviation. Without trained batch norms a ResNet's activations double in variance with every
    block.
    """
    rng = np.random.default_rng(seed)

    def part(name: str, shape: tuple[int, ...]) -> np.ndarray:
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


def prepare(tree: Mapping[str, Any], *, winograd: bool | None = None, compact: bool = False) -> dict[str, Any]:
    """Return params of an extractor's function in the fastest form for the platform, on the default device.

    That is another form for 3x3 convolutions that move by one pixel. Layer by layer, so that only one layer's new form
    is in memory twice, in numpy and on the device.

    Args:
        tree: weights {"mean": [3], layer: {part: array}}.
        winograd, compact: see `load`.
    """
    if winograd is None:
        winograd = jax.default_backend() == "cpu"

    def form(name: str, layer: Any) -> Any:
        if name == "mean" or np.shape(layer.get("kernel"))[:2] != (3, 3) or layer["kernel"].shape[2] == 1:  # depthwise
            return layer
        # Block 1 is bound by memory, not arithmetic: Winograd's transforms would cost more than they save.
        fast = convolve.direct if name in vgg.FIRST else convolve.compact if compact else convolve.winograd
        return (fast if winograd else convolve.plain)(layer["kernel"], layer["bias"])

    return {name: jax.block_until_ready(jax.device_put(form(name, layer))) for name, layer in tree.items()}


def softened(
    features: Callable[..., dict[str, Array]],
    *,
    temperature: float | losses.Scalar | Mapping[str, float | losses.Scalar] = 1.0,
) -> Callable[..., dict[str, Array]]:
    """Return an extractor whose activations are `losses.swag` of those of `features`, for content and style alike.

    Args:
        temperature: a number, or {layer: number}, whose layers are then those of the result; about ten standard
            deviations of a layer suit networks of any scale (see `losses.swag`).
    """

    def softened_features(params: Any, image: Array, **options: Any) -> dict[str, Array]:
        acts = features(params, image, **options)
        each = temperature if isinstance(temperature, Mapping) else dict.fromkeys(acts, temperature)
        return {name: losses.swag(acts[name], temperature=t) for name, t in each.items()}

    return softened_features
