"""Coarse to fine: paint small first, where strokes and shapes are large, then enlarge and go on."""

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


def scales(sizes: Sequence[int], work: int, *, coarse: float = 1 / 3, margin: float = 0.0) -> tuple[Scale, ...]:
    """A `Scale` for each size, whose steps cost together as much as `work` steps at the last one; at least 1 each.

    coarse: steps at a coarser size for each step at the last one; they need only lay out the image. margin: border of
    the coarser sizes, as a share of their long side.
    """
    margins = [round(margin * size) for size in sizes[:-1]] + [0]
    costs = [((size + 2 * margin) / sizes[-1]) ** 2 for size, margin in zip(sizes, margins, strict=True)]
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
    prepare: Callable[[Scale], tuple[Any, Any]],
    start: Callable[[Any], Any],
    scales: Sequence[Scale],
    *,
    place: Callable | None = None,
) -> Iterator[tuple[Scale, Any, dict]]:
    """Optimize at each scale in turn: yields (scale, image [h, w, 3], terms) as `solvers.run` does.

    With `solvers.batched` all images have a leading axis.

    Args:
        prepare: scale -> (content [h, w, 3] with the scale's margin, data of the objective).
        start: content of the first scale -> the first image.
        place: see `solvers.run`.
    """
    image: Any = None
    before: Any = None
    data: Any = None
    for scale in scales:
        del data  # frees the previous size's before the next is made
        content, data = prepare(scale)
        inner = continued(content, -scale.margin)
        if before is None:
            canvas = start(content)
        elif inner.ndim == 4:
            each = zip(image, before, inner, strict=True)
            canvas = continued(np.stack([enlarge(*one) for one in each]), scale.margin)
        else:
            canvas = continued(enlarge(image, before, inner), scale.margin)
        for _, painted, terms in solvers.run(solver, canvas, data, steps=scale.steps, place=place):
            image = continued(painted, -scale.margin)
            yield scale, image, terms
        before = inner
