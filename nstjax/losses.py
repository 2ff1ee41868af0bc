"""What style transfer compares and how: statistics of features, distances between them, priors on images.

Every function is pure and works under jit, grad and vmap. A loss is a distance between statistics, layer by layer:

    layerwise(features, targets, statistic=gram, distance=mse, weights={"relu1_1": 1.0, ...})

where `targets` are the statistics of the content or style image's features. Features are [H, W, C].
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from nstjax import roots

Activations = Float[Array | np.ndarray, "h w c"]
Mask = Float[Array | np.ndarray, "h w"]  # weights of the pixels, >= 0
Layers = Mapping[str, Float[Array | np.ndarray, "_ _ _"]]  # {layer: activations [h, w, c]}
Vector = Float[Array | np.ndarray, " c"]
Matrix = Float[Array | np.ndarray, "c c"]
Scalar = Float[Array, ""]
Statistic = Callable[..., Any]  # (activations, mask=...) -> what is compared
Distance = Callable[[Any, Any], Any]  # two statistics -> a number >= 0

# --- statistics: features [H, W, C] -> what is compared


def activations(x: Activations, *, mask: Mask | None = None) -> Activations:
    """The features themselves: content (Gatys 2015, arXiv 1508.06576, eq. 1). They are multiplied by the mask."""
    return x if mask is None else x * mask[..., None]


def swag(x: Activations, *, mask: Mask | None = None, temperature: float | Scalar = 1.0) -> Float[Array, "h w c"]:
    """SWAG's softmax over all channels and positions, scaled to mean 1 (theirs has the sum 1).

    Compared in place of the features, for content and before Gram matrices, it keeps the few large activations of
    residual networks from deciding alone (Wang 2021, arXiv 2104.05623). The scale makes losses independent of the
    image's size.

    Args:
        temperature: what activations are divided by first. It decides how many positions count: in the bundled
            SqueezeNet one in ten thousand at one standard deviation of the layer, nearly all at four; ten paint well.
        mask: the mean is weighted by it, and where it is 0, so is the result.
    """
    weight = jnp.ones((*x.shape[:2], 1)) if mask is None else mask[..., None]
    x = jnp.where(weight > 0, x / temperature, -jnp.inf)
    largest = jax.lax.stop_gradient(x.max())
    x = jnp.exp(x - jnp.where(jnp.isfinite(largest), largest, 0))
    mean = (weight * x).sum() / jnp.maximum(weight.sum() * x.shape[2], 1e-6)
    return x / jnp.maximum(mean, jnp.finfo(x.dtype).tiny)


class Sums(NamedTuple):
    """Sums over pixels of features, from which every statistic but the features themselves is computed.

    Those of an image's parts add up to the whole's, so that an image need not be in memory at once (`nstjax.stream`).
    `first` and `second` are of the features' differences from `origin`, which makes no difference but in rounding: the
    covariance's error is about 1e-7 of the squared distance of the mean from the origin.
    """

    weight: Float[Array, ""]  # the number of pixels, or the mask's sum
    first: Vector
    second: Matrix
    origin: Vector | None = None  # None is 0


def sums(x: Activations, *, mask: Mask | None = None, origin: Vector | None = None) -> Sums:
    """`Sums` of features, their pixels weighted by the mask.

    With an origin, products are summed about the features' own mean and then moved to the origin: where features hardly
    vary, as in one color, thousands of equal products of the distance between the two would each be rounded alike, and
    the variance that is left when the mean's square is subtracted would be negative.
    """
    h, w, c = x.shape
    x = x.reshape(h * w, c)
    weight = jnp.full((), float(h * w)) if mask is None else mask.sum()
    share = 1.0 if mask is None else mask.reshape(h * w, 1)
    if origin is None:
        return Sums(weight, (x * share).sum(0), (x * share).T @ x)
    # Any constant will do; being one, it has no gradient.
    own = jax.lax.stop_gradient((x * share).sum(0) / jnp.maximum(weight, 1e-6))
    x = x - own
    first, shift = (x * share).sum(0), own - origin
    cross = jnp.outer(first, shift)
    second = (x * share).T @ x + cross + cross.T + weight * jnp.outer(shift, shift)
    return Sums(weight, first + weight * shift, second, origin)


# What F F^T is divided by, for features of n positions and c channels.
GRAM_NORMALIZATIONS: dict[str, Callable[[Any, int], Any]] = {
    "none": lambda n, c: 1,
    "hw": lambda n, c: n,
    "chw": lambda n, c: n * c,
    "2chw": lambda n, c: 2 * n * c,
}


def gram(x: Activations | Sums, *, mask: Mask | None = None, normalization: str = "chw") -> Matrix:
    """Gram matrix F F^T of features or of their `Sums`, divided by what `normalization` names:

    - "none" (Gatys 2015, arXiv 1508.06576, eq. 3, and Pandey 2018);
    - "hw": the mean over pixels, which does not depend on the image's size (Kitov's lecture);
    - "chw" (Johnson 2016, arXiv 1603.08155, eq. 3);
    - "2chw", with which `squares` is the style loss of Gatys (eq. 4) and RestyNet, with its 1 / (2 H W C)^2.

    The mask's sum takes the place of HW (guided Gram matrix of Gatys 2017, arXiv 1611.07865, eq. 4, where the mask is
    the square of their guidance channel). Raises ValueError for other names.
    """
    if normalization not in GRAM_NORMALIZATIONS:
        raise ValueError(f"no Gram normalization {normalization!r}; there are {', '.join(GRAM_NORMALIZATIONS)}")
    s = x if isinstance(x, Sums) else sums(x, mask=mask)
    second = s.second
    if s.origin is not None:
        cross = jnp.outer(s.first, jnp.asarray(s.origin))
        second = second + cross + cross.T + s.weight * jnp.outer(s.origin, jnp.asarray(s.origin))
    return second / GRAM_NORMALIZATIONS[normalization](jnp.maximum(s.weight, 1e-6), second.shape[0])


def moments(x: Activations | Sums, *, mask: Mask | None = None, epsilon: float = 1e-5) -> Float[Array, "2 c"]:
    """Mean and standard deviation of each channel (AdaIN, Huang 2017, arXiv 1703.06868, eq. 13)."""
    if isinstance(x, Sums):
        mean, covariance = gaussian(x)[:2]
        variance = jnp.maximum(jnp.diag(covariance), 0)
    else:
        mean, deviations = _centered(x, mask)
        variance = (deviations**2).sum(0)
    return jnp.stack([mean, jnp.sqrt(variance + epsilon)])


class Gaussian(NamedTuple):
    """A normal distribution of feature vectors; `root`, if known, is the covariance's square root."""

    mean: Vector
    covariance: Matrix
    root: Matrix | None = None


