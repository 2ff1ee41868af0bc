"""Losses put together: objective(image, data) -> (loss, terms), where everything that varies comes in `data`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from nstjax import losses, priors, roots
from nstjax.typing import Array, Image, Mask

Objective = Callable[[Image, Any], tuple[Any, dict[str, Any]]]  # (image, data) -> (loss, its terms by name)
Targets = Callable[..., dict[str, Any]]  # see `neural_style`
Pair = tuple[Objective, Targets]
Features = Callable[[Any, Any], Mapping[str, Any]]  # (params, image) -> {layer: [h, w, c]}
Measure = Callable[..., tuple[dict[str, Any], dict[str, Any]]]  # see `nstjax.stream.measure`
Rows = Float[Array, "h w c"]  # of a layer
Valid = Float[Array, " h"]  # 1 for rows inside the image, 0 outside
Origins = Mapping[str, Float[Array, " _"]]  # {layer: what its features' sums are about}
Number = float | Shaped[Array, ""]


class Style(NamedTuple):
    """A style image, where its style is learned and where it is painted."""

    image: Image
    mask: Mask | None = None  # of the image's aspect: where the style is learned
    region: Mask | None = None  # of the content image's aspect: where the style is painted
    weight: Any = 1.0  # of this style among several


def at_once(features: Features) -> Measure:
    """Return `measure` for `neural_style` that holds all the features of an image in memory."""

    def measure(
        part: Callable[..., Any], params: Any, image: Image, maps: Mapping[str, Any], *, keep: Iterable[str] = ()
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        acts = features(params, image)
        losses.check_layers(acts, (*maps, *keep))
        sums = {name: part(name, acts[name], maps[name], None, acts[name].shape[0]) for name in maps}
        return sums, {name: acts[name] for name in keep}

    return measure


class _Losses(NamedTuple):
    """The arguments of `neural_style`."""

    features: Features
    measure: Measure
    statistic: losses.Statistic
    style_distance: losses.Distance
    content_distance: losses.Distance
    prepare: Callable[[Any], Any]
    centered: bool
    tv_power: float
    pool: int


def neural_style(
    features: Features,
    *,
    statistic: losses.Statistic = losses.gram,
    style_distance: losses.Distance = losses.mse,
    content_distance: losses.Distance = losses.mse,
    prepare: Callable[[Any], Any] = lambda target: target,
    centered: bool = False,
    measure: Measure | None = None,
    tv_power: float = 2.0,
    pool: int = 4,
) -> tuple[Objective, Targets]:
    """Return the loss of Gatys 2015 (arXiv 1508.06576, eq. 7) with priors, as two functions (objective, targets).

    objective(image, data) -> (loss, terms) computes the terms named in data["weights"], among "content", "style", "tv",
    "laplacian" and "matting", and multiplies them by their weights.

    targets(params, content, styles, weights=..., content_layers=..., style_layers=...) -> data takes a content image,
    a list of `Style`s, the weights {term: number} and the layers' weights {layer: number}. The image so far and a key,
    from which other objectives make their targets, are not used.

    Args:
        features: the extractor.
        statistic, style_distance, content_distance: functions of `nstjax.losses`. A content distance of one's own
            must be a mean over entries.
        prepare: done once to each style target (`losses.with_root` for the Wasserstein distance).
        centered: sum the style's features about the content's mean, without which covariances are inexact.
        measure: how sums over the image are taken, by default `at_once(features)`; see `stream.measure`.
        tv_power: see `losses.total_variation`.
        pool: see `losses.laplacian`.
    """
    how = _Losses(
        features=features,
        measure=measure or at_once(features),
        statistic=statistic,
        style_distance=style_distance,
        content_distance=content_distance,
        prepare=prepare,
        centered=centered,
        tv_power=tv_power,
        pool=pool,
    )
    return partial(_objective, how), partial(_targets, how)


def _objective(how: _Losses, image: Image, data: Any) -> tuple[Any, dict[str, Any]]:
    """The sum of the weighted terms, and the terms by name."""
    part = partial(_part, _additive(how.content_distance), data["origins"])
    measured, _ = how.measure(part, data["params"], image, _maps(data))
    terms = {name: weight * _term(how, name, measured, image, data) for name, weight in data["weights"].items()}
    return sum(terms.values()), terms


def _term(how: _Losses, name: str, measured: Mapping[str, Any], image: Image, data: Any) -> Any:
    """One term of the loss, without its weight."""
    match name:
        case "content":
            whole = partial(_whole, how.content_distance)
            layers = data["content_layers"].items()
            return sum(w * whole(measured[name]["content"], data["content"][name].size) for name, w in layers)
        case "style":
            each = enumerate(data["styles"])
            return sum(style["weight"] * _style_term(how, measured, style, i, data) for i, style in each)
    return priors.term(name, image, data, tv_power=how.tv_power, pool=how.pool)


def _style_term(how: _Losses, measured: Mapping[str, Any], style: Any, index: int, data: Any) -> Any:
    """The loss of one style. Styles that are painted all over the image share its sums."""
    index = min(index, len(data["regions"]) - 1)
    sums = {
        name: measured[name]["styles"][index]._replace(origin=data["origins"].get(name)) for name in style["targets"]
    }
    return losses.style(
        sums, style["targets"], statistic=how.statistic, distance=how.style_distance, weights=data["style_layers"]
    )


def _maps(data: Any) -> dict[str, dict[str, Any]]:
    """What each layer needs at every pixel: the content image's features, and the styles' regions."""
    maps: dict[str, dict[str, Any]] = {}
    if "content" in data["weights"]:
        maps |= {name: {"content": data["content"][name]} for name in data["content_layers"]}
    if "style" in data["weights"]:
        for name in data["style_layers"]:
            maps[name] = maps.get(name, {}) | {"regions": [region and region[name] for region in data["regions"]]}
    return maps


def _part(
    content_distance: losses.Distance,
    origins: Origins,
    name: str,
    x: Rows,
    maps: Mapping[str, Any],
    valid: Valid | None,
    height: int,
) -> dict[str, Any]:
    """What some rows x of a layer, with the same rows of its maps, add to the sums that the losses are made of."""
    out: dict[str, Any] = {}
    if "content" in maps:
        out["content"] = x.shape[0] / height * _distance(content_distance, x, maps["content"], valid)
    if "regions" in maps:
        masks = [_mask(region, x, valid) for region in maps["regions"]]
        out["styles"] = [_sums(name, x, mask, origins) for mask in masks]
    return out


def _targets(
    how: _Losses,
    params: Any,
    content: Image,
    styles: Sequence[Style],
    *,
    weights: Mapping[str, Any],
    content_layers: Mapping[str, Any],
    style_layers: Mapping[str, Any],
    image: Image | None = None,
    key: jax.Array | None = None,
) -> dict[str, Any]:
    """The data of the objective; see `neural_style`."""
    every = dict.fromkeys(style_layers, ()) if how.centered else {}
    plain = lambda name, x, _, valid, height: losses.sums(x, mask=_mask(None, x, valid))  # noqa: E731
    sums, kept = how.measure(plain, params, content, every, keep=tuple(content_layers))
    origins = {name: s.first / s.weight for name, s in sums.items()}
    regions = [at_layers(style.region, how.features, params, content, style_layers) for style in styles]
    return jax.tree.map(
        jnp.asarray,
        {
            "params": params,
            "content": kept,
            "styles": [_style_targets(how, params, style, style_layers, origins) for style in styles],
            "regions": regions if any(regions) else [None],
            "origins": origins,
            **priors.targets(content, weights, pool=how.pool),
            "weights": weights,
            "content_layers": content_layers,
            "style_layers": style_layers,
        },
    )


def _style_targets(
    how: _Losses, params: Any, style: Style, layers: Mapping[str, Any], origins: Origins
) -> dict[str, Any]:
    """What the image's statistics are compared with for one style, and its weight."""
    masks = at_layers(style.mask, how.features, params, style.image, layers)
    part = lambda name, x, mask, valid, height: _sums(name, x, _mask(mask, x, valid), origins)  # noqa: E731
    sums, _ = how.measure(part, params, style.image, masks or dict.fromkeys(layers))
    sums = {name: s._replace(origin=origins.get(name)) for name, s in sums.items()}
    return {"targets": {name: how.prepare(how.statistic(s)) for name, s in sums.items()}, "weight": style.weight}


