"""The matting Laplacian: how far an image is from a locally affine function of another's colors, without a matrix.

In every window k of 3x3 pixels an image p is fitted by an affine function of the guide's colors, by least squares with
a ridge (Levin 2008, "A closed-form solution to natural image matting", doi 10.1109/TPAMI.2007.1177). What is left of it
are residuals r_k, and

    p' M p = sum_k |r_k|^2 + ridge |a_k|^2,    (M p)_i = sum of r_k at i over the windows that contain i

so that neither needs the matrix M: they take O(N), and strip by strip little memory. A photo-realistic result has a
small p' M p in each of its channels (Luan 2017, arXiv 1703.07511, eq. 4). `guided` is the fast form: one least-squares
fit in larger windows (He 2010, "Guided image filtering").
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Guide = Float[Array | np.ndarray, "h w 3"]
Channels = Float[Array | np.ndarray, "h w c"]
Scalar = Float[Array, ""]
Planes = Float[Array, "n h w"]  # an image's channels, each as a plane

EPSILON = 1e-7  # Levin's ridge, for colors in [0, 1]
ROWS = 32  # of windows in a strip


def product(guide: Guide, p: Channels, *, epsilon: float = EPSILON, rows: int = ROWS) -> Float[Array, "h w c"]:
    """M p of the guide's matting Laplacian M, of each channel of p.

    Args:
        guide: the image whose colors explain p; at least 3x3 pixels.
        epsilon: the ridge of the fits, in squared colors.
        rows: of windows computed at a time; the memory needed beside the images grows with it.

    Raises:
        ValueError: an image is under 3x3 pixels.
    """
    return _in_strips(guide, p, epsilon, rows)[1]


def energy(guide: Guide, p: Channels, *, epsilon: float = EPSILON, rows: int = ROWS) -> Scalar:
    """The sum over channels of p' M p, >= 0 (Luan 2017, eq. 4); the arguments are those of `product`.

    Its gradient by p, 2 M p, is taken in the same pass; the guide is a constant.
    """
    return _energy(jnp.asarray(p), jax.lax.stop_gradient(jnp.asarray(guide)), epsilon, rows)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _energy(p: Array, guide: Array, epsilon: float, rows: int) -> Scalar:
    return _in_strips(guide, p, epsilon, rows)[0]


def _forward(p: Array, guide: Array, epsilon: float, rows: int) -> tuple[Scalar, tuple[Array, Array]]:
    value, gradient = _in_strips(guide, p, epsilon, rows)
    return value, (gradient, guide)


def _backward(epsilon: float, rows: int, kept: tuple[Array, Array], g: Scalar) -> tuple[Array, Array]:
    gradient, guide = kept
    return 2 * g * gradient, jnp.zeros_like(guide)


_energy.defvjp(_forward, _backward)


def _in_strips(guide: Guide, p: Channels, epsilon: float, rows: int) -> tuple[Scalar, Float[Array, "h w c"]]:
    """(sum over channels of p' M p, M p), in strips of some rows of windows."""
    h, w, _ = guide.shape
    if min(h, w) < 3:
        raise ValueError(f"images of 3x3 pixels or more are needed, not {w}x{h}")
    rows = min(rows, h - 2)
    planes = jnp.moveaxis(jnp.concatenate([guide, p], -1), -1, 0)

    def add(sums: tuple[Array, Array], wanted: Array) -> tuple[tuple[Array, Array], None]:
        value, out = sums
        start = jnp.minimum(wanted, h - 2 - rows)  # the last strip may repeat windows, which then count as nothing
        new = (jnp.arange(rows) + start >= wanted).astype(out.dtype)[:, None]
        squares, product = _fitted(_rows(planes, start, rows + 2), epsilon, new)
        before = _rows(out, start, rows + 2)
        return (value + squares, jax.lax.dynamic_update_slice_in_dim(out, before + product, start, 1)), None

    starts = jnp.arange(math.ceil((h - 2) / rows)) * rows
    zeros = (jnp.zeros((), planes.dtype), jnp.zeros_like(planes[3:]))
    value, out = jax.lax.scan(add, zeros, starts)[0]
    return value, jnp.moveaxis(out, 0, -1)


def _rows(planes: Planes, start: Array, rows: int) -> Float[Array, "n _ w"]:
    return jax.lax.dynamic_slice_in_dim(planes, start, rows, 1)


def _fitted(planes: Planes, epsilon: float, new: Float[Array, "_ 1"]) -> tuple[Scalar, Float[Array, "_ h w"]]:
    """(sum of squares, M p) over the windows of planes [3 + c, h, w], the guide's channels and those of p.

    The fits are modified Gram-Schmidt without its roots: the guide's channels are eliminated one after another from
    all that come after them. In float32 this remains exact where the 3x3 covariance of nearly collinear colors could
    not be inverted. Beside its 9 pixels each window has 3 equations of the ridge: sqrt(epsilon) times a slope is 0.

    The loops over the 9 pixels keep XLA from computing the fits anew for each of them.

    Args:
        new: [h - 2, 1], 0 for rows of windows that do not count.
    """
    n, h, w = planes.shape
    middle = planes[:, 1:-1, 1:-1]  # differences from it spare rounding
    ridges = math.sqrt(epsilon) * np.eye(n, dtype=np.float32)[:3, :, None, None]
    factors: list[Array] = []  # how much of each channel the eliminated ones explain

    def place(i: Array) -> tuple[int, Array, Array]:
        return 0, i // 3, i % 3

    def pixel(i: Array) -> Array:
        return jax.lax.dynamic_slice(planes, place(i), middle.shape) - middle

    def left(x: Any) -> Any:
        """What the eliminated channels leave of x [3 + c, ...]."""
        for k, factor in enumerate(factors):
            x = x - x[k] * factor
        return x

    def over_pixels(f: Callable[[Array], Array]) -> Array:
        return jax.lax.fori_loop(0, 9, lambda i, total: total + f(i), jnp.zeros_like(middle))

    def onto(k: int, x: Any) -> Any:
        """The product of what is left of channel k with what is left of every channel."""
        rest = left(x)
        return rest[k] * rest

    mean = over_pixels(pixel) / 9
    for k in range(3):
        dots = over_pixels(lambda i, k=k: onto(k, pixel(i) - mean)) + sum(onto(k, ridge) for ridge in ridges)  # type: ignore[misc]
        factors.append(dots / dots[k])

    def scatter(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        squares, out = sums
        residual = new * left(pixel(i) - mean)[3:]
        there = jax.lax.dynamic_slice(out, place(i), residual.shape)
        return squares + residual**2, jax.lax.dynamic_update_slice(out, there + residual, place(i))

    squares = sum(new * left(ridge)[3:] ** 2 for ridge in ridges)
    squares, out = jax.lax.fori_loop(0, 9, scatter, (squares, jnp.zeros_like(planes[3:])))
    return squares.sum(), out


def degree(shape: tuple[int, ...]) -> Float[np.ndarray, "h w 1"]:
    """How many windows contain each pixel of an image of shape (H, W, ...): 9, fewer at the border.

    The diagonal matrix D of M = D - W, as the weights W of each window sum to 1.
    """
    rows, columns = (np.convolve(np.ones(n - 2), np.ones(3)) for n in shape[:2])
    return np.outer(rows, columns).astype(np.float32)[..., None]


def smoothed(
    guide: Guide,
    p: Channels,
    *,
    attraction: float = 0.9999,
    epsilon: float = EPSILON,
    tolerance: float = 1e-4,
    iterations: int = 300,
    rows: int = ROWS,
) -> Float[Array, "h w c"]:
    """p smoothed along the guide: (1 - a) (Id - a S)^-1 p with S = D^-1/2 W D^-1/2 (Li 2018, arXiv 1802.06474, eq. 6).

    By conjugate gradients from p on (1 - a) Id + a D^-1/2 M D^-1/2, which is the same and positive definite.

    Args:
        attraction: a, from 0 (p itself) to under 1 (the smoother, the nearer).
        tolerance: of the residual, relative to that of 0.
        iterations: at most.
        epsilon, rows: see `product`.
    """
    p = jnp.asarray(p)
    root = degree(p.shape) ** -0.5

    def system(x: Array) -> Array:
        return (1 - attraction) * x + attraction * root * product(guide, root * x, epsilon=epsilon, rows=rows)

    return jax.scipy.sparse.linalg.cg(system, (1 - attraction) * p, p, tol=tolerance, maxiter=iterations)[0]


class Affine(NamedTuple):
    """An affine function of colors at every pixel: color @ slope + offset."""

    slope: Float[Array | np.ndarray, "h w 3 c"]
    offset: Float[Array | np.ndarray, "h w c"]


def affine(
    guide: Guide,
    p: Channels,
    *,
    radius: int,
    epsilon: float = 1e-4,
    weights: Float[Array | np.ndarray, "h w"] | None = None,
) -> Affine:
    """Fit p by affine functions of the guide's colors in windows, averaged over the windows that contain a pixel.

    The guided filter (He 2010, eq. 5, 6 and 8, with three colors eq. 14 to 16). The coefficients may be enlarged and
    applied to a larger guide (He and Sun 2015, "Fast guided filter", arXiv 1505.00996).

    Args:
        radius: of the windows of (2 radius + 1)^2 pixels.
        epsilon: ridge, in squared colors; windows whose guide varies less become flat.
        weights: of the pixels, >= 0, such as a mask, outside of which p then has no influence.
    """
    guide, p = jnp.asarray(guide), jnp.asarray(p)
    middle = guide.mean((0, 1))  # sums are of differences from it, which spares rounding
    x = guide - middle
    weights = jnp.ones(x.shape[:2], x.dtype) if weights is None else jnp.asarray(weights)
    mean = partial(_mean, weights=weights[..., None], radius=radius)
    mean_x, mean_p = mean(x), mean(p)
    upper = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    products = mean(jnp.stack([x[..., i] * x[..., j] for i, j in upper], -1))
    entry = {pair: products[..., k] - mean_x[..., pair[0]] * mean_x[..., pair[1]] for k, pair in enumerate(upper)}
    covariance = [[entry[min(i, j), max(i, j)] + epsilon * (i == j) for j in range(3)] for i in range(3)]
    cross = [mean(x[..., i : i + 1] * p) - mean_x[..., i : i + 1] * mean_p for i in range(3)]
    slope = jnp.stack(_solved(covariance, cross), -2)
    offset = mean_p - jnp.einsum("hwi,hwic->hwc", mean_x, slope)
    slope = jnp.stack([mean(slope[..., i, :]) for i in range(3)], -2)
    return Affine(slope, mean(offset) - jnp.einsum("i,hwic->hwc", middle, slope))


def applied(function: Affine, guide: Guide) -> Float[Array, "h w c"]:
    """An affine function of the guide's colors, of its size."""
    return jnp.einsum("hwi,hwic->hwc", guide, function.slope) + function.offset


def guided(guide: Guide, p: Channels, *, radius: int, epsilon: float = 1e-4) -> Float[Array, "h w c"]:
    """p smoothed by the guided filter, the fast form of `smoothed`; see `affine`."""
    return applied(affine(guide, p, radius=radius, epsilon=epsilon), guide)


def _solved(a: list[list[Array]], b: list[Array]) -> list[Array]:
    """Solutions of symmetric positive definite 3x3 systems, entries [h, w], for right sides [h, w, c]."""

    def minor(i: int, j: int) -> Any:
        (p, q), (r, s) = ((i + 1) % 3, (i + 2) % 3), ((j + 1) % 3, (j + 2) % 3)
        return a[p][r] * a[q][s] - a[p][s] * a[q][r]

    inverse = jnp.stack([jnp.stack([minor(i, j) for j in range(3)]) for i in range(3)])
    inverse = inverse / sum(a[0][j] * inverse[0, j] for j in range(3))
    return list(jnp.einsum("ijhw,jhwc->ihwc", inverse, jnp.stack(b)))


def _mean(x: Array, *, weights: Array, radius: int) -> Array:
    """Weighted means over windows, 0 where all weights are 0."""
    return _box(weights * x, radius) / jnp.maximum(_box(weights, radius), 1e-3)


def _box(x: Array, radius: int) -> Array:
    """Sums over windows of (2 radius + 1)^2 pixels, as far as they are in the image."""
    for axis in (0, 1):
        n = x.shape[axis]
        sums = jnp.cumsum(x, axis)
        sums = jnp.concatenate([jnp.zeros_like(jnp.take(sums, jnp.arange(1), axis)), sums], axis)
        ends, starts = np.minimum(np.arange(n) + radius + 1, n), np.maximum(np.arange(n) - radius, 0)
        x = jnp.take(sums, ends, axis) - jnp.take(sums, starts, axis)
    return x
