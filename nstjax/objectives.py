"""Losses put together: objective(image, data) -> (loss, terms), where everything that varies comes in `data`."""

import jax
import jax.numpy as jnp

from nstjax import losses


def neural_style(
    features,
    *,
    statistic=losses.gram,
    style_distance=losses.mse,
    content_distance=losses.mse,
    prepare=lambda target: target,
    tv_power=2.0,
    pool=4,
):
    """The loss of Gatys 2015 (arXiv 1508.06576, eq. 7) with priors, as a pair of functions (objective, targets).

    features: (params, image [H, W, 3]) -> {layer: [h, w, C]}. statistic, distances: see `nstjax.losses`; prepare: done
    once to each style target (`losses.with_root` for the Wasserstein distance). tv_power: see `losses.total_variation`;
    pool: see `losses.laplacian`.

    objective(image, data) -> (loss, terms): terms are those named in data["weights"], multiplied by their weights:
    "content", "style", "tv", "laplacian".

    targets(params, content, styles, weights, content_layers, style_layers) -> data: content [H, W, 3]; styles, a list
    of {"image": [h, w, 3], "mask": where to take it from [h, w] or None, "region": where to paint it [H, W] or None,
    "weight": number}; weights {term: number}; content_layers and style_layers {layer: number}.
    """

    def objective(image, data):
        acts = features(data["params"], image)
        losses_by_name = {
            "content": lambda: losses.content(
                acts, data["content"], distance=content_distance, weights=data["content_layers"]
            ),
            "style": lambda: _style(acts, data),
            "tv": lambda: losses.total_variation(image, power=tv_power),
            "laplacian": lambda: losses.mse(losses.laplacian(image, pool=pool), data["edges"]),
        }
        terms = {name: weight * losses_by_name[name]() for name, weight in data["weights"].items()}
        return sum(terms.values()), terms

    def _style(acts, data):
        return sum(
            style["weight"]
            * losses.style(
                acts,
                style["targets"],
                statistic=statistic,
                distance=style_distance,
                weights=data["style_layers"],
                masks=style["regions"],
            )
            for style in data["styles"]
        )

    def targets(params, content, styles, *, weights, content_layers, style_layers):
        acts = features(params, content)
        return jax.tree.map(
            jnp.asarray,
            {
                "params": params,
                "content": {name: acts[name] for name in content_layers},
                "styles": [_style_targets(params, style, acts, style_layers) for style in styles],
                "edges": losses.laplacian(content, pool=pool) if "laplacian" in weights else None,
                "weights": weights,
                "content_layers": content_layers,
                "style_layers": style_layers,
            },
        )

    def _style_targets(params, style, content_acts, layers):
        acts = features(params, style["image"])
        masks = at_layers(style["mask"], acts, layers)
        return {
            "targets": {name: prepare(statistic(acts[name], mask=masks and masks[name])) for name in layers},
            "regions": at_layers(style["region"], content_acts, layers),
            "weight": style["weight"],
        }

    return objective, targets


def at_layers(mask, acts, layers):
    """A mask [H, W] averaged down to the layers' sizes, {layer: [h, w]}; None stays None."""
    if mask is None:
        return None
    return {name: jax.image.resize(mask, acts[name].shape[:2], "linear") for name in layers}


SCALE = 1e6  # losses keep the order of magnitude that they have with the paper's weights, for the numbers shown


def balance(objective, data, content, *, strength, ratio=300.0):
    """`data` whose content and style weights make `strength` in [0, 1] mean the same at any size, network and picture.

    Each term is measured in a unit of its own: style, its loss for the untouched content picture [H, W, 3]; content,
    its loss for features that have lost all structure (replaced by their mean). Strength s sets their ratio to
    ratio * (s / (1 - s))^2: 0 keeps the photograph, 1 keeps its style alone. A ratio of 300 suits Gram matrices, whose
    squared difference grows with the fourth power of features; 4 suits the Wasserstein distance.
    """
    ones = {name: jnp.ones(()) for name in ("content", "style")}
    flat = jax.tree.map(lambda x: jnp.broadcast_to(x.mean((0, 1)), x.shape), data["content"])
    _, style = objective(content, data | {"weights": ones})
    _, structure = objective(content, data | {"weights": ones, "content": flat})
    weights = {
        "content": (1 - strength) ** 2 / structure["content"],
        "style": ratio * strength**2 / jnp.maximum(style["style"], 1e-30),
    }
    return data | {"weights": data["weights"] | {name: SCALE * weight for name, weight in weights.items()}}
