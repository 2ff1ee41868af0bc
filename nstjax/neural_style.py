"""Neural style transfer by optimizing the pixels of an image: arrays in, arrays out, one step after another.

    for progress in neural_style.paint(content, [style], preset="fast", strength=0.5):
        print(progress.step, progress.terms["loss"])
    images.save("stylized.png", progress.image)

Gatys 2015 (arXiv 1508.06576) with what came after it: a pyramid of sizes, Wasserstein distances, color preservation,
masks, blends, and images beyond memory. `nstjax.recipes` says how an image is painted.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from nstjax import color, features, host, memory, objectives, pyramid, recipes, solvers, stream
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.jobs import Job, batches, checked, first_image, held_at, resized, shape_at, size, styles_at, styles_of
from nstjax.jobs import Start as Start
from nstjax.objectives import Style
from nstjax.recipes import PRESETS, Recipe, schedule, style_size
from nstjax.typing import Image, Images

__all__ = ["PRESETS", "Job", "Progress", "Recipe", "Style", "batches", "budget", "paint", "paint_batch", "schedule"]

Extract = Callable[[Any, Any], dict[str, Any]]  # (params, image) -> {layer: [h, w, c]}


class Progress(NamedTuple):
    """The state after a step; of a batch, `image` has a leading axis and every term is a list."""

    image: Image | Images  # the image so far, at its size
    size: int  # its long side in pixels
    step: int  # steps so far, at all sizes
    total: int  # steps in all
    work: float  # the part of the work that is done, 0 to 1: a step at half the size is a quarter of a step
    terms: dict[str, Any]  # "loss", its terms by name, and "failures" (`solvers.Solver`)


def paint(
    content: Image,
    styles: Sequence[Image | Style],
    *,
    preset: str | Recipe = "fast",
    init: str | Image = "content",
    seed: int = 0,
    params: Any = None,
    extract: Extract | None = None,
    objective: objectives.Pair | None = None,
    memory_limit: float | None = None,
    budget: memory.Budget | None = None,
    devices: int = 1,
    **changes: Any,
) -> Iterator[Progress]:
    """Paint a content image in the styles of others; yields a `Progress` after each step.

    Args:
        content: its long side is the stylized image's.
        styles: one or several. Several are blended, or each is painted into its region. Their sizes do not matter.
        preset: a recipe, or the name of one of `PRESETS`.
        init: the image to start from: content, noise (of the seed), gray, style (its middle, in the content's aspect),
            or an image of the content's aspect, such as an earlier result.
        params: of the network; by default the bundled weights (`features.load`).
        extract: another extractor, (params, image [H, W, 3]) -> {layer: [h, w, C]}, with its own `params` and layers
            in the recipe. All its features are in memory at once.
        objective: other losses, as a pair (objective, targets) such as `objectives.neural_style` returns.
        memory_limit: bytes that the process may use; by default 0.7 of what is free. Large images are computed in
            strips of rows. budget: how to stay within it, if it is known already (`memory.fit`).
        devices: split the image's rows over so many devices; the height is rounded down to a multiple of them.
        changes: fields of the recipe to change, such as steps=100 or strength=0.5.

    Raises:
        InputError: before the first step, for arguments out of range, contradictory, or without effect, and where the
            memory does not suffice.
        FloatingPointError: when the loss is not finite, or has failed ten times in a row. The image yielded last is
            then the last good one.
    """
    job = Job(content, styles, init, seed)
    return _paint([job], preset, params, extract, objective, memory_limit, budget, devices, changes)


def paint_batch(
    jobs: Sequence[Job],
    *,
    preset: str | Recipe = "fast",
    params: Any = None,
    extract: Extract | None = None,
    objective: objectives.Pair | None = None,
    memory_limit: float | None = None,
    budget: memory.Budget | None = None,
    devices: int = 1,
    **changes: Any,
) -> Iterator[Progress]:
    """Paint several images of one shape together, by one compiled program; otherwise as `paint`.

    Yields a `Progress` after each step, whose `image` is [N, H, W, 3] in the order of the jobs. Raises InputError also
    for content images of different shapes.
    """
    painted = _paint(jobs, preset, params, extract, objective, memory_limit, budget, devices, changes)
    if len(jobs) > 1:
        return painted
    return (
        each._replace(image=each.image[None], terms={name: [value] for name, value in each.terms.items()})
        for each in painted
    )


def budget(
    recipe: Recipe,
    content: tuple[int, int],
    styles: Sequence[tuple[int, int]],
    *,
    limit: float | None = None,
    devices: int = 1,
    regions: int = 0,
    results: int = 1,
    reading: float = 0,
) -> memory.Budget:
    """Return how `paint` stays within a memory limit. It is known before an image is decoded.

    Args:
        content: (height, width) of the stylized image.
        styles: (height, width) of each style image; only the aspect counts.
        limit: bytes that the process may use (on a GPU or TPU, of each device's memory); by default 0.7 of what is
            free.
        devices: how many share the image's rows.
        regions: how many of the styles have one.
        results: stylized images that are kept until the end.
        reading: bytes that reading a file takes for a moment (`images.reading_bytes`).

    Raises:
        InputError: the memory does not suffice; the message says how much would.
    """
    if devices > 1 and recipe.method.at_once:
        raise InputError("the preset's losses need the whole image on one; leave it out", argument="devices")
    limit = limit or 0.7 * memory.available()
    shared = jax.default_backend() == "cpu"  # its devices share one memory
    scene = memory.Scene(
        shape=(content[0] + 2 * recipe.border, content[1] + 2 * recipe.border),
        network=recipe.network,
        content_layers=recipe.content_layers,
        style_layers=recipe.style_layers,
        styles=tuple(shape_at(style, style_size(recipe, style, content)) for style in styles),
        regions=regions,
        results=results,
        reading=reading,
        scales=len(schedule(recipe, content)),
        at_once=recipe.method.at_once,
        held=recipe.method.held,
        variables=pyramid.VARIABLES if recipe.on_levels(devices) else 1,
    )
    return memory.fit(scene, limit=limit if shared else devices * limit, devices=devices)


def describe(recipe: Recipe, shape: tuple[int, int], budget: memory.Budget, *, devices: int = 1) -> str:
    """Say how a budget saves memory for an image of shape (H, W), or return "" if it does not need to."""
    plan = stream.plan((*shape, 3), recipe.layers, limit=budget.network)
    in_strips = any(segment.rows for segment in plan) and devices == 1 and not recipe.method.at_once
    if budget.history == memory.HISTORY and not in_strips:
        return ""
    return f"{stream.describe(plan)}; L-BFGS remembers {budget.history} steps"


def _paint(
    jobs: Sequence[Job],
    preset: str | Recipe,
    params: Any,
    extract: Extract | None,
    pair: objectives.Pair | None,
    memory_limit: float | None,
    known: memory.Budget | None,
    devices: int,
    changes: Mapping[str, Any],
) -> Iterator[Progress]:
    """Validate everything, then return the generator of `_steps`."""
    jobs = [checked(job) for job in jobs]
    shape = size(jobs[0].content)
    if any(size(job.content) != shape for job in jobs):
        raise InputError("the content images have different shapes; paint those of each shape apart", argument="jobs")
    layers = None
    if extract is not None:
        if params is None:
            raise InputError("missing; give those of your own extractor", argument="params")
        layers = tuple(jax.eval_shape(extract, params, jobs[0].content))
    recipe = recipes.changed(preset, changes, layers=layers)
    scales = schedule(recipe, shape)
    if known is None and extract is None:
        every = [style for job in jobs for style in styles_of(job)]
        known = budget(
            recipe,
            shape,
            [size(style.image) for style in every],
            limit=memory_limit,
            devices=devices,
            regions=sum(style.region is not None for style in every),
            results=len(jobs),
        )
    known = known or memory.Budget(memory.HISTORY, math.inf, len(jobs), compact=False, tuned=True)
    mesh = stream.mesh(devices) if devices > 1 else None
    if params is None:
        params = features.load(recipe.network, layers=recipe.layers, compact=known.compact)
    program = _program(recipe, scales[-1].steps, known.history, known.network, mesh, extract, pair)
    return _steps(jobs, recipe, scales, program, params, mesh, scarce=not known.tuned)


class _Program(NamedTuple):
    """What is compiled for a recipe."""

    solver: solvers.Solver
    together: solvers.Solver  # the same for several images at once
    targets: Callable[..., dict[str, Any]]  # (params, content, styles, ...) -> the objective's data without the params
    balance: Callable[..., dict[str, Any]]  # (data, content, strength=..., ratio=...) -> the weights of the terms


@functools.lru_cache(8)  # so that several images of one shape, painted one after another, are compiled once
def _program(
    recipe: Recipe,
    steps: int,
    history: int,
    network_bytes: float,
    mesh: jax.sharding.Mesh | None,
    extract: Extract | None,
    pair: objectives.Pair | None,
) -> _Program:
    """The `_Program` of a recipe whose last size takes `steps` steps."""
    measure = None
    if extract is None:
        look: dict[str, Any] = {"pool": {"max": vgg.max_pool, "average": vgg.average_pool}[recipe.pooling]}
        look["edge"] = "replicate"
        extract = partial(features.EXTRACTORS[recipe.network].features, **look)
        measure = partial(stream.measure, plan=partial(stream.plan, limit=network_bytes), mesh=mesh, **look)
    objective, targets = pair or recipe.method.losses(
        extract, measure=measure, content_distance=recipe.content_distance
    )

    # A compiled function copies what it only passes on, so the parameters are left out.
    @jax.jit
    def targets_of(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: each for name, each in targets(*args, **kwargs).items() if name != "params"}

    @jax.jit
    def balance(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return objectives.balance(objective, *args, **kwargs)["weights"]

    devices = 1 if mesh is None else mesh.size
    solver = recipes.solver(recipe, objective, steps=steps, history=history, devices=devices)
    return _Program(solver, solvers.batched(solver), targets_of, balance)


def _steps(
    jobs: Sequence[Job],
    recipe: Recipe,
    scales: Sequence[pyramid.Scale],
    program: _Program,
    params: Any,
    mesh: jax.sharding.Mesh | None,
    *,
    scarce: bool,
) -> Iterator[Progress]:
    """Paint jobs at one scale after another: yields a `Progress` after each step."""
    several, devices = len(jobs) > 1, 1 if mesh is None else mesh.size
    apart: Callable[[Any], list[Any]] = list if several else lambda image: [image]
    together: Callable[[list[Any]], Any] = np.stack if several else lambda each: each[0]
    contents: list[np.ndarray] = []  # at the size that is being painted

    def prepare(scale: pyramid.Scale, image: Any) -> tuple[Any, Any]:
        if scarce:  # each size's compiled programs would stay until the end
            jax.clear_caches()
            host.release_memory()
        h, w = shape_at(jobs[0].content.shape, scale.size)
        before: list[Any] = [*contents] or [None] * len(jobs)
        contents[:] = [resized(job.content, (h // devices * devices, w)) for job in jobs]
        styled = recipe.style_weight > 0 or any(job.style_weight for job in jobs)
        painted = [None] * len(jobs) if image is None else apart(image)
        every = zip(jobs, contents, before, painted, strict=True)
        return pyramid.stacked([_prepared(*each, scale.margin, recipe, program, params, styled) for each in every])

    solver = program.together if several else program.solver
    place = None if mesh is None else partial(stream.shardings, mesh)
    total, work = sum(scale.steps for scale in scales), sum(scale.steps * scale.cost for scale in scales)
    done = 0.0
    terms: dict[str, Any] = {}
    for step, (scale, image, terms) in enumerate(pyramid.run(solver, prepare, scales, place=place), 1):
        done += scale.cost / work
        pairs = zip(contents, apart(image), strict=True)
        shown = together([np.asarray(color.kept(*each, method=recipe.preserve_color)) for each in pairs])
        yield Progress(shown, scale.size, step, total, min(done, 1.0), terms)
    if not np.isfinite(terms["loss"]).all():
        raise FloatingPointError(f"the loss is {np.max(terms['loss']):.4g}")


def _prepared(
    job: Job,
    content: Image,
    before: Image | None,
    painted: Image | None,
    margin: int,
    recipe: Recipe,
    program: _Program,
    params: Any,
    styled: bool,
) -> tuple[Image, dict[str, Any]]:
    """The image to start from at a scale, with its border, and the objective's data.

    content, before: the content image at this scale and at the one before, where `painted` was.
    """
    shown, before = (_shown(each, recipe) for each in (content, before))
    canvas = pyramid.continued(shown, margin)
    if painted is None:
        image = first_image(job, canvas, margin)
    else:
        image = pyramid.continued(pyramid.enlarge(painted, before, shown), margin)
    weights = {"content": recipe.content_weight, "tv": recipe.tv_weight, "laplacian": recipe.laplacian_weight}
    weights["matting"] = recipe.matting_weight
    weights = {name: weight for name, weight in weights.items() if weight}
    if job.held is not None:
        weights["temporal"] = job.held.weight
    if styled:
        weights["style"] = recipe.style_weight if job.style_weight is None else job.style_weight
    data = program.targets(
        params,
        canvas,
        styles_at(job, content, margin, recipe),
        weights=weights,
        content_layers=recipe.content_by_layer,
        style_layers=recipe.style_by_layer,
        image=image,
        key=jax.random.key(job.seed),
    )
    data |= {"params": params} | held_at(job, content, margin)
    if recipe.strength is not None:
        data |= {"weights": program.balance(data, canvas, strength=recipe.strength, ratio=recipe.balance)}
    if recipe.faded and (painted is None or painted.shape != content.shape):
        image = np.asarray(pyramid.faded(image, levels=recipe.faded, share=recipe.kept_detail))
    return image, data


def _shown(content: Any, recipe: Recipe) -> Any:
    """A content image as it is compared with: in gray where only luminance is painted."""
    gray = recipe.preserve_color == "luminance" and content is not None
    return np.asarray(color.gray(content)) if gray else content
