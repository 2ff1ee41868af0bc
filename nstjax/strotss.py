"""STROTSS: style transfer by relaxed optimal transport and self-similarity (Kolkin 2019, arXiv 1904.12785).

Its losses, of `nstjax.distributions`, compare hypercolumns at random positions, which are others at each step.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from nstjax import distributions
from nstjax.objectives import Style
from nstjax.typing import Array, Image, Mask

Layers = Mapping[str, Float[Array, "_ _ _"]]  # {layer: activations [h, w, c]}
Positions = Float[jax.Array, "n 2"]  # (row, column), each from 0 to 1
Vectors = Float[jax.Array, "n c"]

POSITIONS, STYLE_POSITIONS = 1024, 4096  # of an image, and of each of its styles (the paper takes 1024 and 5000)


def sampled(features: Layers, image: Image, at: Positions, weights: Mapping[str, Any]) -> Vectors:
    """Hypercolumns of an image at some positions: its colors and its features there, interpolated linearly.

    weights: {layer: number} that the layers are multiplied by.
    """
    layers = [(image, 1.0), *((features[name], weight) for name, weight in weights.items())]
    return jnp.concatenate([weight * _interpolated(x, at) for x, weight in layers], axis=1)


def _interpolated(x: Float[Array, "h w c"], at: Positions) -> Vectors:
    size = jnp.array(x.shape[:2])
    place = jnp.clip(at * size - 0.5, 0, size - 1)
    low = jnp.floor(place).astype(int)
    high = jnp.minimum(low + 1, size - 1)
    x, share = jnp.asarray(x), place - low
    rows = [x[i, low[:, 1]] * (1 - share[:, 1:]) + x[i, high[:, 1]] * share[:, 1:] for i in (low[:, 0], high[:, 0])]
    return rows[0] * (1 - share[:, :1]) + rows[1] * share[:, :1]


def positions(key: jax.Array, n: int, *, mask: Mask | None = None) -> Positions:
    """Random positions, uniform or, with a mask, in proportion to it."""
    if mask is None:
        return jax.random.uniform(key, (n, 2))
    pick, inside = jax.random.split(key)
    corner = jnp.stack(jnp.divmod(distributions.drawn(pick, n, mask=mask), mask.shape[1]), axis=1)
    return (corner + jax.random.uniform(inside, (n, 2))) / jnp.array(mask.shape)


def style_target(
    features: Callable[[Any], Layers],
    content: Image,
    image: Image,
    styles: Sequence[Style],
    weights: Mapping[str, Any],
    key: jax.Array,
) -> dict[str, Any]:
    """What `style_loss` compares with: hypercolumns at random positions of the styles.

    One set for each region, {"vectors": [[m, c], ...], "regions": [...], "shares": [...]}. Styles without regions are
    mixed into one set, in proportion to their weights.
    """
    keys = jax.random.split(key, len(styles) + 1)
    drawn = [
        sampled(features(style.image), style.image, positions(k, STYLE_POSITIONS, mask=style.mask), weights)
        for style, k in zip(styles, keys, strict=False)
    ]
    shares = jnp.stack([jnp.asarray(style.weight, jnp.float32) for style in styles])
    if styles[0].region is not None:
        return {"vectors": drawn, "regions": [style.region for style in styles], "shares": shares}
    which = jax.random.choice(keys[-1], len(styles), (STYLE_POSITIONS,), p=shares / shares.sum())
    mixed = jnp.stack(drawn)[which, jnp.arange(STYLE_POSITIONS)]
    return {"vectors": [mixed], "regions": [None], "shares": jnp.ones(1)}


def style_loss(features: Layers, image: Image, target: Any, weights: Mapping[str, Any], key: jax.Array) -> Any:
    """l_r + l_m + l_p / max(a, 1): earth mover's distance, moments and palette, of regions the weighted mean.

    a is the content's weight (`content_weight`).
    """
    total, alpha = 0.0, jnp.maximum(content_weight(image), 1.0)
    sets = zip(target["vectors"], target["regions"], target["shares"], strict=True)
    for i, (style, region, share) in enumerate(sets):
        x = sampled(features, image, positions(jax.random.fold_in(key, i), POSITIONS, mask=region), weights)
        value = distributions.relaxed_earth_movers(x, style) + distributions.moment_distance(x, style)
        total += share * (value + distributions.palette(x[:, :3], style[:, :3]) / alpha)
    return total


def content_target(
    features: Callable[[Any], Layers],
    content: Image,
    image: Image,
    styles: Sequence[Style],
    weights: Mapping[str, Any],
    key: jax.Array,
) -> dict[str, Any]:
    """The content image's features, and its colors as those of a layer "rgb"."""
    acts = features(content)
    return {name: acts[name] for name in weights} | {"rgb": jnp.asarray(content)}


def content_loss(features: Layers, image: Image, target: Any, weights: Mapping[str, Any], key: jax.Array) -> Any:
    """a l_c: self-similarity at the same random positions in the image and in the content image."""
    at = positions(key, POSITIONS)
    x, y = sampled(features, image, at, weights), sampled(target, target["rgb"], at, weights)
    return content_weight(image) * distributions.self_similarity(x, y)


def content_weight(image: Image) -> float:
    """The weight a of the content: 16 for an image of 64 px, half as much at twice the size."""
    return 1024 / max(image.shape[:2])
