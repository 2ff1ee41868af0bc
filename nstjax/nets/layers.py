"""What the nets are built from: padding, resizing, norms and convolutions of pictures and features [N, H, W, C].

The convolutions have fast forms for inference on CPU: the same parameters and, to rounding, the same result. On one
core they take from two thirds (`winograd_conv`) to an eighth (`upsampled_conv`) of the time of XLA's own.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nstjax import convolve

# --- padding by n pixels on each side


def _pad(x, n, mode):
    return _pad_each(x, ((n, n), (n, n), (0, 0)), mode) if n else x


def _pad_each(x, widths, mode):
    """Images [N, H, W, C] padded one by one: jax 0.7 cannot reflect an axis of unknown length, not even by 0 pixels."""
    return jax.vmap(lambda each: jnp.pad(each, widths, mode=mode))(x)


def reflect(x, n):
    """Mirrored at the border pixels, which are not repeated; several times if a side is not longer than n."""
    return _pad(x, n, "reflect")


def edge(x, n):
    """The border pixels repeated."""
    return _pad(x, n, "edge")


def circular(x, n):
    """As if the picture were laid in tiles."""
    return _pad(x, n, "wrap")


def zero(x, n):
    """Zeros."""
    return _pad(x, n, "constant")


def same(x, n):
    """n - 1 zeros above and on the left, n below and on the right: TensorFlow's SAME for stride 2 and even sides."""
    return jnp.pad(x, ((0, 0), (n - 1, n), (n - 1, n), (0, 0)))


def valid(x, n):
    """Nothing: a convolution loses n pixels on each side."""
    return x


def pad_to_multiple(x, n):
    """Reflected below and on the right until both sides are multiples of n."""
    _, h, w, _ = x.shape
    return _pad_each(x, ((0, -h % n), (0, -w % n), (0, 0)), "reflect")


# --- resizing


def nearest(x):
    """Every pixel twice in each direction: [N, H, W, C] -> [N, 2H, 2W, C]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def bilinear(x):
    """Linear between pixels' centres, constant past the outermost ones: [N, H, W, C] -> [N, 2H, 2W, C]."""
    n, h, w, c = x.shape
    p = edge(x, 1)[:, :, 1:-1]
    x = jnp.stack([p[:, :-2] + 3 * x, 3 * x + p[:, 2:]], 2).reshape(n, 2 * h, w, c)
    p = edge(x, 1)[:, 1:-1]
    return jnp.stack([p[:, :, :-2] + 3 * x, 3 * x + p[:, :, 2:]], 3).reshape(n, 2 * h, 2 * w, c) / 16


def nearest_and_bilinear(x):
    """Both, concatenated: [N, H, W, C] -> [N, 2H, 2W, 2C] (Pandey 2018, arXiv 1807.05927)."""
    return jnp.concatenate([nearest(x), bilinear(x)], -1)


def halve(x):
    """Mean over 2x2 pixels, an odd last row or column repeated: [N, H, W, C] -> [N, ceil(H/2), ceil(W/2), C]."""
    n, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return x.reshape(n, -(-h // 2), 2, -(-w // 2), 2, c).mean((2, 4))


# --- norms


def instance_norm(x, *, moments=None, epsilon=1e-5):
    """Every channel of every picture with mean 0 and variance 1 over its pixels (Ulyanov 2016, arXiv 1607.08022).

    moments: (mean, variance), each [N, 1, 1, C], where x is but a part of the picture.
    """
    mean, variance = moments or (x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True))
    return (x - mean) * lax.rsqrt(variance + epsilon)


class InstanceNorm(nn.Module):
    """`instance_norm`, then a trained scale and bias for each channel; the same in training and inference."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, *, train=False, moments=None):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return instance_norm(x, moments=moments, epsilon=self.epsilon) * scale + bias


class BatchNorm(nn.Module):
    """Batch normalisation over pictures and pixels (Ioffe 2015, arXiv 1502.03167).

    Training uses the batch, which may be spread over pmap's axis `axis_name`, and moves the averages in the collection
    "batch_stats" by a tenth; inference uses these.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train=False):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name, name="batch")
        return norm(x)


# --- convolutions of x [N, H, W, in] with a kernel [k, k, in, out], without padding


def conv(x, kernel, *, stride=1, groups=1):
    """Convolution by XLA."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def fast_conv(x, kernel, *, stride=1):
    """`conv` in the fastest form on CPU: Winograd's for many channels, in blocks for large kernels of few channels."""
    k, _, c, out = kernel.shape
    if stride == 1 and k == 3 and min(c, out) >= 64:
        return winograd_conv(x, kernel)
    if stride == 1 and k > 3 and c <= 4:
        return blocked_conv(x, kernel, block=(2, 2))
    if stride == 1 and k > 3 and out <= 4:
        return rowwise_conv(x, kernel)
    return conv(x, kernel, stride=stride)


