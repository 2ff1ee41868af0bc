"""Videos painted by optimization, so that they hold still along their motion (Ruder 2016, arXiv 1604.08610).

    for progress in clips.paint(frames, [style], preset="fast"):
        if progress.finished:
            add(progress.image)

Each frame starts from the painted frame before, moved along the optical flow, and is held to it where the scene is seen
in both: a term of the loss beside those of content and style.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nstjax import flow, jobs, neural_style, pixels, recipes, stable
from nstjax.errors import InputError
from nstjax.objectives import Style
from nstjax.recipes import Recipe
from nstjax.typing import Image, Mask

SHORT_TERM, LONG_TERM = (1,), (1, 2, 4)  # frames back that a frame is held to
CUT = 0.2  # a frame of which less was seen before begins another scene
SHARE = 0.5  # of the first frame's work that each of the others takes
# In units of the first frame's loss: a root mean square difference of 0.1 costs as much as all else.
UNIT = 100.0


class Progress(NamedTuple):
    """The state after a step of a frame."""

    frame: int  # its number, from 0
    image: Image  # as far as it is painted; when it is finished, in levels of 1/255, as a PNG keeps it
    finished: bool
    step: int  # of this frame
    work: float  # the part of this frame's work that is done, 0 to 1
    loss: float
    unit: float  # loss of the first frame, by which the temporal loss is weighed


class Resumed(NamedTuple):
    """What was painted before, to continue with the frame after it."""

    painted: Sequence[Image]  # the last finished frames: as many as `paint` looks back, or all if there are fewer
    frames: int  # how many are finished
    unit: float  # as in `Progress`


def paint(
    frames: Iterable[Image],
    styles: Sequence[Image | Style],
    *,
    preset: str | Recipe = "fast",
    stability: float = 1.0,
    lags: Sequence[int] = SHORT_TERM,
    share: float = SHARE,
    seed: int = 0,
    resumed: Resumed | None = None,
    **options: Any,
) -> Iterator[Progress]:
    """Paint the frames of a video; yields a `Progress` after each step. Memory does not grow with their number.

    The first frame, and each after a cut, is painted as `neural_style.paint` does, the others at full size only, by one
    compiled program.

    Args:
        frames: of one shape.
        styles, preset, seed, options: as of `neural_style.paint`; `preserve_color` other than "none" is rejected.
        stability: weight of the temporal loss, 0 or more.
        lags: how many frames back to look, each for what nearer ones did not see: `SHORT_TERM` or `LONG_TERM`.
        share: of the first frame's work that each of the others takes.
        resumed: to continue; gives the same frames as painting all at once.

    Raises:
        InputError: for arguments out of range.
        FloatingPointError: see `neural_style.paint`.
    """
    names = {*Recipe._fields} & options.keys()
    recipe = recipes.changed(preset, {name: options.pop(name) for name in names})
    if recipe.preserve_color != "none":
        why = "frames that keep the video's colors are not held still; leave it out"
        raise InputError(why, argument="preserve_color")
    if not 0 <= stability < np.inf:
        raise InputError(f"{stability}: give a number of 0 or more", argument="stability")
    resumed = resumed or Resumed((), 0, 0.0)
    return _paint(iter(frames), styles, recipe, stability, tuple(sorted(lags)), share, seed, resumed, options)


def following(recipe: Recipe, share: float = SHARE) -> Recipe:
    """The recipe of the frames after the first, which start from a painted one: fewer steps, at full size alone."""
    steps = max(1, round(share * recipe.steps))
    return recipe._replace(steps=steps, scales=1, passes=1, faded=0)


def _paint(
    frames: Iterator[Image],
    styles: Sequence[Image | Style],
    recipe: Recipe,
    stability: float,
    lags: tuple[int, ...],
    share: float,
    seed: int,
    resumed: Resumed,
    options: dict[str, Any],
) -> Iterator[Progress]:
    unit, before = resumed.unit, collections.deque[tuple[Image, Image]](maxlen=max(lags))
    past = collections.deque(itertools.islice(frames, resumed.frames), maxlen=max(lags))
    options = {"budget": None} | options
    before.extend(zip(past, resumed.painted[-len(past) :], strict=True) if past else ())
    for number, frame in enumerate(frames, resumed.frames):
        # One for all frames, as the compiled programs depend on it.
        options["budget"] = options["budget"] or _budget(recipe, frame, styles, options)
        job, chosen = jobs.Job(frame, styles, seed=seed), recipe
        if before:
            start, held, seen = onto(frame, *zip(*(before[-lag] for lag in lags if lag <= len(before)), strict=True))
            if seen.mean() >= CUT:
                job = job._replace(init=start, held=jobs.Held(held, seen, stability * UNIT * unit))
                chosen = following(recipe, share)
        for each in neural_style.paint_batch([job], preset=chosen, **options):
            image, loss = np.asarray(each.image[0]), float(each.terms["loss"][0])
            finished = each.step == each.total
            if finished:
                image = pixels.to_bytes(image).astype(np.float32) / 255
                unit = unit or loss
            yield Progress(number, image, finished, each.step, each.work, loss, unit)
        before.append((frame, image))


def _budget(recipe: Recipe, frame: Image, styles: Sequence[Image | Style], options: dict[str, Any]) -> Any:
    """The memory budget of all frames; None with an extractor of one's own."""
    if options.get("extract") is not None:
        return None
    shapes = [jobs.size(style.image if isinstance(style, Style) else style) for style in styles]
    return neural_style.budget(recipe, jobs.size(frame), shapes, limit=options.pop("memory_limit", None))


def onto(frame: Image, earlier: Sequence[Image], painted: Sequence[Image]) -> tuple[Image, Image, Mask]:
    """Move painted frames onto a frame: returns (the image to start from, what to hold it to, where and how much).

    Where an earlier frame saw the scene, both are what was painted there, of the nearest such frame; c_long of Ruder
    2016 (eq. 10) makes the same choice, as its weights exclude each other. Elsewhere the start is the nearest frame's
    painting, moved, with whatever hid the scene: that is repainted in fewer steps than the bare frame.

    Args:
        earlier, painted: frames and painted frames, from the nearest to the farthest.
    """
    held, seen, moved = np.zeros_like(frame), np.zeros(frame.shape[:2], np.float32), []
    for each, image in zip(earlier, painted, strict=True):
        held, seen, onto_this = _added(held, seen, frame, each, image)
        moved.append(onto_this)
    start = seen[..., None] * held + (1 - seen[..., None]) * moved[0]
    return tuple(np.asarray(x) for x in (np.clip(start, 0, 1), np.clip(held, 0, 1), seen))  # type: ignore[return-value]


@jax.jit
def _added(held: Image, seen: Mask, frame: Image, earlier: Image, painted: Image) -> tuple[Image, Mask, Image]:
    """`held` and `seen` with what an earlier frame shows where the nearer ones do not, and its painting, moved."""
    motion = stable.motion(frame, earlier)
    alike = stable.agreement(frame, flow.warp(earlier, motion.flow))
    more = jnp.clip(motion.seen * alike - seen, 0, 1)
    total = seen + more
    share = (more / jnp.maximum(total, 1e-6))[..., None]
    moved = flow.warp(painted, motion.flow)
    return held + share * (moved - held), total, moved
