"""What the extractors other than VGG share: convolutions of any kernel, and 3x3 max pooling."""

import jax
import jax.numpy as jnp

from nstjax import convolve


def conv(x, p, *, padding=None):
    """Convolution [H, W, in] -> [H, W, out], zeros padded as many as the kernel's middle is from its edge by default.

    p: {"kernel" [h, w, in, out], "bias" [out]}, or {"strided", "bias"} for one that moves by two pixels, so that the
    weights say where a network halves its picture; or parameters of `nstjax.convolve`.
    """
    if "forward" in p:
        return convolve.conv(x, p)
    kernel, stride = (p["strided"], 2) if "strided" in p else (p["kernel"], 1)
    if kernel.shape[:2] == (1, 1):
        return x[::stride, ::stride] @ kernel[0, 0] + p["bias"]
    pads = [(size // 2 if padding is None else padding,) * 2 for size in kernel.shape[:2]]
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x[None], kernel, (stride, stride), pads, dimension_numbers=dims)[0] + p["bias"]


def max_pool(x, *, padding=1, ceil=False):
    """Maximum over 3x3 pixels every two, [H, W, C] -> about [H/2, W/2, C], at least 1 x 1.

    padding: rows and columns around the picture that count as nothing. ceil: a last window may hang over the edge, as
    in Caffe.
    """
    pads = []
    for size in x.shape[:2]:
        left = size + 2 * padding - 3
        count = max(0, -(-left // 2) if ceil else left // 2) + 1
        pads.append((padding, max(0, 2 * count + 1 - size - padding)))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3, 3, 1), (2, 2, 1), (*pads, (0, 0)))
