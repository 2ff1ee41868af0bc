"""What each layer of VGG-19 knows of an image: content and style reconstructed from it alone, from noise.

    python experiments/reconstruct.py --output reconstruct
    python experiments/reconstruct.py --output reconstruct --quick

The tables of Augustins 2017 and the figure of Gatys 2015 (arXiv 1508.06576, figure 1) that Kitov's lecture shows. By
gradient descent, and by L-BFGS. The first takes about an hour on two CPU cores; stopped, it goes on where it was.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from nstjax import features, images, losses, metrics, objectives, solvers, terminal
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.studies import cards, report, runner
from nstjax.studies.report import percent
from nstjax.studies.settings import Settings, start
from nstjax.weights import PICTURES

# The papers' "convolutions", in Keras as in Caffe, are seen after the ReLU.
PLACES = {name: vgg.place(name) for name in vgg.layer_names("vgg19") if vgg.place(name).kind != "pool"}
LAYERS = tuple(name for name, place in PLACES.items() if place.kind == "relu")
QUICK = ("relu1_1", "relu3_1", "relu5_1")
GD, LBFGS = "gradient descent", "L-BFGS"
SETTINGS = Settings(output=Path("reconstruct"))
COLUMNS = {"run": "Run", "loss": "Loss", "left": "Left of it", "mse": "MSE", "ssim": "SSIM"}
TEXT = report.Text(
    "What a layer remembers",
    "The content and the style of an image, reconstructed from noise by what single layers of VGG-19 know of them: "
    "the tables of Augustins 2017 and the figure of Gatys 2015, by gradient descent and by L-BFGS.",
    "The nearer an image comes to its original, and the less of the noise’s loss is left, the more it remembers.",
)
CAPTIONS = {
    "content": "Features, compared by their mean squared difference. SSIM is to the content image. "
    "The first step of gradient descent changes pixels by the mean of --step, and all steps keep that scale; the step "
    "sizes of Augustins’s own are not known to us.",
    "style": "Gram matrices, compared by their mean squared difference. Left is the part of the noise’s loss that "
    "remains: where strokes lie is no part of a style, so that no distance to the style image could tell.",
    "many": "The Gram matrices of the first layers of blocks, up to the one named, each counting the same "
    "(the upper row of Gatys 2015, figure 1; the row of content is among those above).",
}


class Task(NamedTuple):
    """What an image is reconstructed from."""

    of: str  # "content" or "style"
    layers: tuple[str, ...]

    @property
    def name(self):
        return f"style up to {self.layers[-1]}" if len(self.layers) > 1 else f"{self.of} of {self.layers[0]}"


def main(
    *,
    content: Path = PICTURES / "astronaut.jpg",
    style: Path = PICTURES / "gale.jpg",
    layers: tuple[str, ...] | None = None,
    step: float = 0.02,
    weights: str = "bundled",
    settings: tyro.conf.OmitArgPrefixes[Settings] = SETTINGS,
) -> None:
    """Reconstruct one image's content and another's style from single layers of VGG-19.

    Args:
        content: the content image; long side 192 pixels, or 64 with --quick, unless --size is given.
        style: the style image, cropped to the content image's shape.
        layers: by default all 16 relu layers; with --quick three of them. conv layers are those before the
            ReLU.
        step: of gradient descent: mean change of pixels at the first step.
        weights: bundled, keras or torchvision (downloaded), or a file.
        settings: those of every study.
    """
    size, steps = start(settings, size=(192, 64), steps=(200, 25), inputs=[content, style, weights], step=step)
    layers = tuple(dict.fromkeys(layers or (QUICK if settings.quick else LAYERS)))
    for name in layers:
        if name not in PLACES:
            raise InputError(f"no layer {name!r} in vgg19; it has {', '.join(PLACES)}", argument="layers")
    image = images.load(content, size=size, minimum=32)
    originals = {"content": image, "style": cropped(style, image.shape[:2])}
    params = features.load("vgg19", weights, layers=layers, like=image)
    noise = runner.first_image("noise", image, settings.seed)
    objective, targets = objectives.neural_style(vgg.features, statistic=losses.gram)
    data = partial(prepared, jax.jit(targets), params, originals)
    about = {"size": size, "seed": settings.seed}
    about |= runner.sources(content_image=content, style_image=style, weights=weights)

    def run_of(task, method, rate, among):
        own = {"method": method, "step": rate, "of": task.of, "layers": task.layers}
        return runner.Run(f"{task.name}, {method}", own | about, lambda: (noise, data(task, among)))

    descent = optax.chain(solvers.by_first_gradient(), optax.sgd(step))
    methods = {
        GD: (step, solvers.gradient(objective, descent)),
        # Of Gram matrices' loss, whole steps of L-BFGS from noise overshoot again and again.
        LBFGS: (0.5, solvers.lbfgs(objective, learning_rate=0.5)),
    }
    programs = []
    for method, (rate, solver) in methods.items():
        for tasks in by_block(layers):
            among = tuple(dict.fromkeys(name for task in tasks for name in task.layers))
            runs = [run_of(task, method, rate, among) for task in tasks]
            programs.append(runner.Program(solver, steps, image.shape[:2], runs))
    results = runner.run(
        settings, programs, measure=lambda run, image: measured(originals[run.configuration["of"]], image)
    )
    write(settings, results, originals, noise, layers)


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


def prepared(targets, params, originals, task, among):
    """Data in which an error of a layer as large as what it should hold is a loss of 1; `among`: the group's layers."""
    every = dict.fromkeys(among, 1.0)
    terms = {name: float(name == task.of) for name in ("content", "style")}
    style = objectives.Style(originals["style"])
    layers = {"content_layers": every, "style_layers": every}
    data = targets(params, originals["content"], [style], weights=terms, **layers)
    wanted = {"content_layers": data["content"], "style_layers": data["styles"][0]["targets"]}
    shares = {name: (name in task.layers) / len(task.layers) for name in among}
    return data | {
        term: {name: shares[name] / jnp.maximum((x**2).mean(), 1e-30) for name, x in target.items()}
        for term, target in wanted.items()
    }


