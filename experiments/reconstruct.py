"""What each layer of VGG-19 knows of an image: content and style reconstructed from it alone, from noise.

    python experiments/reconstruct.py --output reconstruct
    python experiments/reconstruct.py --output reconstruct --quick
    python experiments/reconstruct.py --output augustins --recipe augustins

The tables of Augustins 2017 and the figure of Gatys 2015 (arXiv 1508.06576, figure 1) that Kitov's lecture shows. By
gradient descent, and by L-BFGS. The first takes about an hour on two CPU cores; stopped, it goes on where it was. The
last is as Augustins did it (`nstjax.studies.augustins`), style transfer with his weights included.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

from nstjax import features, images, losses, metrics, objectives, solvers, terminal
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.studies import augustins, reconstructions, runner
from nstjax.studies.settings import Settings, start
from nstjax.weights import PICTURES

# The papers' "convolutions", in Keras as in Caffe, are seen after the ReLU.
PLACES = {name: vgg.place(name) for name in vgg.layer_names("vgg19") if vgg.place(name).kind != "pool"}
LAYERS = tuple(name for name, place in PLACES.items() if place.kind == "relu")
STEP = 0.02
QUICK = ("relu1_1", "relu3_1", "relu5_1")
GD, LBFGS = reconstructions.GD, reconstructions.LBFGS
SETTINGS = Settings(output=Path("reconstruct"))


class Task(NamedTuple):
    """What an image is reconstructed from."""

    of: str  # "content" or "style"
    layers: tuple[str, ...]

    @property
    def name(self):
        return f"style up to {self.layers[-1]}" if len(self.layers) > 1 else f"{self.of} of {self.layers[0]}"


class Method(NamedTuple):
    """How images are optimized."""

    name: str
    solver: Any
    rate: Callable[[Task], float]
    steps: Callable[[Task], int]  # the same for all layers of a block
    takes: Callable[[Task], bool] = lambda task: True


def main(
    *,
    content: Path = PICTURES / "astronaut.jpg",
    style: Path = PICTURES / "gale.jpg",
    recipe: Literal["augustins"] | None = None,
    layers: tuple[str, ...] | None = None,
    step: float = STEP,
    weights: str = "bundled",
    settings: tyro.conf.OmitArgPrefixes[Settings] = SETTINGS,
) -> None:
    """Reconstruct one image's content and another's style from single layers of VGG-19.

    Args:
        content: the content image; long side 192 pixels, or 128 with --recipe (64 with --quick), unless --size is
            given.
        style: the style image, cropped to the content image's shape.
        recipe: augustins: his start, losses and step sizes, L-BFGS in cycles of 20 evaluations (5 of them unless
            --steps is given), and style transfer with his weights, up to twice the size.
        layers: by default all 16 relu layers; with --quick three of them. conv layers are those before the
            ReLU.
        step: of gradient descent: mean change of pixels at the first step.
        weights: bundled, keras or torchvision (downloaded), or a file.
        settings: those of every study.
    """
    sizes, evaluations = ((128, 64), (100, 20)) if recipe else ((192, 192), (200, 80))
    size, steps = start(settings, size=sizes, steps=evaluations, inputs=[content, style, weights], step=step)
    terminal.check_effect(["step"] if step != STEP else [], ("step", bool(recipe), "the recipe has its own step sizes"))
    layers = checked(layers or (QUICK if settings.quick else LAYERS))
    pairs = {times: pair_of(content, style, times * size) for times in ((1, 2) if recipe else (1,))}
    originals = dict(zip(("content", "style"), pairs[1], strict=True))
    image, every = originals["content"], (*layers, *(augustins.LAYERS if recipe else ()))
    params = features.load("vgg19", weights, layers=tuple(dict.fromkeys(every)), like=image)
    about = {"size": size, "seed": settings.seed} | ({"recipe": recipe} if recipe else {})
    about |= runner.sources(content_image=content, style_image=style, weights=weights)
    cycles = max(1, steps // augustins.CYCLE)
    if recipe:
        first, data, methods = his(params, originals, settings.seed, cycles)
    else:
        first, data, methods = ours(params, originals, settings.seed, steps, step)

    def run_of(task, method, among):
        own = {"method": method.name, "step": method.rate(task), "of": task.of, "layers": task.layers}
        return runner.Run(f"{task.name} by {method.name}", own | about, lambda: (first, data(method, task, among)))

    def measure(run, image):
        if run.configuration["of"] != "transfer":
            return measured(originals[run.configuration["of"]], image)
        pair = pairs[run.configuration["times"]]
        return measured(pair[0], image) | augustins.distances(params, image, pair)

    programs = []
    for method in methods:
        for tasks in ([task for task in group if method.takes(task)] for group in by_block(layers)):
            among = tuple(dict.fromkeys(name for task in tasks for name in task.layers))
            runs = [run_of(task, method, among) for task in tasks]
            programs.append(runner.Program(method.solver, method.steps(tasks[0]), image.shape[:2], runs))
    if recipe:
        programs += augustins.transfers(params, pairs, seed=settings.seed, cycles=cycles, about=about)
    results = runner.run(settings, programs, measure=measure)
    reconstructions.write(settings, results, originals, first, layers)


def checked(layers):
    """The layers without repetitions. Raises InputError for one that VGG-19 does not have."""
    for name in layers:
        if name not in PLACES:
            raise InputError(f"no layer {name!r} in vgg19; it has {', '.join(PLACES)}", argument="layers")
    return tuple(dict.fromkeys(layers))


def ours(params, originals, seed, steps, step):
    """The study's own recipe: (first image, data of a method and a task, methods)."""
    objective, targets = objectives.neural_style(vgg.features, statistic=losses.gram)
    data = partial(prepared, jax.jit(targets), params, originals, lambda x: jnp.maximum((x**2).mean(), 1e-30))
    descent = optax.chain(solvers.by_first_gradient(), optax.sgd(step))
    methods = (
        Method(GD, solvers.gradient(objective, descent), lambda task: step, lambda task: steps),
        # Of Gram matrices' loss, whole steps of L-BFGS from noise overshoot again and again.
        Method(LBFGS, solvers.lbfgs(objective, learning_rate=0.5), lambda task: 0.5, lambda task: steps),
    )
    first = runner.first_image("noise", originals["content"], seed)
    return first, lambda method, task, among: data(task, among), methods


