"""Features of pictures that do not fit into memory: a network computed strip by strip, exactly.

What the losses compare are sums over pixels (`losses.Sums`, a content layer's distance), so they can be taken from one
strip of rows at a time. Forwards, each strip's sums are added up and its activations forgotten; backwards they are
computed again, one strip at a time, with the sums' gradients. A strip comes with as many rows above and below it as
its convolutions see, and zeros stand where the picture ends, so nothing is lost at seams: loss and gradient equal the
whole picture's.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nstjax.errors import InputError
from nstjax.features import vgg


class Segment(NamedTuple):
    """Blocks of the network computed together, `rows` rows of their input at a time; None: all at once.

    Between segments the whole picture's activations are kept. `halo`: rows that the convolutions see above and below.
    """

    blocks: tuple[int, ...]
    rows: int | None
    halo: int


# Numbers held at a time for a pixel of the picture while blocks are computed forwards and backwards (from XLA's
# analysis for VGG-19 with Winograd's algorithm), and what is kept between blocks when all are computed in strips.
WORKSPACE = {(1, 2): 600, (3,): 190, (4,): 90, (5,): 30}
KEPT = 22
# From so many pixels on, blocks 1 and 2 are faster in strips that stay in the processor's cache.
LARGE = 1_500_000


def segments(layers, *, rows):
    """Segments that reach the deepest of `layers`, each in strips of about `rows(blocks)` rows of its input.

    rows: (blocks) -> rows or None. Blocks 1 and 2, whose activations are the largest, are computed together.
    """
    deepest = max(block_of(name) for name in layers)
    return tuple(_segment(blocks, rows(blocks), layers) for blocks in WORKSPACE if blocks[0] <= deepest)


def _segment(blocks, rows, layers):
    step = 2 ** len(blocks)
    halo = sum(_convs(block, layers) * 2**level for level, block in enumerate(blocks))
    return Segment(blocks, rows and max(step, rows // step * step), -(-halo // step) * step)


def plan(shape, layers, *, limit):
    """Segments for a picture of `shape` (H, W, 3) whose workspace stays under `limit` bytes, where that can be.

    `limit` is for what the network needs beside parameters, targets and pictures; a strip has at least 16 rows.
    """
    h, w, _ = shape
    limit = limit / 4 - KEPT * h * w

    def rows(blocks):
        whole = WORKSPACE[blocks] * h * w
        if whole <= limit and not (blocks == (1, 2) and h * w > LARGE):
            return None
        halos = 2 * _segment(blocks, None, layers).halo
        fitting = int((h >> blocks[0] - 1) * limit / whole) - halos
        return max(16, min(fitting, 128))

    return segments(layers, rows=rows)


def least(shape, layers):
    """Bytes, as `needed` counts them, without which no plan for an image of `shape` (H, W, 3) can do."""
    return needed(plan(shape, layers, limit=0), shape)


def whole(shape, layers):
    """Bytes, as `needed` counts them, of the network computed at once for an image of `shape` (H, W, 3)."""
    return needed(segments(layers, rows=lambda blocks: None), shape)


def needed(plan, shape):
    """Bytes that a plan needs for a picture of `shape` (H, W, 3), beside parameters, targets and pictures."""
    h, w, _ = shape

    def workspace(segment):
        height = h >> segment.blocks[0] - 1
        rows = height if segment.rows is None else min(height, segment.rows + 2 * segment.halo)
        return WORKSPACE[segment.blocks] * h * w * rows / height

    return 4 * (max(map(workspace, plan)) + (KEPT * h * w if any(segment.rows for segment in plan) else 0))


def describe(plan):
    """A plan in words."""
    strips = [f"block {'-'.join(map(str, s.blocks))} in strips of {s.rows} rows" for s in plan if s.rows]
    return ", ".join(strips) or "the network at once"


def _convs(block, layers):
    """How many of a block's convolutions the layers need, of the most that VGG has there."""
    convs = [int(name[6:]) for name in layers if block_of(name) == block and "_" in name]
    through = any(block_of(name) > block or name == f"pool{block}" for name in layers)
    return (2 if block <= 2 else 4) if through else max(convs, default=0)


def block_of(name):
    """The block of a layer of VGG: 3 for conv3_1, relu3_1 and pool3."""
    return int(name[4])


