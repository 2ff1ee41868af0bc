"""The 3x3 convolution that all of VGG's time goes into, in the fastest form for the platform.

On CPU: Winograd's F(4x4, 3x3) (Lavin and Gray 2016, arXiv 1509.09308), which needs 4 times fewer multiplications;
on GPU and TPU, and for narrow layers: `jax.lax.conv_general_dilated`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Kernel = Float[Array | np.ndarray, "3 3 before after"]
Transformed = Float[Array | np.ndarray, "36 before after"]
Backward = Float[Array | np.ndarray, "3 3 _ _"] | Float[Array | np.ndarray, "36 _ _"]  # unused without a gradient
Bias = Float[Array | np.ndarray, " after"]
Activations = Float[Array | np.ndarray, "h w before"]  # jax itself calls rules for gradients with numpy's arrays
Params = dict[str, Array | np.ndarray]

# F(4x4, 3x3) with interpolation points 0, 1, -1, 2, -2 and infinity: y = At [(G k Gt) * (Bt x B)] A.
INPUT_TRANSFORM = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
KERNEL_TRANSFORM = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
OUTPUT_TRANSFORM = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float32
)


def plain(kernel: Kernel, bias: Bias) -> Params:
    """Return parameters of `conv`, which XLA's own convolution then computes."""
    return {"kernel": kernel, "bias": bias}


def winograd(kernel: Kernel, bias: Bias) -> Params:
    """Return parameters of `conv`, which Winograd's F(4x4, 3x3) then computes.

    Both transformed kernels, of the convolution and of its gradient, are made here, once and in numpy: passed as
    arguments of jit they cost no compile time.
    """
    both = direct(kernel, bias)
    return both | {name: transform_kernel(np.asarray(both[name], np.float32)) for name in ("forward", "backward")}


def compact(kernel: Kernel, bias: Bias) -> Params:
    """Return parameters of `conv` as from `winograd` in an eighth of the memory.

    The kernel is transformed at every call: an evaluation of Gatys's loss at 512 px takes a tenth longer.
    """
    return {"compact": kernel, "bias": bias}


def direct(kernel: Kernel, bias: Bias) -> Params:
    """Return parameters of `conv` as from `plain`, with its gradient's kernel.

    XLA's own gradient is slow in loops on CPU.
    """
    return {"forward": kernel, "backward": np.ascontiguousarray(flipped(kernel)), "bias": bias}


def flipped(kernel: Kernel) -> Float[Array | np.ndarray, "3 3 after before"]:
    """Return the kernel by which the gradient of a convolution with `kernel` is computed."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def conv(x: Activations, p: Mapping[str, Any]) -> Float[Array, "h w after"]:
    """3x3 convolution, stride 1, zero padding.

    Args:
        p: parameters from `plain`, or from `winograd`, `compact` or `direct`, with which it can be differentiated by x
            and the bias alone, and in reverse mode only.
    """
    if "kernel" in p:
        return _convolved(x, p["kernel"]) + p["bias"]
    if "compact" in p:
        return _compact(x, p["compact"]) + p["bias"]
    return _linear(x, p["forward"], p["backward"]) + p["bias"]


def _convolved(x: Activations, kernel: Kernel) -> Float[Array, "h w after"]:
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        jnp.asarray(x)[None], jnp.asarray(kernel), (1, 1), "SAME", dimension_numbers=dims
    )[0]


def transform_kernel(kernel: Kernel) -> Transformed:
    """Return a kernel as Winograd's products take it."""
    return (_both() @ kernel.reshape(9, -1)).reshape(36, *kernel.shape[2:])


def _both() -> Float[np.ndarray, "36 9"]:
    """The kernel's transform along both axes."""
    return np.kron(KERNEL_TRANSFORM, KERNEL_TRANSFORM).astype(np.float32)


def _combine(matrix: Float[np.ndarray, "out n"], parts: Sequence[Array], *, axis: int) -> Array:
    """Products of a small constant matrix's rows with a list of arrays, stacked; additions unrolled for XLA to fuse."""
    rows = ([float(c) * part for c, part in zip(row, parts, strict=True) if c] for row in matrix)
    return jnp.stack([functools.reduce(jnp.add, row) for row in rows], axis=axis)


