"""Objectives that need all the features of an image at once, rather than sums over its pixels."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nstjax import distributions, losses, objectives, priors
from nstjax.objectives import Features, Style
from nstjax.typing import Image

Weights = Mapping[str, Any]  # {layer: number}


class Term(NamedTuple):
    """A loss of style or content, in two functions.

    target(features, content, image, styles, weights, key) -> a tree of arrays: `features` is a function of an image,
    `image` is the one so far, and `weights` are the layers'.

    loss(features, image, target, weights, key) -> number: `features` are the image's {layer: activations}, and the key
    is another one at each step, where `solvers.keyed` makes it so.
    """

    target: Callable[..., Any]
    loss: Callable[..., Any]


def neural_style(
    features: Features,
    *,
    style: Term,
    content: Term | None = None,
    content_distance: losses.Distance = losses.mse,
    measure: Any = None,
    tv_power: float = 2.0,
    pool: int = 4,
) -> objectives.Pair:
    """Return two functions (objective, targets), as `objectives.neural_style` does, with any losses.

    Its targets need the image so far and a key besides.

    Args:
        content: by default `content(content_distance)`.
        measure: is not used: all the features of an image are in memory at once.
    """
    terms = {"content": content or _content(content_distance), "style": style}

    def objective(image: Image, data: Any) -> tuple[Any, dict[str, Any]]:
        x = features(data["params"], image)
        losses.check_layers(x, (*data["content_layers"], *data["style_layers"]))
        values = {}
        for name, weight in data["weights"].items():
            if name in terms:
                value = terms[name].loss(x, image, data[name], data[f"{name}_layers"], data["key"])
            else:
                value = priors.term(name, image, data, tv_power=tv_power, pool=pool)
            values[name] = weight * value
        return sum(values.values()), values

    def targets(
        params: Any,
        content: Image,
        styles: Sequence[Style],
        *,
        weights: Weights,
        content_layers: Weights,
        style_layers: Weights,
        image: Image,
        key: jax.Array,
    ) -> dict[str, Any]:
        args = partial(features, params), content, image, styles
        found = {
            "content": terms["content"].target(*args, content_layers, key),
            "style": terms["style"].target(*args, style_layers, key),
            **priors.targets(content, weights, pool=pool),
            "weights": weights,
            "content_layers": content_layers,
            "style_layers": style_layers,
        }
        return {"params": params, "key": key} | jax.tree.map(jnp.asarray, found)

    return objective, targets


def _content(distance: losses.Distance) -> Term:
    """Distance of the features from those of the content image, as in Gatys 2015."""

    def target(features: Any, content: Image, image: Image, styles: Any, weights: Weights, key: Any) -> Any:
        acts = features(content)
        return {name: acts[name] for name in weights}

    def loss(features: Any, image: Image, target: Any, weights: Weights, key: Any) -> Any:
        return losses.content(features, target, distance=distance, weights=weights)

    return Term(target, loss)


# Positions of each layer that are compared at a time; the others have their turn at other steps.
POSITIONS = 8192


def _sliced_target(
    features: Any, content: Image, image: Image, styles: Sequence[Style], weights: Weights, key: Any
) -> Any:
    """The features of the styles in their masks, {layer: [n, C]} for each, their regions at the layers, and weights."""
    shapes = jax.eval_shape(features, content)
    found = []
    for i, style in enumerate(styles):
        acts, each = features(style.image), {}
        for j, name in enumerate(weights):
            x = acts[name]
            mask = None if style.mask is None else jax.image.resize(style.mask, x.shape[:2], "linear")
            at = _some(jax.random.fold_in(key, 1000 * i + j), x.shape[:2], mask)
            region = style.region
            if region is not None:
                region = jax.image.resize(region, shapes[name].shape[:2], "linear").ravel()
            each[name] = {"vectors": x.reshape(-1, x.shape[2])[at], "region": region}
        found.append({"layers": each, "weight": style.weight})
    return found


def _sliced_loss(features: Any, image: Image, target: Any, weights: Weights, key: Any) -> Any:
    """The weighted sum over styles and layers of sliced Wasserstein distances."""
    total: Any = 0.0
    for i, name in enumerate(weights):
        x = features[name].reshape(-1, features[name].shape[2])
        place, turn = jax.random.split(jax.random.fold_in(key, i))
        at = _some(place, features[name].shape[:2], None)
        for style in target:
            each = style["layers"][name]
            region = None if each["region"] is None else each["region"][at]
            distance = distributions.sliced_wasserstein(x[at], each["vectors"], key=turn, weights=region)
            total += style["weight"] * weights[name] * distance
    return total


def _some(key: Any, shape: tuple[int, int], mask: Any) -> Any:
    """Indices of positions: all, if they are few and there is no mask, else random ones, in proportion to the mask."""
    n = shape[0] * shape[1]
    if mask is None:
        return jnp.arange(n) if n <= POSITIONS else jax.random.randint(key, (POSITIONS,), 0, n)
    return distributions.drawn(key, min(n, POSITIONS), mask=mask)


SLICED = Term(_sliced_target, _sliced_loss)