def measure(part, params, image, maps, *, keep=(), plan, mesh=None, pool=vgg.max_pool, edge="zero"):
    """The sum over the picture of what `part` gives for each layer of VGG, and the layers to `keep` as they are.

    part: (layer's name, activations [h, w, C], map's rows, valid, height) -> any tree of sums; maps: {layer: tree of
    [H, W, ...] arrays at the layer's size}, of which `part` is given the same rows as of the activations; valid: [h]
    with 1 for rows inside the picture, or None if all are; height: of the whole layer. plan: (picture's shape, layers)
    -> segments, such as the function of that name. mesh: split the rows over its devices instead. pool, edge: see
    `vgg.features`. Returns ({layer: sums}, {layer: [H, W, C]}); on a mesh the layers kept have more rows, of zeros.
    Only the sums can be differentiated, by the image.
    """
    layers = (*maps, *keep)
    if not layers:
        return {}, {}
    out: dict[str, Any] = {}
    kept: dict[str, jax.Array] = {}
    x = image
    chosen = plan(image.shape, layers) if mesh is None else segments(layers, rows=lambda blocks: None)
    heights = [image.shape[0] // 2**level for level in range(6)]
    rows = None if mesh is None else _rows_of_device(heights[0], mesh)
    for segment in chosen:
        first, last = segment.blocks[0], segment is chosen[-1]
        strip = partial(_strip, part, segment, heights[first - 1 :], pool, edge, last)
        if mesh is not None:
            compute = partial(_on_mesh, strip, mesh, rows >> first - 1)
        elif segment.rows is None or segment.rows >= heights[first - 1]:
            compute = partial(_whole, part, segment, heights, pool, edge)
        else:
            compute = _in_strips(strip, segment, heights[first - 1 :], last)
        here = [name for name in params if name == "mean" or block_of(name) in segment.blocks]
        mine = [name for name in maps if block_of(name) in segment.blocks]
        rest = tuple(name for name in keep if block_of(name) in segment.blocks)
        sums, activations, x = compute(
            {name: params[name] for name in here}, x, {name: maps[name] for name in mine}, rest
        )
        out |= sums
        kept |= activations
    return out, kept


def _level(segment, name):
    """How many times the segment has halved its input where a layer is."""
    return segment.blocks.index(block_of(name)) + name.startswith("pool")


def _whole(part, segment, heights, pool, edge, params, x, maps, keep):
    """A segment all at once: ({layer: sums}, {kept layer: activations}, output)."""
    acts: dict[str, jax.Array] = {}
    x = x[: heights[segment.blocks[0] - 1]]
    for number in segment.blocks:
        acts |= vgg.block(params, x, number, pool=pool, edge=edge)
        x = acts[f"pool{number}"]
    sums = {name: part(name, acts[name], maps[name], None, acts[name].shape[0]) for name in maps}
    return sums, {name: acts[name] for name in keep}, x


def _rows_of(heights, rows, start, level, halo):
    """A strip's rows at a level, with `halo` more on both sides; clipped to the picture, and whether inside it."""
    index = jnp.arange(-halo, (rows >> level) + halo) + (start >> level)
    return jnp.clip(index, 0, heights[level] - 1), (index >= 0) & (index < heights[level])


def _strip(part, segment, heights, pool, edge, last, params, x, maps, keep, start):
    """A segment of the strip whose rows, with the halo around them, are x [rows + 2 halo, W, C]; maps: its own rows."""
    halo, levels = segment.halo, len(segment.blocks)
    rows = x.shape[0] - 2 * halo

    def inside(x, level, halo):
        return jnp.where(_rows_of(heights, rows, start, level, halo)[1][:, None, None], x, 0)

    acts: dict[str, jax.Array] = {}
    if segment.blocks[0] > 1:  # of a picture, the block itself does so, since its zero is the mean
        x = inside(x, 0, halo)
    for level, number in enumerate(segment.blocks):
        here = partial(inside, level=level, halo=halo >> level)
        acts |= vgg.block(params, x, number, pool=pool, edge=edge, inside=here)
        x = acts[f"pool{number}"] = inside(acts[f"pool{number}"], level + 1, halo >> level + 1)
    own, sums = {}, {}
    for name in (*maps, *keep):
        level = _level(segment, name)
        own[name] = acts[name][halo >> level : (halo + rows) >> level]
    for name in maps:
        level = _level(segment, name)
        _, valid = _rows_of(heights, rows, start, level, 0)
        sums[name] = part(name, own[name], maps[name], valid.astype(x.dtype), heights[level])
    output = None if last else x[halo >> levels : (halo + rows) >> levels]
    return sums, {name: own[name] for name in keep}, output


def _in_strips(strip, segment, heights, last):
    """A segment strip by strip, forwards and backwards; as `_whole`, but the output may have more rows, of zeros."""
    rows, halo, levels = segment.rows, segment.halo, len(segment.blocks)
    starts = jnp.arange(math.ceil(heights[0] / rows)) * rows

    def at(x, start):
        """A strip's rows with its halo; beyond the picture the outermost is repeated."""
        return x[_rows_of(heights, rows, start, 0, halo)[0]]

    def of(maps, start):
        """The strip's own rows of the maps."""
        clipped = {name: _rows_of(heights, rows, start, _level(segment, name), 0)[0] for name in maps}
        return {name: jax.tree.map(lambda m, rows=clipped[name]: m[rows], maps[name]) for name in maps}

    def forward(params, x, maps, keep):
        def body(sums, start):
            added, *rest = strip(params, at(x, start), of(maps, start), keep, start)
            return jax.tree.map(jnp.add, sums, added), rest

        like = jax.eval_shape(lambda: strip(params, at(x, 0), of(maps, 0), keep, 0)[0])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
        sums, (kept, output) = jax.lax.scan(body, zeros, starts)
        kept = {name: _joined(x)[: heights[_level(segment, name)]] for name, x in kept.items()}
        return sums, kept, None if last else _joined(output)

    def backward(keep, residuals, cotangents):
        params, x, maps = residuals
        sums, _, output = cotangents

        def body(gradient, start):
            _, pull = jax.vjp(lambda x: strip(params, x, of(maps, start), (), start)[::2], at(x, start))
            mine = None if last else jax.lax.dynamic_slice_in_dim(output, start >> levels, rows >> levels)
            index, _ = _rows_of(heights, rows, start, 0, halo)
            return gradient.at[index].add(pull((sums, mine))[0], mode="promise_in_bounds"), None

        # Zeros made of what arrives: plain ones XLA would make at the start of the program, for all segments at once.
        zero = 0 * jax.tree.leaves(sums if last else output)[0].ravel()[0]
        return None, jax.lax.scan(body, jnp.full_like(x, zero), starts)[0], None

    run = jax.custom_vjp(forward, nondiff_argnums=(3,))
    run.defvjp(lambda params, x, maps, keep: (forward(params, x, maps, keep), (params, x, maps)), backward)
    return run


def _joined(strips):
    """[n, rows, ...] -> [n * rows, ...]."""
    return strips.reshape(-1, *strips.shape[2:])


def mesh(devices):
    """A mesh for `measure` of the first so many devices. Raises InputError where there are fewer."""
    there = jax.devices()
    if not 1 <= devices <= len(there):
        raise InputError(f"{devices} devices are wanted, and there are {len(there)} ({there[0].platform})")
    return jax.make_mesh((devices,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,), devices=there[:devices])


def shardings(mesh, tree):
    """For every array of a tree, such as pictures [..., H, W, 3], rows split over the mesh's devices if they can be."""

    def of(x):
        split = x.ndim >= 3 and x.shape[-1] == 3 and x.shape[-3] % mesh.size == 0
        spec = (*(None,) * (x.ndim - 3), *mesh.axis_names) if split else ()
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    return jax.tree.map(of, tree)


def _rows_of_device(height, mesh):
    """Rows of the picture on each device: enough for the deepest halo, and whole at every level."""
    return max(64, 16 * math.ceil(height / 16 / mesh.size))


def _on_mesh(strip, mesh, rows, params, x, maps, keep):
    """A segment with a strip of its input on each device, which get their halos from their neighbours."""
    (axis,) = mesh.axis_names
    segment = strip.args[1]

    def padded(x, rows):
        """The last row repeated, so that every device has as many."""
        return jnp.pad(x, ((0, rows * mesh.size - x.shape[0]), *((0, 0),) * (x.ndim - 1)), mode="edge")

    def on_device(params, x, maps):
        index = jax.lax.axis_index(axis)
        sums, kept, output = strip(params, _with_halo(x, segment.halo, index, mesh), maps, keep, index * rows)
        return jax.tree.map(lambda s: s[None], sums), kept, output

    split, whole = jax.sharding.PartitionSpec(axis), jax.sharding.PartitionSpec()
    on_devices = jax.shard_map(on_device, mesh=mesh, in_specs=(whole, split, split), out_specs=split)
    each = {name: rows >> _level(segment, name) for name in maps}
    maps = {name: jax.tree.map(partial(padded, rows=each[name]), maps[name]) for name in maps}
    sums, kept, output = on_devices(params, padded(x, rows), maps)
    return jax.tree.map(lambda s: s.sum(0), sums), kept, output


def _with_halo(x, halo, index, mesh):
    """A device's rows with the neighbours' nearest; at the picture's ends its outermost row is repeated."""
    (axis,) = mesh.axis_names
    pairs = [(i, i + 1) for i in range(mesh.size - 1)]
    above = jax.lax.ppermute(x[-halo:], axis, pairs)
    below = jax.lax.ppermute(x[:halo], axis, [(b, a) for a, b in pairs])
    above = jnp.where(index == 0, x[:1], above)
    below = jnp.where(index == mesh.size - 1, x[-1:], below)
    return jnp.concatenate([above, x, below])
