"""Losses put together: objective(image, data) -> (loss, terms), where everything that varies comes in `data`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nstjax import losses
from nstjax.typing import Image, Mask

Objective = Callable[[Image, Any], tuple[Any, dict[str, Any]]]  # (image, data) -> (loss, its terms by name)


class Style(NamedTuple):
    """A style image, where it is learned from and where it is painted."""

    image: Image
    mask: Mask | None = None  # of the image's aspect: where the style is learned from
    region: Mask | None = None  # of the content image's aspect: where the style is painted
    weight: Any = 1.0  # of this style among several


def at_once(features):
    """`measure` of `neural_style` with all the features, (params, image) -> {layer: [h, w, C]}, in memory."""

    def measure(part, params, image, maps, *, keep=()):
        acts = features(params, image)
        losses.check_layers(acts, (*maps, *keep))
        return {name: part(name, acts[name], maps[name], None, acts[name].shape[0]) for name in maps}, {
            name: acts[name] for name in keep
        }

    return measure


def neural_style(
    features,
    *,
    statistic=losses.gram,
    style_distance=losses.mse,
    content_distance=losses.mse,
    prepare=lambda target: target,
    centered=False,
    measure=None,
    tv_power=2.0,
    pool=4,
):
    """The loss of Gatys 2015 (arXiv 1508.06576, eq. 7) with priors, as a pair of functions (objective, targets).

    features: (params, image [H, W, 3]) -> {layer: [h, w, C]}. statistic, distances: see `nstjax.losses`; prepare: done
    once to each style target (`losses.with_root` for the Wasserstein distance). centered: sum the style's features
    about the content's mean, which covariances need to be exact. measure: how sums over the picture are taken, by
    default `at_once(features)`; see `nstjax.stream`. tv_power: see `losses.total_variation`; pool: see
    `losses.laplacian`.

    objective(image, data) -> (loss, terms): terms are those named in data["weights"], multiplied by their weights:
    "content", "style", "tv", "laplacian".

    targets(params, content, styles, weights, content_layers, style_layers) -> data: content [H, W, 3]; styles, a list
    of {"image": [h, w, 3], "mask": where to take it from [h, w] or None, "region": where to paint it [H, W] or None,
    "weight": number}; weights {term: number}; content_layers and style_layers {layer: number}.
    """
    measure = measure or at_once(features)

    def objective(image, data):
        measured, _ = measure(_part(data), data["params"], image, _maps(data))
        losses_by_name = {
            "content": lambda: sum(w * measured[name]["content"] for name, w in data["content_layers"].items()),
            "style": lambda: sum(
                style["weight"] * _style(measured, style, i, data) for i, style in enumerate(data["styles"])
            ),
            "tv": lambda: losses.total_variation(image, power=tv_power),
            "laplacian": lambda: losses.mse(losses.laplacian(image, pool=pool), data["edges"]),
        }
        terms = {name: weight * losses_by_name[name]() for name, weight in data["weights"].items()}
        return sum(terms.values()), terms

    def _maps(data):
        """What a layer's every pixel is compared with: the content's features, the regions of the styles."""
        maps: dict[str, dict] = {}
        if "content" in data["weights"]:
            maps |= {name: {"content": data["content"][name]} for name in data["content_layers"]}
        if "style" in data["weights"]:
            for name in data["style_layers"]:
                maps[name] = maps.get(name, {}) | {"regions": [region and region[name] for region in data["regions"]]}
        return maps

    def _part(data):
        def part(name, x, maps, valid, height):
            """What rows of a layer, x [h, w, C], and the same rows of its maps add to what the losses compare."""
            out = {}
            if "content" in maps:
                out["content"] = x.shape[0] / height * _distance(content_distance, x, maps["content"], valid)
            if "regions" in maps:
                masks = [_mask(region, x, valid) for region in maps["regions"]]
                out["styles"] = [_sums(name, x, mask, data["origins"]) for mask in masks]
            return out

        return part

    def _style(measured, style, index, data):
        """The loss of a style; styles that are painted all over the picture share its sums."""
        index = min(index, len(data["regions"]) - 1)
        sums = {
            name: measured[name]["styles"][index]._replace(origin=data["origins"].get(name))
            for name in style["targets"]
        }
        weights = data["style_layers"]
        return losses.style(sums, style["targets"], statistic=statistic, distance=style_distance, weights=weights)

    def targets(params, content, styles, *, weights, content_layers, style_layers):
        layers, every = dict.fromkeys(style_layers, ()), tuple(content_layers)
        plain = lambda name, x, _, valid, height: losses.sums(x, mask=_mask(None, x, valid))  # noqa: E731
        sums, kept = measure(plain, params, content, layers if centered else {}, keep=every)
        origins = {name: s.first / s.weight for name, s in sums.items()}
        regions = [at_layers(style.region, features, params, content, style_layers) for style in styles]
        return jax.tree.map(
            jnp.asarray,
            {
                "params": params,
                "content": kept,
                "styles": [_style_targets(params, style, style_layers, origins) for style in styles],
                "regions": regions if any(regions) else [None],
                "origins": origins,
                "edges": losses.laplacian(content, pool=pool) if "laplacian" in weights else None,
                "weights": weights,
                "content_layers": content_layers,
                "style_layers": style_layers,
            },
        )

    def _style_targets(params, style, layers, origins):
        masks = at_layers(style.mask, features, params, style.image, layers)
        part = lambda name, x, mask, valid, height: _sums(name, x, _mask(mask, x, valid), origins)  # noqa: E731
        sums, _ = measure(part, params, style.image, masks or dict.fromkeys(layers))
        sums = {name: s._replace(origin=origins.get(name)) for name, s in sums.items()}
        return {"targets": {name: prepare(statistic(s)) for name, s in sums.items()}, "weight": style.weight}

    return objective, targets


def combined(features, terms):
    """The weighted sum of any losses, as objective(image, data) -> (loss, terms): an ablation is an argument.

    features: (params, image [H, W, 3]) -> {layer: [h, w, C]}; terms: {name: (features, image, target) -> number}.
    data: {"params"; "weights": {name: number}; "targets": {name: what the term compares with, None if left out}}. Only
    terms with a weight are computed; those returned are multiplied by it. For instance

        combined(
            vgg.features,
            {
                "content": lambda x, image, target: losses.content(x, target),
                "style": lambda x, image, target: losses.style(x, target, statistic=patches.patchwise),
                "nearest": lambda x, image, target: losses.layerwise(
                    x, target, statistic=losses.activations, distance=patches.nearest
                ),
                "perceptual": lambda x, image, target: losses.lpips(x, target),
                "reconstruction": lambda x, image, target: losses.mse(image, target),
                "tv": lambda x, image, target: losses.total_variation(image),
            },
        )

    All the features are in memory at once; sums over larger pictures are `neural_style`'s. Raises ValueError for a
    weight whose name is not among the terms.
    """

    def objective(image, data):
        x = features(data["params"], image)
        values = {}
        for name, weight in data["weights"].items():
            if name not in terms:
                raise ValueError(f"no term {name!r}; there are {', '.join(terms)}")
            values[name] = weight * terms[name](x, image, data["targets"].get(name))
        return sum(values.values()), values

    return objective


def _sums(name, x, mask, origins):
    """Sums about a layer's origin, which is left out of them: it is no sum."""
    return losses.sums(x, mask=mask, origin=origins.get(name))._replace(origin=None)


