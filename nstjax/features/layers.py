"""What the extractors share: convolutions of any kernel, ReLU, instance norm, pooling."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nstjax import convolve

Features = Float[Array | np.ndarray, "h w c"]  # jax itself calls rules for gradients with numpy's arrays


def conv(
    x: Float[Array, "h w in_"], p: Mapping[str, Any], *, padding: int | None = None
) -> Float[Array, "h_out w_out out"]:
    """Return a convolution of x.

    Args:
        p: {"kernel" [h, w, in, out], "bias" [out]}, or {"strided", "bias"} for one that moves by two pixels, so that
            the weights say where a network halves its image; or parameters of `nstjax.convolve`.
        padding: rows and columns of zeros around x; by default half the kernel, which keeps the size.
    """
    if "forward" in p:
        return convolve.conv(x, p)
    kernel, stride = (p["strided"], 2) if "strided" in p else (p["kernel"], 1)
    if kernel.shape[:2] == (1, 1):
        return x[::stride, ::stride] @ kernel[0, 0] + p["bias"]
    pads = [(size // 2 if padding is None else padding,) * 2 for size in kernel.shape[:2]]
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x[None], kernel, (stride, stride), pads, dimension_numbers=dims)[0] + p["bias"]


@jax.custom_vjp
def relu(x: Float[Array | np.ndarray, "*shape"]) -> Float[Array, "*shape"]:
    """max(x, 0), whose gradient is computed from its result, so that the convolution's result need not be kept."""
    return jnp.maximum(x, 0)


relu.defvjp(lambda x: (relu(x),) * 2, lambda y, g: (jnp.where(y > 0, g, 0),))


def instance_norm(x: Features, *, epsilon: float = 1e-5) -> Float[Array, "h w c"]:
    """Features with mean 0 and variance 1 in each channel (Ulyanov 2016, arXiv 1607.08022), without scale and bias.

    epsilon: added to the variance, so that a constant channel becomes 0.
    """
    centered = jnp.asarray(x) - x.mean((0, 1))
    return centered * jax.lax.rsqrt(jnp.square(centered).mean((0, 1)) + epsilon)


def _quads(x: Features) -> Float[Array, "h2 2 w2 2 c"]:
    """An odd last row or column is left out, as in Caffe's and Torch's floor mode."""
    h, w, c = x.shape
    return jnp.asarray(x)[: h // 2 * 2, : w // 2 * 2].reshape(h // 2, 2, w // 2, 2, c)


@jax.custom_vjp
def max_pool(x: Features) -> Float[Array, "h//2 w//2 c"]:
    """Maximum over 2x2 pixels.

    Its gradient goes to every maximum: after a ReLU ties are zeros, where it makes no difference, and a comparison is
    several times faster than XLA's select-and-scatter.
    """
    return _quads(x).max((1, 3))


def _max_pool_backward(residuals: tuple[Any, Any], g: Features) -> tuple[Float[Array, "_ _ _"]]:
    x, y = residuals
    g = jnp.where(_quads(x) == y[:, None, :, None], g[:, None, :, None], 0)
    h, _, w, _, c = g.shape
    pad = [(0, n - m) for n, m in zip(x.shape, (2 * h, 2 * w, c), strict=True)]
    return (jnp.pad(g.reshape(2 * h, 2 * w, c), pad),)


max_pool.defvjp(lambda x: (max_pool(x), (x, max_pool(x))), _max_pool_backward)


def average_pool(x: Features) -> Float[Array, "h//2 w//2 c"]:
    """Mean over 2x2 pixels (Gatys 2015 prefers it for synthesis)."""
    return _quads(x).mean((1, 3))


def overlapping_max_pool(
    x: Float[Array, "h w c"], *, padding: int = 1, ceil: bool = False
) -> Float[Array, "h_out w_out c"]:
    """Maximum over 3x3 pixels every two; about half the size, at least 1 x 1.

    Args:
        padding: rows and columns around x that count as nothing.
        ceil: a last window may extend over the edge, as in Caffe.
    """
    pads = []
    for size in x.shape[:2]:
        left = size + 2 * padding - 3
        count = max(0, -(-left // 2) if ceil else left // 2) + 1
        pads.append((padding, max(0, 2 * count + 1 - size - padding)))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3, 3, 1), (2, 2, 1), (*pads, (0, 0)))
