"""How many iterations an image needs: content kept against style reached, step by step, and where the knee is.

    python experiments/ablate_iterations.py --output iterations
    python experiments/ablate_iterations.py --content a.jpg b.jpg --style c.jpg d.jpg --adain adain.safetensors

Stopped, it goes on where it was.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import math
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from nstjax import files, images, losses, objectives, solvers, terminal
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.studies import cards, measures, pseudo_truth, report, runner
from nstjax.studies.report import short
from nstjax.studies.settings import TRUTH, Settings, Truth, start
from nstjax.weights import PICTURES

SETTINGS = Settings(output=Path("iterations"))
SHOWN = 6  # images of a pair, beside the style image and AdaIN's
LOST = {"lpips": "LPIPS", "lost": "1 − SSIM", "content_distance": "content distance"}
COLUMNS = {"run": "Pair", "loss": "Loss", "left": "Loss left"} | measures.FIGURES | measures.REFERENCE
TEXT = report.Text(
    "How many iterations an image needs",
    "An image of Gatys 2015 while it is painted: how much of the content is kept, how much of the style is reached.",
    "Up to the knee, an iteration brings more style than the average one; after it, less.",
)
CAPTION = (
    "Every run begins with the content image. L is LPIPS to the content image, s the style distance (1 is the content "
    "image, 0 the style image). The knee is that of style distance over iterations."
)
CIRCLES = "In the curves, a circle is a knee, with its iteration."
EVERY = "Images were measured after iterations that grow by about a quarter each."
KNEE = (
    "An iteration is one evaluation of the loss with its gradient. Content and style are weighed in units of their "
    "own (--strength). The knee is where the curve of style distance over iterations is farthest below the straight "
    "line between its ends, both axes scaled to their range (Kneedle, Satopaa 2011). It is among the steps "
    "measured, and depends on the whole run: with more iterations it comes later."
)


def main(
    *,
    content: tuple[Path, ...] = (PICTURES / "astronaut.jpg",),
    style: tuple[Path, ...] = (PICTURES / "gale.jpg",),
    strength: float = 0.2,
    weights: str = "bundled",
    truth: tyro.conf.OmitArgPrefixes[Truth] = TRUTH,
    settings: tyro.conf.OmitArgPrefixes[Settings] = SETTINGS,
) -> None:
    """Measure an image while it is painted, from the content image, by Gram matrices and L-BFGS (Gatys 2015).

    Args:
        content: content images; long side 256 pixels, or 192 with --quick, unless --size is given.
        style: a style image for each content image; a single content or style image goes with all of the others.
        strength: above 0, where the content image is kept, and under 1, where its style alone counts.
        weights: bundled, keras or torchvision (downloaded; makes LPIPS the calibrated one), or a file of VGG-19.
        truth: what AdaIN's images are.
        settings: those of every study.
    """
    given = [*content, *style, weights]
    size, steps = start(
        settings, truth, size=(256, 192), steps=(300, 200), inputs=given, random=False, strength=strength
    )
    paths = paired(content, style)
    load = partial(images.load, size=size, minimum=32)
    pairs = {name: (load(one), load(other)) for name, (one, other) in paths.items()}
    source = pseudo_truth.read(truth, pairs)
    first = next(iter(pairs))
    params = measures.load_networks(weights, like=pairs[first][0])
    about = {"size": size, "strength": strength} | runner.sources(weights=weights, scaled_by=paths[first][0])
    references = pseudo_truth.made(settings, source)

    objective, targets = objectives.neural_style(vgg.features, statistic=losses.gram)
    content_layers, style_layers = (measures.CONTENT_LAYER,), measures.STYLE_LAYERS
    data = measures.balanced(objective, targets, content=content_layers, style=style_layers, strength=strength)
    figures = measures.measured_by(params, measures.load_heads(weights))

    def run_of(name):
        own = runner.sources(content_image=paths[name][0], style_image=paths[name][1]) | references[name].about
        return runner.Run(name, about | own, lambda: (pairs[name][0], data(params["vgg19"], *pairs[name])))

    solver = solvers.lbfgs(objective)
    programs = [
        runner.Program(solver, steps, shape, [run_of(name) for name in names], keep=spaced(steps))
        for shape, names in pseudo_truth.by_shape(pairs).items()
    ]
    results = runner.run(
        settings,
        programs,
        measure=lambda run, image: figures(image, *pairs[run.name], references[run.name].image),
    )
    write(settings, results, pairs, references)


def paired(contents, styles):
    """{name: (content image, style image)} of the paths; a single one goes with all of the others."""
    count = max(len(contents), len(styles))
    for argument, given in (("content", contents), ("style", styles)):
        if len(given) not in (1, count):
            message = f"{len(given)} given for {count} pairs; give one for each, or one for all"
            raise InputError(message, argument=argument)
    pairs: dict[str, tuple] = {}
    for pair in zip(contents * (count // len(contents)), styles * (count // len(styles)), strict=True):
        if pair in pairs.values():
            raise InputError(f"--content, --style: {pair[0]} with {pair[1]} is given twice")
        name = pseudo_truth.pair(*pair)
        while name in pairs:
            name += "’"
        pairs[name] = pair
    return pairs


def spaced(steps, *, octave=3):
    """Steps to measure: 0, 1, and so on about `octave` of each doubling, up to `steps`."""
    count = math.ceil(octave * math.log2(max(steps, 1)))
    return tuple(sorted({0, steps, *(round(steps ** (i / max(count, 1))) for i in range(count + 1))}))


def knee(x, y):
    """Where a curve of falling y turns from steep to flat: the index of a point, or None for a curve that does not.

    Kneedle without smoothing (Satopaa 2011, doi 10.1109/ICDCSW.2011.20): the point farthest below the chord from the
    first to the last point, where both axes are scaled so that it goes from (0, 1) to (1, 0). There, most of the way in
    y is done for the least of the way in x, which rises. Points at the chord or above are none.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 3 or x[-1] <= x[0] or y[-1] >= y[0]:
        return None
    gain = (y - y[0]) / (y[-1] - y[0]) - (x - x[0]) / (x[-1] - x[0])
    best = int(np.argmax(gain))
    return best if gain[best] > 1e-6 else None


