"""Distances between whole distributions of feature vectors, rather than their moments; and between self-similarities.

Each is a distance of features [..., C] for `losses.layerwise`, with `losses.activations` as the statistic, where the
features of an image may have another number of positions than those that they are compared with.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from nstjax import losses, roots
from nstjax.typing import Mask

Vectors = Float[jax.Array | np.ndarray, "*n c"]
Others = Float[jax.Array | np.ndarray, "*m c"]
Distances = Float[jax.Array, "n m"]
Weights = Float[jax.Array | np.ndarray, "*n"]
Scalar = losses.Scalar

# Vectors far shorter than this count as equal to 0 and to each other, so that directions have finite gradients there.
SHORT = 1e-6


def _rows(x: Vectors) -> Float[jax.Array, "n c"]:
    return jnp.asarray(x).reshape(-1, x.shape[-1])


def drawn(key: jax.Array, n: int, *, mask: Mask) -> Int[jax.Array, " n"]:
    """Indices of n random positions of a mask, row by row, in proportion to it."""
    total = jnp.cumsum(jnp.asarray(mask).ravel())
    index = jnp.searchsorted(total, jax.random.uniform(key, (n,)) * total[-1], side="right")
    return jnp.minimum(index, total.size - 1)


def cosine_distances(x: Vectors, y: Others) -> Distances:
    """1 - cos of the angle of each vector of x with each of y, from 0 to 2; of two zeros it is 0."""
    x, y = (jnp.pad(_rows(z), ((0, 0), (0, 1)), constant_values=SHORT) for z in (x, y))
    x, y = (z / jnp.sqrt((z**2).sum(1, keepdims=True)) for z in (x, y))
    return jnp.maximum(1 - x @ y.T, 0)


def euclidean_distances(x: Vectors, y: Others) -> Distances:
    """|x_i - y_j| of each vector of x from each of y; the gradient of equals is 0."""
    x, y = _rows(x), _rows(y)
    return roots.root(((x[:, None] - y[None]) ** 2).sum(2))


def relaxed_earth_movers(
    x: Vectors, y: Others, *, distances: Callable[[Vectors, Others], Distances] = cosine_distances
) -> Scalar:
    """Relaxed earth mover's distance, max(mean_i min_j C_ij, mean_j min_i C_ij), with C the distances of x and y.

    The earth mover's distance is at least that: each of the two drops one of its two constraints on the masses
    (Kusner 2015; for style: STROTSS, Kolkin 2019, arXiv 1904.12785, section 3.2).
    """
    c = distances(x, y)
    return jnp.maximum(c.min(1).mean(), c.min(0).mean())


def moment_distance(x: Vectors, y: Others) -> Scalar:
    """Mean |mu_x - mu_y| over channels + mean |Sigma_x - Sigma_y| over their pairs (STROTSS, section 3.2)."""
    a, b = (losses.gaussian(_rows(z)[None]) for z in (x, y))
    return jnp.abs(a.mean - b.mean).mean() + jnp.abs(a.covariance - b.covariance).mean()


# Orthogonal axes of gray and two chromas, in which the colors of photographs are nearly uncorrelated (Ruderman 1998).
DECORRELATED = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])


def palette(x: Float[jax.Array | np.ndarray, "*n 3"], y: Float[jax.Array | np.ndarray, "*m 3"]) -> Scalar:
    """Relaxed earth mover's distance of colors, by the sum of cosine and Euclidean distance (STROTSS, section 3.2)."""
    axes = jnp.asarray(DECORRELATED.T, jnp.float32)
    both = lambda a, b: cosine_distances(a, b) + euclidean_distances(a, b)  # noqa: E731
    return relaxed_earth_movers(_rows(x) @ axes, _rows(y) @ axes, distances=both)


def self_similarity(x: Vectors, y: Vectors) -> Scalar:
    """n mean_ij |D_ij(x) - D_ij(y)|, D being cosine distances within n vectors, each column divided by its sum.

    A content loss: which positions look alike is kept, and not what they look like (STROTSS, section 3.3). It is 0 to
    any turn or scale of all vectors.
    """

    def shares(z: Vectors) -> Distances:
        d = cosine_distances(z, z)
        return d / jnp.maximum(d.sum(0), 1e-6)

    a, b = shares(x), shares(y)
    return a.shape[0] * jnp.abs(a - b).mean()


def sliced_wasserstein(
    x: Vectors, y: Others, *, key: jax.Array, directions: int | None = None, weights: Weights | None = None
) -> Scalar:
    """Mean over random unit directions v of the squared Wasserstein-2 distance of the projections x v and y v.

    In one dimension that is the mean squared difference of the sorted values (Heitz 2021, arXiv 2006.07229, eq. 4 and
    5); of different numbers of them, those of y are interpolated at the quantiles of x.

    Args:
        key: of the directions; take another one at each step.
        directions: how many, by default as many as channels.
        weights: of the vectors of x, >= 0, such as a mask; by default all count alike.
    """
    c = x.shape[-1]
    v = jax.random.normal(key, (c, directions or c))
    v = v / jnp.sqrt((v**2).sum(0))
    return _by_quantiles(_rows(x) @ v, _rows(y) @ v, weights)


def histogram(x: Vectors, y: Others, *, weights: Weights | None = None) -> Scalar:
    """Mean squared difference of x from itself with the histogram of y in each channel (Risser 2017, arXiv 1701.08893).

    It is `sliced_wasserstein` along the axes, without randomness.
    """
    return _by_quantiles(_rows(x), _rows(y), weights)


def _by_quantiles(x: Float[jax.Array, "n k"], y: Float[jax.Array, "m k"], weights: Weights | None) -> Scalar:
    """Mean over columns of the squared differences of x from y's values at the same quantiles."""
    order = jnp.argsort(x, axis=0)
    ordered, wanted = jnp.take_along_axis(x, order, axis=0), jnp.sort(y, axis=0)
    share = jnp.ones(x.shape) if weights is None else jnp.asarray(weights).ravel()[order]
    share = share / jnp.maximum(share.sum(0), 1e-6)
    at = (jnp.arange(y.shape[0]) + 0.5) / y.shape[0]
    if weights is None:  # so that those of as many values are the same numbers
        middle = jnp.broadcast_to(((jnp.arange(x.shape[0]) + 0.5) / x.shape[0])[:, None], x.shape)
    else:
        middle = jnp.cumsum(share, axis=0) - share / 2
    target = jax.vmap(lambda q, values: jnp.interp(q, at, values), 1, 1)(middle, wanted)
    return (share * (ordered - target) ** 2).sum(0).mean()