def gaussian(x: Activations | Sums, *, mask: Mask | None = None) -> Gaussian:
    """Mean and covariance of the feature vectors, or of their `Sums`."""
    if isinstance(x, Sums):
        weight = jnp.maximum(x.weight, 1e-6)
        shift = x.first / weight
        return Gaussian(
            shift + (0 if x.origin is None else x.origin), x.second / weight - jnp.outer(shift, jnp.asarray(shift))
        )
    mean, deviations = _centered(x, mask)
    return Gaussian(mean, deviations.T @ deviations)


def _centered(x: Activations, mask: Mask | None) -> tuple[Vector, Array]:
    """Mean, and deviations [HW, C] from it scaled so that their squares sum to the variance."""
    h, w, c = x.shape
    x = x.reshape(h * w, c)
    even = jnp.full((h * w, 1), 1 / (h * w))
    share = even if mask is None else mask.reshape(h * w, 1) / jnp.maximum(mask.sum(), 1e-6)
    mean = (share * x).sum(0)
    return mean, jnp.sqrt(share) * (x - mean)


# --- distances: two statistics of the same shape -> a number >= 0


def mse(a: PyTree, b: PyTree) -> Scalar | float:
    """Mean squared difference (Johnson 2016, arXiv 1603.08155, eq. 2; Kitov's losses of content and style).

    Of two trees of arrays, this and the following are sums over their leaves.
    """
    return _over_leaves(lambda a, b: jnp.mean((a - b) ** 2), a, b)


def squares(a: PyTree, b: PyTree) -> Scalar | float:
    """Sum of squared differences: of Gram matrices by "chw" Johnson's style loss (eq. 4), by "2chw" RestyNet's."""
    return _over_leaves(lambda a, b: jnp.sum((a - b) ** 2), a, b)


