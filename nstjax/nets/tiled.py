"""Transform nets for images that do not fit into memory: the same result, computed in strips of rows.

The activations at full size take most of the memory. Here only those at half and quarter size are kept whole, so that
their norms are the net's own; every convolution's workspace is one strip. The first convolution and the last but one,
whose results are at full size, are computed strip by strip together with the next convolution. If an instance norm
follows them, they are computed once before that, for the exact mean and variance over the image.

A strip is computed from a window of rows, with a margin above and below that is larger than what the convolutions see.
Inside the image the convolutions also pad the window, but the rows that this affects are discarded with the margin. At
the image's border the window ends too, and is padded as the whole image is.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float

from nstjax.nets import layers, transform
from nstjax.nets.convolutions import Features
from nstjax.typing import Array, Images

Variables = Mapping[str, Any]  # of a net: {"params": ..., "batch_stats": ...}
Function = Callable[[Any], Array]  # from rows of features [N, h, W, C] to rows of others

# Numbers held at a time for each pixel, from resident memory on CPU, where convolutions take 2.5 times what XLA's
# analysis says. For an image computed at once, or for a strip; the second is for upsampling by depthwise separable
# convolutions in their plain form:
WORKSPACE, SEPARABLE_WORKSPACE = 330, 650
KEPT = 48  # for an image computed in strips, beside the strip's workspace
LEAST = 16  # rows of the image in a strip


def plan(net: transform.TransformNet, shape: tuple[int, ...], *, limit: float) -> int | None:
    """Choose how many rows a strip has so that `apply` stays under `limit` bytes. None: compute all at once.

    Args:
        shape: (N, H, W, 3) of the images.
        limit: bytes, not counting images and parameters. A strip has at least 16 rows, even if that is too much.
    """
    n, h, w, _ = shape
    once = 16 * net.blocks if net.padding == "image" else 0
    separable = net.conv is layers.DepSep and net.upsample is not None and not net.fast
    row = 4 * n * (w + once)
    workspace = row * (SEPARABLE_WORKSPACE if separable else WORKSPACE)
    if workspace * (h + once) <= limit:
        return None
    spare = limit - row * KEPT * (h + once)
    return max(LEAST, int(spare / workspace) // 4 * 4)


def apply(net: transform.TransformNet, variables: Variables, images: Images, *, rows: int | None) -> Images:
    """Compute net.apply(variables, images) in strips of about `rows` rows of the image; None: all at once."""
    if rows is None:
        return jnp.asarray(net.apply(variables, images))
    todo = list(transform.sequence(net))
    before: Any
    x: Any
    x = before = transform.padded(net, images)
    scale = 1.0  # of x, relative to the image
    while todo:
        strip = max(4, int(rows * scale) // 4 * 4)
        layer = todo.pop(0)
        growth = _growth(layer)
        if scale * growth == 1 and todo:  # the activation at full size is never whole: its layer is fused with the next
            first, layer = layer, todo.pop(0)
            y = _pair(variables, first, layer, x, rows=strip, growth=growth)
            growth *= _growth(layer)
        else:
            y = _strips(partial(_call, variables, layer.conv), x, rows=strip, margin=2)
        before, x = x, layer.finish(_norm(variables, layer, y), before)
        scale *= growth
    return net.output(x)[:, : images.shape[1], : images.shape[2]]


def _growth(layer: transform.Layer) -> float:
    """The size of a layer's output relative to its input: 1/2, 1 or 2."""
    if isinstance(layer.conv, layers.FractionallyStrided) or layer.conv.upsample is not None:
        return 2
    return 1 / layer.conv.stride


def _pair(
    variables: Variables, first: transform.Layer, second: transform.Layer, x: Features, *, rows: int, growth: float
) -> Float[jax.Array, "n _ _ _"]:
    """Apply the first layer, whose activation is `growth` times as large as x, and the second layer's convolution."""
    conv = partial(_call, variables, first.conv)
    margin = 6 if growth == 1 else 4
    known: dict[str, Any] = {}
    if isinstance(first.norm, layers.InstanceNorm):
        known["moments"] = _moments(conv, x, rows=rows, margin=margin)

    def both(x: Features) -> Array:
        return _call(variables, second.conv, first.finish(_norm(variables, first, conv(x), **known), None))

    return _strips(both, x, rows=rows, margin=margin)


