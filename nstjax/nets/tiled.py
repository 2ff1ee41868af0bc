"""Transform nets for pictures that do not fit into memory: the same picture, computed in strips of rows.

What takes memory are activations at full size. Here only those at half and quarter size are kept whole, so that their
norms are the net's own; every convolution's workspace is one strip. The first and the last but one convolution, at full
size, are computed strip by strip together with the next one. If instance norms follow them, they are computed once
more before, for the exact mean and variance over the picture.

A strip is computed from a window of rows that has more above and below than the convolutions see. What is padded
where the picture does not end is cut away again; where it ends, so does the window, and pads as the whole would.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from nstjax.nets import layers, transform

# Numbers held at a time: for each pixel of a picture computed at once, or of a strip (the second for upsampling by
# depthwise separable convolutions in their plain form), and of a picture computed in strips. Of resident memory on CPU,
# where convolutions take 2.5 times what XLA's analysis tells.
WORKSPACE, SEPARABLE_WORKSPACE = 330, 650
KEPT = 48
LEAST = 16  # rows of the picture in a strip


def plan(net, shape, *, limit):
    """Rows of a strip with which `apply` stays under `limit` bytes for pictures [N, H, W, 3]; None: all at once.

    A strip has at least 16 rows, even if that is too much. Pictures and parameters are not counted.
    """
    n, h, w, _ = shape
    once = 16 * net.blocks if net.padding == "picture" else 0
    separable = net.conv is layers.DepSep and net.upsample is not None and not net.fast
    row = 4 * n * (w + once)
    workspace = row * (SEPARABLE_WORKSPACE if separable else WORKSPACE)
    if workspace * (h + once) <= limit:
        return None
    spare = limit - row * KEPT * (h + once)
    return max(LEAST, int(spare / workspace) // 4 * 4)


def apply(net, variables, images, *, rows):
    """net.apply(variables, images) of a `TransformNet` in strips of about so many rows; None: all at once."""
    if rows is None:
        return net.apply(variables, images)
    todo = list(transform.sequence(net))
    x = before = transform.padded(net, images)
    scale = 1.0  # of x to the image
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


def _growth(layer):
    """How many times as large as its input a layer's output is."""
    if isinstance(layer.conv, layers.FractionallyStrided) or layer.conv.upsample is not None:
        return 2
    return 1 / layer.conv.stride


def _pair(variables, first, second, x, *, rows, growth):
    """The second layer's convolution of the first one's activation, `growth` times as large as x."""
    conv = partial(_call, variables, first.conv)
    margin = 6 if growth == 1 else 4
    known = {}
    if isinstance(first.norm, layers.InstanceNorm):
        known["moments"] = _moments(conv, x, rows=rows, margin=margin)

    def both(x):
        return _call(variables, second.conv, first.finish(_norm(variables, first, conv(x), **known), None))

    return _strips(both, x, rows=rows, margin=margin)


def _norm(variables, layer, x, **options):
    return x if layer.norm is None else _call(variables, layer.norm, x, **options)


def _call(variables, module, x, **options):
    """A module that is a part of a net, with its share of the net's variables."""
    own = {kind: tree[module.name] for kind, tree in variables.items() if module.name in tree}
    return module.apply(own, x, **options)


def _strips(function, x, *, rows, margin):
    """function(x) of x [N, H, W, C], window by window."""

    def write(result, y, start, own):
        before = lax.dynamic_slice_in_dim(result, start, y.shape[1], axis=1)
        return lax.dynamic_update_slice_in_dim(result, jnp.where(own, y, before), start, axis=1)

    whole = jax.eval_shape(function, x)
    # Every row is written. Constants would be laid out for all layers at once, before the first is computed.
    anything = jnp.broadcast_to(x[:1, :1, :1, :1], whole.shape)
    return _fold(write, anything, function, x, rows=rows, margin=margin)


def _moments(function, x, *, rows, margin):
    """Mean and variance [N, 1, 1, C] of function(x) over its pixels, window by window (Chan 1979's pairwise sums)."""

    def add(sums, y, start, own):
        pixels, mean, squares = sums
        more = own.sum() * y.shape[2]
        its_mean = jnp.where(own, y, 0).sum((1, 2), keepdims=True) / more
        its_squares = jnp.where(own, (y - its_mean) ** 2, 0).sum((1, 2), keepdims=True)
        share = more / (pixels + more)
        squares += its_squares + pixels * share * (its_mean - mean) ** 2
        return pixels + more, mean + share * (its_mean - mean), squares

    n, _, _, channels = jax.eval_shape(function, x).shape
    nothing = jnp.zeros((n, 1, 1, channels))
    pixels, mean, squares = _fold(add, (0.0, nothing, nothing), function, x, rows=rows, margin=margin)
    return mean, squares / pixels


def _fold(add, result, function, x, *, rows, margin):
    """add(result, y, start, own) for every window, where y is the function of it, and start its first row in the whole.

    own [m, 1, 1]: which rows of y [N, m, W, C] are right and not another window's. margin: rows that a window needs
    above and below; even, as all rows are, so that convolutions with stride 2 see the same pairs of rows.
    """
    height = x.shape[1]
    size = min(rows + 2 * margin, height)
    count = max(1, math.ceil((height - 2 * margin) / rows))

    def rows_of(size):
        return jax.eval_shape(function, jax.ShapeDtypeStruct((x.shape[0], size, *x.shape[2:]), x.dtype)).shape[1]

    def place(row):
        """Where the result for a row of x is: 1/2, 1 or 2 times as far down."""
        return row * (rows_of(size + 4) - rows_of(size)) // 4

    def body(i, result):
        start = jnp.minimum(i * rows, height - size)
        y = function(lax.dynamic_slice_in_dim(x, start, size, axis=1))
        start = place(start)
        index = start + jnp.arange(y.shape[1])
        begin = jnp.where(i == 0, 0, place(i * rows + margin))
        end = jnp.where(i == count - 1, rows_of(height), place((i + 1) * rows + margin))
        return add(result, y, start, ((index >= begin) & (index < end))[:, None, None])

    return lax.fori_loop(0, count, body, result)
