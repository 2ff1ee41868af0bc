"""Videos that hold still: how frames move, and painted frames without flicker."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Key

from nstjax import flow
from nstjax.typing import Array, Image, Mask

TOLERANCE = 0.03  # change in the video, in [0, 1], up to which it counts as noise
MOST_GAIN = 1.5  # of detail, a frame
STILL = 0.1  # pixels: a shorter flow is that of noise
FLOW_SIDE = 640  # pixels of the long side: larger frames have their flow estimated at this size
# How much a camera moves between frames, at most: pixels, logarithm of the zoom, radians.
SHIFT, ZOOM, TURN = 8.0, 0.03, 0.03


class Motion(NamedTuple):
    """How a frame follows from an earlier one."""

    flow: Float[Array, "_ _ 2"]  # from the frame to the earlier one
    seen: Mask  # 1 where the earlier one shows the same and the flow is sure, else 0


class Before(NamedTuple):
    """What `steady` keeps of the frames so far."""

    frame: Image  # the last one
    reference: Image  # the average of frames
    painted: Image  # the average of painted frames


@partial(jax.jit, static_argnames=("warps", "iterations", "side"))
def motion(frame: Image, earlier: Image, *, warps: int = 5, iterations: int = 20, side: int | None = None) -> Motion:
    """Estimate how a frame follows from an earlier one, by `flow.tv_l1` in both directions.

    Args:
        side: estimate at this long side in pixels, if the frames are larger; by default at their own.
    """
    shape = frame.shape[:2]
    factor = 1 if side is None else min(1, side / max(shape))
    small = tuple(max(2, round(factor * n)) for n in shape)
    a, b = (x if small == shape else jax.image.resize(x, (*small, 3), "linear") for x in (frame, earlier))
    there, back = (flow.tv_l1(*pair, warps=warps, iterations=iterations) for pair in ((a, b), (b, a)))
    seen = flow.consistent(there, back)
    if small == shape:
        return Motion(there, seen)
    scale = jnp.array([shape[1] / small[1], shape[0] / small[0]])
    return Motion(scale * jax.image.resize(there, (*shape, 2), "linear"), jax.image.resize(seen, shape, "linear"))


def shaken(image: Image, key: Key[Array, ""], *, noise: float = 0.02) -> tuple[Image, Motion]:
    """Make the next frame of a photo, as if by a camera that shifts, zooms and turns a little, with its noise.

    The motion is known exactly, so that nets can learn from photos alone to paint videos that hold still
    (`train.perceptual`).

    Args:
        key: of the motion, uniform up to 8 pixels, 3 % and 0.03 radians, and of the noise.
        noise: standard deviation, of values in [0, 1].

    Returns:
        (the next frame, its motion from the image: `seen` is 0 where it looks beyond the image's border).
    """
    of_motion, of_noise = jax.random.split(key)
    dx, dy, zoom, turn = jax.random.uniform(of_motion, (4,), minval=-1) * jnp.array([SHIFT, SHIFT, ZOOM, TURN])
    h, w = image.shape[:2]
    y, x = jnp.mgrid[:h, :w] - jnp.array([h - 1, w - 1])[:, None, None] / 2
    cos, sin = jnp.exp(zoom) * jnp.cos(turn), jnp.exp(zoom) * jnp.sin(turn)
    along = jnp.stack([cos * x - sin * y + dx - x, sin * x + cos * y + dy - y], -1)
    moved = flow.warp(image, along) + noise * jax.random.normal(of_noise, image.shape)
    return jnp.clip(moved, 0, 1), Motion(along, flow.inside(along))


def first(frame: Image, painted: Image) -> Before:
    """What `steady` needs for the first frame."""
    return Before(frame, frame, painted)


def steady(before: Before, frame: Image, painted: Image, *, strength: Float[Array, ""] | float) -> tuple[Before, Image]:
    """Remove the flicker of a painted frame, which is painted independently of the others.

    The image before is moved along the optical flow of the video. Where it then shows the same as this frame, up to
    noise, the share `strength` of it is kept; the more it differs, the less is kept, down to nothing, and nothing where
    the flow is unsure or the scene was hidden (Ruder 2016). Detail gets the contrast back that averages take from it.

    Args:
        before: what this function returns; for the first frame, `first(frame, painted)`. Frames and painted frames are
            averaged with the same weights, so that slow changes count once they add up.
        strength: in [0, 1].

    Returns:
        (`before` for the next frame, the painted frame without flicker).
    """
    moved = motion(frame, before.frame, warps=3, iterations=10, side=FLOW_SIDE)
    # Noise must not blur what stands still, a little at every frame.
    still = (moved.flow**2).sum(-1, keepdims=True) < STILL**2
    along = jnp.where(still, 0.0, moved.flow)
    reference, average = (flow.warp(x, along) for x in (before.reference, before.painted))
    alike = agreement(frame, reference)[..., None]
    kept = strength * jnp.where(still, 1.0, moved.seen[..., None]) * alike
    mixed = _with_detail(painted + kept * (average - painted), painted)
    return Before(frame, frame + kept * (reference - frame), mixed), mixed


def _with_detail(image: Image, painted: Image) -> Image:
    """An image with the contrast of the painted one's detail nearby: means of strokes are fainter than strokes."""
    detail, wanted = (x - _mean(x, 2) for x in (image, painted))
    energy, goal = (_mean((x**2).mean(-1, keepdims=True), 7) for x in (detail, wanted))
    gain = jnp.clip(jnp.sqrt(goal / jnp.maximum(energy, 1e-8)), 1, MOST_GAIN)
    return jnp.clip(image + (gain - 1) * detail, 0, 1)


def agreement(frame: Image, other: Image) -> Mask:
    """1 where two frames show the same, up to noise, down to 0 where they differ: of their surroundings."""
    change = _mean((_mean(frame - other, 1) ** 2).mean(-1, keepdims=True), 3)[..., 0]
    return jnp.exp(-change / TOLERANCE**2)


def _mean(x: Float[Array, "h w c"], n: int) -> Float[Array, "h w c"]:
    """The mean of the square of 2n + 1 by 2n + 1 pixels around each pixel; the border is repeated outward."""
    x = jnp.pad(x, ((n, n), (n, n), (0, 0)), mode="edge")
    return lax.reduce_window(x, 0.0, lax.add, (2 * n + 1, 2 * n + 1, 1), (1, 1, 1), "VALID") / (2 * n + 1) ** 2
