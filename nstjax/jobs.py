"""What is to be painted: jobs, their validation, their groups, and the images they start from."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Float

from nstjax import color, images, memory, pyramid
from nstjax.errors import InputError
from nstjax.objectives import Style
from nstjax.recipes import Recipe, style_size
from nstjax.typing import Array, Image, Mask

Start = Literal["content", "noise", "gray", "style"]


class Held(NamedTuple):
    """What an image is held to, pixel by pixel: the earlier frame of a video, moved onto this one (Ruder 2016)."""

    image: Image  # of the content image's shape
    seen: Mask  # of this shape, 0 to 1: how much each pixel counts
    weight: float  # of the temporal loss, the mean of seen (image - held)^2


class Job(NamedTuple):
    """One image to paint: a content image, its styles, and where to start."""

    content: Image
    styles: Sequence[Image | Style]
    init: str | Image = "content"  # or one of `Start`
    seed: int = 0
    style_weight: float | None = None  # by default the recipe's
    held: Held | None = None


def checked(job: Job) -> Job:
    """Return a job whose images are float32 arrays and whose styles are `Style`s.

    Raises InputError for images, masks, weights, a start or a seed that are invalid.
    """
    content = image_array(job.content, "content")
    styles = styles_of(job)
    if not styles:
        raise InputError("none is given; give at least one", argument="styles")
    if not all(0 <= style.weight < math.inf for style in styles) or not any(style.weight for style in styles):
        raise InputError("give weights that are not negative, and not all 0", argument="styles")
    if len({style.region is None for style in styles}) > 1:
        raise InputError("give a region for each, or none", argument="styles")
    for style in styles:
        for mask, like, what in ((style.mask, style.image, "mask"), (style.region, content, "region")):
            if mask is not None and not (mask.ndim == 2 and images.same_aspect(mask.shape[:2], like.shape[:2])):
                raise InputError(f"a {what} is [H, W], of the aspect of its image", argument="styles")
            if what == "mask" and mask is not None and not np.any(mask):
                raise InputError("a mask is 0 everywhere, so there is nothing to learn from", argument="styles")
    styles = [style._replace(image=image_array(style.image, "styles")) for style in styles]
    init = job.init
    if isinstance(init, str):
        if init not in get_args(Start):
            raise InputError(f"no {init!r}; give an image, or one of {', '.join(get_args(Start))}", argument="init")
    elif not images.same_aspect(image_array(init, "init").shape[:2], content.shape[:2]):
        raise InputError("has another aspect than the content image; crop it", argument="init")
    if not 0 <= job.seed < 2**32:
        raise InputError(f"{job.seed}: give a number of 0 or more, up to {2**32 - 1}", argument="seed")
    if job.style_weight is not None and not 0 <= job.style_weight < math.inf:
        raise InputError(f"{job.style_weight}: give a number that is not negative", argument="style_weight")
    if job.held is not None:
        _check_held(job.held, content.shape[:2])
    return job._replace(content=content, styles=styles)


def _check_held(held: Held, shape: tuple[int, int]) -> None:
    """Raise InputError unless an image can be held to it."""
    if image_array(held.image, "held").shape[:2] != shape or np.shape(held.seen) != shape:
        raise InputError("has another shape than the content image; warp an image of its shape", argument="held")
    if not 0 <= held.weight < math.inf:
        raise InputError(f"{held.weight}: give a weight that is not negative", argument="held")


def image_array(image: object, argument: str) -> Float[np.ndarray, "_ _ 3"]:
    """Return an image as float32 [H, W, 3]. Raises InputError for anything but an image in [0, 1]."""
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype.kind != "f":
        what = f"not {array.dtype} {list(array.shape)}; see nstjax.images.load"
        raise InputError(f"an image is float [H, W, 3] in [0, 1], {what}", argument=argument)
    if not (array.min() >= -1e-3 and array.max() <= 1 + 1e-3):
        raise InputError(f"values from {array.min():.4g} to {array.max():.4g}: give 0 to 1", argument=argument)
    return array.astype(np.float32)


def styles_of(job: Job) -> list[Style]:
    """The styles of a job, each as a `Style`."""
    return [style if isinstance(style, Style) else Style(style) for style in job.styles]


def batches(jobs: Mapping[Any, Job], *, together: int) -> list[list[Any]]:
    """Return the keys of jobs in groups for `paint_batch`: of one shape, at most `together`, and on CPU at most four.

    All groups of one shape have the same size, so that their program is compiled once; the last is filled up by
    repeating its last job.
    """
    by_shape: dict[tuple, list] = {}
    for key, job in jobs.items():
        by_shape.setdefault(np.shape(job.content), []).append(key)
    most = max(1, min(together, 4 if jax.default_backend() == "cpu" else 64))
    return [group for keys in by_shape.values() for group in memory.groups(keys, most)]


def first_image(job: Job, canvas: Image, margin: int) -> Image:
    """The image to start from, of the size of `canvas`, which is the content image with a border of `margin`."""
    inside = (canvas.shape[0] - 2 * margin, canvas.shape[1] - 2 * margin)
    if not isinstance(job.init, str):
        return pyramid.continued(resized(job.init, inside), margin)
    match job.init:
        case "noise":
            return np.asarray(jax.random.uniform(jax.random.key(job.seed), canvas.shape))
        case "gray":
            return np.full_like(canvas, 0.5)
        case "style":
            return pyramid.continued(images.cover(styles_of(job)[0].image, inside), margin)
    return canvas


def resized(image: Float[Array, "_ _ c"], shape: tuple[int, int]) -> Float[np.ndarray, "_ _ c"]:
    """Return an image at a shape (H, W), without resampling it if it has that shape already."""
    return np.asarray(image) if image.shape[:2] == shape else images.resize(image, shape)


def size(image: Float[Array, "h w ..."]) -> tuple[int, int]:
    """(height, width) of an image or a mask."""
    return image.shape[0], image.shape[1]


def styles_at(job: Job, content: Image, margin: int, recipe: Recipe) -> list[Style]:
    """The styles of a job at the sizes for a content image, with weights that sum to 1."""
    given = styles_of(job)
    total, styles = sum(style.weight for style in given), []
    for style in given:
        shape = shape_at(style.image.shape, style_size(recipe, size(style.image), size(content)))
        image = color.recolored(resized(style.image, shape), content, method=recipe.preserve_color)
        region = _mask(style.region, size(content), margin)
        # A region counts as much as the part of the image that it covers, so that each of its pixels counts the same.
        weight = style.weight / total * (1 if region is None else len(given) * region.mean())
        styles.append(Style(image, _mask(style.mask, shape), region, np.float32(weight)))
    return styles


def held_at(job: Job, content: Image, margin: int) -> dict[str, Any]:
    """What `priors.term` needs for "temporal", at a content image's size, with a border; {} if nothing is held."""
    if job.held is None:
        return {}
    shape = size(content)
    image, seen = pyramid.continued(resized(job.held.image, shape), margin), _mask(job.held.seen, shape, margin)
    return {"held": {"image": image, "seen": seen}}


def _mask(mask: Mask | None, shape: tuple[int, int], margin: int = 0) -> Mask | None:
    """A mask resized to a shape, with a border; None stays None."""
    if mask is None:
        return None
    return pyramid.continued(resized(np.asarray(mask, np.float32)[..., None], shape), margin)[..., 0]


def shape_at(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """(height, width) of an image of shape (H, W, ...) whose long side becomes `size`."""
    k = size / max(shape[:2])
    return round(shape[0] * k), round(shape[1] * k)
