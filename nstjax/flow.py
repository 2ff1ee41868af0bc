"""Optical flow: where each pixel of an image is in another, and what becomes hidden in between.

    flow.tv_l1(image, other)          dense flow, estimated from the two images
    flow.warp(other, flow)            the other image, moved onto the first
    flow.consistent(flow, back)       1 where a pixel is visible in both images, else 0

A flow is [H, W, 2], in pixels: (right, down) from a pixel of the image to the same point of the scene in the other.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from nstjax.typing import Array, Image

Flow = Float[Array, "h w 2"]
Plane = Float[Array, "h w"]

LEAST_SIDE = 4  # pixels, about, of the short side at the coarsest level
# Zach 2007's and Sanchez Perez 2013's: weight of the data in levels of 255, tightness, and step of the dual variables.
DATA, TIGHTNESS, DUAL_STEP = 0.15, 0.3, 0.25
LUMINANCE = (0.299, 0.587, 0.114)


@partial(jax.jit, static_argnames=("warps", "iterations"))
def tv_l1(image: Image, other: Image, *, warps: int = 5, iterations: int = 20) -> Float[Array, "_ _ 2"]:
    """Dense flow from an image to another by TV-L1: of all flows the one that minimizes

        sum |grad u| + |grad v| + 0.15 |other(x + u, y + v) - image(x, y)|,  luminance in levels of 255,

    from coarse to fine (Zach 2007, doi 10.1007/978-3-540-74936-3_22; Sanchez Perez 2013, doi 10.5201/ipol.2013.26),
    with a median of 3 x 3 pixels after each warp (Sun 2010, doi 10.1109/CVPR.2010.5539939). Total variation keeps
    motion edges sharp and fills areas without texture from around them; images of one color have a flow of 0. Compiled
    once for each shape.

    Args:
        image, other: of one shape, at least 2 x 2 pixels, in [0, 1].
        warps: linearizations at each size.
        iterations: of the dual algorithm, at each warp.
    """
    if image.shape != other.shape or min(image.shape[:2]) < 2:
        raise ValueError(f"images of one shape, of 2x2 pixels or more, are needed, not {image.shape}, {other.shape}")
    levels = [tuple(255 * _blurred(x @ jnp.array(LUMINANCE, jnp.float32)) for x in (image, other))]
    for _ in range(max(0, math.floor(math.log2(min(image.shape[:2]) / LEAST_SIDE)))):
        levels.append(tuple(_halved(x) for x in levels[-1]))
    found: Any = jnp.zeros((*levels[-1][0].shape, 2))
    for a, b in reversed(levels):
        if found.shape[:2] != a.shape:
            scale = jnp.array([a.shape[1] / found.shape[1], a.shape[0] / found.shape[0]])
            found = scale * jax.image.resize(found, (*a.shape, 2), "linear")
        found = _refined(a, b, found, warps, iterations)
    return found


def _refined(a: Plane, b: Plane, flow: Flow, warps: int, iterations: int) -> Flow:
    """A flow from a to b at one size, improved by linearizations around it."""
    slopes = jnp.stack([*_central(b), b], -1)  # (d/dx, d/dy, b), which are warped together

    def warped(_: Any, flow: Any) -> Any:
        at = warp(slopes, flow)
        gx, gy = at[..., 0], at[..., 1]
        rest = at[..., 2] - a - gx * flow[..., 0] - gy * flow[..., 1]
        # Pixels that come from outside the image have no data term.
        bound = DATA * TIGHTNESS * inside(flow)
        scale = 1 / jnp.maximum(gx**2 + gy**2, 1e-6)

        def iterate(_: Any, state: Any) -> Any:
            u, v, dual_u, dual_v = state
            # The minimizer of the data term (Zach 2007, eq. 15), and Chambolle's steps of the dual variables.
            step = jnp.clip(-scale * (rest + gx * u + gy * v), -bound, bound)
            u = u + step * gx + TIGHTNESS * _divergence(*dual_u)
            v = v + step * gy + TIGHTNESS * _divergence(*dual_v)
            return u, v, _ascended(u, *dual_u), _ascended(v, *dual_v)

        zero = jnp.zeros_like(a)
        start = (flow[..., 0], flow[..., 1], (zero, zero), (zero, zero))
        u, v, _, _ = lax.fori_loop(0, iterations, iterate, start)
        return jnp.stack([_median(u), _median(v)], -1)

    return lax.fori_loop(0, warps, warped, flow)


def warp(image: Float[Array, "h w c"], flow: Flow) -> Float[Array, "h w c"]:
    """The image moved along a flow: at each pixel p, image(p + flow(p)), bilinear; the border is repeated outward.

    Differentiable in both.
    """
    h, w = flow.shape[:2]
    x = jnp.clip(jnp.arange(w) + flow[..., 0], 0, w - 1)
    y = jnp.clip(jnp.arange(h)[:, None] + flow[..., 1], 0, h - 1)
    left = jnp.clip(jnp.floor(x), 0, max(w - 2, 0)).astype(int)
    top = jnp.clip(jnp.floor(y), 0, max(h - 2, 0)).astype(int)
    right, bottom = jnp.minimum(left + 1, w - 1), jnp.minimum(top + 1, h - 1)
    dx, dy = (x - left)[..., None], (y - top)[..., None]
    pixels = jnp.asarray(image)
    upper = (1 - dx) * pixels[top, left] + dx * pixels[top, right]
    lower = (1 - dx) * pixels[bottom, left] + dx * pixels[bottom, right]
    return (1 - dy) * upper + dy * lower


def occluded(flow: Flow, back: Flow) -> Plane:
    """1 where a pixel is hidden or outside in the other image, else 0 (Ruder 2016, arXiv 1604.08610, eq. 5).

    That is where following the flow and then `back`, the other image's flow to this one, does not return:
    |flow + back'|^2 > 0.01 (|flow|^2 + |back'|^2) + 0.5, with back' at the flow's end.
    """
    there = warp(back, flow)
    missed = _square(flow + there) > 0.01 * (_square(flow) + _square(there)) + 0.5
    return jnp.where(missed | (inside(flow) == 0), 1.0, 0.0)


def motion_edges(flow: Flow) -> Plane:
    """1 at motion edges, where a flow is unsure, else 0: |grad u|^2 + |grad v|^2 > 0.01 |flow|^2 + 0.002 (eq. 6)."""
    slopes = jnp.stack([jnp.stack(_central(flow[..., i]), -1) for i in range(2)], -1)
    return jnp.where((slopes**2).sum((-1, -2)) > 0.01 * _square(flow) + 0.002, 1.0, 0.0)


def consistent(flow: Flow, back: Flow) -> Plane:
    """1 where a pixel is visible in both images and its flow is sure, else 0: Ruder's weights c.

    Args:
        flow: from this image to the other; back: from the other to this one.
    """
    return (1 - occluded(flow, back)) * (1 - motion_edges(flow))


def _square(flow: Flow) -> Plane:
    return (flow**2).sum(-1)


def inside(flow: Flow) -> Plane:
    """1 where a flow ends inside of the image, up to half a pixel, else 0."""
    h, w = flow.shape[:2]
    x, y = jnp.arange(w) + flow[..., 0], jnp.arange(h)[:, None] + flow[..., 1]
    return jnp.where((x >= -0.5) & (x <= w - 0.5) & (y >= -0.5) & (y <= h - 0.5), 1.0, 0.0)


def _central(x: Plane) -> tuple[Plane, Plane]:
    """(d/dx, d/dy) by central differences; the border is repeated outward."""
    p = jnp.pad(x, 1, mode="edge")
    return (p[1:-1, 2:] - p[1:-1, :-2]) / 2, (p[2:, 1:-1] - p[:-2, 1:-1]) / 2


def _ascended(u: Plane, along_x: Plane, along_y: Plane) -> tuple[Plane, Plane]:
    """The dual variables of |grad u| after a step (Sanchez Perez 2013, eq. 12); 0 at the far borders."""
    gx = jnp.pad(u[:, 1:] - u[:, :-1], ((0, 0), (0, 1)))
    gy = jnp.pad(u[1:] - u[:-1], ((0, 1), (0, 0)))
    k = DUAL_STEP / TIGHTNESS
    length = 1 + k * jnp.sqrt(gx**2 + gy**2)
    return (along_x + k * gx) / length, (along_y + k * gy) / length


def _divergence(x: Plane, y: Plane) -> Plane:
    """The divergence of what is 0 at the far borders: minus the adjoint of forward differences."""
    return x - jnp.pad(x[:, :-1], ((0, 0), (1, 0))) + y - jnp.pad(y[:-1], ((1, 0), (0, 0)))


def _median(x: Plane) -> Plane:
    """The median of 3 x 3 pixels."""
    h, w = x.shape
    p = jnp.pad(x, 1, mode="edge")
    nine = [p[i : i + h, j : j + w] for i in range(3) for j in range(3)]
    for i, j in _MEDIAN_OF_NINE:
        nine[i], nine[j] = jnp.minimum(nine[i], nine[j]), jnp.maximum(nine[i], nine[j])
    return nine[4]


# Exchanges after which the fifth of nine numbers is their median: columns sorted, then rows, then the diagonal.
_COLUMNS = [(i, i + 1) for start in (0, 3, 6) for i in (start + 1, start, start + 1)]
_MEDIAN_OF_NINE = [*_COLUMNS, (0, 3), (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2)]


def _blurred(x: Plane) -> Plane:
    """A binomial filter of 3 x 3 pixels, against noise."""
    h, w = x.shape
    x = jnp.pad(x, 1, mode="edge")
    x = (x[:-2] + 2 * x[1:-1] + x[2:]) / 4
    return (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4


def _halved(x: Plane) -> Float[Array, "_ _"]:
    """At half the size, rounded up, antialiased."""
    return jax.image.resize(x, (-(-x.shape[0] // 2), -(-x.shape[1] // 2)), "linear")
