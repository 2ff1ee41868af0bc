"""Paint a photograph in the style of a painting by optimising its pixels (Gatys 2015, arXiv 1508.06576).

    python experiments/gatys.py --optimizer lbfgs
    python experiments/gatys.py --content photo.jpg --style painting.jpg --output picture.png --preset quality

The first paints the bundled photograph in the bundled style at 512 px, in one to three minutes on two CPU cores.
"""

import csv
import io
import itertools
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
import tyro
from tqdm import tqdm

import nstjax
from nstjax import color, features, files, images, losses, memory, objectives, plots, pyramid, solvers, stream, terminal
from nstjax.errors import InputError
from nstjax.features import vgg

PICTURES = Path(nstjax.__file__).parent / "pictures"
MINIMUM = 32  # pixels: the short side at which relu5_1 still has 2 x 2 positions


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
    seed: tuple[int, ...] = (0,),
    style_blend: tuple[float, ...] = (),
    style_scale: float = 1.0,
    style_mask: tuple[Path, ...] = (),
    content_mask: tuple[Path, ...] = (),
    preserve_color: Literal["none", "luminance", "covariance", "histogram"] = "none",
    frames: Path | None = None,
    frames_every: int = 5,
    curve: Path | None = None,
    grid: bool = False,
    memory_limit: float | None = None,
    devices: int = 1,
    precision: Literal["highest", "tf32", "bf16"] | None = None,
) -> None:
    """Paint a photograph in the style of a painting.

    Args:
        content: the photograph (with --grid several).
        style: one painting or several, which are blended, or painted each into its --content-mask.
        output: the picture to write: .png (holds the command that made it), .jpg, .webp, .tif or .bmp.
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
        init: the picture to start from: content, noise, gray, style, or a picture's path (a result, to go on from
            there).
        seed: of the noise (with --grid several).
        style_blend: a number for each style, their shares.
        style_scale: size of the styles' strokes: the styles' long side is this many times --size.
        style_mask: for each style a picture, white where the style is to be learned from.
        content_mask: for each style a picture, white where it is to be painted.
        preserve_color: keep the photograph's colours (Gatys 2016): paint luminance only, or recolour the styles before.
        frames: a folder to write the picture into every --frames-every steps.
        frames_every: steps between two frames.
        curve: a .csv file for every loss term at every evaluation; a plot is written beside it.
        grid: paint every combination of the --content, --style, --seed and --style-weight given: --output is then a
            sheet of them all, with the pictures beside it.
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
    use_devices(devices, precision)

    sizes = pyramid.sizes(recipe.size, scales=recipe.scales, smallest=recipe.smallest, ratio=recipe.ratio)
    if recipe.scales is None:
        # A panorama becomes too narrow before it becomes short.
        wide_enough = [size for size in sizes if min(min(images.shape(path, size=size)) for path in content) >= MINIMUM]
        sizes = wide_enough or sizes[-1:]
    check_pictures(sizes[0], flags)
    # What zero padding does to a rim grows with every enlargement: coarse sizes are painted on a wider canvas.
    margins = [round(recipe.margin * size) for size in sizes[:-1]] + [0]
    canvases = [size + 2 * margin for size, margin in zip(sizes, margins, strict=True)]
    counts = pyramid.steps(canvases, recipe.steps, coarse=recipe.coarse)
    layers = recipe.content_layers + recipe.style_layers
    usual = images.load(PICTURES / "astronaut.jpg", size=256)
    params = features.load(network, weights, layers=layers, like=usual)

    largest = max((images.shape(path, size=recipe.size) for path in content), key=math.prod)
    limit = memory_limit * 1e9 if memory_limit else 0.7 * memory.available()
    history, network_limit = memory.fit(largest, params, limit=limit * devices, contents=len(recipe.content_layers))
    mesh = stream.mesh(devices) if devices > 1 else None
    place = None if mesh is None else partial(stream.shardings, mesh)
    look = {"pool": {"max": vgg.max_pool, "average": vgg.average_pool}[pooling], "edge": "replicate"}
    extract = partial(features.EXTRACTORS[network].features, **look)
    measure = partial(stream.measure, plan=partial(stream.plan, limit=network_limit), mesh=mesh, **look)
    objective, targets = losses_of(recipe, extract, measure, distance)
    solver = solver_of(recipe, objective, learning_rate or LEARNING_RATES[recipe.optimizer], counts[-1], history)
    plan = stream.plan((*largest, 3), layers, limit=network_limit)
    if history < memory.HISTORY or (mesh is None and any(segment.rows for segment in plan)):
        print(f"{limit / 1e9:.1f} GB of memory: {stream.describe(plan)}; L-BFGS remembers {history} steps")

    together = solvers.batched(solver)
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
            size=round(size * style_scale),
            masks=style_mask,
            regions=content_mask,
            blend=style_blend,
            shape=photograph.shape,
            margin=margin,
        )
        styles = [each | {"image": RECOLOR[preserve_color](each["image"], photograph)} for each in styles]
        terms = {"content": recipe.content_weight, "tv": recipe.tv_weight, "laplacian": laplacian_weight}
        terms = {name: weight for name, weight in terms.items() if weight}
        data = jax.jit(targets)(
            params,
            picture,
            styles,
            weights=terms | ({"style": job.style_weight} if some_style else {}),
            content_layers=dict.fromkeys(recipe.content_layers, 1.0),
            style_layers=dict(zip(recipe.style_layers, recipe.style_layer_weights, strict=True)),
        )
        if strength is not None:
            data = jax.jit(partial(objectives.balance, objective))(
                data, picture, strength=strength, ratio=recipe.balance
            )
        return picture, data

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
    chunks = chunks_of(jobs, recipe.size, limit=limit)
    used = limit * devices - network_limit + stream.needed(plan, (*largest, 3))
    if memory.KEPT_BY_MALLOC * used * max(map(len, chunks)) > limit * devices:
        terminal.restore_malloc()
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
            return pyramid.stacked([prepare(job, size) for job in chunk])

        def start(contents):
            pictures = contents if len(chunk) > 1 else [contents]
            firsts = [first_picture(job, picture, init=init) for job, picture in zip(chunk, pictures, strict=True)]
            return np.stack(firsts) if len(chunk) > 1 else firsts[0]

        paint = partial(pyramid.run, together if len(chunk) > 1 else solver, prepared, start, place=place)
        for side, pictures, terms in paint(sizes=sizes, steps=counts, margins=margins):
            rows.append({"evaluations": len(rows) + 1, "seconds": bar.format_dict["elapsed"], "size": side} | terms)
            done.update(zip(chunk, pictures if len(chunk) > 1 else [pictures], strict=True))
            step = len(rows)
            bar.set_description(f"{side} px, step {step} of {total}, loss {np.mean(terms['loss']):.4g}", refresh=False)
            bar.set_postfix_str(f"{rate(rows):.2f} steps/s", refresh=False)
            bar.update(min(cost[side], work - bar.n))
            if frames and (step - 1) % frames_every == 0:
                shape = images.shape(chunk[0].content, size=recipe.size)
                images.save(frames / f"{step:05d}.jpg", images.resize(finished(chunk[0], done[chunk[0]]), shape))
            if stopped():
                return
        if not np.isfinite(rows[-1]["loss"]).all():
            raise FloatingPointError(f"the loss is {np.max(rows[-1]['loss']):.4g}")

    with terminal.stop_signals() as stopped, bar:
        try:
            for chunk in chunks:
                painting(chunk)
                if stopped():
                    ending = f"stopped by {stopped()} at step {len(rows)} of {total}: "
                    break
                if grid:
                    save_each(output, {job: finished(job, done[job]) for job in chunk}, jobs)
        except FloatingPointError as error:
            ending = f"stopped at step {len(rows)} of {total}, {error} ({advice(rows)}): "

    if not done:
        raise InputError(f"{ending}there is no picture to save")
    pictures = {job: finished(job, picture) for job, picture in done.items()}
    if grid:
        save_each(output, pictures, jobs)
        images.save(output, sheet(pictures, jobs), metadata=recipe_of_picture())
    else:
        images.save(output, pictures[jobs[0]], metadata=recipe_of_picture())
    if curve:
        write_curve(curve, rows)
    h, w, _ = pictures[next(iter(pictures))].shape
    what = f"{output} and {len(pictures)} pictures beside it" if grid else str(output)
    loss = np.mean(rows[-1]["loss"])
    print(f"{ending}saved {what}, {w} x {h} px, loss {loss:.4g}, {rows[-1]['seconds']:.0f} s")
    if ending:
        sys.exit({"SIGINT": 130, "SIGTERM": 143}.get(stopped() or "", 1))


class Job(NamedTuple):
    """One picture to paint."""

    content: Path
    style: tuple[Path, ...]
    style_weight: float
    seed: int

    def name(self, jobs):
        """What sets it apart from the others."""
        parts = {
            self.content.stem: len({job.content for job in jobs}) > 1,
            "+".join(path.stem for path in self.style): len({job.style for job in jobs}) > 1,
            f"weight {self.style_weight:g}": len({job.style_weight for job in jobs}) > 1,
            f"seed {self.seed}": len({job.seed for job in jobs}) > 1,
        }
        return ", ".join(part for part, differs in parts.items() if differs) or self.content.stem


def jobs_of(recipe, flags):
    """The pictures to paint: one, or with --grid every combination of its lists."""
    style_weights = flags["style_weight"] or (recipe.style_weight,)
    styles = [(path,) for path in flags["style"]] if flags["grid"] else [flags["style"]]
    return [Job(*each) for each in itertools.product(flags["content"], styles, style_weights, flags["seed"])]


def chunks_of(jobs, size, *, limit):
    """Jobs that are painted together: of the same shape, as many as fit into memory, and no more than four a core."""
    chunks = []
    shapes = {job.content: images.shape(job.content, size=size) for job in jobs}
    ordered = sorted(jobs, key=lambda job: shapes[job.content])
    for shape, group in itertools.groupby(ordered, key=lambda job: shapes[job.content]):
        same = list(group)
        most = max(1, min(int(limit / (5000 * math.prod(shape))), 4 if jax.default_backend() == "cpu" else 64))
        count = math.ceil(len(same) / most)
        each = math.ceil(len(same) / count)
        # The last chunk is filled up, so that all have the same shape and are compiled once.
        for i in range(count):
            chunk = same[i * each : (i + 1) * each]
            chunks.append(chunk + [chunk[-1]] * (each - len(chunk)))
    return chunks


def save_each(sheet_path, pictures, jobs):
    """Every picture of a grid under its own name beside the sheet."""
    for job, picture in pictures.items():
        name = job.name(jobs).replace(", ", "-").replace(" ", "")
        images.save(sheet_path.with_name(f"{sheet_path.stem}-{name}{sheet_path.suffix}"), picture)


def sheet(pictures, jobs):
    """A contact sheet: a row for each content, labelled."""
    contents = list(dict.fromkeys(job.content for job in jobs))
    rows = [[job for job in jobs if job.content == content] for content in contents]
    cells = [[(pictures.get(job), job.name(jobs)) for job in row] for row in rows]
    return plots.contact_sheet(cells)


def use_devices(devices, precision):
    """Settings of jax that must come before its start: a CPU can stand for several devices."""
    if devices > 1 and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)
    if precision:
        name = {"highest": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16"}[precision]
        jax.config.update("jax_default_matmul_precision", name)


def check(recipe, flags):
    """Refuse flags that make no sense or contradict each other, and files that cannot be written, before any work."""
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
    for name in ("style_blend", "content_mask", "style_mask"):
        if len(flags[name]) not in (0, len(flags["style"])):
            raise InputError(f"{flag(name)}: give one for each of the {len(flags['style'])} styles, or none")
    layers = features.EXTRACTORS[flags["network"]].layers
    for name in recipe.content_layers + recipe.style_layers:
        if name not in layers:
            raise InputError(f"no layer {name!r} in {flags['network']}; it has {', '.join(layers)}")
    several = [name for name in ("content", "seed", "style_weight") if len(flags[name]) > 1]
    one_picture = [name for name in ("frames", "curve", "style_blend", "content_mask", "style_mask") if flags[name]]
    smallest = recipe.size / recipe.ratio ** ((recipe.scales or 1) - 1)
    weights = flags["content_weight"], flags["style_weight"] or None
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
        "--content-weight and --style-weight are both 0: there is nothing to paint": recipe.content_weight == 0
        and not any(flags["style_weight"] or (recipe.style_weight,)),
        f"--style-layer-weights: give one for each of the {len(recipe.style_layers)} style layers": len(
            recipe.style_layers
        )
        != len(recipe.style_layer_weights),
        "--style-blend: the shares are all 0": flags["style_blend"] and sum(flags["style_blend"]) == 0,
        "--curve: give a name that ends in .csv": flags["curve"] and flags["curve"].suffix != ".csv",
    }
    for problem, found in problems.items():
        if found:
            raise InputError(problem)
    images.check_writable(flags["output"])
    if flags["curve"]:
        plots.require("--curve")
        files.check_writable(flags["curve"])
    if flags["frames"]:
        images.check_writable(flags["frames"] / "00001.jpg")


def flag(name):
    """A parameter's name on the command line."""
    return "--" + name.replace("_", "-")