def half_squares(a: PyTree, b: PyTree) -> Scalar | float:
    """Half of `squares`: the content loss of Gatys 2015 (eq. 1) and of RestyNet."""
    return squares(a, b) / 2


def frobenius(a: PyTree, b: PyTree) -> Scalar | float:
    """Root of the sum of squared differences, the Frobenius norm (Pandey 2018); the gradient of equals is 0."""
    return _over_leaves(lambda a, b: roots.root(jnp.sum((a - b) ** 2)), a, b)


def charbonnier(a: PyTree, b: PyTree, *, epsilon: float = 1e-3) -> Scalar | float:
    """Charbonnier loss: mean of sqrt(d^2 + epsilon^2), a smooth absolute difference (Charbonnier 1994); >= epsilon.

    Pandey 2018 takes it for content and for style. The "MSCE" that he names beside it has no equation there.
    """
    return _over_leaves(lambda a, b: jnp.mean(jnp.sqrt((a - b) ** 2 + epsilon**2)), a, b)


def _over_leaves(distance: Distance, a: PyTree, b: PyTree) -> Any:
    return sum(jax.tree.leaves(jax.tree.map(distance, a, b)))


# Variance below this part of the features' mean square is no style: it is about what one level of 8 bits makes in them.
VARIANCE_FLOOR = 1e-5


def wasserstein2(a: Gaussian, b: Gaussian, *, jitter: float | Scalar = 1e-4) -> Scalar:
    """Squared Wasserstein-2 distance of two `Gaussian`s, divided by the number of channels.

    |mean_a - mean_b|^2 + tr(A + B - 2 (B^1/2 A B^1/2)^1/2) (Dowson and Landau 1982; for style: Crowson's
    style-transfer-pytorch). `jitter` times B's mean variance, and at least `VARIANCE_FLOOR` times its mean square, is
    added to both diagonals, so that one color has a distance and a gradient, too. Give `b` its `root` (`with_root`)
    where it is used many times.
    """
    c = a.mean.shape[0]
    root: Any = with_root(b, jitter=jitter).root if b.root is None else b.root
    ridge = _ridge(b, jitter)
    cross = roots.trace_sqrtm(root @ (a.covariance + ridge * jnp.eye(c)) @ root)
    traces = jnp.trace(a.covariance) + jnp.trace(b.covariance) + 2 * ridge * c
    return mse(a.mean, b.mean) + (traces - 2 * cross) / c


def with_root(g: Gaussian, *, jitter: float | Scalar = 1e-4) -> Gaussian:
    """A `Gaussian` with its covariance's square root, for `wasserstein2` with the same `jitter`."""
    return g._replace(root=roots.sqrtm(g.covariance + _ridge(g, jitter) * jnp.eye(g.mean.shape[0]))[0])


def _ridge(g: Gaussian, jitter: float | Scalar) -> Scalar:
    """What is added to the diagonal of a `Gaussian`'s covariance, > 0."""
    variance = jnp.maximum(jnp.trace(g.covariance) / g.mean.shape[0], 0)
    floor = VARIANCE_FLOOR * (variance + (g.mean**2).mean())
    return jnp.maximum(jnp.maximum(jitter * variance, floor), 1e-30)


# --- priors: images [H, W, C] -> a number, or a statistic of images


def total_variation(image: Activations, *, power: float | int = 2.0) -> Scalar:
    """Mean over pixels of |dx|^power + |dy|^power, summed over channels; dx, dy are differences of neighbors.

    The anisotropic form: the first two of Kitov's lecture are power=2 and power=1. His third is
    `isotropic_variation`, which for power=2 and gamma=1 is the same.
    """
    h, w = image.shape[:2]
    # The power of an exact zero has no gradient for powers under 2, and JAX's of abs is 1 there: a flat image's is 0.
    sizes: dict[float, Callable[[Array], Array]] = {1: lambda d: d * jax.lax.stop_gradient(jnp.sign(d)), 2: jnp.square}
    size = sizes.get(power, lambda d: (d**2 + 1e-12) ** (power / 2))
    dx, dy = jnp.diff(image, axis=1), jnp.diff(image, axis=0)
    return (size(dx).sum() + size(dy).sum()) / (h * w)