def combined(features: Features, terms: Mapping[str, Callable[[Any, Any, Any], Any]]) -> Objective:
    """Return the weighted sum of any losses, as objective(image, data) -> (loss, terms).

    Its data are {"params", "weights": {name: number}, "targets": {name: what the term compares with}}; a target may be
    left out, and is then None. Only terms with a weight are computed, and multiplied by it. All the features are in
    memory at once; larger images need `neural_style`. The objective raises ValueError for a weight whose name is not
    among the terms.

    For instance

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

    Args:
        features: the extractor.
        terms: {name: (features, image, target) -> number}.
    """

    def objective(image: Image, data: Any) -> tuple[Any, dict[str, Any]]:
        x = features(data["params"], image)
        values = {}
        for name, weight in data["weights"].items():
            if name not in terms:
                raise ValueError(f"no term {name!r}; there are {', '.join(terms)}")
            values[name] = weight * terms[name](x, image, data["targets"].get(name))
        return sum(values.values()), values

    return objective


def _sums(name: str, x: Rows, mask: Float[Array, "h w"] | None, origins: Origins) -> losses.Sums:
    """Sums about a layer's origin. The origin is left out of them, since it does not add up over parts of an image."""
    return losses.sums(x, mask=mask, origin=origins.get(name))._replace(origin=None)


