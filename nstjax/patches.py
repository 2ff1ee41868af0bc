"""Style patch by patch: statistics of the cells of a grid, and distances to the nearest patches of the painting."""

import itertools

import jax
import jax.numpy as jnp

from nstjax import losses


def patchwise(x, *, mask=None, statistic=losses.gram, grid=4):
    """A statistic of each cell of features [H, W, C] cut into grid x grid, row by row: [grid^2, ...].

    A statistic itself, for `losses.layerwise`; the painting's target says what it asks for, with `losses.mse`:
    - patchwise(painting): each cell is to look like the painting's cell at the same place, so that its composition,
      sky above and field below, comes along;
    - statistic(painting): each cell is to look like the whole painting, so that its style comes everywhere alike and
      no part of the picture can make up for another.
    Cells are of one size and cover everything; where `grid` does not divide a side, they share rows or columns.
    mask: [H, W], cut likewise. Raises ValueError if a side is under `grid`.
    """
    cells = _cells(x, grid)
    if mask is None:
        return jax.vmap(statistic)(cells)
    return jax.vmap(lambda x, mask: statistic(x, mask=mask))(cells, _cells(mask, grid))


def _cells(x, grid):
    """The cells [grid^2, ceil(H / grid), ceil(W / grid), ...] of x [H, W, ...]."""
    if min(x.shape[:2]) < grid:
        raise ValueError(f"features of {x.shape[0]}x{x.shape[1]} cannot be cut into {grid}x{grid} cells")
    size = [-(-side // grid) for side in x.shape[:2]]
    starts = [[i * (n - m) // max(grid - 1, 1) for i in range(grid)] for n, m in zip(x.shape, size, strict=False)]
    return jnp.stack([x[i : i + size[0], j : j + size[1]] for i, j in itertools.product(*starts)])


def nearest(x, target, *, size=3, limit=2**28):
    """Mean squared difference of each patch, size x size, of features [H, W, C] from its match in target [h, w, C].

    The match is the patch of greatest normalised cross-correlation; the gradient flows through it and not through the
    choice (CNNMRF: Li and Wand 2016, arXiv 1601.04589, eq. 2 and 3, with stride 1; they take relu3_1 and relu4_1, and
    match turned and scaled copies of the painting besides). A distance, of `losses.activations`. It takes HW h w C
    multiplications, and at once about `limit` bytes of correlations. Raises ValueError if a side is under `size`.
    """
    x, target = jnp.asarray(x), jnp.asarray(target)
    rows, columns = matches(jax.lax.stop_gradient(x), jax.lax.stop_gradient(target), size=size, limit=limit)
    height, width = rows.shape

    @jax.checkpoint  # for else the gradient would keep every match's pixels
    def squares(shift):
        i, j = shift
        part = jax.lax.dynamic_slice(x, (i, j, 0), (height, width, x.shape[2]))
        return ((part - target[rows + i, columns + j]) ** 2).mean()

    return jax.lax.map(squares, jnp.indices((size, size)).reshape(2, -1).T).mean()


def matches(x, target, *, size=3, limit=2**28):
    """Where in target [h, w, C] the most similar patch to each of x [H, W, C] begins.

    Its rows and columns, each [H - size + 1, W - size + 1]; the measure is the normalised cross-correlation. See
    `nearest`.
    """
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

    def best(start):
        part = jax.lax.dynamic_slice_in_dim(padded, start, strip + size - 1)
        # A patch's correlation is the sum of its pixels', each of which is in size^2 patches.
        pixels = jnp.einsum("ywc,hvc->ywhv", part, target)
        similar = sum(pixels[i : i + strip, j : j + width, i : i + h, j : j + w] for i, j in shifts)
        return jnp.argmax((similar / norms).reshape(strip, width, h * w), axis=2)

    found = jax.lax.map(best, jnp.arange(0, height, strip)).reshape(-1, width)[:height]
    return found // w, found % w