def isotropic_variation(image: Activations, *, gamma: float = 0.5) -> Scalar:
    """Mean over pixels of (dx^2 + dy^2)^gamma, summed over channels: Kitov's third total variation.

    For gamma = 1/2 it is the total variation of Rudin, Osher and Fatemi (1992), in general that of Mahendran and
    Vedaldi (2015, arXiv 1412.0035) with beta = 2 gamma. The last column has no dx, the last row no dy.
    """
    h, w = image.shape[:2]
    dx = jnp.pad(jnp.diff(image, axis=1), ((0, 0), (0, 1), (0, 0)))
    dy = jnp.pad(jnp.diff(image, axis=0), ((0, 1), (0, 0), (0, 0)))
    # The power of an exact zero has no gradient for gamma under 1.
    return ((dx**2 + dy**2 + (0 if gamma == 1 else 1e-12)) ** gamma).sum() / (h * w)


def laplacian(image: Activations, *, pool: int = 4) -> Float[Array, "h//{pool} w//{pool} c"]:
    """Laplacian of an image averaged over pool x pool pixels (Li 2017, arXiv 1707.01253, eq. 4).

    A statistic: mse(laplacian(image), laplacian(content)) keeps the content's edges. The filter is
    [[0, -1, 0], [-1, 4, -1], [0, -1, 0]], the image's border continued. Raises ValueError if a side is under `pool`.
    """
    h, w, c = image.shape
    if min(h, w) < pool:
        raise ValueError(f"an image of {h}x{w} pixels cannot be averaged over {pool}x{pool}")
    x = image[: h // pool * pool, : w // pool * pool].reshape(h // pool, pool, w // pool, pool, c).mean((1, 3))
    p = jnp.pad(x, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return 4 * x - p[:-2, 1:-1] - p[2:, 1:-1] - p[1:-1, :-2] - p[1:-1, 2:]


# --- losses


def layerwise(
    features: Mapping[str, Float[Array | np.ndarray, "_ _ _"] | Sums],
    targets: Mapping[str, Any],
    *,
    statistic: Statistic = gram,
    distance: Distance = mse,
    weights: Mapping[str, Any] | None = None,
    masks: Mapping[str, Any] | None = None,
) -> Any:
    """Sum over the layers of `targets` of weight * distance(statistic(features), target), a scalar.

    Raises ValueError for a layer that is not among the features.

    Args:
        features: {layer: activations, or their `Sums`}.
        targets: {layer: a statistic}.
        weights: {layer: number}, 1 for each by default.
        masks: {layer: [h, w]}, none by default.
    """
    check_layers(features, targets)
    total: Any = 0.0
    for name, target in targets.items():
        x = statistic(features[name], mask=None if masks is None else masks[name])
        total += (1.0 if weights is None else weights[name]) * distance(x, target)
    return total


def check_layers(features: Iterable[str], layers: Iterable[str]) -> None:
    """Raise ValueError for a layer that is not among the features."""
    for name in layers:
        if name not in features:
            raise ValueError(f"no layer {name!r}; there are {', '.join(features)}")


def content(
    features: Layers, targets: Layers, *, distance: Distance = mse, weights: Mapping[str, Any] | None = None
) -> Any:
    """Content loss: distance of the features from those of the content image (arXiv 1508.06576, eq. 1)."""
    return layerwise(features, targets, statistic=activations, distance=distance, weights=weights)


# Style loss: distance of the features' statistic from the style image's (arXiv 1508.06576, eq. 4 and 5).
style = layerwise


def lpips(features: Layers, targets: Layers, *, heads: Mapping[str, Any] | None = None) -> Any:
    """LPIPS between features and targets: 0 is equal (Zhang 2018, arXiv 1801.03924, eq. 1).

    Squared differences of the feature vectors' directions, mean over pixels, sum over layers. Raises ValueError for a
    layer that is not among the features.

    Args:
        heads: {layer: weights of the channels [C]} (`nstjax.metrics.load_heads`); None weighs all by 1, which is twice
            the cosine distance.
    """
    check_layers(features, targets)
    total: Any = 0.0
    for name, target in targets.items():
        squares = (_directions(features[name]) - _directions(target)) ** 2
        total += (squares if heads is None else squares * heads[name]).sum(2).mean()
    return total


def _directions(x: Activations) -> Activations:
    """Feature vectors divided by their lengths; a zero stays one, and has a gradient."""
    squares = (x**2).sum(2, keepdims=True)
    return x / jnp.sqrt(jnp.where(squares > 0, squares, 1))
