"""What each layer of VGG-19 knows of a picture: content and style reconstructed from it alone, from noise.

    python experiments/reconstruct.py --output reconstruct
    python experiments/reconstruct.py --output reconstruct --quick

The tables of Augustins 2017 and the figure of Gatys 2015 (arXiv 1508.06576, figure 1) that Kitov's lecture shows. By
gradient descent, and by L-BFGS. The first takes about an hour on two CPU cores; stopped, it goes on where it was.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import tyro

from nstjax import features, images, losses, metrics, objectives, plots, solvers, terminal
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.studies import cards, runner
from nstjax.studies.runner import percent
from nstjax.weights import PICTURES

# The papers' "convolutions", in Keras as in Caffe, are seen after the ReLU.
LAYERS = tuple(name for name in vgg.layer_names("vgg19") if name.startswith("relu"))
FIRSTS = tuple(name for name in LAYERS if name.endswith("_1"))
QUICK = ("relu1_1", "relu3_1", "relu5_1")
KNOWN = tuple(name for name in vgg.layer_names("vgg19") if not name.startswith("pool"))
GD, LBFGS = "gradient descent", "L-BFGS"
DEFAULTS = runner.Flags(output=Path("reconstruct"))


def main(
    *,
    content: Path = PICTURES / "astronaut.jpg",
    style: Path = PICTURES / "gale.jpg",
    layers: tuple[str, ...] | None = None,
    step: float = 0.02,
    weights: str = "bundled",
    flags: tyro.conf.OmitArgPrefixes[runner.Flags] = DEFAULTS,
) -> None:
    """Reconstruct a photograph's content and a painting's style from single layers of VGG-19.

    Args:
        content: the photograph; long side 192 pixels, or 64 with --quick, unless --size is given.
        style: the painting, cut to the photograph's shape.
        layers: by default all 16 relu layers; with --quick three of them. conv layers are those before the
            ReLU.
        step: of gradient descent: mean change of pixels at the first step.
        weights: bundled, keras or torchvision (downloaded), or a file.
        flags: those of every study.
    """
    runner.start(flags, inputs=[content, style, weights], step=step)
    layers = tuple(dict.fromkeys(layers or (QUICK if flags.quick else LAYERS)))
    for name in layers:
        if name not in KNOWN:
            raise InputError(f"--layers: no layer {name!r} in vgg19; it has {', '.join(KNOWN)}")
    size, steps = flags.size or (64 if flags.quick else 192), flags.steps or (25 if flags.quick else 200)
    photograph = images.load(content, size=size, minimum=32)
    originals = {"content": photograph, "style": cut(style, photograph.shape[:2])}
    params = features.load("vgg19", weights, layers=layers, like=photograph)
    noise = runner.beginning("noise", photograph, flags.seed)
    objective, targets = objectives.neural_style(vgg.features, statistic=losses.gram)

    def prepare(of, chosen, among):
        """The noise, and data in which an error of a layer as large as what it should hold is a loss of 1."""
        every = dict.fromkeys(among, 1.0)
        painting = objectives.Style(originals["style"])
        terms = {name: float(name == of) for name in ("content", "style")}
        data = jax.jit(targets)(params, photograph, [painting], weights=terms, content_layers=every, style_layers=every)
        should = {"content_layers": data["content"], "style_layers": data["styles"][0]["targets"]}
        shares = {name: (name in chosen) / len(chosen) for name in among}
        scales = {
            term: {name: shares[name] / jnp.maximum((x**2).mean(), 1e-30) for name, x in target.items()}
            for term, target in should.items()
        }
        return noise, data | scales

    about = {"size": size, "seed": flags.seed}
    about |= {"photograph": runner.source(content), "painting": runner.source(style)}
    about["weights"] = runner.source(weights)

    def run_of(method, of, chosen, among):
        what = f"style up to {chosen[-1]}" if len(chosen) > 1 else f"{of} of {chosen[0]}"
        own = {"method": method, "step": steps_of[method], "of": of, "layers": chosen}
        return runner.Run(f"{what}, {method}", own | about, partial(prepare, of, chosen, among))

    # Of Gram matrices' loss, whole steps of L-BFGS from noise overshoot again and again.
    steps_of = {GD: step, LBFGS: 0.5}
    makers = {
        GD: solvers.gradient(objective, optax.chain(solvers.by_first_gradient(), optax.sgd(steps_of[GD]))),
        LBFGS: solvers.lbfgs(objective, learning_rate=steps_of[LBFGS]),
    }
    # The pictures of a block's layers differ in numbers alone, the weights of its layers among them.
    blocks = [tuple(name for name in layers if name[4] == number) for number in "12345"]
    blocks = [names for names in blocks if names]
    firsts = tuple(name for name in layers if name in FIRSTS)
    programs = []
    for method, solver in makers.items():
        for names in blocks:
            chosen: list[tuple[str, tuple[str, ...]]]
            chosen = [(of, (name,)) for name in names for of in ("content", "style")]
            if names == blocks[-1]:
                chosen += [("style", firsts[:n]) for n in range(2, len(firsts) + 1)]
            among = tuple(dict.fromkeys(name for _, each in chosen for name in each))
            programs.append(runner.Program(solver, steps, [run_of(method, *each, among) for each in chosen]))

    results = runner.run(
        flags, programs, measure=lambda run, picture: measured(originals[run.configuration["of"]], picture)
    )
    report(flags, results, originals, noise, layers)


def cut(path, shape):
    """The middle of a picture, as large as fits, in a shape (height, width)."""
    h, w = images.shape(path)
    scale = max(shape[0] / h, shape[1] / w)
    whole = images.load(path, size=(max(shape[0], round(h * scale)), max(shape[1], round(w * scale))))
    top, left = (whole.shape[0] - shape[0]) // 2, (whole.shape[1] - shape[1]) // 2
    return whole[top : top + shape[0], left : left + shape[1]]


def measured(original, picture):
    """What a picture's distance from the original is."""
    return {"mse": float(metrics.mse(original, picture)), "ssim": float(metrics.ssim(original, picture))}


