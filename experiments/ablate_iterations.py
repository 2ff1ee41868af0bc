"""How many iterations a picture needs: content kept against style reached, step by step, and where the knee is.

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
from typing import NamedTuple

import jax
import numpy as np
import tyro

from nstjax import files, images, losses, metrics, objectives, plots, solvers, terminal
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.studies import cards, measures, pseudo_truth, runner
from nstjax.studies.runner import short
from nstjax.weights import PICTURES

CELL = 256  # pixels of an image on the sheet
DEFAULTS = runner.Flags(output=Path("iterations"))
SHOWN = 6  # pictures of a pair, beside the painting and AdaIN's


class Pair(NamedTuple):
    """A photograph [H, W, 3], a painting [h, w, 3], and AdaIN's picture of them [H, W, 3]."""

    photograph: np.ndarray
    painting: np.ndarray
    reference: np.ndarray
    about: dict


def main(
    *,
    content: tuple[Path, ...] = (PICTURES / "astronaut.jpg",),
    style: tuple[Path, ...] = (PICTURES / "gale.jpg",),
    strength: float = 0.2,
    weights: str = "bundled",
    truth: tyro.conf.OmitArgPrefixes[pseudo_truth.Flags] = pseudo_truth.DEFAULTS,
    flags: tyro.conf.OmitArgPrefixes[runner.Flags] = DEFAULTS,
) -> None:
    """Measure a picture while it is painted, from the photograph, by Gram matrices and L-BFGS (Gatys 2015).

    Args:
        content: photographs; long side 256 pixels, or 128 with --quick, unless --size is given.
        style: a painting for each photograph; a single photograph or painting goes with all of the others.
        strength: above 0, where the photograph is kept, and under 1, where its style alone counts.
        weights: bundled, keras or torchvision (downloaded; makes LPIPS the calibrated one), or a file of VGG-19.
        truth: what AdaIN's pictures are.
        flags: those of every study.
    """
    runner.start(
        flags,
        inputs=[*content, *style, weights, *pseudo_truth.inputs(truth)],
        folders=pseudo_truth.folders(truth),
        random=False,
    )
    runner.check_strength(strength)
    names = paired(content, style)
    pseudo_truth.check(truth, pairs=len(names))
    size, steps = flags.size or (128 if flags.quick else 256), flags.steps or (60 if flags.quick else 300)
    loaded = {
        name: (images.load(first, size=size, minimum=32), images.load(second, size=size, minimum=32))
        for name, (first, second) in names.items()
    }
    like = next(iter(loaded))
    params = measures.load_networks(weights, like=loaded[like][0])
    about = {"size": size, "strength": strength, "weights": runner.source(weights)}
    about["scaled_by"] = runner.source(names[like][0])
    references = pseudo_truth.made(flags, truth, loaded)
    pairs = {
        name: Pair(
            *loaded[name],
            references[name].picture,
            {"photograph": runner.source(first), "painting": runner.source(second)} | references[name].about,
        )
        for name, (first, second) in names.items()
    }

    heads = metrics.load_heads("vgg") if weights == "torchvision" else None
    objective, targets = objectives.neural_style(vgg.features, statistic=losses.gram)

    layers = {"content": (measures.CONTENT_LAYER,), "style": measures.STYLE_LAYERS}
    balanced = runner.balanced(objective, targets, **layers, strength=strength)

    def prepare(pair):
        """The photograph, and the objective's data."""
        return pair.photograph, balanced(params["vgg19"], pair.photograph, pair.painting)

    judge, compare = (jax.jit(partial(each, heads=heads)) for each in (measures.figures, pseudo_truth.figures))

    def measure(run, picture):
        pair = pairs[run.name]
        known = judge(params, picture, pair.photograph, pair.painting)
        known = known | compare(picture, pair.reference, params=params["vgg16"])
        return {name: float(x) for name, x in known.items()}

    runs: dict[tuple, list] = {}
    for name, pair in pairs.items():
        runs.setdefault(pair.photograph.shape, []).append(runner.Run(name, about | pair.about, partial(prepare, pair)))
    solver = solvers.lbfgs(objective)
    programs = [runner.Program(solver, steps, some, keep=spaced(steps)) for some in runs.values()]
    results = runner.run(flags, programs, measure=measure)
    report(flags, results, pairs, truth, calibrated=heads is not None)


