"""The measures that several studies share, and how they weigh content against style."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from nstjax import features, losses, metrics, objectives
from nstjax.features import vgg
from nstjax.typing import Image

STYLE_LAYERS = features.EXTRACTORS["vgg19"].style
(CONTENT_LAYER,) = features.EXTRACTORS["vgg19"].content
JUDGES = ("vgg16", "squeezenet11")  # networks that measure the images of all networks but their own
PIXELS = ("reference_mse", "reference_ssim")  # need no network
Params = Mapping[str, Any]  # {network: its params}

# {figure: heading in a table}, of `figures` and of `to_reference`.
FIGURES = {
    "content_distance": "Content distance",
    "style_distance": "Style distance",
    "moments_distance": "Style by moments",
    "mse": "MSE",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "roughness": "Roughness",
}
REFERENCE = {"reference_mse": "MSE to AdaIN", "reference_ssim": "SSIM to AdaIN", "reference_lpips": "LPIPS to AdaIN"}
EXPLAINED = (
    f"Content distance is that of {CONTENT_LAYER} in units of its variance. Style distance is that of the Gram "
    "matrices of five layers, each in units of the content image’s. MSE of Gram matrices minimizes just that, so the "
    "distance by moments, the means and standard deviations of channels, is beside it, which no run minimizes.",
    "MSE, SSIM and LPIPS are to the content image. LPIPS is calibrated with --weights torchvision, and otherwise "
    "uncalibrated, with Oxford’s VGG-16. Roughness is the total variation in units of the content image’s.",
)


def load_networks(weights: str, *, like: Image) -> dict[str, Any]:
    """Return the params of VGG-19, which paints, and of VGG-16, whose features LPIPS compares."""
    sources = {"vgg19": weights, "vgg16": weights if weights in ("keras", "torchvision") else "bundled"}
    layers = {"vgg19": (*STYLE_LAYERS, CONTENT_LAYER), "vgg16": metrics.LPIPS_LAYERS}
    return {name: features.load(name, sources[name], layers=layers[name], like=like) for name in sources}


def load_heads(weights: str) -> dict[str, Any] | None:
    """Return LPIPS's heads if the weights are those that they were calibrated for."""
    return metrics.load_heads("vgg") if weights == "torchvision" else None


def networks(params: Params, image: Image) -> dict[str, dict[str, Any]]:
    """Return the features of every network, {network: {layer: [h, w, C]}}; jit prunes those that are not used."""
    return {name: vgg.features(params[name], image) for name in params}


def figures(params: Params, image: Image, content: Image, style: Image, *, heads: Any = None) -> dict[str, Any]:
    """An image's `FIGURES`; see `nstjax.metrics`. roughness: total variation, in units of the content image's."""
    extract, net = vgg.features, params["vgg19"]
    styled = partial(metrics.style_distance, extract, net, image, style, content)
    return {
        "content_distance": metrics.content_distance(extract, net, image, content),
        "style_distance": styled(),
        "moments_distance": styled(statistic=losses.moments),
        "mse": metrics.mse(image, content),
        "ssim": metrics.ssim(image, content),
        "lpips": metrics.lpips(extract, params["vgg16"], image, content, heads=heads),
        "roughness": losses.total_variation(image, power=1) / losses.total_variation(content, power=1),
    }


def to_reference(image: Image, reference: Image, *, params: Any = None, heads: Any = None) -> dict[str, Any]:
    """How far an image is from a reference, by pixels, and by LPIPS where VGG-16's params are given."""
    pixels = {"reference_mse": metrics.mse(image, reference), "reference_ssim": metrics.ssim(image, reference)}
    if params is None:
        return pixels
    return pixels | {"reference_lpips": metrics.lpips(vgg.features, params, image, reference, heads=heads)}


def measured_by(params: Params, heads: Any) -> Callable[..., dict[str, float]]:
    """measure(image, content, style, reference or None) -> its figures, compiled once for each shape."""
    of_image, of_reference = (jax.jit(partial(each, heads=heads)) for each in (figures, to_reference))

    def measure(image: Image, content: Image, style: Image, reference: Image | None) -> dict[str, float]:
        found = of_image(params, image, content, style)
        if reference is not None:
            found = found | of_reference(image, reference, params=params["vgg16"])
        return {name: float(x) for name, x in found.items()}

    return measure


def judged(content: Image, style: Image, reference: Image) -> Callable[[Any, Image], dict[str, float | None]]:
    """measure(run, image): the judges' distances, SSIM and LPIPS to the content image, and `to_reference`.

    A measure is None where the only judge is the run's own network.
    """

    @cache
    def ready(judge: str) -> Callable[[Image], dict[str, Any]]:
        extractor, lpips = features.EXTRACTORS[judge], metrics.LPIPS_LAYERS * (judge == "vgg16")
        params = features.load(judge, layers=extractor.content + extractor.style + lpips)

        @jax.jit
        def distances(params: Any, image: Image) -> dict[str, Any]:
            near = metrics.content_distance(extractor.features, params, image, content, layers=extractor.content)
            far = metrics.style_distance(extractor.features, params, image, style, content, layers=extractor.style)
            more = {}
            if lpips:
                more = {"lpips": metrics.lpips(extractor.features, params, image, content)}
                more |= to_reference(image, reference, params=params)
            return {f"content_{judge}": near, f"style_{judge}": far} | more

        return partial(distances, params)

    def measure(run: Any, image: Image) -> dict[str, float | None]:
        found: dict[str, float | None] = {"ssim": float(metrics.ssim(image, content))}
        for judge in JUDGES:
            fair = run.configuration["network"] != judge
            each = ready(judge)(image).items()
            found |= {name: float(value) if fair or name in PIXELS else None for name, value in each}
        return found

    return measure


def balanced(
    objective: objectives.Objective,
    targets: Callable,
    *,
    content: Sequence[str],
    style: Sequence[str],
    strength: float,
    prepare: Callable[[Any, Image], Any] = lambda params, image: params,
    extract: Callable[[Any, Image], Mapping[str, Any]] | None = None,
) -> Callable[[Any, Image, Image], dict[str, Any]]:
    """(params, content image, style image) -> data of `objectives.neural_style`'s pair (objective, targets), jitted.

    Content and style are weighed by `objectives.balance`.

    Args:
        content, style: names of the layers, which are weighed by 1.
        prepare: (params, content image) -> what the objective has as params.
        extract: the objective's features; if given, each style layer is measured in its loss for the content image, so
            that layers count the same whatever the scale of their activations.
    """
    layers = {"content_layers": dict.fromkeys(content, 1.0), "style_layers": dict.fromkeys(style, 1.0)}

    @jax.jit
    def data(params: Any, content_image: Image, style_image: Image) -> dict[str, Any]:
        ones, params = {"content": 1.0, "style": 1.0}, prepare(params, content_image)
        data = targets(params, content_image, [objectives.Style(style_image)], weights=ones, **layers)
        if extract is not None:
            start, goal = extract(params, content_image), data["styles"][0]["targets"]
            units = {name: jnp.maximum(losses.mse(losses.gram(start[name]), goal[name]), 1e-30) for name in goal}
            data["style_layers"] = {name: 1 / (len(units) * unit) for name, unit in units.items()}
        return objectives.balance(objective, data, content_image, strength=strength)

    return data
