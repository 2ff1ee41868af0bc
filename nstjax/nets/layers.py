"""What the nets are built from: padding, resizing, norms and convolutions of images and features [N, H, W, C].

With `fast=True` a convolution takes a fast form for inference on CPU (`nets.convolutions`), which has the same
parameters and, up to rounding, the same result. On one core, `upsampled_conv` takes an eighth of XLA's time.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from nstjax.nets.convolutions import Features, conv, fast_conv, merge, sliced_depthwise, to_space
from nstjax.typing import Array

Output = Float[jax.Array, "n _ _ _"]  # features that are computed
Padded = Float[Array, "n _ _ c"]
Moments = tuple[Float[Array, "n 1 1 c"], Float[Array, "n 1 1 c"]]  # mean and variance of each channel of each image
Pad = Callable[[Any, int], Array]  # (features, pixels on each side) -> features
Resize = Callable[[Any], Array]

# --- padding by n pixels on each side


def _pad(x: Features, n: int, mode: str) -> Padded:
    return _pad_each(x, ((n, n), (n, n), (0, 0)), mode) if n else x


def _pad_each(x: Features, widths: tuple[tuple[int, int], ...], mode: str) -> Padded:
    """Pad one image after another: jax 0.7 cannot reflect an axis of unknown length, not even by 0 pixels."""
    return jax.vmap(lambda each: jnp.pad(each, widths, mode=mode))(x)


def reflect(x: Features, n: int) -> Padded:
    """Reflect at the border pixels, which are not repeated; several times if a side is not longer than n."""
    return _pad(x, n, "reflect")


def edge(x: Features, n: int) -> Padded:
    """Repeat the border pixels."""
    return _pad(x, n, "edge")


def circular(x: Features, n: int) -> Padded:
    """Continue the image by itself, as if it were laid in tiles."""
    return _pad(x, n, "wrap")


def zero(x: Features, n: int) -> Padded:
    """Pad by zeros."""
    return _pad(x, n, "constant")


def same(x: Features, n: int) -> Padded:
    """Pad by n - 1 zeros above and on the left, n below and on the right.

    That is TensorFlow's SAME for stride 2 and even sides.
    """
    return jnp.pad(x, ((0, 0), (n - 1, n), (n - 1, n), (0, 0)))


def valid(x: Features, n: int) -> Padded:
    """Pad by nothing, so that a convolution loses n pixels on each side."""
    return x


def pad_to_multiple(x: Features, n: int) -> Padded:
    """Reflect below and on the right until both sides are multiples of n."""
    _, h, w, _ = x.shape
    return _pad_each(x, ((0, -h % n), (0, -w % n), (0, 0)), "reflect")


# --- resizing


def nearest(x: Features) -> Float[jax.Array, "n 2*h 2*w c"]:
    """Repeat every pixel twice in each direction."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def bilinear(x: Features) -> Float[jax.Array, "n 2*h 2*w c"]:
    """Interpolate linearly to twice the size; the border pixels' values continue outwards from their centers."""
    n, h, w, c = x.shape
    p = edge(x, 1)[:, :, 1:-1]
    x = jnp.stack([p[:, :-2] + 3 * x, 3 * x + p[:, 2:]], 2).reshape(n, 2 * h, w, c)
    p = edge(x, 1)[:, 1:-1]
    return jnp.stack([p[:, :, :-2] + 3 * x, 3 * x + p[:, :, 2:]], 3).reshape(n, 2 * h, 2 * w, c) / 16


def nearest_and_bilinear(x: Features) -> Float[jax.Array, "n 2*h 2*w 2*c"]:
    """Concatenate the channels of both resizings (Pandey 2018, arXiv 1807.05927)."""
    return jnp.concatenate([nearest(x), bilinear(x)], -1)


def halve(x: Features) -> Float[jax.Array, "n (h+1)//2 (w+1)//2 c"]:
    """Take the mean over 2x2 pixels, after repeating an odd last row or column."""
    n, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return x.reshape(n, -(-h // 2), 2, -(-w // 2), 2, c).mean((2, 4))


# --- norms


def instance_norm(x: Features, *, moments: Moments | None = None, epsilon: float = 1e-5) -> Features:
    """Give every channel of every image mean 0 and variance 1 over its pixels (Ulyanov 2016, arXiv 1607.08022).

    Args:
        moments: mean and variance of the whole image, where x is only a part of it; by default those of x.
    """
    mean, variance = moments or (x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True))
    return (x - mean) * lax.rsqrt(variance + epsilon)


class InstanceNorm(nn.Module):
    """`instance_norm`, then a trained scale and bias for each channel; the same in training and inference."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Features, *, train: bool = False, moments: Moments | None = None) -> Features:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return instance_norm(x, moments=moments, epsilon=self.epsilon) * scale + bias


class BatchNorm(nn.Module):
    """Batch normalization over images and pixels (Ioffe 2015, arXiv 1502.03167).

    Training normalizes by the batch, which may be spread over the devices of pmap's axis `axis_name`, and moves the
    running averages in the collection "batch_stats" a tenth of the way towards it; inference normalizes by these.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Features, *, train: bool = False) -> Output:
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name, name="batch")
        return norm(x)


# --- resizing and convolution at once