def _mask(region: Float[Array, "h w"] | None, x: Rows, valid: Valid | None) -> Float[Array, "h w"] | None:
    """The weights of the pixels of x: those of the region, and 0 in rows outside the image."""
    if valid is None:
        return region
    return jnp.broadcast_to(valid[:, None], x.shape[:2]) * (1 if region is None else region)


def _distance(distance: losses.Distance, a: Rows, b: Rows, valid: Valid | None) -> Any:
    """A distance that is a mean over entries, where rows outside the image count as having none."""
    if valid is None:
        return distance(a, b)
    rows, zero = valid[:, None, None], jnp.zeros((1, 1, 1))
    return distance(a * rows, b * rows) - (1 - valid.mean()) * distance(zero, zero)


# Distances of activations that are sums rather than means: (mean square, number of entries) -> distance.
_OF_SUMS: dict[losses.Distance, Callable[[Any, int], Any]] = {
    losses.squares: lambda mean, entries: entries * mean,
    losses.half_squares: lambda mean, entries: entries * mean / 2,
    losses.frobenius: lambda mean, entries: roots.root(entries * mean),
}


def _additive(distance: losses.Distance) -> losses.Distance:
    """The mean over entries from which a distance of activations follows, as means of an image's parts add up."""
    return losses.mse if distance in _OF_SUMS else distance


def _whole(distance: losses.Distance, mean: Any, entries: int) -> Any:
    """A distance of activations from the mean of `_additive`."""
    return _OF_SUMS[distance](mean, entries) if distance in _OF_SUMS else mean


def at_layers(
    mask: Mask | None, features: Features, params: Any, image: Image, layers: Iterable[str]
) -> dict[str, Float[jax.Array, "_ _"]] | None:
    """Average an image's mask down to the sizes of the layers, {layer: mask}; None stays None."""
    if mask is None:
        return None
    shapes = jax.eval_shape(features, params, image)
    return {name: jax.image.resize(mask, shapes[name].shape[:2], "linear") for name in layers}


SCALE = 1e6  # so that the numbers shown keep the order of magnitude that they have with the paper's weights
# The least unit of a term, as a share of the loss of noise: below it there is no structure or difference to measure.
LEAST = {"content": 0.25, "style": 0.002}


def balance(
    objective: Objective, data: Mapping[str, Any], content: Image, *, strength: Number, ratio: Number = 300.0
) -> dict[str, Any]:
    """Return `data` with weights of content and style that make `strength` mean the same for all sizes and networks.

    Each term is measured in a unit of its own. For style, it is the loss of the untouched content image; for content,
    the loss of features that have lost all structure (replaced by their mean). Where these are about 0, as for a
    content image of one color, or one that is the style itself, the unit is a share (`LEAST`) of the loss of noise.

    Args:
        strength: s from 0, which keeps the content image, to 1, which leaves style alone.
        ratio: of style to content at strength 0.5; in general their ratio is ratio * (s / (1 - s))^2. 300 is for Gram
            matrices, whose squared difference grows with the fourth power of features; 4 for the Wasserstein distance.
    """
    data = dict(data)
    ones = {name: jnp.ones(()) for name in ("content", "style")}
    flat = jax.tree.map(lambda x: jnp.broadcast_to(x.mean((0, 1)), x.shape), data["content"])
    noise = jax.random.uniform(jax.random.key(0), content.shape)
    # One evaluation measures both: what the content is compared with makes no difference to the style's loss.
    _, unit = objective(content, data | {"weights": ones, "content": flat})
    _, least = objective(noise, data | {"weights": ones})
    least = {name: jnp.maximum(LEAST[name] * loss, 1e-12) for name, loss in least.items()}
    weights = {
        "content": (1 - strength) ** 2 / jnp.maximum(unit["content"], least["content"]),
        "style": ratio * strength**2 / jnp.maximum(unit["style"], least["style"]),
    }
    return data | {"weights": data["weights"] | {name: SCALE * weight for name, weight in weights.items()}}
