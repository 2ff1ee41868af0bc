"""Style by nearest neighbors: every feature vector of the content becomes a similar one of the styles.

After Kolkin 2022, "Neural Neighbor Style Transfer" (arXiv 2203.13215). Feature vectors are hypercolumns: those of
several layers at one position, joined. Three things depart from the paper:

- Matches are spread. In a plain area, such as a sky, all vectors have one nearest neighbor, and a repeated vector is a
  flat, speckled texture. Each vector of the styles therefore gets a price, which rises where many want it.
- The loss is a squared difference instead of a cosine distance, so that it holds contrast and color.
- Layers are averaged where they are made smaller, so that no pixel goes unseen.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Bool, Float, Int

from nstjax import losses
from nstjax.objectives import Style
from nstjax.typing import Array, Image

Layers = Mapping[str, Float[Array, "_ _ _"]]  # {layer: activations [h, w, c]}
Columns = Float[Array, "h w c"]
Vectors = Float[Array, "n c"]

BLOCK = 1024  # vectors whose cosines are in memory at a time
TEMPERATURE = 0.05  # of the plan from which prices follow, in cosines
ROUNDS = 20  # of Sinkhorn's iterations


def hypercolumns(features: Layers, weights: Mapping[str, Any], *, shape: tuple[int, int]) -> Columns:
    """Features of the layers that have a weight, resized to a shape (h, w) and joined.

    Each is multiplied by its weight and divided by its number of channels (section 3.1 of the paper, where the shape is
    a quarter of the image's).
    """
    losses.check_layers(features, weights)
    parts = []
    for name, weight in weights.items():
        x = features[name]
        parts.append(jax.image.resize(weight / x.shape[2] * x, (*shape, x.shape[2]), "linear"))
    return jnp.concatenate(parts, axis=2)


def directions(x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    """Vectors divided by their lengths; zeros stay, and have a gradient."""
    squares = (x**2).sum(-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(squares > 0, squares, 1))


def nearest(
    x: Float[Array, "n c"],
    pool: Float[Array, "m c"],
    *,
    prices: Float[Array, " m"] | float = 0.0,
    allowed: Bool[Array, " m"] | None = None,
    block: int = BLOCK,
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """The vector of the pool of greatest cosine less its price with each of x: (that number, the vector's index).

    Center both before, for centered cosines. Of equals the first is taken. The cosines of `block` vectors of x are in
    memory at a time.

    Args:
        allowed: which vectors of the pool may be taken, by default all; where none may, the number is -inf.
    """
    n = x.shape[0]
    block = min(block, n)
    targets = directions(pool)

    def best(some: Vectors) -> tuple[Float[Array, " b"], Int[Array, " b"]]:
        gains = directions(some) @ targets.T - prices
        if allowed is not None:
            gains = jnp.where(allowed, gains, -jnp.inf)
        return gains.max(1), gains.argmax(1)

    blocks = jnp.pad(x, ((0, -n % block), (0, 0))).reshape(-1, block, x.shape[1])
    gains, found = jax.lax.map(best, blocks)
    return gains.ravel()[:n], found.ravel()[:n]


def prices(
    x: Float[Array, "n c"], pool: Float[Array, "m c"], *, weights: Float[Array, " n"], allowed: Bool[Array, " m"]
) -> Float[Array, " m"]:
    """Prices of the pool's vectors at which all that are allowed are wanted alike, with mean 0.

    They are the dual variables of optimal transport from x, weighted, to the pool, by cosines and with an entropy
    (Sinkhorn's algorithm: Cuturi 2013, arXiv 1306.0895).
    """
    cosines = directions(x) @ directions(pool).T / TEMPERATURE
    weights = weights / jnp.maximum(weights.sum(), 1e-6)
    count = jnp.maximum(allowed.sum(), 1)

    def iteration(price: Any, _: None) -> tuple[Any, None]:
        gain = logsumexp(cosines - price, axis=1, b=allowed)
        demand = logsumexp(cosines - gain[:, None], axis=0, b=weights[:, None]) + jnp.log(count)
        return jnp.where(allowed, demand, 0), None

    price, _ = jax.lax.scan(iteration, jnp.zeros(pool.shape[0]), None, length=ROUNDS)
    return TEMPERATURE * jnp.where(allowed, price - (price * allowed).sum() / count, 0)


class Pool(NamedTuple):
    """Hypercolumns of a style image, which of them may be taken, and where in the image they may go."""

    columns: Float[Array, "_ _ c"]
    allowed: Bool[Array, "_ _"]
    region: Float[Array, "_ _"] | None = None  # where no other pool's region is greater; None is everywhere


def replaced(x: Columns, pools: Sequence[Pool], *, spread: float = 0.0) -> Columns:
    """Hypercolumns x, each replaced by its nearest neighbor in any of the pools (eq. 1 of the paper).

    Nearest is the greatest cosine of vectors that are centered, x by its own mean, the pools together by theirs. Where
    none may be taken, x stays.

    Args:
        spread: times `prices`, from 0 (nearest neighbors) to 1 (all vectors of the pools are taken about as often).
    """
    centered = (x - x.mean((0, 1))).reshape(-1, x.shape[2])
    count = sum(pool.allowed.sum() for pool in pools)
    mean = sum((pool.columns * pool.allowed[..., None]).sum((0, 1)) for pool in pools) / jnp.maximum(count, 1)
    regions = [jnp.ones(x.shape[:2]) if pool.region is None else pool.region for pool in pools]
    highest = jnp.stack(regions).max(0)
    best, result = jnp.full(centered.shape[0], -jnp.inf), jnp.asarray(x).reshape(-1, x.shape[2])
    for pool, region in zip(pools, regions, strict=True):
        vectors, allowed = pool.columns.reshape(-1, x.shape[2]), pool.allowed.ravel()
        inside = (region >= highest).ravel()
        price: Any = 0.0
        if spread:
            some = slice(None, None, -(-centered.shape[0] // BLOCK))
            price = spread * prices(centered[some], vectors - mean, weights=1.0 * inside[some], allowed=allowed)
        gains, index = nearest(centered, vectors - mean, prices=price, allowed=allowed)
        better = inside & (gains > best)
        best = jnp.where(better, gains, best)
        result = jnp.where(better[:, None], vectors[index], result)
    return result.reshape(x.shape)


def target(
    features: Callable[[Any], Layers],
    content: Image,
    image: Image,
    styles: Sequence[Style],
    weights: Mapping[str, Any],
    key: jax.Array,
    *,
    iterate: float = 0.5,
    spread: float = 1.0,
) -> Columns:
    """The hypercolumns that an image is to have: nearest neighbors among those of the styles.

    They are sought for (1 - iterate) times the content's hypercolumns plus `iterate` times the image's (section 3.3).
    All styles share one pool, into which a part of each one's positions goes that is proportional to its weight. Styles
    with regions are sought only there; where the regions, times the styles' relative weights, sum to less than 1, the
    rest of the target is the content itself.

    Args:
        features: image -> {layer: activations}.
        image: the image so far.
        weights: {layer: number}; see `hypercolumns`.
        key: of what goes into the pool.
        spread: see `replaced`.
    """
    shape = _shape(content)
    own = hypercolumns(features(content), weights, shape=shape)
    query = own
    if iterate:
        query = (1 - iterate) * own + iterate * hypercolumns(features(image), weights, shape=shape)
    largest = jnp.stack([jnp.asarray(style.weight, jnp.float32) for style in styles]).max()
    pools, covered = [], jnp.zeros(shape)
    for number, style in enumerate(styles):
        shape_of_style = _shape(style.image)
        columns = hypercolumns(features(style.image), weights, shape=shape_of_style)
        region = None if style.region is None else _resized(style.region, shape)
        share = style.weight / largest if region is None else 1.0
        allowed = jax.random.uniform(jax.random.fold_in(key, number), columns.shape[:2]) < share
        if style.mask is not None:
            mask = _resized(style.mask, shape_of_style)
            allowed &= mask >= mask.max() / 2
        inner = allowed & _inner(shape_of_style)
        allowed = jnp.where(inner.any(), inner, allowed)
        pools.append(Pool(columns, allowed, region))
        covered += 1.0 if region is None else region * style.weight / jnp.maximum(region.mean(), 1e-6)
    covered = jnp.clip(covered, 0, 1)[..., None]
    return covered * replaced(query, pools, spread=spread) + (1 - covered) * own


def loss(
    features: Layers, image: Image, target: Columns, weights: Mapping[str, Any], key: Any, *, moments: float = 4.0
) -> Float[Array, ""]:
    """Mean squared length of an image's hypercolumns less their `target`, as a part of the target's.

    Neighboring targets contradict each other, and their compromise is dull. So `moments` times the squared differences
    of the channels' means and standard deviations over the image are added.
    """
    h, w, _ = target.shape
    x = hypercolumns(features, weights, shape=(h, w))
    differences = losses.moments(x, epsilon=1e-8) - losses.moments(target, epsilon=1e-8)
    total = ((x - target) ** 2).sum(2).mean() + moments * (differences**2).sum()
    return total / jnp.maximum((target**2).sum(2).mean(), 1e-12)


def _shape(image: Image) -> tuple[int, int]:
    """A quarter of an image's (height, width)."""
    return max(1, image.shape[0] // 4), max(1, image.shape[1] // 4)


def _inner(shape: tuple[int, int]) -> Bool[Array, "h w"]:
    """All positions but the outermost, where a style image shows its frame and the network its padding."""
    h, w = shape
    return jnp.zeros(shape, bool).at[1 : h - 1, 1 : w - 1].set(True)


def _resized(mask: Float[Array, "_ _"], shape: tuple[int, int]) -> Float[Array, "_ _"]:
    return jax.image.resize(mask, shape, "linear")