# Resizing followed by a 3x3 convolution equals one 3x3 convolution of the small image with four kernels, one for each
# of the four pixels that a small pixel becomes. Along one axis: [parity of the result's pixel, pixel of the small
# image, tap of the kernel].
NEAREST = np.array([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]])
BILINEAR = np.array([[[3, 1, 0], [1, 3, 3], [0, 0, 1]], [[1, 0, 0], [3, 3, 1], [0, 1, 3]]]) / 4
TAPS: dict[Resize, tuple[np.ndarray, ...]] = {
    nearest: (NEAREST,),
    bilinear: (BILINEAR,),
    nearest_and_bilinear: (NEAREST, BILINEAR),
}


def upsampled_conv(
    x: Features, kernel: Float[Array, "3 3 _ out"], *, upsample: Resize
) -> Float[jax.Array, "n 2*h 2*w out"]:
    """conv(edge(upsample(x), 1), kernel), computed at the small size.

    With Winograd's algorithm that takes a quarter of the multiplications for `nearest`, an eighth for both resizings.
    """
    c, out = x.shape[3], kernel.shape[3]
    parts = zip(TAPS[upsample], jnp.split(kernel, len(TAPS[upsample]), axis=2), strict=True)
    small = jnp.stack([jnp.einsum("pai,qbj,ijco->abcpqo", t, t, part, optimize=True) for t, part in parts]).sum(0)
    return to_space(fast_conv(edge(x, 1), small.reshape(3, 3, c, 4 * out)), (2, 2))


# --- layers


def _init(gain: float) -> Callable[..., Any]:
    """Initialize kernels that multiply their input's mean square by `gain`: 2 before a ReLU (He 2015, 1502.01852)."""
    return nn.initializers.variance_scaling(gain, "fan_in", "truncated_normal")


class Conv(nn.Module):
    """Convolution [N, H, W, C] -> [N, ceil(H/stride), ceil(W/stride), features], or twice the size with `upsample`.

    Args:
        pad: the padding, by half the kernel on each side. After `upsample` it is always `edge`, which equals `reflect`
            for `nearest`.
        upsample: a resizing of this module, done first.
        gain: by which the initial kernel multiplies the mean square of its input.
        fast: take the fast form for CPU.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    pad: Pad = reflect
    upsample: Resize | None = None
    bias: bool = False
    gain: float = 2.0
    fast: bool = False

    @nn.compact
    def __call__(self, x: Features) -> Output:
        kernel = self.param(
            "kernel", _init(self.gain), (self.kernel, self.kernel, _channels(x, self.upsample), self.features)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.bias else 0
        if self.fast and self.kernel == 3 and self.upsample is not None and self.upsample in TAPS:
            return upsampled_conv(x, kernel, upsample=self.upsample) + bias
        x = _padded(x, self)
        return (fast_conv if self.fast else conv)(x, kernel, stride=self.stride) + bias


class DepSep(nn.Module):
    """Depthwise separable convolution (Pandey 2018): `multiplier` kernels for each channel, then 1x1. Else as `Conv`.

    No norm and no ReLU stand between the two, so that the fast form can merge them into one dense kernel.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    pad: Pad = reflect
    upsample: Resize | None = None
    bias: bool = False
    gain: float = 2.0
    fast: bool = False
    multiplier: int = 4

    @nn.compact
    def __call__(self, x: Features) -> Output:
        channels = self.multiplier * _channels(x, self.upsample)
        depthwise = self.param("depthwise", _init(1.0), (self.kernel, self.kernel, 1, channels))
        pointwise = self.param("pointwise", _init(self.gain), (1, 1, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.bias else 0
        dense = functools.partial(merge, depthwise, pointwise, multiplier=self.multiplier)
        if self.fast and self.kernel == 3 and self.upsample is not None and self.upsample in TAPS:
            return upsampled_conv(x, dense(), upsample=self.upsample) + bias
        x = _padded(x, self)
        if self.fast and (self.multiplier > 1 or self.stride > 1):
            return fast_conv(x, dense(), stride=self.stride) + bias
        if self.fast:
            return conv(sliced_depthwise(x, depthwise), pointwise) + bias
        return conv(conv(x, depthwise, stride=self.stride, groups=x.shape[3]), pointwise) + bias


def _channels(x: Features, upsample: Resize | None) -> int:
    """The channels of x after resizing."""
    return x.shape[3] if upsample is None else jax.eval_shape(upsample, x).shape[3]


def _padded(x: Features, layer: Conv | DepSep) -> Float[Array, "n _ _ _"]:
    """The input of a layer's convolution: x resized and padded."""
    n = layer.kernel // 2
    return layer.pad(x, n) if layer.upsample is None else edge(layer.upsample(x), n)


class FractionallyStrided(nn.Module):
    """3x3 convolution with stride 1/2, [N, H, W, C] -> [N, 2H, 2W, features]: zeros between and around the pixels.

    Args:
        zeros: how many before and after the pixels, 3 together. With (1, 2) pixel 2i of the result lies over pixel i,
            as after a convolution with stride 2 that pads both sides; with TensorFlow's (2, 1) pixel 2i + 1 does, as
            after `same`.
    """

    features: int
    bias: bool = False
    zeros: tuple[int, int] = (1, 2)

    @nn.compact
    def __call__(self, x: Features) -> Output:
        # A pixel of the result meets a quarter of the kernel: the rest falls on zeros. Hence four times the gain of 2.
        kernel = self.param("kernel", _init(8.0), (3, 3, x.shape[3], self.features))
        y = lax.conv_general_dilated(
            jnp.asarray(x),
            kernel,
            (1, 1),
            (self.zeros, self.zeros),
            lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.param("bias", nn.initializers.zeros, (self.features,)) if self.bias else y
