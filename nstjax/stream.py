"""Features of images that do not fit into memory: VGG computed strip by strip, exactly.

What the losses compare are sums over pixels (`losses.Sums`, a content layer's distance), so they can be computed from
one strip of rows at a time. Forwards, each strip's sums are added up and its activations are dropped; backwards they
are computed again, one strip at a time, with the sums' gradients. A strip has a halo of as many rows above and below it
as its convolutions see, with zeros outside the image, so that seams cost nothing: loss and gradient equal the whole
image's.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from nstjax.errors import InputError
from nstjax.features import vgg

Shape = tuple[int, ...]  # of an image, (H, W, 3)
Rows = Float[Array, "_ _ _"]  # some rows of an image or a layer, [h, w, c]
Sums = dict[str, PyTree]  # {layer: sums}
Activations = dict[str, Float[Array, "_ _ _"]]  # {layer: [h, w, c]}
Maps = Mapping[str, Any]  # {layer: tree of arrays [h, w, ...]}
Part = Callable[[str, Array, Any, Any, int], PyTree]  # see `measure`
Block = Callable[..., Activations]  # `vgg.block` with its options


class Segment(NamedTuple):
    """Blocks of the network computed together; between segments the whole image's activations are kept."""

    blocks: tuple[int, ...]
    rows: int | None  # of their input at a time; None: all at once
    halo: int  # rows that the convolutions see above and below


Plan = tuple[Segment, ...]


# Numbers held at a time for a pixel of the image while blocks are computed forwards and backwards (from XLA's
# analysis for VGG-19 with Winograd's algorithm), and what is kept between blocks when all are computed in strips.
WORKSPACE = {(1, 2): 600, (3,): 190, (4,): 90, (5,): 30}
KEPT = 22
# From so many pixels on, blocks 1 and 2 are faster in strips that stay in the processor's cache.
LARGE = 1_500_000


def segments(layers: Sequence[str], *, rows: Callable[[tuple[int, ...]], int | None]) -> Plan:
    """Return the segments that reach the deepest of `layers`, each in strips of about `rows(blocks)` rows of its input.

    Blocks 1 and 2, whose activations are the largest, are computed together.
    """
    deepest = max(vgg.place(name).block for name in layers)
    return tuple(_segment(blocks, rows(blocks), layers) for blocks in WORKSPACE if blocks[0] <= deepest)


