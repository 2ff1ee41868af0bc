"""Coarse to fine: paint small first, where strokes and shapes are large, then enlarge and go on."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nstjax import images, solvers


def sizes(size, *, scales=None, smallest=128, ratio=2.0):
    """Long sides in pixels from coarse to fine, each `ratio` times the one before, ending at `size`.

    scales: how many; by default as many as keep the coarsest at `smallest` or above.
    """
    if scales is None:
        scales = 1 + max(0, math.floor(math.log(size / smallest, ratio) + 1e-9))
    return [round(size / ratio**i) for i in reversed(range(scales))]


def steps(sizes, work, *, coarse=1 / 3):
    """Steps at each size that cost together as much as `work` steps at the last one, at least 1 each.

    The coarser sizes take `coarse` times as many steps as the last: they need only lay out the picture.
    """
    cost = 1 + coarse * sum((size / sizes[-1]) ** 2 for size in sizes[:-1])
    return [max(1, round(coarse * work / cost))] * (len(sizes) - 1) + [max(1, round(work / cost))]


def style_size(style, content, *, scale=1.0, minimum=16):
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


def continued(image, margin):
    """A picture [..., H, W, C] with `margin` more pixels on each side, reflected; a negative one takes them off."""
    if margin == 0:
        return image
    if margin < 0:
        return image[..., -margin:margin, -margin:margin, :]
    return np.pad(image, (*((0, 0),) * (image.ndim - 3), (margin, margin), (margin, margin), (0, 0)), mode="reflect")


def enlarge(picture, before, after):
    """A picture [h, w, 3] painted over `before`, at the size of `after` [H, W, 3], the same content in more detail.

    The content's detail that `before` could not hold is added, so that the next scale starts from a picture that is
    sharp.
    """
    detail = after - images.resize(before, after.shape[:2])
    return np.clip(images.resize(picture, after.shape[:2]) + detail, 0, 1)


def stacked(prepared):
    """What `prepare` gives for several pictures of one shape, for `run` with `solvers.batched`; one stays as it is.

    prepared: [(content [h, w, 3], data)]; the network's "params" in the data are shared, all else is stacked.
    """
    if len(prepared) == 1:
        return prepared[0]
    contents, data = zip(*prepared, strict=True)
    rest = [{name: x for name, x in each.items() if name != "params"} for each in data]
    return np.stack(contents), {"params": data[0]["params"]} | jax.tree.map(lambda *x: jnp.stack(x), *rest)


def run(solver, prepare, start, *, sizes, steps, margins=None, place=None):
    """Optimise at each size in turn, `steps` of each: yields (size, picture [h, w, 3], terms) as `solvers.run` does.

    prepare(size) -> (content [h, w, 3], data of the objective); start(content) -> the first picture. With
    `solvers.batched` all of them have a leading axis of pictures. margins: pixels for each size by which `prepare`
    has continued its content (`continued`), and which are taken off the picture. place: see `solvers.run`.
    """
    picture: Any = None
    before: Any = None
    data: Any = None
    for size, count, margin in zip(sizes, steps, margins or [0] * len(sizes), strict=True):
        del data  # frees the previous size's before the next is made
        content, data = prepare(size)
        inner = continued(content, -margin)
        if before is None:
            image = start(content)
        elif inner.ndim == 4:
            image = continued(np.stack([enlarge(*each) for each in zip(picture, before, inner, strict=True)]), margin)
        else:
            image = continued(enlarge(picture, before, inner), margin)
        for _, canvas, terms in solvers.run(solver, image, data, steps=count, place=place):
            picture = continued(canvas, -margin)
            yield size, picture, terms
        before = inner