def his(params, originals, seed, cycles):
    """Augustins's recipe, as that of `ours`. He reconstructs styles by L-BFGS alone, and all from single layers."""
    objective, targets = augustins.losses_of()
    data = partial(prepared, jax.jit(targets), params, originals, lambda x: 1.0)

    def row(task):
        return augustins.TABLE[task.layers[0].replace("conv", "relu")]

    plain = Method(
        GD,
        augustins.descent(objective),
        rate=lambda task: row(task).step,
        steps=lambda task: row(task).iterations + 1,  # the first evaluation is before any step
        takes=lambda task: task.of == "content",
    )
    whole = Method(
        LBFGS, augustins.lbfgs(objective), lambda task: 1.0, lambda task: cycles + 1, lambda task: len(task.layers) == 1
    )
    first = augustins.start(params, originals["content"], seed)
    with_step = lambda method, task, among: data(task, among) | {"step": jnp.float32(method.rate(task))}  # noqa: E731
    return first, with_step, (plain, whole)


def pair_of(content, style, size):
    """The content image, and the style image in its shape."""
    image = images.load(content, size=size, minimum=32)
    return image, cropped(style, image.shape[:2])


def cropped(path, shape):
    """The middle of an image, as large as fits, in a shape (height, width)."""
    h, w = images.shape(path)
    scale = max(shape[0] / h, shape[1] / w)
    whole = images.load(path, size=(max(shape[0], round(h * scale)), max(shape[1], round(w * scale))))
    top, left = (whole.shape[0] - shape[0]) // 2, (whole.shape[1] - shape[1]) // 2
    return whole[top : top + shape[0], left : left + shape[1]]


def by_block(layers):
    """Tasks in groups whose images differ in numbers alone, the weights of their layers among them."""
    blocks: dict[int, list[Task]] = {
        PLACES[name].block: [] for name in sorted(layers, key=lambda name: PLACES[name].block)
    }
    for name in layers:
        blocks[PLACES[name].block] += [Task("content", (name,)), Task("style", (name,))]
    firsts = tuple(name for name in layers if name in LAYERS and PLACES[name].number == 1)
    blocks[max(blocks)] += [Task("style", firsts[:n]) for n in range(2, len(firsts) + 1)]
    return list(blocks.values())


def prepared(targets, params, originals, unit, task, among):
    """Data for a task; losses are measured in `unit` of what layers should hold. among: the group's layers."""
    every = dict.fromkeys(among, 1.0)
    terms = {name: float(name == task.of) for name in ("content", "style")}
    style = objectives.Style(originals["style"])
    layers = {"content_layers": every, "style_layers": every}
    data = targets(params, originals["content"], [style], weights=terms, **layers)
    wanted = {"content_layers": data["content"], "style_layers": data["styles"][0]["targets"]}
    shares = {name: (name in task.layers) / len(task.layers) for name in among}
    return data | {
        term: {name: shares[name] / unit(x) for name, x in target.items()} for term, target in wanted.items()
    }


def measured(original, image):
    """How far an image is from the original."""
    return {"mse": float(metrics.mse(original, image)), "ssim": float(metrics.ssim(original, image))}


if __name__ == "__main__":
    terminal.cache_compilations()
    with terminal.refusals("reconstruct.py"):
        tyro.cli(main)