def left(result):
    """The part of the noise's loss that is left; of a run that diverged, all and more."""
    return math.inf if result.left is None else result.left


def report(flags, results, originals, noise, layers):
    """Write the card: what the figures say, pictures, curves."""
    single = {key(r): r for r in results if len(r.configuration["layers"]) == 1}
    many = {m: [r for r in results if len(r.configuration["layers"]) > 1 and key(r)[2] == m] for m in (GD, LBFGS)}
    fours = [layers[i : i + 4] for i in range(0, len(layers), 4)] if len(layers) > 6 else [layers]

    def gallery(of):
        start = [cards.Picture(originals[of], "original"), cards.Picture(noise, "noise", "where every run begins")]
        rows = [
            (method, [cards.Picture(r.picture(), name, note(r)) for name in four if (r := single[of, name, method])])
            for four in fours
            for method in (GD, LBFGS)
        ]
        return [("", start), *rows]

    def by_layer(of, value, y, log=""):
        lines = {m: [(i, value(single[of, name, m])) for i, name in enumerate(layers)] for m in (GD, LBFGS)}
        caption = f"{of.capitalize()} of each layer, after all evaluations."
        return cards.curves(lines, x="layer", y=y, log=log, ticks=dict(enumerate(layers)), caption=caption)

    def descent(of, name):
        lines = {m: single[of, name, m].line("loss") for m in (GD, LBFGS)}
        return cards.curves(lines, x="evaluations", y="loss", log="y", caption=f"{of.capitalize()} of {name}.")

    ends = dict.fromkeys((layers[0], layers[-1]))
    blocks = [
        cards.section("Content", cards.pictures(gallery("content"), caption=CAPTIONS["content"])),
        cards.section("Style", cards.pictures(gallery("style"), caption=CAPTIONS["style"])),
        cards.section(
            "Layer by layer",
            cards.beside(
                by_layer("content", lambda r: r.figures["ssim"], "SSIM to the photograph"),
                by_layer("content", lambda r: r.left, "part of the content’s loss that is left", "y"),
                by_layer("style", lambda r: r.left, "part of the style’s loss that is left", "y"),
            ),
        ),
        cards.section(
            "How the loss falls", cards.beside(*(descent(of, n) for of in ("content", "style") for n in ends))
        ),
    ]
    if many[LBFGS]:
        rows = [(m, [cards.Picture(r.picture(), r.name.split(",")[0], note(r)) for r in many[m]]) for m in (GD, LBFGS)]
        blocks.insert(2, cards.section("Styles of ever more layers", cards.pictures(rows, caption=CAPTIONS["many"])))
    cells = [
        [(originals[of], f"{of}, {method}"), *((single[of, n, method].picture(), n) for n in layers)]
        for of in ("content", "style")
        for method in (GD, LBFGS)
    ]
    cells += [
        [(originals["style"], f"style, {method}"), *((r.picture(), r.name.split(",")[0]) for r in some)]
        for method, some in many.items()
        if some
    ]
    cell = max(144, *noise.shape[:2])
    cells = [[(runner.enlarged(picture, cell), label) for picture, label in row] for row in cells]
    runner.write(
        flags,
        results,
        title="What a layer remembers",
        lead="A photograph’s content and a painting’s style, reconstructed from noise by what single layers of VGG-19 "
        "know of them: the tables of Augustins 2017 and the figure of Gatys 2015, by gradient descent and by L-BFGS.",
        reading="The nearer an image comes to its original, and the less of the noise’s loss is left, the"
        " more the layer remembers.",
        blocks=blocks,
        sheet=plots.contact_sheet(cells, cell=cell),
        table={
            "run": "Run",
            "loss": "Loss",
            "left": "Left of it",
            "mse": "MSE",
            "ssim": "SSIM",
            "evaluations": "Evaluations",
            "seconds": "Seconds",
        },
    )


CAPTIONS = {
    "content": "Features, compared by their mean squared difference. SSIM is to the photograph. "
    "The first step of gradient descent changes pixels by the mean of --step, and all steps keep that scale; the step "
    "sizes of Augustins’s own are not known to us.",
    "style": "Gram matrices, compared by their mean squared difference. Left is the part of the noise’s "
    "loss that remains: where strokes lie is no part of a style, so that no distance to the painting could tell.",
    "many": "The Gram matrices of the first layers of blocks, up to the one named, each counting the same "
    "(the upper row of Gatys 2015, figure 1; the row of content is among those above).",
}


def key(result):
    """(content or style, the last layer, the method) of a run."""
    return result.configuration["of"], result.configuration["layers"][-1], result.configuration["method"]


def note(result):
    """The figure that goes with a picture."""
    if result.configuration["of"] == "content":
        return f"SSIM {result.figures['ssim']:z.2f}"
    return f"left {percent(left(result))}"


if __name__ == "__main__":
    terminal.cache_compilations()
    with terminal.refusals("reconstruct.py"):
        tyro.cli(main)