def _norm(variables: Variables, layer: transform.Layer, x: Features, **options: Any) -> Features:
    """Apply a layer's norm, if it has one."""
    return x if layer.norm is None else _call(variables, layer.norm, x, **options)


def _call(variables: Variables, module: nn.Module, x: Features, **options: Any) -> Float[jax.Array, "n _ _ _"]:
    """Apply a module that is a part of a net, with its share of the net's variables."""
    assert module.name is not None
    own = {kind: tree[module.name] for kind, tree in variables.items() if module.name in tree}
    return jnp.asarray(module.apply(own, x, **options))


def _strips(function: Function, x: Features, *, rows: int, margin: int) -> Float[jax.Array, "n _ _ _"]:
    """Compute function(x) window by window."""

    def write(result: Any, y: Features, start: Any, own: Bool[Array, "h 1 1"]) -> Any:
        before = lax.dynamic_slice_in_dim(result, start, y.shape[1], axis=1)
        return lax.dynamic_update_slice_in_dim(result, jnp.where(own, y, before), start, axis=1)

    whole = jax.eval_shape(function, x)
    # Every row is written, so any values will do. If they were constants, XLA would allocate them for all layers at
    # once, before the first is computed.
    anything = jnp.broadcast_to(x[:1, :1, :1, :1], whole.shape)
    return _fold(write, anything, function, x, rows=rows, margin=margin)


def _moments(function: Function, x: Features, *, rows: int, margin: int) -> tuple[jax.Array, jax.Array]:
    """Compute mean and variance [N, 1, 1, C] of function(x) over its pixels, window by window.

    Source: the pairwise updates of Chan, Golub and LeVeque 1979.
    """

    def add(sums: Any, y: Features, start: Any, own: Bool[Array, "h 1 1"]) -> Any:
        pixels, mean, squares = sums
        more = own.sum() * y.shape[2]
        new_mean = jnp.where(own, y, 0).sum((1, 2), keepdims=True) / more
        new_squares = jnp.where(own, (y - new_mean) ** 2, 0).sum((1, 2), keepdims=True)
        share = more / (pixels + more)
        squares += new_squares + pixels * share * (new_mean - mean) ** 2
        return pixels + more, mean + share * (new_mean - mean), squares

    n, _, _, channels = jax.eval_shape(function, x).shape
    nothing = jnp.zeros((n, 1, 1, channels))
    pixels, mean, squares = _fold(add, (0.0, nothing, nothing), function, x, rows=rows, margin=margin)
    return mean, squares / pixels


def _fold(
    add: Callable[[Any, Any, Any, Any], Any], result: Any, function: Function, x: Features, *, rows: int, margin: int
) -> Any:
    """Fold result = add(result, y, start, own) over all windows, where y is the function of the window.

    Args:
        add: gets y [N, h, W, C], its first row's place `start` in the whole result, and own [h, 1, 1]: which of its
            rows are valid and belong to no other window.
        rows: of x in a window, beside its margins.
        margin: rows that a window needs above and below. It is even, as all numbers of rows are, so that convolutions
            with stride 2 see the same pairs of rows.
    """
    height = x.shape[1]
    size = min(rows + 2 * margin, height)
    count = max(1, math.ceil((height - 2 * margin) / rows))

    def rows_of(size: int) -> int:
        """Rows of the result for so many rows of x."""
        return jax.eval_shape(function, jax.ShapeDtypeStruct((x.shape[0], size, *x.shape[2:]), x.dtype)).shape[1]

    def place(row: Any) -> Any:
        """The row of the result that belongs to a row of x: 1/2, 1 or 2 times as far down."""
        return row * (rows_of(size + 4) - rows_of(size)) // 4

    def body(i: Any, result: Any) -> Any:
        start = jnp.minimum(i * rows, height - size)
        y = function(lax.dynamic_slice_in_dim(x, start, size, axis=1))
        start = place(start)
        index = start + jnp.arange(y.shape[1])
        begin = jnp.where(i == 0, 0, place(i * rows + margin))
        end = jnp.where(i == count - 1, rows_of(height), place((i + 1) * rows + margin))
        return add(result, y, start, ((index >= begin) & (index < end))[:, None, None])

    return lax.fori_loop(0, count, body, result)
