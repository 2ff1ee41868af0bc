"""Convolutions of features [N, H, W, in] with a kernel [k, k, in, out], without padding: XLA's and faster forms.

The fast forms are for inference on CPU. They compute the same as `conv` up to rounding, in less time than XLA on one
core: `winograd_conv` takes two thirds of it.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from nstjax import convolve
from nstjax.typing import Array

Features = Float[Array, "n h w c"]  # images are features of 3 channels


def conv(
    x: Features, kernel: Float[Array, "k_h k_w _ out"], *, stride: int = 1, groups: int = 1
) -> Float[jax.Array, "n _ _ out"]:
    """Convolution by XLA."""
    return lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel),
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def fast_conv(x: Features, kernel: Float[Array, "k_h k_w c out"], *, stride: int = 1) -> Float[jax.Array, "n _ _ out"]:
    """`conv` in its fastest form on CPU: Winograd's for many channels, in blocks for large kernels of few channels."""
    k, _, c, out = kernel.shape
    if stride == 1 and k == 3 and min(c, out) >= 64:
        return winograd_conv(x, kernel)
    if stride == 1 and k > 3 and c <= 4:
        return blocked_conv(x, kernel, block=(2, 2))
    if stride == 1 and k > 3 and out <= 4:
        return rowwise_conv(x, kernel)
    return conv(x, kernel, stride=stride)


@jax.custom_vjp
def winograd_conv(x: Features, kernel: Float[Array, "3 3 c out"]) -> Float[jax.Array, "n h-2 w-2 out"]:
    """`conv` with a 3x3 kernel by Winograd's algorithm (`nstjax.convolve`), as are its gradients."""
    u = convolve.transform_kernel(kernel)
    params = {"forward": u, "backward": u, "bias": jnp.zeros(())}
    return jax.vmap(lambda x: convolve.conv(x, params)[1:-1, 1:-1])(x)


def _winograd_gradients(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    spread = jnp.pad(g, ((0, 0), (2, 2), (2, 2), (0, 0)))
    return winograd_conv(spread, convolve.flipped(kernel)), convolve.kernel_gradient(x, g)


winograd_conv.defvjp(lambda x, kernel: (winograd_conv(x, kernel), (x, kernel)), _winograd_gradients)


def blocked_conv(
    x: Features, kernel: Float[Array, "k_h k_w c out"], *, block: tuple[int, int]
) -> Float[jax.Array, "n h-k_h+1 w-k_w+1 out"]:
    """`conv` that treats each block of pixels, (rows, columns), as one pixel with as many times the channels.

    It is for few channels, which leave most of a processor's vectors empty: with blocks of 2x2 pixels a kernel of
    9x9x3x32 becomes one of 5x5x12x128.
    """
    (_, h, w, c), (*sides, _, out) = x.shape, kernel.shape
    taps = [-(-(n - 1 + k) // n) for n, k in zip(block, sides, strict=True)]
    shifts = [_shifts(n, t, k) for n, t, k in zip(block, taps, sides, strict=True)]
    kernel = jnp.einsum("uri,vsj,ijco->uvcrso", *shifts, kernel, optimize=True)
    kernel = to_depth(kernel.reshape(1, taps[0] * block[0], taps[1] * block[1], -1), block)[0]
    kernel = kernel.reshape(*taps, math.prod(block) * c, math.prod(block) * out)
    h, w = h - sides[0] + 1, w - sides[1] + 1
    rows, cols = (-(-n // each) + t - 1 for n, each, t in zip((h, w), block, taps, strict=True))
    x = jnp.pad(x, ((0, 0), (0, rows * block[0] - x.shape[1]), (0, cols * block[1] - x.shape[2]), (0, 0)))
    return to_space(conv(to_depth(x, block), kernel), block)[:, :h, :w]


def _shifts(block: int, taps: int, kernel: int) -> Float[np.ndarray, "u r i"]:
    """[u, r, i] is 1 where row i of the kernel meets row u of the blocks it covers, for row r of the result's block."""
    u, r, i = np.ogrid[: taps * block, :block, :kernel]
    return (u == r + i).astype(np.float32)


def rowwise_conv(x: Features, kernel: Float[Array, "k k c out"]) -> Float[jax.Array, "n h-k+1 w-k+1 out"]:
    """`conv` to few channels: each row of the kernel computes channels of its own, in blocks; then they are added."""
    k, _, c, out = kernel.shape
    rows = blocked_conv(x, kernel.transpose(1, 2, 0, 3).reshape(1, k, c, k * out), block=(1, 8))
    h = x.shape[1] - k + 1
    return functools.reduce(jnp.add, [rows[:, i : i + h, :, i * out : (i + 1) * out] for i in range(k)])


def sliced_depthwise(x: Features, kernel: Float[Array, "k k 1 out"]) -> Float[Array, "n h-k+1 w-k+1 out"]:
    """Depthwise `conv`, with a kernel [k, k, 1, in * multiplier], as a sum of shifted slices.

    XLA's convolution in groups is several times slower on CPU.
    """
    (_, h, w, c), k = x.shape, kernel.shape[0]
    h, w, kernel = h - k + 1, w - k + 1, kernel.reshape(k, k, c, -1)
    taps = [x[:, i : i + h, j : j + w, :, None] * kernel[i, j] for i in range(k) for j in range(k)]
    y = functools.reduce(jnp.add, taps)
    return y.reshape(*y.shape[:3], -1)


def merge(
    depthwise: Float[Array, "k k 1 between"], pointwise: Float[Array, "1 1 between out"], *, multiplier: int
) -> Float[jax.Array, "k k between//{multiplier} out"]:
    """The dense kernel [k, k, in, out] that does both steps of a separable convolution; between = in * multiplier."""
    k, _, _, channels = depthwise.shape
    depthwise = depthwise.reshape(k, k, channels // multiplier, multiplier)
    return jnp.einsum("ijcm,cmo->ijco", depthwise, pointwise.reshape(channels // multiplier, multiplier, -1))


def to_depth(x: Features, block: tuple[int, int]) -> Float[jax.Array, "n _ _ _"]:
    """[N, H, W, C] -> [N, H/rows, W/columns, rows columns C] for blocks of (rows, columns)."""
    n, h, w, c = x.shape
    i, j = block
    x = jnp.swapaxes(x.reshape(n, h // i, i, w // j, j, c), 2, 3)
    return x.reshape(n, h // i, w // j, i * j * c)


def to_space(x: Features, block: tuple[int, int]) -> Float[jax.Array, "n _ _ _"]:
    """[N, H, W, rows columns C] -> [N, rows H, columns W, C] for blocks of (rows, columns)."""
    n, h, w, c = x.shape
    i, j = block
    x = jnp.swapaxes(x.reshape(n, h, w, i, j, -1), 2, 3)
    return x.reshape(n, h * i, w * j, c // (i * j))
