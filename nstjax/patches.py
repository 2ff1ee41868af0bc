"""Style patch by patch: statistics of the cells of a grid, and distances to the nearest patches of the style image."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nstjax import losses


def patchwise(
    x: losses.Activations,
    *,
    mask: losses.Mask | None = None,
    statistic: losses.Statistic = losses.gram,
    grid: int = 4,
) -> Any:
    """A statistic of each cell of features cut into grid x grid, row by row: [grid^2, ...].

    It is a statistic for `losses.layerwise` with `losses.mse`. The target decides what it means:
    - patchwise(style): each cell is compared with the style image's cell at the same place, so that the composition
      is transferred, too: sky above, field below.
    - statistic(style): each cell is compared with the whole style image, so that every part gets the same style and
      none can make up for another.
    Cells are of one size and cover everything; where `grid` does not divide a side, they share rows or columns. The
    mask is cut likewise. Raises ValueError if a side is under `grid`.
    """
    cells = _cells(x, grid)
    if mask is None:
        return jax.vmap(statistic)(cells)
    return jax.vmap(lambda x, mask: statistic(x, mask=mask))(cells, _cells(mask, grid))


def _cells(x: Float[Array | np.ndarray, "h w *c"], grid: int) -> Float[Array, "n _ _ *c"]:
    """The cells of x, each of ceil(h / grid) x ceil(w / grid)."""
    if min(x.shape[:2]) < grid:
        raise ValueError(f"features of {x.shape[0]}x{x.shape[1]} cannot be cut into {grid}x{grid} cells")
    size = [-(-side // grid) for side in x.shape[:2]]
    starts = [[i * (n - m) // max(grid - 1, 1) for i in range(grid)] for n, m in zip(x.shape, size, strict=False)]
    return jnp.stack([x[i : i + size[0], j : j + size[1]] for i, j in itertools.product(*starts)])


def nearest(
    x: Float[Array | np.ndarray, "H W c"],
    target: Float[Array | np.ndarray, "h w c"],
    *,
    size: int = 3,
    limit: int = 2**28,
) -> losses.Scalar:
    """Mean squared difference of each patch, size x size, of features x from its match in target.

    The match is the patch of greatest normalized cross-correlation; the gradient flows through it and not through the
    choice (CNNMRF: Li and Wand 2016, arXiv 1601.04589, eq. 2 and 3, with stride 1; they take relu3_1 and relu4_1, and
    match turned and scaled copies of the style image besides). A distance, of `losses.activations`. It takes
    H W h w c multiplications, and about `limit` bytes of correlations at a time. Raises ValueError if a side is under
    `size`.
    """
    x, target = jnp.asarray(x), jnp.asarray(target)
    rows, columns = matches(jax.lax.stop_gradient(x), jax.lax.stop_gradient(target), size=size, limit=limit)
    height, width = rows.shape

    @jax.checkpoint  # otherwise the gradient would keep every match's pixels
    def squares(shift: Int[Array, "2"]) -> losses.Scalar:
        i, j = shift
        part = jax.lax.dynamic_slice(x, (i, j, 0), (height, width, x.shape[2]))
        return ((part - target[rows + i, columns + j]) ** 2).mean()

    return jax.lax.map(squares, jnp.indices((size, size)).reshape(2, -1).T).mean()


def matches(
    x: Float[Array | np.ndarray, "H W c"],
    target: Float[Array | np.ndarray, "h w c"],
    *,
    size: int = 3,
    limit: int = 2**28,
) -> tuple[Int[Array, "H-{size}+1 W-{size}+1"], Int[Array, "H-{size}+1 W-{size}+1"]]:
    """Return the row and the column of target at which the most similar patch to each of x begins; see `nearest`."""
    if min(*x.shape[:2], *target.shape[:2]) < size:
        raise ValueError(f"features {x.shape} and {target.shape} are smaller than patches of {size}x{size}")
    height, width = (n - size + 1 for n in x.shape[:2])
    h, w = (n - size + 1 for n in target.shape[:2])
    shifts = list(itertools.product(range(size), repeat=2))
    squares = (target**2).sum(2)
    norms = jnp.sqrt(sum(squares[i : i + h, j : j + w] for i, j in shifts))
    norms = jnp.maximum(norms, 1e-20)
    strip = max(1, min(height, limit // (4 * x.shape[1] * squares.size) - size + 1))
    padded = jnp.pad(x, ((0, -height % strip), (0, 0), (0, 0)))

    def best(start: Int[Array, ""]) -> Int[Array, "_ _"]:
        part = jax.lax.dynamic_slice_in_dim(padded, start, strip + size - 1)
        # A patch's correlation is the sum of its pixels', each of which is in size^2 patches.
        pixels = jnp.einsum("ywc,hvc->ywhv", part, target)
        similar = sum(pixels[i : i + strip, j : j + width, i : i + h, j : j + w] for i, j in shifts)
        return jnp.argmax((similar / norms).reshape(strip, width, h * w), axis=2)

    found = jax.lax.map(best, jnp.arange(0, height, strip)).reshape(-1, width)[:height]
    return found // w, found % w
