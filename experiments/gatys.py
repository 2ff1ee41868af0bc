"""Paint a photograph in the style of a painting by optimising its pixels (Gatys 2015, arXiv 1508.06576).

    python experiments/gatys.py --optimizer lbfgs
    python experiments/gatys.py --content photo.jpg --style painting.jpg --output picture.png --preset quality

The first paints the bundled photograph in the bundled style at 512 px, in one to three minutes on two CPU cores.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import importlib.metadata
import itertools
import json
import math
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
import tyro
from tqdm import tqdm

import nstjax
from nstjax import color, features, files, images, losses, memory, objectives, plots, pyramid, solvers, stream, terminal
from nstjax.errors import InputError, printable
from nstjax.features import vgg
from nstjax.weights import bundled_files

PICTURES = Path(nstjax.__file__).parent / "pictures"
MINIMUM = 32  # pixels: the short side at which relu5_1 still has 2 x 2 positions
FRAMES_EVERY = 5
STARTS = ("content", "noise", "gray", "style")
SOURCES = ("bundled", "keras", "torchvision", "random")
MARK = {"Software": "nstjax"}  # metadata by which files that a run may replace are known


class Recipe(NamedTuple):
    """What a preset sets; a flag overrides it."""

    size: int = 512
    steps: int = 500
    scales: int | None = None
    optimizer: str = "lbfgs"
    content_weight: float = 2.0
    style_weight: float = 1e3
    tv_weight: float = 0.0
    content_layers: tuple[str, ...] = ("relu4_2",)
    style_layers: tuple[str, ...] = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    style_layer_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)
    wasserstein: bool = False
    average: float = 0.0
    ratio: float = 2.0
    coarse: float = 1 / 3
    smallest: int = 192
    margin: float = 1 / 16
    balance: float = 300.0


# After Crowson's style-transfer-pytorch: Wasserstein distances, scales by sqrt 2, averaged iterates. But by L-BFGS,
# which reaches in 170 steps what her Adam reaches in 430, and with less content, which the original VGG weighs more.
WASSERSTEIN = Recipe(
    wasserstein=True,
    average=0.9,
    ratio=2**0.5,
    coarse=1.0,
    smallest=128,
    margin=0.0,
    balance=4.0,
    content_weight=0.005,
    style_weight=1.0,
    tv_weight=2.0,
    style_layer_weights=(256 / 341, 64 / 341, 16 / 341, 4 / 341, 1 / 341),
)
PRESETS = {
    # Fewer sizes, since a third of the time would go into compiling five.
    "fast": WASSERSTEIN._replace(steps=40, ratio=2.0),
    # The notebook that Gatys released: Gram matrices, 500 iterations of L-BFGS from the content, no priors. But twice
    # its content weight: it used a network with normalised weights, and with the original ones content gets lost.
    "gatys": Recipe(steps=500),
    "quality": WASSERSTEIN._replace(steps=200),
}
LEARNING_RATES = {"lbfgs": 1.0, "lbfgs-optax": 1.0, "adam": 0.02, "adamw": 0.02, "gd": 1 / 255}


def main(
    *,
    content: tuple[Path, ...] = (PICTURES / "astronaut.jpg",),
    style: tuple[Path, ...] = (PICTURES / "gale.jpg",),
    output: Path = Path("gatys.png"),
    preset: Literal["fast", "gatys", "quality"] = "fast",
    size: int | None = None,
    steps: int | None = None,
    scales: int | None = None,
    strength: float | None = None,
    optimizer: Literal["lbfgs", "lbfgs-optax", "adam", "adamw", "gd"] | None = None,
    learning_rate: float | None = None,
    network: Literal["vgg19", "vgg16"] = "vgg19",
    weights: str = "bundled",
    pooling: Literal["max", "average"] = "max",
    content_weight: float | None = None,
    style_weight: tuple[float, ...] = (),
    tv_weight: float | None = None,
    laplacian_weight: float = 0.0,
    content_layers: tuple[str, ...] | None = None,
    style_layers: tuple[str, ...] | None = None,
    style_layer_weights: tuple[float, ...] | None = None,
    distance: Literal["mse", "charbonnier"] = "mse",
    init: str = "content",
    seed: tuple[int, ...] = (),
    style_blend: tuple[float, ...] = (),
    style_scale: float = 1.0,
    style_mask: tuple[Path, ...] = (),
    content_mask: tuple[Path, ...] = (),
    preserve_color: Literal["none", "luminance", "covariance", "histogram"] = "none",
    frames: Path | None = None,
    frames_every: int | None = None,
    curve: Path | None = None,
    grid: bool = False,
    metadata: bool = True,
    memory_limit: float | None = None,
    devices: int = 1,
    precision: Literal["highest", "tf32", "bf16"] | None = None,
) -> None:
    """Paint a photograph in the style of a painting.

    Args:
        content: the photograph (with --grid several).
        style: one painting or several, which are blended, or painted each into its --content-mask.
        output: the picture to write: .png, .jpg, .webp, .tif or .bmp.
        preset: fast (Wasserstein pyramid, two minutes), quality (more sizes, five times the steps), gatys (the recipe
            of his notebook).
        size: long side of the picture in pixels.
        steps: work to do, in steps at full size; coarse scales take their share of it, with more steps as they cost
            less.
        scales: number of sizes from coarse to fine; by default as many as fit.
        strength: 0 (the photograph) to 1 (style alone), the same at every size and for both networks; about 0.5 is
            usual.
        optimizer: lbfgs is jaxopt's; lbfgs-optax, adam and adamw are optax's; gd is gradient descent.
        learning_rate: of a step; by default 1 (L-BFGS), 0.02 (Adam) or 1/255 (gd: mean change of pixels at the first
            step).
        network: the network whose features are compared.
        weights: bundled, keras or torchvision (downloaded), random, or a .h5, .pth, .onnx, .npz or .safetensors file.
        pooling: of the network; average makes smoother pictures.
        content_weight: of the content loss.
        style_weight: of the style loss (with --grid several).
        tv_weight: of the squared total variation, against noise.
        laplacian_weight: of the Laplacian loss, which keeps the photograph's edges.
        content_layers: the network's layers that keep the content.
        style_layers: the network's layers that carry the style.
        style_layer_weights: a number for each of the style layers.
        distance: of activations and Gram matrices.
        init: the picture to start from: content, noise, gray, style (its middle, in the photograph's aspect), or a
            picture's path (a result, to go on from there).
        seed: of --init noise, 0 by default (with --grid several).
        style_blend: a number for each style, their shares.
        style_scale: size of the styles' strokes: the styles' long side is this many times --size (of a photograph
            beyond 2:1, the long side of a 2:1 image of its area).
        style_mask: for each style a picture of its aspect, white where the style is to be learned from.
        content_mask: for each style a picture of the photograph's aspect, white where it is to be painted.
        preserve_color: keep the photograph's colours (Gatys 2016): paint luminance only, or recolour the styles before.
        frames: a folder to write the picture into every --frames-every steps, as 00001.jpg and so on.
        frames_every: steps between two frames, 5 by default.
        curve: a .csv file for every loss term at every evaluation; a plot is written beside it.
        grid: paint every combination of the --content, --style, --seed and --style-weight given: --output is then a
            sheet of them all, with the pictures beside it.
        metadata: keep in the picture the command that made it, with the names of files but not of folders, and the
            versions of what ran it (not in a .bmp).
        memory_limit: gigabytes to use; by default 0.7 of what is free. Large pictures are computed in strips.
        devices: split the picture's rows over so many devices.
        precision: of products on GPU and TPU; by default the device's own.
    """
    flags = dict(locals())
    names = [name for name in Recipe._fields if name != "style_weight" and flags.get(name) is not None]
    recipe = PRESETS[preset]._replace(**{name: flags[name] for name in names})
    if style_layers is not None and style_layer_weights is None:
        recipe = recipe._replace(style_layer_weights=(1.0,) * len(style_layers))
    check(recipe, flags)
    jobs = jobs_of(recipe, flags)
    labels = labels_of(jobs)
    paths = paths_of(output, labels) if grid else {jobs[0]: output}
    check_files(flags, paths.values())
    use_devices(devices, precision)

    sizes = pyramid.sizes(recipe.size, scales=recipe.scales, smallest=recipe.smallest, ratio=recipe.ratio)
    if recipe.scales is None:
        # A panorama becomes too narrow before it becomes short.
        wide_enough = [size for size in sizes if min(min(images.shape(path, size=size)) for path in content) >= MINIMUM]
        sizes = wide_enough or sizes[-1:]
    limit = memory_limit * 1e9 if memory_limit else 0.7 * memory.available()
    check_pictures(sizes, flags, memory.for_images(limit))
    # Devices of a CPU share its memory.
    limit *= 1 if jax.default_backend() == "cpu" else devices
    scene = scene_of(recipe, jobs, flags)._replace(scales=len(sizes))
    budget = memory.fit(scene, limit=limit, devices=devices)
    if not budget.tuned:
        terminal.restore_malloc()
    # What zero padding does to a rim grows with every enlargement: coarse sizes are painted on a wider canvas.
    margins = [round(recipe.margin * size) for size in sizes[:-1]] + [0]
    canvases = [size + 2 * margin for size, margin in zip(sizes, margins, strict=True)]
    counts = pyramid.steps(canvases, recipe.steps, coarse=recipe.coarse)
    layers = recipe.content_layers + recipe.style_layers
    usual = images.load(PICTURES / "astronaut.jpg", size=256)
    params = features.load(network, weights, layers=layers, like=usual, compact=budget.compact)
    mesh = stream.mesh(devices) if devices > 1 else None
    place = None if mesh is None else partial(stream.shardings, mesh)
    look: dict[str, Any] = {"pool": {"max": vgg.max_pool, "average": vgg.average_pool}[pooling], "edge": "replicate"}
    extract = partial(features.EXTRACTORS[network].features, **look)
    measure = partial(stream.measure, plan=partial(stream.plan, limit=budget.network), mesh=mesh, **look)
    objective, targets = losses_of(recipe, extract, measure, distance)
    solver = solver_of(recipe, objective, learning_rate or LEARNING_RATES[recipe.optimizer], counts[-1], budget.history)
    plan = stream.plan((*scene.shape, 3), layers, limit=budget.network)
    if budget.history < memory.HISTORY or (mesh is None and any(segment.rows for segment in plan)):
        print(f"{limit / 1e9:.1f} GB of memory: {stream.describe(plan)}; L-BFGS remembers {budget.history} steps")

    together = solvers.batched(solver)

    # What a compiled function only passes on it copies: the parameters stay outside.
    @jax.jit
    def targets_of(*args, **kwargs):
        return {name: each for name, each in targets(*args, **kwargs).items() if name != "params"}

    @jax.jit
    def balance(*args, **kwargs):
        return objectives.balance(objective, *args, **kwargs)["weights"]

    some_style = any(job.style_weight for job in jobs)

    def prepare(job, size):
        """The content picture at a size, and the objective's data for it."""
        h, w = images.shape(job.content, size=size)
        photograph = images.load(job.content, size=(h // devices * devices, w), minimum=MINIMUM)
        picture = in_gray(photograph) if preserve_color == "luminance" else photograph
        margin = margins[sizes.index(size)]
        picture = pyramid.continued(picture, margin)
        styles = load_styles(
            job.style,
            content=(h, w),
            scale=style_scale,
            masks=style_mask,
            regions=content_mask,
            blend=style_blend,
            shape=photograph.shape,
            margin=margin,
        )
        if preserve_color != "none":
            reference = color.with_least_contrast(photograph)
            styles = [each | {"image": RECOLOR[preserve_color](each["image"], reference)} for each in styles]
        terms = {"content": recipe.content_weight, "tv": recipe.tv_weight, "laplacian": laplacian_weight}
        terms = {name: weight for name, weight in terms.items() if weight}
        data = targets_of(
            params,
            picture,
            styles,
            weights=terms | ({"style": job.style_weight} if some_style else {}),
            content_layers=dict.fromkeys(recipe.content_layers, 1.0),
            style_layers=dict(zip(recipe.style_layers, recipe.style_layer_weights, strict=True)),
        )
        if strength is not None:
            data |= {"weights": balance(data | {"params": params}, picture, strength=strength, ratio=recipe.balance)}
        return picture, data | {"params": params}

    def finished(job, picture):
        """The image to show, with the content's chroma where only its luminance was painted, or where it has none."""
        if preserve_color == "none":
            return np.asarray(picture)
        photograph = images.load(job.content, size=picture.shape[:2])
        if preserve_color != "luminance" and not color.is_grey(photograph):
            return np.asarray(picture)
        return np.asarray(color.with_luminance(photograph, color.luminance(picture)))

    done: dict[Job, np.ndarray] = {}
    rows: list[dict] = []
    ending = ""
    chunks = chunks_of(jobs, recipe.size, together=budget.together)
    total = sum(counts) * len(chunks)
    # The bar counts work, so that the time left is right: a step at half the size is a quarter of a step.
    cost = {size: (canvas / sizes[-1]) ** 2 for size, canvas in zip(sizes, canvases, strict=True)}
    work = len(chunks) * sum(count * cost[size] for count, size in zip(counts, sizes, strict=True))
    style_of_bar = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    bar = tqdm(total=work, desc=f"{sizes[0]} px, compiling", bar_format=style_of_bar, dynamic_ncols=True)

    def painting(chunk):
        """Run a chunk's jobs; what there is of their pictures is in `done` at any time."""

        def prepared(size):
            bar.set_description(f"{size} px, compiling")
            if not budget.tuned:
                # Each size's compiled programs would stay until the end.
                jax.clear_caches()
                terminal.trim_malloc()
            return pyramid.stacked([prepare(job, size) for job in chunk])

        def start(contents):
            pictures = contents if len(chunk) > 1 else [contents]
            begin = partial(first_picture, init=init, margin=margins[0])
            firsts = [begin(job, picture) for job, picture in zip(chunk, pictures, strict=True)]
            return np.stack(firsts) if len(chunk) > 1 else firsts[0]

        paint = partial(pyramid.run, together if len(chunk) > 1 else solver, prepared, start, place=place)
        for side, pictures, terms in paint(sizes=sizes, steps=counts, margins=margins):
            rows.append({"evaluations": len(rows) + 1, "seconds": bar.format_dict["elapsed"], "size": side} | terms)
            done.update(zip(chunk, pictures if len(chunk) > 1 else [pictures], strict=True))
            step = len(rows)
            bar.set_description(f"{side} px, step {step} of {total}, loss {np.mean(terms['loss']):.4g}", refresh=False)
            bar.set_postfix_str(f"{rate(rows):.2f} steps/s", refresh=False)
            bar.update(min(cost[side], work - bar.n))
            if frames and (step - 1) % (frames_every or FRAMES_EVERY) == 0:
                shape = images.shape(chunk[0].content, size=recipe.size)
                frame = images.resize(finished(chunk[0], done[chunk[0]]), shape)
                images.save(frames / f"{step:05d}.jpg", frame, metadata=MARK)
            if stopped():
                return
        if not np.isfinite(rows[-1]["loss"]).all():
            raise FloatingPointError(f"the loss is {np.max(rows[-1]['loss']):.4g}")

    def save(some):
        for job in some:
            images.save(paths[job], finished(job, done[job]), metadata=None if grid else about)

    about = recipe_of_picture() if metadata else None
    # Open until all is saved, so that a signal cannot lose what was painted; a second one can.
    with terminal.stop_signals() as stopped:
        with bar:
            try:
                for chunk in chunks:
                    painting(chunk)
                    if stopped():
                        ending = f"stopped by {stopped()} at step {len(rows)} of {total}: "
                        break
                    if grid:
                        save(dict.fromkeys(chunk))
            except FloatingPointError as error:
                ending = f"stopped at step {len(rows)} of {total}, {error} ({advice(rows)}): "
        if not done:
            raise InputError(f"{ending}there is no picture to save")
        save(done)
        if grid:
            shown = {job: finished(job, picture) for job, picture in done.items()}
            images.save(output, sheet(shown, labels), metadata=about)
        if curve:
            write_curve(curve, rows)
    h, w, _ = next(iter(done.values())).shape
    what = f"{printable(output)} and {len(done)} pictures beside it" if grid else printable(output)
    loss = np.mean(rows[-1]["loss"])
    print(f"{ending}saved {what}, {w} x {h} px, loss {loss:.4g}, {rows[-1]['seconds']:.0f} s")
    if ending or stopped():
        sys.exit({"SIGINT": 130, "SIGTERM": 143}.get(stopped() or "", 1))


class Job(NamedTuple):
    """One picture to paint."""

    content: Path
    style: tuple[Path, ...]
    style_weight: float
    seed: int


def jobs_of(recipe, flags):
    """The pictures to paint: one, or with --grid every combination of its lists."""
    style_weights = flags["style_weight"] or (recipe.style_weight,)
    styles = [(path,) for path in flags["style"]] if flags["grid"] else [flags["style"]]
    every = itertools.product(flags["content"], styles, style_weights, flags["seed"] or (0,))
    return list(dict.fromkeys(Job(*each) for each in every))


def labels_of(jobs):
    """{job: what sets it apart from the others}, all different."""
    contents, styles, weights, seeds = (list(dict.fromkeys(values)) for values in zip(*jobs, strict=True))
    titles = (
        files.distinct([path.stem for path in contents]),
        files.distinct(["+".join(path.stem for path in paths) for paths in styles]),
        [f"weight {weight:g}" if float(f"{weight:g}") == weight else f"weight {weight!r}" for weight in weights],
        [f"seed {seed}" for seed in seeds],
    )
    every = list(zip((contents, styles, weights, seeds), titles, strict=True))

    def label(job):
        parts = [title[values.index(value)] for (values, title), value in zip(every, job, strict=True) if values[1:]]
        return ", ".join(parts) or job.content.stem

    return {job: label(job) for job in jobs}


def paths_of(output, labels):
    """{job: the path of its picture in a grid}, beside the sheet and all different."""
    names = files.distinct([label.replace(", ", "-").replace(" ", "") for label in labels.values()])
    paths = [output.with_name(f"{output.stem}-{name}{output.suffix}") for name in names]
    return dict(zip(labels, paths, strict=True))


def scene_of(recipe, jobs, flags):
    """What the memory of a run depends on."""
    contents = [images.shape(path, size=recipe.size) for path in flags["content"]]
    largest = max(contents, key=math.prod)
    styles = [images.shape(path, size=style_size(path, largest, flags["style_scale"])) for path in flags["style"]]
    paths = [*flags["content"], *flags["style"], *flags["content_mask"], *flags["style_mask"]]
    paths += [] if flags["init"] in STARTS else [Path(flags["init"])]
    return memory.Scene(
        shape=largest,
        network=flags["network"],
        content_layers=recipe.content_layers,
        style_layers=recipe.style_layers,
        styles=(max(styles, key=math.prod),) if flags["grid"] else tuple(styles),
        regions=len(flags["content_mask"]),
        results=len(jobs),
        reading=max(images.reading_bytes(path, size=recipe.size) for path in paths),
    )


def style_size(path, content, scale):
    """Long side in pixels of a style beside a content image of shape (H, W)."""
    return pyramid.style_size(images.shape(path), content, scale=scale, minimum=MINIMUM // 2)


def chunks_of(jobs, size, *, together):
    """Jobs that are painted together: of the same shape, as many as fit into memory, and no more than four a core."""
    chunks = []
    shapes = {job.content: images.shape(job.content, size=size) for job in jobs}
    ordered = sorted(jobs, key=lambda job: shapes[job.content])
    for _, group in itertools.groupby(ordered, key=lambda job: shapes[job.content]):
        same = list(group)
        most = min(together, 4 if jax.default_backend() == "cpu" else 64)
        count = math.ceil(len(same) / most)
        each = math.ceil(len(same) / count)
        # The last chunk is filled up, so that all have the same shape and are compiled once.
        for i in range(count):
            chunk = same[i * each : (i + 1) * each]
            chunks.append(chunk + [chunk[-1]] * (each - len(chunk)))
    return chunks


def sheet(pictures, labels):
    """A contact sheet: a row for each content, labelled."""
    contents = list(dict.fromkeys(job.content for job in labels))
    rows = [[job for job in labels if job.content == content] for content in contents]
    cells = [[(pictures.get(job), printable(labels[job])) for job in row] for row in rows]
    return plots.contact_sheet(cells)


def use_devices(devices, precision):
    """Settings of jax that must come before its start: a CPU can stand for several devices."""
    if devices > 1 and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)
    if precision:
        name = {"highest": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16"}[precision]
        jax.config.update("jax_default_matmul_precision", name)


def check(recipe, flags):
    """Refuse flags that make no sense, contradict each other or would change nothing, before any work."""
    check_numbers(flags)
    for name in ("style_blend", "content_mask", "style_mask"):
        if len(flags[name]) not in (0, len(flags["style"])):
            raise InputError(f"{flag(name)}: give one for each of the {len(flags['style'])} styles, or none")
    layers = features.EXTRACTORS[flags["network"]].layers
    for names in (recipe.content_layers, recipe.style_layers):
        for name in names:
            if name not in layers:
                raise InputError(f"no layer {name!r} in {flags['network']}; it has {', '.join(layers)}")
            if names.count(name) > 1:
                raise InputError(f"layer {name!r} is given twice; --style-layer-weights makes a style layer count more")
    several = [name for name in ("content", "seed", "style_weight") if len(flags[name]) > 1]
    one_picture = [name for name in ("frames", "curve", "style_blend", "content_mask", "style_mask") if flags[name]]
    smallest = recipe.size / recipe.ratio ** ((recipe.scales or 1) - 1)
    weights = flags["content_weight"], flags["style_weight"] or None
    no_content, no_style = weightless(recipe, flags)
    problems = {
        f"{', '.join(map(flag, several))}: several are given; --grid paints every combination": several
        and not flags["grid"],
        f"{', '.join(map(flag, one_picture))}: not with --grid, which paints many pictures": one_picture
        and flags["grid"],
        f"--size {recipe.size}: at least {MINIMUM} pixels are needed": recipe.size < MINIMUM,
        f"--scales {recipe.scales}: the smallest would be under {MINIMUM} pixels; give fewer": smallest < MINIMUM,
        "--strength: give a number from 0 to 1": not 0 <= (flags["strength"] or 0) <= 1,
        "--strength sets --content-weight and --style-weight; give either it or them": flags["strength"] is not None
        and weights != (None, None),
        "--content-weight and --style-weight are both 0: there is nothing to paint": no_content and no_style,
        f"--style-layer-weights: give one for each of the {len(recipe.style_layers)} style layers": len(
            recipe.style_layers
        )
        != len(recipe.style_layer_weights),
        "--style-layer-weights: all are 0; for no style at all give --style-weight 0": not any(
            recipe.style_layer_weights
        ),
        "--style-blend: the shares are all 0": flags["style_blend"] and sum(flags["style_blend"]) == 0,
        "--curve: give a name that ends in .csv": flags["curve"] and flags["curve"].suffix != ".csv",
    }
    for problem, found in problems.items():
        if found:
            raise InputError(problem)
    check_use(recipe, flags)


def check_numbers(flags):
    """Refuse numbers out of range."""
    for name in ("size", "steps", "scales", "learning_rate", "style_scale", "frames_every", "memory_limit", "devices"):
        if flags[name] is not None and not 0 < flags[name] < math.inf:
            raise InputError(f"{flag(name)} {flags[name]}: give a number above 0")
    for name in (
        "content_weight",
        "style_weight",
        "tv_weight",
        "laplacian_weight",
        "style_layer_weights",
        "style_blend",
    ):
        if not all(0 <= value < math.inf for value in np.ravel(flags[name] if flags[name] is not None else 0)):
            raise InputError(f"{flag(name)} {flags[name]}: give numbers that are not negative")
    for seed in flags["seed"]:
        terminal.check_seed(seed)


def weightless(recipe, flags):
    """Whether the content, and whether the style, counts for nothing."""
    style_weights = flags["style_weight"] or (recipe.style_weight,)
    if flags["strength"] is not None:
        return flags["strength"] == 1, flags["strength"] == 0
    return recipe.content_weight == 0, not any(style_weights)


def check_use(recipe, flags):
    """Refuse flags that would change nothing."""
    no_content, no_style = weightless(recipe, flags)
    styles = ("style_layers", "style_layer_weights", "style_blend", "style_mask", "content_mask", "style_scale")
    for names, useless, why in (
        (("frames_every",), not flags["frames"], "only with --frames"),
        (("seed",), flags["init"] != "noise", "only for --init noise, as nothing else is random"),
        (("style_blend",), len(flags["style"]) == 1, "there is one --style, and nothing to blend; give several"),
        (styles, no_style, "the style's weight is 0"),
        (("content_layers",), no_content, "the content's weight is 0"),
        (("distance",), no_content and recipe.wasserstein, f"--preset {flags['preset']} compares styles otherwise"),
    ):
        usual = {"style_scale": 1.0, "distance": "mse"}
        given = [name for name in names if flags[name] not in (usual.get(name), None, ())]
        if useless and given:
            raise InputError(f"{', '.join(map(flag, given))}: would change nothing ({why}); leave it out")


def check_files(flags, pictures):
    """Refuse outputs that cannot be written, or that would replace an input, another output or somebody's own file.

    pictures: the paths of the pictures to paint.
    """
    curve, frames = flags["curve"], flags["frames"]
    outputs: list = list(dict.fromkeys([flags["output"], *pictures]))
    for path in outputs:
        images.check_writable(path)
    unnamed = []  # files that nobody named, and that may be there
    if curve:
        plots.require("--curve")
        unnamed.append(curve.with_suffix(".png"))
        for path in (curve, *unnamed):
            files.check_writable(path)
        outputs += [curve, *unnamed]
    if frames:
        images.check_writable(frames / "00001.jpg")
        outputs.append(numbered := files.Numbered(frames, r"\d{5,}\.jpg"))
        unnamed += files.members(numbered)
    sources = [flags["init"]] * (flags["init"] not in STARTS) + [flags["weights"]] * (flags["weights"] not in SOURCES)
    inputs = [*flags["content"], *flags["style"], *flags["content_mask"], *flags["style_mask"], *sources]
    files.check_outputs(outputs, [*inputs, *bundled_files()])
    for path in unnamed:
        if path.exists() and not is_own(path):
            raise files.refusal(
                path, "is there, and not from an earlier run; choose another name for --curve or --frames"
            )


def is_own(path):
    """Whether a picture was written by an earlier run."""
    try:
        return images.metadata(path).get("Software") == MARK["Software"]
    except InputError:
        return False


def flag(name):
    """A parameter's name on the command line."""
    return "--" + name.replace("_", "-")


def check_pictures(sizes, flags, limit):
    """Refuse pictures that cannot be read, are too small or narrow at the smallest size, would be distorted, or are
    too large for the memory.

    limit: bytes that reading one may take.
    """
    size, load = sizes[0], partial(images.load, limit=limit)
    contents = [load(path, size=size, minimum=MINIMUM) for path in flags["content"]]
    for path in flags["style"]:
        for content in contents:
            long = style_size(path, content.shape[:2], flags["style_scale"])
            load(path, size=long, minimum=MINIMUM // 2)
    for path in flags["content_mask"] + flags["style_mask"]:
        images.load_mask(path, shape=contents[0].shape[:2], limit=limit)
    for path in flags["content_mask"]:
        images.check_aspect(path, images.shape(flags["content"][0]), "--content-mask")
    for path, style in zip(flags["style_mask"], flags["style"], strict=False):
        images.check_aspect(path, images.shape(style), "--style-mask")
    if flags["init"] not in STARTS:
        load(flags["init"], size=contents[0].shape[:2])
        for path in flags["content"]:
            h, w = images.shape(path, size=sizes[-1])
            painted = (h // flags["devices"] * flags["devices"], w)  # an earlier result with as many devices
            like = painted if images.same_aspect(images.shape(flags["init"]), painted) else images.shape(path)
            images.check_aspect(flags["init"], like, "--init")


def losses_of(recipe, extract, measure, distance):
    """(objective, targets) of a recipe."""
    distance = {"mse": losses.mse, "charbonnier": losses.charbonnier}[distance]
    style: dict[str, Any]
    if recipe.wasserstein:
        style = {"statistic": losses.gaussian, "style_distance": losses.wasserstein2, "prepare": losses.with_root}
        style["centered"] = True
    else:
        # Dividing by CHW, flat weights equal the 1e3 / C^2 of the notebook on F F^T / HW.
        style = {"statistic": losses.gram, "style_distance": distance}
    return objectives.neural_style(extract, measure=measure, content_distance=distance, **style)


def solver_of(recipe, objective, learning_rate, steps, history):
    """The solver of a recipe; Adam's rate falls along a cosine over the steps of each size."""
    rate = optax.cosine_decay_schedule(learning_rate, steps)
    solver = {
        "lbfgs": lambda: solvers.lbfgs(objective, learning_rate=learning_rate, history=history),
        "lbfgs-optax": lambda: solvers.gradient(
            objective, optax.lbfgs(learning_rate, memory_size=history, linesearch=None), jump=solvers.JUMP
        ),
        "adam": lambda: solvers.gradient(objective, optax.adam(rate, b2=0.99)),
        "adamw": lambda: solvers.gradient(objective, optax.adamw(rate, b2=0.99)),
        "gd": lambda: solvers.gradient(
            objective, optax.chain(solvers.by_first_gradient(), optax.sgd(learning_rate)), jump=solvers.JUMP
        ),
    }[recipe.optimizer]()
    return solvers.averaged(solver, decay=recipe.average) if recipe.average else solver


def load_styles(paths, *, content, scale, masks, regions, blend, shape, margin):
    """The style images beside a content of shape `content` (H, W), their masks, and shares that sum to 1."""
    sizes = [style_size(path, content, scale) for path in paths]
    pictures = [images.load(path, size=size, minimum=MINIMUM // 2) for path, size in zip(paths, sizes, strict=True)]
    regions = [images.load_mask(path, shape=shape[:2]) for path in regions]
    regions = [pyramid.continued(region[..., None], margin)[..., 0] for region in regions] or [None] * len(paths)
    masks = [images.load_mask(path, shape=picture.shape[:2]) for path, picture in zip(masks, pictures, strict=False)]
    shares = np.array(blend or [1.0] * len(paths), np.float32)
    shares /= shares.sum()
    if regions[0] is not None:
        # A region counts as much as the part of the picture that it covers, so that each of its pixels counts the same.
        shares = shares * len(paths) * [region.mean() for region in regions]
    columns = {"image": pictures, "mask": masks or [None] * len(paths), "region": regions, "weight": list(shares)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def in_gray(image):
    """A picture's luminance, [H, W, 3]."""
    return np.repeat(np.asarray(color.luminance(image))[..., None], 3, axis=-1)


def in_gray_like(style, photograph):
    """A style's luminance, with the photograph's mean and contrast (Gatys 2016, arXiv 1606.05897, section 3.2)."""
    y = color.match_luminance(color.luminance(style), color.luminance(photograph))
    return np.repeat(np.asarray(y)[..., None], 3, axis=-1)


RECOLOR: dict[str, Callable] = {
    "luminance": in_gray_like,
    "covariance": color.match_covariance,
    "histogram": color.match_histogram,
}


def first_picture(job, content, *, init, margin):
    """The picture [H, W, 3] to start from, like `content`, which has a margin."""
    inside = (content.shape[0] - 2 * margin, content.shape[1] - 2 * margin)
    starts = {
        "content": lambda: content,
        "noise": lambda: np.asarray(jax.random.uniform(jax.random.key(job.seed), content.shape)),
        "gray": lambda: np.full_like(content, 0.5),
        "style": lambda: pyramid.continued(middle(job.style[0], inside), margin),
    }
    return starts.get(init, lambda: pyramid.continued(images.load(init, size=inside), margin))()


def middle(path, shape):
    """The middle of a picture, as large as fits, in a shape (height, width)."""
    h, w = images.shape(path)
    scale = max(shape[0] / h, shape[1] / w)
    whole = images.load(path, size=(max(shape[0], round(h * scale)), max(shape[1], round(w * scale))))
    top, left = (whole.shape[0] - shape[0]) // 2, (whole.shape[1] - shape[1]) // 2
    return whole[top : top + shape[0], left : left + shape[1]]


def rate(rows, window=10):
    """Steps a second, over the last few."""
    recent = rows[-window:]
    return (len(recent) - 1) / max(recent[-1]["seconds"] - recent[0]["seconds"], 1e-9)


def advice(rows):
    """What to try after a run whose loss failed: its steps are to blame only if it was finite before them."""
    if any(np.isfinite(row["loss"]).all() for row in rows if row["size"] == rows[-1]["size"]):
        return "try another --optimizer or a lower --learning-rate"
    return "it never was finite at this size: check --weights, and lower the weights of the losses"


def recipe_of_picture():
    """What it takes to make the picture again: the command and the versions of what ran it."""
    packages = ("jax", "jaxlib", "jaxopt", "optax", "numpy", "pillow")
    versions = {"nstjax": nstjax.__version__, "python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }
    return MARK | {"Command": terminal.command(sys.argv), "Versions": json.dumps(versions)}


def write_curve(path, rows):
    """Every loss term at every evaluation, as a table and as a plot beside it."""
    files.write_csv(path, rows)
    terms = [name for name in rows[0] if name not in ("evaluations", "seconds", "size", "failures")]
    files.write(path.with_suffix(".png"), plots.curves(rows, terms=terms))


if __name__ == "__main__":
    terminal.tune_malloc()
    terminal.cache_compilations()
    with terminal.refusals("gatys.py"):
        tyro.cli(main)