def _tiles(x: Array, rows: int, cols: int) -> Float[Array, "36 _ before"]:
    """Features [4 rows + 2, 4 columns + 2, C] as Winograd's products take them: for 36 points, one row a tile."""
    x = _combine(INPUT_TRANSFORM, [x[i : i + 4 * rows - 3 : 4] for i in range(6)], axis=0)
    x = _combine(INPUT_TRANSFORM, [x[:, :, j : j + 4 * cols - 3 : 4] for j in range(6)], axis=1)
    return x.reshape(36, rows * cols, -1)


@jax.jit
def kernel_gradient(
    x: Float[Array, "n _ _ before"], g: Float[Array, "n h w after"]
) -> Float[Array, "3 3 before after"]:
    """Gradient by its kernel of a 3x3 convolution without padding, by Winograd's algorithm: half of XLA's time.

    Args:
        x: the convolution's input [n, h + 2, w + 2, before].
        g: the gradient by its output.
    """
    _, h, w, _ = g.shape
    rows, cols = -(-h // 4), -(-w // 4)
    more = ((0, 0), (0, 4 * rows - h), (0, 4 * cols - w), (0, 0))

    def outputs(g: Array) -> Array:
        g = _combine(OUTPUT_TRANSFORM.T, [g[i::4] for i in range(4)], axis=0)
        return _combine(OUTPUT_TRANSFORM.T, [g[:, :, j::4] for j in range(4)], axis=1).reshape(36, rows * cols, -1)

    x = jax.vmap(lambda each: _tiles(each, rows, cols), out_axes=1)(jnp.pad(x, more))
    g = jax.vmap(outputs, out_axes=1)(jnp.pad(g, more))
    x, g = (each.reshape(36, -1, each.shape[-1]) for each in (x, g))  # the tiles of all images together
    du = jax.lax.dot_general(x, g, (((1,), (1,)), ((0,), (0,))))
    return (jnp.asarray(_both().T) @ du.reshape(36, -1)).reshape(3, 3, *du.shape[1:])


# Compiled into whatever calls it; jit here only keeps Python from tracing the same hundreds of additions many times.
@jax.jit
def _winograd(x: Activations, u: Transformed) -> Float[Array, "h w after"]:
    """3x3 convolution with a transformed kernel, zero padding."""
    h, w, _ = x.shape
    rows, cols = -(-h // 4), -(-w // 4)
    padded = jnp.pad(x, ((1, 4 * rows - h + 1), (1, 4 * cols - w + 1), (0, 0)))
    y = jax.lax.dot_general(_tiles(padded, rows, cols), u, (((2,), (1,)), ((0,), (0,)))).reshape(6, 6, rows, cols, -1)
    y = _combine(OUTPUT_TRANSFORM, list(y), axis=2)  # [6, rows, 4, cols, out]
    y = _combine(OUTPUT_TRANSFORM, list(y), axis=3)  # [rows, 4, cols, 4, out]
    return y.reshape(4 * rows, 4 * cols, -1)[:h, :w]


# The gradient of a convolution is a convolution with the flipped kernel: XLA would instead transpose every slice and
# sum of the transforms, which is slow.
@jax.custom_vjp
def _linear(x: Activations, forward: Kernel | Transformed, backward: Backward) -> Float[Array, "h w after"]:
    return (_convolved if forward.ndim == 4 else _winograd)(x, forward)


_linear.defvjp(
    lambda x, forward, backward: (_linear(x, forward, backward), (forward, backward)),
    lambda kernels, g: (_linear(g, *kernels[::-1]), None, None),
)


@jax.custom_vjp
def _compact(x: Activations, kernel: Kernel) -> Float[Array, "h w after"]:
    # A zero made of what arrives: XLA would otherwise transform all layers' kernels at the start of the program.
    return _winograd(x, transform_kernel(kernel + 0 * x[0, 0, 0]))


_compact.defvjp(
    lambda x, kernel: (_compact(x, kernel), kernel),
    lambda kernel, g: (_compact(g, flipped(kernel)), None),
)
