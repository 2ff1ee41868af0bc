"""Coarse to fine: paint small first, where strokes and shapes are large, then enlarge and go on.

Also the Laplacian pyramid of an image, and solvers that optimize its levels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nstjax import images, solvers
from nstjax.typing import Array, Image


class Scale(NamedTuple):
    """One size of the pyramid."""

    size: int  # long side in pixels
    steps: int = 1
    margin: int = 0  # pixels of reflected border on each side
    cost: float = 1.0  # of a step, in steps at full size


def sizes(size: int, *, scales: int | None = None, smallest: int = 128, ratio: float = 2.0) -> list[int]:
    """Long sides in pixels from coarse to fine, each `ratio` times the one before, ending at `size`.

    scales: how many; by default as many as keep the coarsest at `smallest` or above.
    """
    if scales is None:
        scales = 1 + max(0, math.floor(math.log(size / smallest, ratio) + 1e-9))
    return [round(size / ratio**i) for i in reversed(range(scales))]


def scales(
    sizes: Sequence[int], work: int, *, coarse: float = 1 / 3, margin: float = 0.0, border: int = 0
) -> tuple[Scale, ...]:
    """A `Scale` for each size, whose steps cost together as much as `work` steps at the last one; at least 1 each.

    coarse: steps at a coarser size for each step at the last one; they need only lay out the image. margin: border of
    the coarser sizes, as a share of their long side. border: the least margin of every size, in pixels.
    """
    margins = [max(border, round(margin * size)) for size in sizes[:-1]] + [border]
    costs = [((size + 2 * margin) / (sizes[-1] + 2 * border)) ** 2 for size, margin in zip(sizes, margins, strict=True)]
    share = work / (1 + coarse * sum(costs[:-1]))
    steps = [max(1, round(coarse * share))] * (len(sizes) - 1) + [max(1, round(share))]
    return tuple(map(Scale, sizes, steps, margins, costs))


def style_size(style: tuple[int, int], content: tuple[int, int], *, scale: float = 1.0, minimum: int = 16) -> int:
    """Long side in pixels of a style image beside a content image, for strokes of the same size at any aspect.

    The content's long side times `scale`; of a content beyond 2:1, the long side of a 2:1 image of the same area, as
    the style's cost would otherwise outgrow the content's. A style of an elongated shape becomes larger where its short
    side would be under `minimum`.

    Args:
        style, content: (height, width) in pixels; of the style only the aspect counts.
    """
    h, w = content
    long = round(scale * min(max(h, w), math.ceil(math.sqrt(2 * h * w))))
    return max(long, math.ceil(minimum * max(style) / min(style))) if long >= 2 * minimum else long


def continued(image: Float[Array, "*n h w c"], margin: int) -> Float[Array, "*n height width c"]:
    """An image with `margin` more pixels on each side, reflected; a negative margin takes them off."""
    if margin == 0:
        return image
    if margin < 0:
        return image[..., -margin:margin, -margin:margin, :]
    return np.pad(image, (*((0, 0),) * (image.ndim - 3), (margin, margin), (margin, margin), (0, 0)), mode="reflect")


def enlarge(image: Image, before: Image, after: Image) -> Image:
    """An image painted over the content image `before`, at the size of `after`, the same content in more detail.

    The content's detail that `before` could not hold is added, so that the next scale starts from a sharp image.
    """
    detail = after - images.resize(before, after.shape[:2])
    return np.clip(images.resize(image, after.shape[:2]) + detail, 0, 1)


def stacked(prepared: Sequence[tuple[Image, Any]]) -> tuple[Any, Any]:
    """What `prepare` gives for several images of one shape, for `run` with `solvers.batched`; one stays as it is.

    prepared: [(content, data)]; the network's "params" in the data are shared, all else is stacked.
    """
    if len(prepared) == 1:
        return prepared[0]
    contents, data = zip(*prepared, strict=True)
    rest = [{name: x for name, x in each.items() if name != "params"} for each in data]
    return np.stack(contents), {"params": data[0]["params"]} | jax.tree.map(lambda *x: jnp.stack(x), *rest)


def run(
    solver: solvers.Solver,
    prepare: Callable[[Scale, Any], tuple[Any, Any]],
    scales: Sequence[Scale],
    *,
    place: Callable | None = None,
) -> Iterator[tuple[Scale, Any, dict]]:
    """Optimize at each scale in turn: yields (scale, image [h, w, 3], terms) as `solvers.run` does.

    With `solvers.batched` all images have a leading axis.

    Args:
        prepare: (scale, the image of the scale before, or None) -> (the image to start from, with the scale's margin,
            data of the objective).
        place: see `solvers.run`.
    """
    image: Any = None
    data: Any = None
    for scale in scales:
        del data  # frees the previous size's before the next is made
        canvas, data = prepare(scale, image)
        for _, painted, terms in solvers.run(solver, canvas, data, steps=scale.steps, place=place):
            image = continued(painted, -scale.margin)
            yield scale, image, terms


# Levels of a Laplacian pyramid: the coarsest then is 1/32 of an image. They have 4/3 as many numbers as it.
DEPTH, VARIABLES = 5, 4 / 3
# `on_levels`'s unit for L-BFGS: the best of those compared (benchmarks/README.md).
LBFGS_UNIT = 0.5**0.5


def laplacian(image: Image, *, depth: int = DEPTH) -> list[Float[Array, "_ _ 3"]]:
    """The Laplacian pyramid of an image, from fine to coarse: `depth` levels of detail and what is left.

    L_i = G_i - up(G_(i+1)), G_(i+1) = down(G_i), with linear interpolation for both, at half the size, rounded up (Burt
    and Adelson 1983, eq. 5, with another filter). A level of one pixel is the last.
    """
    levels: list[Any] = []
    x = jnp.asarray(image)
    while len(levels) < depth and max(x.shape[:2]) > 1:
        h, w, c = x.shape
        small = jax.image.resize(x, (-(-h // 2), -(-w // 2), c), "linear")
        levels.append(x - jax.image.resize(small, x.shape, "linear"))
        x = small
    return [*levels, x]


def collapsed(levels: Sequence[Float[Array, "_ _ 3"]]) -> Image:
    """The image of a Laplacian pyramid: the exact inverse of `laplacian`, up to rounding (eq. 6)."""
    x = levels[-1]
    for level in levels[-2::-1]:
        x = level + jax.image.resize(x, level.shape, "linear")
    return x


def faded(image: Image, *, levels: int, share: float = 0.0) -> Image:
    """An image whose finest levels of the Laplacian pyramid are multiplied by `share`."""
    *fine, coarse = laplacian(image, depth=levels)
    return collapsed([*(share * level for level in fine), coarse])


def on_levels(
    make: Callable[..., solvers.Solver], objective: Callable[[Any, Any], Any], *, depth: int = DEPTH, unit: float = 1.0
) -> solvers.Solver:
    """A solver whose variables are the levels of the image's Laplacian pyramid (Kolkin 2019, arXiv 1904.12785, 3.3).

    A step of a coarse level moves whole areas at once, and colors and large shapes come first. An image stays in the
    gamut by the finest level.

    Args:
        make: (objective, project=...) -> a solver of a vector, such as `solvers.lbfgs`.
        objective: (image, data) -> (loss, terms).
        unit: of a level, in that of the next finer one. 1/2 makes the gradients of all levels equally long. For L-BFGS
            it is a preconditioner: its first approximation of the inverse Hessian is the sum of unit^2i U_i U_i^T
            instead of the identity, where U_i enlarges level i.
    """

    def vector(levels: Sequence[Any]) -> Any:
        return jnp.concatenate([level.ravel() / unit**i for i, level in enumerate(levels)])

    def solver(shape: tuple[int, ...]) -> tuple[solvers.Solver, Callable[[Any], Any]]:
        like = jax.eval_shape(lambda x: laplacian(x, depth=depth), jax.ShapeDtypeStruct(shape, jnp.float32))
        ends = np.cumsum([math.prod(level.shape) for level in like])[:-1]

        def image(variables: Any) -> Any:
            parts = zip(jnp.split(variables, ends), like, strict=True)
            return collapsed([unit**i * part.reshape(level.shape) for i, (part, level) in enumerate(parts)])

        def project(variables: Any) -> Any:
            x = image(variables)
            return variables.at[: x.size].add((solvers.in_gamut(x) - x).ravel())

        return make(lambda variables, data: objective(_inward(image(variables)), data), project=project), image

    def init(image: Any, data: Any) -> Any:
        variables = vector(laplacian(image, depth=depth))
        return variables, solver(image.shape)[0].init(variables, data)

    def step(image: Any, state: Any, data: Any) -> Any:
        inner, image_of = solver(image.shape)
        variables, state, terms = inner.step(state[0], state[1], data)
        return solvers.in_gamut(image_of(variables)), (variables, state), terms

    return solvers.Solver(init, step)


@jax.custom_vjp
def _inward(image: Array) -> Array:
    """An image, whose gradient is 0 where a step against it would leave the gamut."""
    return image


_inward.defvjp(
    lambda image: (image, image),
    lambda image, g: (jnp.where((image <= 1e-6) & (g > 0) | (image >= 1 - 1e-6) & (g < 0), 0, g),),
)