def measured(original, image):
    """How far an image is from the original."""
    return {"mse": float(metrics.mse(original, image)), "ssim": float(metrics.ssim(original, image))}


def write(settings, results, originals, noise, layers):
    """Write the card: images, curves, tables."""
    single = {
        (r.configuration["of"], *r.configuration["layers"], r.configuration["method"]): r
        for r in results
        if len(r.configuration["layers"]) == 1
    }
    many = {
        m: [r for r in results if len(r.configuration["layers"]) > 1 and r.configuration["method"] == m]
        for m in (GD, LBFGS)
    }

    def by_layer(of, value, y, log=""):
        lines = {m: [(i, value(single[of, name, m])) for i, name in enumerate(layers)] for m in (GD, LBFGS)}
        caption = f"{of.capitalize()} of each layer, after all evaluations."
        return cards.curves(lines, x="layer", y=y, log=log, ticks=dict(enumerate(layers)), caption=caption)

    def descent(of, name):
        lines = {m: single[of, name, m].line("loss") for m in (GD, LBFGS)}
        return cards.curves(lines, x="evaluations", y="loss", log="y", caption=f"{of.capitalize()} of {name}.")

    galleries = {of: [originals_row(originals[of], noise), *rows_of(of, single, layers)] for of in originals}
    blocks = [cards.section(of.capitalize(), cards.gallery(galleries[of], caption=CAPTIONS[of])) for of in originals]
    ever_more = [(m, [thumbnail(r, r.name.split(",")[0]) for r in some]) for m, some in many.items() if some]
    if ever_more:
        blocks.append(cards.section("Styles of ever more layers", cards.gallery(ever_more, caption=CAPTIONS["many"])))
    layer_by_layer = cards.beside(
        by_layer("content", lambda r: r.figures["ssim"], "SSIM to the content image"),
        by_layer("content", lambda r: r.left, "part of the content’s loss that is left", "y"),
        by_layer("style", lambda r: r.left, "part of the style’s loss that is left", "y"),
    )
    blocks.append(cards.section("Layer by layer", layer_by_layer))
    ends = dict.fromkeys((layers[0], layers[-1]))
    blocks.append(
        cards.section("How the loss falls", cards.beside(*(descent(of, n) for of in originals for n in ends)))
    )
    lines = [
        ("", [cards.Thumbnail(originals[of], f"{of}, {m}"), *(thumbnail(single[of, n, m], n) for n in layers)])
        for of in originals
        for m in (GD, LBFGS)
    ]
    lines += [("", [cards.Thumbnail(originals["style"], f"style, {m}"), *row]) for m, row in ever_more]
    sheet = report.sheet(lines, cell=max(144, *noise.shape[:2]))
    report.write(settings, results, TEXT, blocks=blocks, sheet=sheet, table=COLUMNS)


def originals_row(original, noise):
    """The first row of a gallery."""
    return "", [cards.Thumbnail(original, "original"), cards.Thumbnail(noise, "noise", "where every run begins")]


def rows_of(of, single, layers):
    """Rows of at most six images, by either method."""
    length = 4 if len(layers) > 6 else len(layers)
    for i in range(0, len(layers), length):
        for m in (GD, LBFGS):
            yield m, [thumbnail(single[of, name, m], name) for name in layers[i : i + length]]


def thumbnail(result, label):
    """A run's image with the figure that goes with it."""
    left = np.inf if result.left is None else result.left
    ssim = f"SSIM {result.figures['ssim']:z.2f}"
    return cards.Thumbnail(
        result.image(), label, ssim if result.configuration["of"] == "content" else f"left {percent(left)}"
    )


if __name__ == "__main__":
    terminal.cache_compilations()
    with terminal.refusals("reconstruct.py"):
        tyro.cli(main)