def _mask(region, x, valid):
    """Weights of the pixels of x [h, w, C]: a region [h, w], and 0 in rows [h] that are outside the picture."""
    if valid is None:
        return region
    return jnp.broadcast_to(valid[:, None], x.shape[:2]) * (1 if region is None else region)


def _distance(distance, a, b, valid):
    """Mean over rows of a distance that is a mean over entries, where rows outside the picture have none."""
    if valid is None:
        return distance(a, b)
    rows, zero = valid[:, None, None], jnp.zeros((1, 1, 1))
    return distance(a * rows, b * rows) - (1 - valid.mean()) * distance(zero, zero)


def at_layers(mask, features, params, image, layers):
    """A picture's mask [H, W] averaged down to the layers' sizes, {layer: [h, w]}; None stays None."""
    if mask is None:
        return None
    shapes = jax.eval_shape(features, params, image)
    return {name: jax.image.resize(mask, shapes[name].shape[:2], "linear") for name in layers}


SCALE = 1e6  # losses keep the order of magnitude that they have with the paper's weights, for the numbers shown
LEAST = {"content": 0.25, "style": 0.002}  # of the loss of noise: a smaller one measures no structure, no difference


def balance(objective, data, content, *, strength, ratio=300.0):
    """`data` whose content and style weights make `strength` in [0, 1] mean the same at any size, network and picture.

    Each term is measured in a unit of its own: style, its loss for the untouched content image [H, W, 3]; content, its
    loss for features that have lost all structure (replaced by their mean). Where there is neither, as with a content
    of one colour or one that is the style itself, the unit is a part (`LEAST`) of the loss of an image of noise.
    Strength s sets their ratio to ratio * (s / (1 - s))^2: 0 keeps the content, 1 keeps its style alone. A ratio of 300
    suits Gram matrices, whose squared difference grows with the fourth power of features; 4 suits the Wasserstein
    distance.
    """
    ones = {name: jnp.ones(()) for name in ("content", "style")}
    flat = jax.tree.map(lambda x: jnp.broadcast_to(x.mean((0, 1)), x.shape), data["content"])
    noise = jax.random.uniform(jax.random.key(0), content.shape)
    _, style = objective(content, data | {"weights": ones})
    _, structure = objective(content, data | {"weights": ones, "content": flat})
    _, least = objective(noise, data | {"weights": ones})
    least = {name: jnp.maximum(LEAST[name] * loss, 1e-12) for name, loss in least.items()}
    weights = {
        "content": (1 - strength) ** 2 / jnp.maximum(structure["content"], least["content"]),
        "style": ratio * strength**2 / jnp.maximum(style["style"], least["style"]),
    }
    return data | {"weights": data["weights"] | {name: SCALE * weight for name, weight in weights.items()}}