def track(result):
    """{figure: its values at every step measured}, "step" and "lost", 1 - SSIM, among them."""
    points = [*result.moments[: len(result.steps) - 1], result.figures]
    columns = {name: [point[name] for point in points] for name in result.moments[0] if name != "step"}
    return {"step": result.steps, **columns, "lost": [1 - value for value in columns["ssim"]]}


def shown(count, turn):
    """Indices of the points whose images are shown: evenly spread, the ends and the knee among them."""
    every = {round(i * (count - 1) / (SHOWN - 2)) for i in range(SHOWN - 1)}
    return sorted(every | ({turn} if turn is not None else set()))


def write(settings, results, pairs, references):
    """Write the card, and iterations.csv with every figure at every step that was measured."""
    tracks = {r.name: track(r) for r in results}
    knees = {name: knee(columns["step"], columns["style_distance"]) for name, columns in tracks.items()}
    lines = [
        (r.name, thumbnails(r, tracks[r.name], knees[r.name], pairs[r.name][1], references[r.name].image))
        for r in results
    ]
    curve = partial(curves, tracks, knees)
    trade_offs = [curve(name, "style_distance", x=label, y="style distance") for name, label in LOST.items()]
    over = partial(curve, "step", x="iterations")
    against = [over(name, y=label, log="x", marked=False) for name, label in measures.REFERENCE.items()]
    rows = [
        {"pair": name} | {figure: values[i] for figure, values in columns.items() if figure != "lost"}
        for name, columns in tracks.items()
        for i in range(len(columns["step"]))
    ]
    headings = (
        ({"pair": "Pair"} if len(pairs) > 1 else {}) | {"step": "Iterations"} | measures.FIGURES | measures.REFERENCE
    )
    progress = cards.beside(
        over("style_distance", y="style distance", log="xy"),
        over("lpips", y="LPIPS to the content image", log="x"),
        over("ssim", y="SSIM to the content image", log="x", marked=False),
        over("mse", y="MSE to the content image", log="x", marked=False),
    )
    blocks = [
        cards.section("The images", cards.gallery(lines, caption=CAPTION)),
        cards.section("Content against style", CIRCLES, cards.beside(*trade_offs)),
        cards.section("Over iterations", progress),
        cards.section("Against AdaIN’s image", pseudo_truth.about(results), cards.beside(*against)),
        cards.section("Every step", cards.table(rows, columns=headings, caption=EVERY)),
        cards.section("How to read the figures", *measures.EXPLAINED, KNEE),
    ]
    files.write_csv(settings.output / "iterations.csv", rows)
    sheet = report.sheet([("", row) for _, row in lines], cell=256)
    report.write(settings, results, TEXT, blocks=blocks, sheet=sheet, table=COLUMNS)


def thumbnails(result, columns, turn, style, reference):
    """A pair's row: the style image, AdaIN's image, and the run's at some steps."""
    row = [cards.Thumbnail(style, "style image"), cards.Thumbnail(reference, "AdaIN’s image")]
    for i in shown(len(columns["step"]), turn):
        step = columns["step"][i]
        image = result.image(None if i + 1 == len(columns["step"]) else step)
        label = f"iteration {step}" + (", the knee" if i == turn else "")
        note = f"L {short(columns['lpips'][i])}, s {short(columns['style_distance'][i])}"
        row.append(cards.Thumbnail(image, label if step else "content image", note))
    return row


def curves(tracks, knees, horizontal, vertical, *, x, y, log="", marked=True):
    """One figure against another, for each pair; marked: circle the knees and label them with their iteration."""
    series = {name: list(zip(columns[horizontal], columns[vertical], strict=True)) for name, columns in tracks.items()}
    turns = {name: i for name, i in knees.items() if i is not None and marked}
    marks = [(*series[name][i], str(tracks[name]["step"][i])) for name, i in turns.items()]
    return cards.curves(series, x=x, y=y, log=log, marks=marks)


if __name__ == "__main__":
    terminal.cache_compilations()
    with terminal.refusals("ablate_iterations.py"):
        tyro.cli(main)