@jax.custom_vjp
def winograd_conv(x, kernel):
    """`conv` with a 3x3 kernel by Winograd's algorithm (`nstjax.convolve`); the gradients are the plain form's."""
    u = convolve.transform_kernel(kernel)
    params = {"forward": u, "backward": u, "bias": jnp.zeros(())}
    return jax.vmap(lambda x: convolve.conv(x, params)[1:-1, 1:-1])(x)


winograd_conv.defvjp(
    lambda x, kernel: (winograd_conv(x, kernel), (x, kernel)),
    lambda residuals, g: jax.vjp(conv, *residuals)[1](g),
)


def blocked_conv(x, kernel, *, block):
    """`conv` in which a block of pixels, (rows, columns), is one pixel with as many times the channels.

    For few channels, which leave most of a processor's vectors empty: 9x9x3x32 becomes 5x5x12x128 for blocks of 2x2.
    """
    (_, h, w, c), (*sides, _, out) = x.shape, kernel.shape
    taps = [-(-(n - 1 + k) // n) for n, k in zip(block, sides, strict=True)]
    places = [_places(n, t, k) for n, t, k in zip(block, taps, sides, strict=True)]
    kernel = jnp.einsum("uri,vsj,ijco->uvcrso", *places, kernel, optimize=True)
    kernel = _to_depth(kernel.reshape(1, taps[0] * block[0], taps[1] * block[1], -1), block)[0]
    kernel = kernel.reshape(*taps, math.prod(block) * c, math.prod(block) * out)
    h, w = h - sides[0] + 1, w - sides[1] + 1
    rows, cols = (-(-n // each) + t - 1 for n, each, t in zip((h, w), block, taps, strict=True))
    x = jnp.pad(x, ((0, 0), (0, rows * block[0] - x.shape[1]), (0, cols * block[1] - x.shape[2]), (0, 0)))
    return _to_space(conv(_to_depth(x, block), kernel), block)[:, :h, :w]


def _places(block, taps, kernel):
    """1 where a kernel's row i falls on row u of the blocks it reaches, for row r of the result's block: [u, r, i]."""
    u, r, i = np.ogrid[: taps * block, :block, :kernel]
    return (u == r + i).astype(np.float32)


def rowwise_conv(x, kernel):
    """`conv` to few channels: each of the kernel's rows gives channels of its own, in blocks, which are then added."""
    k, _, c, out = kernel.shape
    rows = blocked_conv(x, kernel.transpose(1, 2, 0, 3).reshape(1, k, c, k * out), block=(1, 8))
    h = x.shape[1] - k + 1
    return functools.reduce(jnp.add, [rows[:, i : i + h, :, i * out : (i + 1) * out] for i in range(k)])


def _to_depth(x, block):
    """[N, H, W, C] -> [N, H/rows, W/columns, rows columns C] for blocks of (rows, columns)."""
    n, h, w, c = x.shape
    i, j = block
    x = jnp.swapaxes(x.reshape(n, h // i, i, w // j, j, c), 2, 3)
    return x.reshape(n, h // i, w // j, i * j * c)


def _to_space(x, block):
    """[N, H, W, rows columns C] -> [N, rows H, columns W, C] for blocks of (rows, columns)."""
    n, h, w, c = x.shape
    i, j = block
    x = jnp.swapaxes(x.reshape(n, h, w, i, j, -1), 2, 3)
    return x.reshape(n, h * i, w * j, c // (i * j))


# Resizing and a 3x3 convolution are together a 3x3 convolution of the small picture, with a kernel for each of four
# pixels. Along one axis, [parity of the result's pixel, pixel of the small picture, tap of the kernel]:
NEAREST = np.array([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]])
BILINEAR = np.array([[[3, 1, 0], [1, 3, 3], [0, 0, 1]], [[1, 0, 0], [3, 3, 1], [0, 1, 3]]]) / 4
TAPS = {nearest: (NEAREST,), bilinear: (BILINEAR,), nearest_and_bilinear: (NEAREST, BILINEAR)}


def upsampled_conv(x, kernel, *, upsample):
    """conv(edge(upsample(x), 1), kernel) for a 3x3 kernel, [N, H, W, C] -> [N, 2H, 2W, out], at the small size.

    By Winograd's algorithm it needs a quarter of the multiplications for `nearest`, an eighth for both resizings.
    """
    c, out = x.shape[3], kernel.shape[3]
    parts = zip(TAPS[upsample], jnp.split(kernel, len(TAPS[upsample]), axis=2), strict=True)
    small = jnp.stack([jnp.einsum("pai,qbj,ijco->abcpqo", t, t, part, optimize=True) for t, part in parts]).sum(0)
    return _to_space(fast_conv(edge(x, 1), small.reshape(3, 3, c, 4 * out)), (2, 2))


def sliced_depthwise(x, kernel):
    """Depthwise `conv`, kernel [k, k, 1, in * multiplier], as a sum of shifted slices.

    XLA's convolution in groups is several times slower on CPU.
    """
    (_, h, w, c), k = x.shape, kernel.shape[0]
    h, w, kernel = h - k + 1, w - k + 1, kernel.reshape(k, k, c, -1)
    taps = [x[:, i : i + h, j : j + w, :, None] * kernel[i, j] for i in range(k) for j in range(k)]
    y = functools.reduce(jnp.add, taps)
    return y.reshape(*y.shape[:3], -1)


def merge(depthwise, pointwise, *, multiplier):
    """The dense kernel [k, k, in, out] of kernels [k, k, 1, in * multiplier] and [1, 1, in * multiplier, out]."""
    k, _, _, channels = depthwise.shape
    depthwise = depthwise.reshape(k, k, channels // multiplier, multiplier)
    return jnp.einsum("ijcm,cmo->ijco", depthwise, pointwise.reshape(channels // multiplier, multiplier, -1))


# --- layers


def _init(gain):
    """Kernels that multiply the mean square of their input by `gain`: 2 before a ReLU (He 2015, arXiv 1502.01852)."""
    return nn.initializers.variance_scaling(gain, "fan_in", "truncated_normal")


class Conv(nn.Module):
    """Convolution [N, H, W, C] -> [N, ceil(H/stride), ceil(W/stride), features], or twice the size with `upsample`.

    pad: adds the kernel's half on each side; after `upsample` (a resizing of this module) it is always `edge`, which
    `reflect` equals for `nearest`. gain: of the initial kernel. fast: the fast form for CPU.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    pad: Callable = reflect
    upsample: Callable | None = None
    bias: bool = False
    gain: float = 2.0
    fast: bool = False

    @nn.compact
    def __call__(self, x):
        kernel = self.param(
            "kernel", _init(self.gain), (self.kernel, self.kernel, _channels(x, self.upsample), self.features)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.bias else 0
        if self.fast and self.upsample in TAPS and self.kernel == 3:
            return upsampled_conv(x, kernel, upsample=self.upsample) + bias
        x = _padded(x, self)
        return (fast_conv if self.fast else conv)(x, kernel, stride=self.stride) + bias


class DepSep(nn.Module):
    """Depthwise separable convolution (Pandey 2018): every channel by `multiplier` kernels, then 1x1. Else as `Conv`.

    Nothing stands between the two, so that the fast form can merge them into one dense kernel.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    pad: Callable = reflect
    upsample: Callable | None = None
    bias: bool = False
    gain: float = 2.0
    fast: bool = False
    multiplier: int = 4

    @nn.compact
    def __call__(self, x):
        channels = self.multiplier * _channels(x, self.upsample)
        depthwise = self.param("depthwise", _init(1.0), (self.kernel, self.kernel, 1, channels))
        pointwise = self.param("pointwise", _init(self.gain), (1, 1, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.bias else 0
        dense = functools.partial(merge, depthwise, pointwise, multiplier=self.multiplier)
        if self.fast and self.upsample in TAPS and self.kernel == 3:
            return upsampled_conv(x, dense(), upsample=self.upsample) + bias
        x = _padded(x, self)
        if self.fast and (self.multiplier > 1 or self.stride > 1):
            return fast_conv(x, dense(), stride=self.stride) + bias
        if self.fast:
            return conv(sliced_depthwise(x, depthwise), pointwise) + bias
        return conv(conv(x, depthwise, stride=self.stride, groups=x.shape[3]), pointwise) + bias


def _channels(x, upsample):
    return x.shape[3] if upsample is None else jax.eval_shape(upsample, x).shape[3]


def _padded(x, layer):
    """What the layer's convolution sees."""
    n = layer.kernel // 2
    return layer.pad(x, n) if layer.upsample is None else edge(layer.upsample(x), n)


class FractionallyStrided(nn.Module):
    """3x3 convolution with stride 1/2, [N, H, W, C] -> [N, 2H, 2W, features]: zeros between and around the pixels.

    zeros: before and after the pixels, 3 together. With (1, 2) the result's pixel 2i lies over pixel i, as after a
    convolution with stride 2 that pads both sides; with (2, 1), TensorFlow's, 2i + 1 does, as after `same`.
    """

    features: int
    bias: bool = False
    zeros: tuple[int, int] = (1, 2)

    @nn.compact
    def __call__(self, x):
        # A pixel of the result sees a quarter of the kernel.
        kernel = self.param("kernel", _init(8.0), (3, 3, x.shape[3], self.features))
        y = lax.conv_general_dilated(
            x, kernel, (1, 1), (self.zeros, self.zeros), lhs_dilation=(2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + self.param("bias", nn.initializers.zeros, (self.features,)) if self.bias else y