def check_pictures(size, flags):
    """Refuse pictures that cannot be read, or are too small or narrow at the smallest size, before any work."""
    contents = [images.load(path, size=size, minimum=MINIMUM) for path in flags["content"]]
    for path in flags["style"]:
        images.load(path, size=round(size * flags["style_scale"]), minimum=MINIMUM // 2)
    for path in flags["content_mask"] + flags["style_mask"]:
        images.load_mask(path, shape=contents[0].shape[:2])
    if flags["init"] not in ("content", "noise", "gray", "style"):
        images.load(flags["init"], size=contents[0].shape[:2])


def losses_of(recipe, extract, measure, distance):
    """(objective, targets) of a recipe."""
    distance = {"mse": losses.mse, "charbonnier": losses.charbonnier}[distance]
    style: dict[str, Any]
    if recipe.wasserstein:
        style = {"statistic": losses.gaussian, "style_distance": losses.wasserstein2, "prepare": losses.with_root}
        style["centered"] = True
    else:
        # Dividing by CHW, flat weights equal the 1e3 / C^2 of the notebook on F F^T / HW.
        style = {"statistic": partial(losses.gram, normalization="johnson"), "style_distance": distance}
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


def load_styles(paths, *, size, masks, regions, blend, shape, margin):
    """The style pictures with their long side at a size, their masks, and shares that sum to 1."""
    pictures = [images.load(path, size=size, minimum=MINIMUM // 2) for path in paths]
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
    "none": lambda style, photograph: style,
    "luminance": in_gray_like,
    "covariance": color.match_covariance,
    "histogram": color.match_histogram,
}


def first_picture(job, content, *, init):
    """The picture [H, W, 3] to start from."""
    starts = {
        "content": lambda: content,
        "noise": lambda: np.asarray(jax.random.uniform(jax.random.key(job.seed), content.shape)),
        "gray": lambda: np.full_like(content, 0.5),
        "style": lambda: images.load(job.style[0], size=content.shape[:2]),
    }
    return starts.get(init, lambda: images.load(init, size=content.shape[:2]))()


def rate(rows, window=10):
    """Steps a second, over the last few."""
    recent = rows[-window:]
    return (len(recent) - 1) / max(recent[-1]["seconds"] - recent[0]["seconds"], 1e-9)


def advice(rows):
    """What to try after a run whose loss failed: its steps are to blame only if it was finite before them."""
    if any(np.isfinite(row["loss"]).all() for row in rows if row["size"] == rows[-1]["size"]):
        return "try another --optimizer or a lower --learning-rate"
    return "it never was finite at this size: check --weights, and lower --content-weight and --style-weight"


def recipe_of_picture():
    """What it takes to make the picture again: the command and the versions of what ran it."""
    packages = ("jax", "jaxlib", "jaxopt", "optax", "numpy", "pillow")
    versions = {"nstjax": nstjax.__version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in packages
    }
    return {"Software": "nstjax", "Command": shlex.join(["python", *sys.argv]), "Versions": json.dumps(versions)}


def write_curve(path, rows):
    """Every loss term at every evaluation, as a table and as a plot beside it."""
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    files.write(path, text.getvalue().encode())
    terms = [name for name in rows[0] if name not in ("evaluations", "seconds", "size", "failures")]
    files.write(path.with_suffix(".png"), plots.curves(rows, terms=terms))


if __name__ == "__main__":
    terminal.tune_malloc()
    terminal.cache_compilations()
    with terminal.refusals("gatys.py"):
        tyro.cli(main)