def _segment(blocks: tuple[int, ...], rows: int | None, layers: Sequence[str]) -> Segment:
    step = 2 ** len(blocks)
    halo = sum(_convs(block, layers) * 2**level for level, block in enumerate(blocks))
    return Segment(blocks, rows and max(step, rows // step * step), -(-halo // step) * step)


def plan(shape: Shape, layers: Sequence[str], *, limit: float | int) -> Plan:
    """Return segments for an image whose workspace stays under `limit` bytes, if possible.

    `limit` is for what the network needs beside parameters, targets and images; a strip has at least 16 rows.
    """
    h, w, _ = shape
    limit = limit / 4 - KEPT * h * w

    def rows(blocks: tuple[int, ...]) -> int | None:
        whole = WORKSPACE[blocks] * h * w
        if whole <= limit and not (blocks == (1, 2) and h * w > LARGE):
            return None
        halos = 2 * _segment(blocks, None, layers).halo
        fitting = int((h >> blocks[0] - 1) * limit / whole) - halos
        return max(16, min(fitting, 128))

    return segments(layers, rows=rows)


def least(shape: Shape, layers: Sequence[str]) -> float:
    """Return the bytes, as `needed` counts them, without which no plan for an image can do."""
    return needed(plan(shape, layers, limit=0), shape)


def whole(shape: Shape, layers: Sequence[str]) -> float:
    """Return the bytes, as `needed` counts them, of the network computed at once for an image."""
    return needed(segments(layers, rows=lambda blocks: None), shape)


def needed(plan: Plan, shape: Shape) -> float:
    """Return the bytes that a plan needs for an image, beside parameters, targets and images."""
    h, w, _ = shape

    def workspace(segment: Segment) -> float:
        height = h >> segment.blocks[0] - 1
        rows = height if segment.rows is None else min(height, segment.rows + 2 * segment.halo)
        return WORKSPACE[segment.blocks] * h * w * rows / height

    return 4 * (max(map(workspace, plan)) + (KEPT * h * w if any(segment.rows for segment in plan) else 0))


def describe(plan: Plan) -> str:
    """Return a plan in words."""
    strips = [f"block {'-'.join(map(str, s.blocks))} in strips of {s.rows} rows" for s in plan if s.rows]
    return ", ".join(strips) or "the network at once"


def _convs(block: int, layers: Sequence[str]) -> int:
    """How many of a block's convolutions the layers need, of VGG-19's."""
    count = vgg.BLOCKS["vgg19"][block - 1].convolutions
    deepest = max(vgg.place(name) for name in layers)
    return min(count, deepest.number) if deepest.block == block else count * (deepest.block > block)


def measure(
    part: Part,
    params: vgg.Params,
    image: Float[Array | np.ndarray, "h w 3"],
    maps: Maps,
    *,
    keep: Iterable[str] = (),
    plan: Callable[[Shape, Sequence[str]], Plan] | None,
    mesh: jax.sharding.Mesh | None = None,
    pool: Callable[[Any], Array] = vgg.max_pool,
    edge: str = "zero",
    norm: Callable[[Any], Array] | None = None,
) -> tuple[Sums, Activations]:
    """Return the sum over the image of what `part` gives for each layer of VGG, and the layers to `keep` as they are.

    On a mesh the layers kept have more rows, of zeros. Only the sums can be differentiated, by the image.

    Args:
        part: (layer's name, activations [h, w, c], the map's rows, valid, height) -> any tree of sums; valid: [h], 1
            for rows inside the image, or None if all are; height: of the whole layer.
        maps: {layer: tree of arrays [H, W, ...] of the layer's size}; `part` is given the same rows of them as of the
            activations.
        plan: (the image's shape, layers) -> segments, such as the function of that name; None: all at once.
        mesh: split the rows over its devices instead.
        pool, edge, norm: see `vgg.features`. A norm of strips, or on a mesh, raises InputError.
    """
    layers = (*maps, *keep)
    if not layers:
        return {}, {}
    out: Sums = {}
    kept: Activations = {}
    x: Any = jnp.asarray(image)
    whole = segments(layers, rows=lambda blocks: None)
    chosen = whole if plan is None or mesh is not None else plan(image.shape, layers)
    if norm is not None and (mesh is not None or any(segment.rows for segment in chosen)):
        raise InputError("strips of rows lack statistics of whole layers; give no plan and no mesh", argument="norm")
    heights = [image.shape[0] // 2**level for level in range(6)]
    for segment in chosen:
        first, last = segment.blocks[0], segment is chosen[-1]
        task = _Task(part, partial(vgg.block, pool=pool, edge=edge, norm=norm), segment, heights[first - 1 :], last)
        compute: Callable[..., Any]
        if mesh is not None:
            compute = partial(_on_mesh, task, mesh, _rows_of_device(heights[0], mesh) >> first - 1)
        elif segment.rows is None or segment.rows >= heights[first - 1]:
            compute = partial(_whole, task)
        else:
            compute = _in_strips(task)
        here = {name: p for name, p in params.items() if name == "mean" or _inside(segment, name)}
        mine = {name: each for name, each in maps.items() if _inside(segment, name)}
        sums, activations, x = compute(here, x, mine, tuple(name for name in keep if _inside(segment, name)))
        out |= sums
        kept |= activations
    return out, kept


class _Task(NamedTuple):
    """A segment to compute."""

    part: Part
    block: Block
    segment: Segment
    heights: Sequence[int]  # of its input, and after each pool
    last: bool


def _inside(segment: Segment, layer: str) -> bool:
    return vgg.place(layer).block in segment.blocks


def _level(segment: Segment, layer: str) -> int:
    """How many times the segment has halved its input where a layer is."""
    place = vgg.place(layer)
    return segment.blocks.index(place.block) + (place.kind == "pool")


def _whole(task: _Task, params: vgg.Params, x: Rows, maps: Maps, keep: Iterable[str]) -> tuple[Sums, Activations, Rows]:
    """A segment all at once: ({layer: sums}, {kept layer: activations}, output)."""
    acts: Activations = {}
    x = x[: task.heights[0]]
    for number in task.segment.blocks:
        acts |= task.block(params, x, number)
        x = acts[f"pool{number}"]
    sums = {name: task.part(name, acts[name], maps[name], None, acts[name].shape[0]) for name in maps}
    return sums, {name: acts[name] for name in keep}, x


def _rows_of(
    heights: Sequence[int], rows: int, start: Any, level: int, halo: int
) -> tuple[Int[Array, " rows"], Bool[Array, " rows"]]:
    """A strip's rows at a level, with `halo` more on both sides; clipped to the image, and whether inside it."""
    index = jnp.arange(-halo, (rows >> level) + halo) + (start >> level)
    return jnp.clip(index, 0, heights[level] - 1), (index >= 0) & (index < heights[level])


def _strip(
    task: _Task, params: vgg.Params, x: Rows, maps: Maps, keep: Iterable[str], start: Any
) -> tuple[Sums, Activations, Rows | None]:
    """A segment of the strip whose rows, with the halo around them, are x [rows + 2 halo, W, C]; maps: its own rows."""
    part, block, segment, heights, last = task
    halo, levels = segment.halo, len(segment.blocks)
    rows = x.shape[0] - 2 * halo

    def inside(x: Rows, level: int, halo: int) -> Rows:
        return jnp.where(_rows_of(heights, rows, start, level, halo)[1][:, None, None], x, 0)

    acts: Activations = {}
    if segment.blocks[0] > 1:  # block 1 does so itself after subtracting the mean
        x = inside(x, 0, halo)
    for level, number in enumerate(segment.blocks):
        here = partial(inside, level=level, halo=halo >> level)
        acts |= block(params, x, number, inside=here)
        x = acts[f"pool{number}"] = inside(acts[f"pool{number}"], level + 1, halo >> level + 1)
    at = {name: _level(segment, name) for name in (*maps, *keep)}
    own = {name: acts[name][halo >> level : (halo + rows) >> level] for name, level in at.items()}
    sums = {}
    for name in maps:
        _, valid = _rows_of(heights, rows, start, at[name], 0)
        sums[name] = part(name, own[name], maps[name], valid.astype(x.dtype), heights[at[name]])
    output = None if last else x[halo >> levels : (halo + rows) >> levels]
    return sums, {name: own[name] for name in keep}, output


def _in_strips(task: _Task) -> Callable[..., Any]:
    """A segment strip by strip, forwards and backwards; as `_whole`, but the output may have more rows, of zeros."""
    _, _, segment, heights, last = task
    assert segment.rows is not None
    rows, halo, levels = segment.rows, segment.halo, len(segment.blocks)
    starts = jnp.arange(math.ceil(heights[0] / rows)) * rows

    def at(x: Any, start: Any) -> Rows:
        """A strip's rows with its halo; outside the image the outermost row is repeated."""
        return x[_rows_of(heights, rows, start, 0, halo)[0]]

    def of(maps: Mapping[str, Any], start: Any) -> dict[str, Any]:
        """The strip's own rows of the maps."""
        clipped = {name: _rows_of(heights, rows, start, _level(segment, name), 0)[0] for name in maps}
        return {name: jax.tree.map(lambda m, rows=clipped[name]: m[rows], maps[name]) for name in maps}

    def forward(params: Any, x: Any, maps: Any, keep: tuple[str, ...]) -> Any:
        def body(sums: Any, start: Any) -> Any:
            added, *rest = _strip(task, params, at(x, start), of(maps, start), keep, start)
            return jax.tree.map(jnp.add, sums, added), rest

        like = jax.eval_shape(lambda: _strip(task, params, at(x, 0), of(maps, 0), keep, 0)[0])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
        sums, (kept, output) = jax.lax.scan(body, zeros, starts)
        kept = {name: _joined(x)[: heights[_level(segment, name)]] for name, x in kept.items()}
        return sums, kept, None if last else _joined(output)

    def backward(keep: tuple[str, ...], residuals: Any, cotangents: Any) -> Any:
        params, x, maps = residuals
        sums, _, output = cotangents

        def body(gradient: Any, start: Any) -> Any:
            _, pull = jax.vjp(lambda x: _strip(task, params, x, of(maps, start), (), start)[::2], at(x, start))
            mine = None if last else jax.lax.dynamic_slice_in_dim(output, start >> levels, rows >> levels)
            index, _ = _rows_of(heights, rows, start, 0, halo)
            return gradient.at[index].add(pull((sums, mine))[0], mode="promise_in_bounds"), None

        # Zeros made of what arrives: plain ones XLA would make at the start of the program, for all segments at once.
        zero = 0 * jax.tree.leaves(sums if last else output)[0].ravel()[0]
        return None, jax.lax.scan(body, jnp.full_like(x, zero), starts)[0], None

    run = jax.custom_vjp(forward, nondiff_argnums=(3,))
    run.defvjp(lambda params, x, maps, keep: (forward(params, x, maps, keep), (params, x, maps)), backward)
    return run


def _joined(strips: Float[Array, "n rows ..."]) -> Float[Array, "_ ..."]:
    return strips.reshape(-1, *strips.shape[2:])


def mesh(devices: int) -> jax.sharding.Mesh:
    """Return a mesh for `measure` of the first so many devices. Raises InputError if there are fewer."""
    there = jax.devices()
    if not 1 <= devices <= len(there):
        raise InputError(f"{devices} devices are wanted, and there are {len(there)} ({there[0].platform})")
    return jax.make_mesh((devices,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,), devices=there[:devices])


def shardings(mesh: jax.sharding.Mesh, tree: PyTree) -> PyTree:
    """Return a sharding for every array of a tree: images [..., H, W, 3] by rows, if they divide by the devices."""

    def of(x: Any) -> jax.sharding.NamedSharding:
        split = x.ndim >= 3 and x.shape[-1] == 3 and x.shape[-3] % mesh.size == 0
        spec = (*(None,) * (x.ndim - 3), *mesh.axis_names) if split else ()
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    return jax.tree.map(of, tree)


def _rows_of_device(height: int, mesh: jax.sharding.Mesh) -> int:
    """Rows of the image on each device: enough for the deepest halo, and whole at every level."""
    return max(64, 16 * math.ceil(height / 16 / mesh.size))


def _on_mesh(
    task: _Task, mesh: jax.sharding.Mesh, rows: int, params: vgg.Params, x: Rows, maps: Maps, keep: tuple[str, ...]
) -> tuple[Sums, Activations, Rows | None]:
    """A segment with a strip of its input on each device, which get their halos from their neighbors."""
    (axis,) = mesh.axis_names

    def padded(x: Any, rows: int) -> Array:
        """The last row repeated, so that every device has as many."""
        return jnp.pad(x, ((0, rows * mesh.size - x.shape[0]), *((0, 0),) * (x.ndim - 1)), mode="edge")

    def on_device(params: Any, x: Rows, maps: Any) -> tuple[Sums, Activations, Rows | None]:
        index = jax.lax.axis_index(axis)
        sums, kept, output = _strip(
            task, params, _with_halo(x, task.segment.halo, index, mesh), maps, keep, index * rows
        )
        return jax.tree.map(lambda s: s[None], sums), kept, output

    split, whole = jax.sharding.PartitionSpec(axis), jax.sharding.PartitionSpec()
    on_devices = jax.shard_map(on_device, mesh=mesh, in_specs=(whole, split, split), out_specs=split)
    each = {name: rows >> _level(task.segment, name) for name in maps}
    maps = {name: jax.tree.map(partial(padded, rows=each[name]), maps[name]) for name in maps}
    sums, kept, output = on_devices(params, padded(x, rows), maps)
    return jax.tree.map(lambda s: s.sum(0), sums), kept, output


def _with_halo(x: Rows, halo: int, index: Int[Array, ""], mesh: jax.sharding.Mesh) -> Rows:
    """A device's rows with the neighbors' nearest; at the image's ends its outermost row is repeated."""
    (axis,) = mesh.axis_names
    pairs = [(i, i + 1) for i in range(mesh.size - 1)]
    above = jax.lax.ppermute(x[-halo:], axis, pairs)
    below = jax.lax.ppermute(x[:halo], axis, [(b, a) for a, b in pairs])
    above = jnp.where(index == 0, x[:1], above)
    below = jnp.where(index == mesh.size - 1, x[-1:], below)
    return jnp.concatenate([above, x, below])