def paired(contents, styles):
    """{name: (photograph, painting)} of the paths; a single one goes with all of the others."""
    count = max(len(contents), len(styles))
    for flag, given in (("--content", contents), ("--style", styles)):
        if len(given) not in (1, count):
            raise InputError(f"{flag}: {len(given)} given for {count} pairs; give one for each, or one for all")
    pairs: dict[str, tuple] = {}
    for pair in zip(contents * (count // len(contents)), styles * (count // len(styles)), strict=True):
        if pair in pairs.values():
            raise InputError(f"--content, --style: {pair[0]} with {pair[1]} is given twice")
        name = f"{pair[0].stem}, {pair[1].stem}"
        while name in pairs:
            name += "’"
        pairs[name] = pair
    return pairs


def spaced(steps, *, octave=3):
    """Steps to look at: 0, 1, and so on about `octave` of each doubling, up to `steps`."""
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
    gain = progress(y) - progress(x)
    best = int(np.argmax(gain))
    return best if gain[best] > 1e-6 else None


def progress(values):
    """Values scaled to go from 0 at the first to 1 at the last."""
    values = np.asarray(values, float)
    return (values - values[0]) / (values[-1] - values[0])


def track(result):
    """{figure: its values at every step that was looked at}, "step" and "lost", 1 - SSIM, among them."""
    last = {"step": int(result.figures["evaluations"])}
    points = [moment for moment in result.moments if moment["step"] < last["step"]]
    points.append(last | {name: result.figures[name] for name in result.moments[0] if name != "step"})
    columns = {name: [point[name] for point in points] for name in points[0]}
    return columns | {"lost": [1 - value for value in columns["ssim"]]}


LOST = {"lpips": "LPIPS", "lost": "1 − SSIM", "content_distance": "content distance"}
CAPTION = (
    "From the photograph on. L is LPIPS to the photograph, s the style distance (1 is the photograph, 0 the painting). "
    "The knee is that of style distance over iterations."
)


def report(flags, results, pairs, truth, *, calibrated):
    """Write the card, and iterations.csv with every figure at every step that was looked at."""
    tracks = {r.name: track(r) for r in results}
    at = {name: knee(columns["step"], columns["style_distance"]) for name, columns in tracks.items()}
    lines, cells = [], []
    for result in results:
        pair, columns, turn = pairs[result.name], tracks[result.name], at[result.name]
        row = [cards.Picture(pair.painting, "painting"), cards.Picture(pair.reference, "AdaIN’s picture")]
        for i in shown(len(columns["step"]), turn):
            step = columns["step"][i]
            picture = result.picture(None if i + 1 == len(columns["step"]) else step)
            label = f"iteration {step}" + (", the knee" if i == turn else "")
            note = f"L {short(columns['lpips'][i])}, s {short(columns['style_distance'][i])}"
            row.append(cards.Picture(picture, label if step else "photograph", note))
        lines.append((result.name, row))
        cells.append([(runner.enlarged(each.image, CELL), each.label) for each in row])

    def over(name, y, *, log="x", marked=False):
        """A figure over iterations."""
        series = {key: list(zip(columns["step"], columns[name], strict=True)) for key, columns in tracks.items()}
        turns = [(series[key][i], f"{series[key][i][0]}") for key in series if (i := at[key]) is not None]
        marks = [(*point, label) for point, label in turns] if marked else []
        return cards.curves(series, x="iterations", y=y, log=log, marks=marks, caption=f"{y} over iterations.")

    def trade_off(name, label):
        series = {
            key: list(zip(columns[name], columns["style_distance"], strict=True)) for key, columns in tracks.items()
        }
        turns = [(key, i) for key in series if (i := at[key]) is not None]
        marks = [(*series[key][i], f"{tracks[key]['step'][i]}") for key, i in turns]
        caption = f"Style distance against {label}, from the photograph on; the circle is the knee, with its iteration."
        return cards.curves(series, x=label, y="style distance", marks=marks, caption=caption)

    blocks = [
        cards.section("The pictures", cards.pictures(lines, caption=CAPTION)),
        cards.section("Content against style", cards.beside(*(trade_off(*each) for each in LOST.items()))),
        cards.section(
            "Over iterations",
            cards.beside(
                over("style_distance", "style distance", log="xy", marked=True),
                over("lpips", "LPIPS to the photograph", marked=True),
                over("ssim", "SSIM to the photograph"),
                over("mse", "MSE to the photograph"),
            ),
        ),
    ]
    against = [over(name, label) for name, label in pseudo_truth.FIGURES.items()]
    blocks.append(cards.section("Against AdaIN’s picture", pseudo_truth.told(flags, truth), cards.beside(*against)))
    rows = [
        {"pair": name} | {figure: values[i] for figure, values in columns.items() if figure != "lost"}
        for name, columns in tracks.items()
        for i in range(len(columns["step"]))
    ]
    headings = {"pair": "Pair", "step": "Iterations"} | measures.FIGURES | pseudo_truth.FIGURES
    blocks.append(cards.section("Every step", cards.table(rows, columns=headings, caption="Every picture looked at.")))
    blocks.append(cards.section("How to read the figures", *explained(calibrated)))
    files.write_csv(flags.output / "iterations.csv", rows)
    runner.write(
        flags,
        results,
        title="How many iterations a picture needs",
        lead="A picture of Gatys 2015 while it is painted: how much of the photograph is kept, how much of the "
        "painting’s style is reached, and from where on more work takes more than it gives.",
        reading="Up to the knee, an iteration brings more style than the average one; after it, less, "
        "while more content is lost.",
        blocks=blocks,
        sheet=plots.contact_sheet(cells, cell=CELL),
        table={"run": "Pair", "loss": "Loss", "left": "Left of it"}
        | measures.FIGURES
        | pseudo_truth.FIGURES
        | {"evaluations": "Evaluations", "seconds": "Seconds"},
    )


def explained(calibrated):
    """What the figures are, in paragraphs."""
    return [
        *measures.explained(calibrated)[:2],
        "An iteration is one evaluation of the loss with its gradient. Content and style are weighed in units of their "
        "own (--strength). The knee is where the curve of style distance over iterations is farthest below the "
        "straight line between its ends, both axes scaled to their range (Kneedle, Satopaa 2011): before it an "
        "iteration gives more than the average one, after it less. It is among the steps looked at, and goes by the "
        "whole run: with more iterations it comes later.",
    ]


def shown(count, turn):
    """Indices of the points whose pictures are shown: evenly spread, the ends and the knee among them."""
    every = {round(i * (count - 1) / (SHOWN - 2)) for i in range(SHOWN - 1)}
    return sorted(every | ({turn} if turn is not None else set()))


if __name__ == "__main__":
    terminal.cache_compilations()
    with terminal.refusals("ablate_iterations.py"):
        tyro.cli(main)
