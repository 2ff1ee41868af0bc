"""What each loss does to an image: the losses of the papers side by side, the same content, style and solver.

    python experiments/ablate_losses.py --output losses
    python experiments/ablate_losses.py --output losses --quick --groups distances alpha

Stopped, it goes on where it was.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import itertools
from functools import cache, partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from nstjax import images, solvers, terminal
from nstjax.studies import cards, measures, pseudo_truth, report, runner, terms
from nstjax.studies.settings import TRUTH, Settings, Truth, start
from nstjax.weights import PICTURES

ALPHAS = {128: 5e-6, 256: 1e-6, 512: 1e-7}  # Augustins's, of each size
# With Gatys's sums they keep nothing of the content. How his losses are normalized is not known; so many times his
# first, the content is kept as by the baseline at that size.
HEAVIER = 1e4
SETTINGS = Settings(output=Path("losses"))

# {group: {run: {term: weight}}}. Weights are in units of their losses (`terms.units`), and meant, from short scans, to
# keep about the same content in the images of one group.
Group = Literal[
    Literal["distances", "tv", "alpha", "laplacian", "perceptual", "patches", "nearest", "wasserstein", "sliced"],
    Literal["transport", "neighbors", "adain", "augustins"],
]
BASE = {"content": 1.0, "style": 10.0}
BASELINE = "MSE for content and style"
TVS = ("power 2", "power 1.25", "power 1", "isotropic")
GROUPS: dict[Group, dict[str, dict[str, float]]] = {
    "distances": {
        "Charbonnier for content": {"content_charbonnier": 1.5, "style": 10.0},
        "Charbonnier for style": {"content": 1.0, "style_charbonnier": 3.0},
        "Charbonnier for content and style": {"content_charbonnier": 1.5, "style_charbonnier": 3.0},
        "Frobenius norm for content and style": {"content_frobenius": 1.0, "style_frobenius": 2.0},
    },
    "tv": {f"total variation ({of})": BASE | {f"tv {of}": 0.5} for of in TVS},
    "alpha": {f"α = {alpha:g}": BASE | {"style": alpha} for alpha in (300.0, 30.0, 3.0, 0.3)},
    "laplacian": {f"Laplacian of weight {weight:g}": BASE | {"laplacian": weight} for weight in (10.0, 100.0)},
    "perceptual": {
        "LPIPS for content": {"perceptual": 3.0, "style": 10.0},
        "Johnson’s loss for content": {"johnson": 5.0, "style": 10.0},
        "MSE and Johnson’s loss for content": BASE | {"johnson": 1.0},
    },
    "patches": {
        "Gram of each cell": {"content": 1.0, "cells": 6.0},
        "Gram of the cell at that place": {"content": 1.0, "composition": 3.0},
    },
    "nearest": {"nearest patches": {"content": 1.0, "nearest": 2.0}},
    "wasserstein": {"Wasserstein-2": {"content": 1.0, "wasserstein": 4.0}},
    "sliced": {"sliced Wasserstein": {"content": 1.0, "sliced": 4.0}},
    "transport": {
        "relaxed earth mover’s distance": {"content": 1.0, "earth_movers": 4.0},
        "relaxed earth mover’s distance and palette": {"content": 1.0, "earth_movers": 4.0, "palette": 1.0},
        "self-similarity for content": {"self_similarity": 1.0, "earth_movers": 4.0, "palette": 1.0},
    },
    "neighbors": {"nearest neighbors of the content": {"content": 0.2, "neighbors": 4.0}},
    "adain": {
        "reconstruction of AdaIN’s image": {"reconstruction": 3.0, "style": 10.0},
        "content and AdaIN’s image": BASE | {"reconstruction": 3.0},
    },
    "augustins": {},  # as they depend on the size, see `setups`
}
HEADINGS: tuple[str, ...] = ("MSE, Charbonnier, norms", "Total variation", "Weight of the style, α", "Laplacian")
HEADINGS += ("Perceptual", "Gram of cells", "Nearest patches", "Wasserstein-2", "Sliced Wasserstein")
HEADINGS += ("Optimal transport", "Nearest neighbors", "AdaIN’s image", "Augustins’s weights")
HEADING = dict(zip(GROUPS, HEADINGS, strict=True))
QUICK: tuple[Group, ...] = ("distances", "tv", "alpha", "laplacian", "wasserstein")
# Too slow to be compiled into the others' program.
ALONE = ("perceptual", "patches", "nearest", "wasserstein", "sliced", "transport", "neighbors")
APART = ("alpha", "augustins")  # other weights rather than other losses

TEXT = report.Text(
    "What each loss does to an image",
    "One content image, one style image, one solver, and one loss after another, from Gatys’s of 2015 on.",
    "Compare a loss with the sweep of α where both keep as much of the content: there, less style distance is better.",
)
CAPTION = "c is the content distance (0 the content image, with which every run begins, 1 a blank), "
CAPTION += "s the style distance (1 the content image, 0 the style image)."
RANKS = "How many times the style distance of the sweep of α where it keeps as much of the content; – beyond the sweep."
NEARER = "Of two points at the same content distance, the lower has more of the style."
UNITS = "A loss counts in units of what it is for the content image, or for a blank; results.json has the weights."


def main(
    *,
    content: Path = PICTURES / "astronaut.jpg",
    style: Path = PICTURES / "gale.jpg",
    groups: tuple[Group, ...] | None = None,
    weights: str = "bundled",
    truth: tyro.conf.OmitArgPrefixes[Truth] = TRUTH,
    settings: tyro.conf.OmitArgPrefixes[Settings] = SETTINGS,
) -> None:
    """Paint an image with one loss after another, from the content image, by L-BFGS.

    Args:
        content: the content image; long side 256 pixels, or 192 with --quick, unless --size is given.
        style: the style image.
        groups: by default all, with --quick five: distances (Pandey's), tv (Kitov's), alpha (his weight of the style),
            laplacian, perceptual (LPIPS, Johnson's), patches (statistics of cells), nearest (patches), wasserstein,
            sliced (Wasserstein), transport (STROTSS's), neighbors (nearest hypercolumns), adain (its image), augustins
            (his weights of layers, his α of 128, 256, 512 pixels up to 2 --size).
        weights: bundled, keras or torchvision (downloaded; makes LPIPS the calibrated one), or a file of VGG-19.
        truth: what AdaIN's image is.
        settings: those of every study.
    """
    given = [content, style, weights]
    size, steps = start(settings, truth, size=(256, 192), steps=(150, 40), inputs=given, random=False)
    table = setups(groups or (QUICK if settings.quick else tuple(GROUPS)), size, 1 if settings.quick else 2)
    load = partial(images.load, minimum=32)
    pairs = {side: (load(content, size=side), load(style, size=side)) for side in {each[0] for each in table.values()}}
    source = pseudo_truth.read(truth, {pseudo_truth.pair(content, style): pairs[size]})
    params, heads = measures.load_networks(weights, like=pairs[size][0]), measures.load_heads(weights)
    about = {"scaled_at": size} | runner.sources(content_image=content, style_image=style, weights=weights)
    (reference,) = pseudo_truth.made(settings, source).values()
    figures = measures.measured_by(params, heads)

    @cache
    def scene(side):
        """The targets and units of all terms at a size."""
        used = {name for size_, _, chosen in table.values() if size_ == side for name in chosen}
        names = [name for name in terms.TERMS if name in used]
        of = jax.jit(partial(terms.targets, names))(params, *pairs[side], reference.image, heads)
        return of, jax.jit(terms.units)(params, pairs[side][0], of)

    def run_of(name, among):
        side, group, chosen = table[name]
        own = {"group": group, "size": side, "losses": chosen} | about | (reference.about if side == size else {})
        data = lambda: {"params": params} | weighed(scene(side), chosen, among)  # noqa: E731
        return runner.Run(name, own, lambda: (pairs[side][0], data()))

    def measure(run, image):
        side = run.configuration["size"]
        return figures(image, *pairs[side], reference.image if side == size else None)

    programs = []
    for side, names in together(table):
        among = [name for name in terms.TERMS if any(name in table[each][2] for each in names)]
        runs = [run_of(name, among) for name in names]
        programs.append(runner.Program(solvers.lbfgs(terms.objective), steps, pairs[side][0].shape[:2], runs))
    originals = report.originals(*pairs[size], reference.image)[1]
    write(settings, runner.run(settings, programs, measure=measure), originals)


def setups(groups, size, times):
    """{run: (size, group, {term: weight})}; Augustins's sizes go up to `times` the size."""
    table = {BASELINE: (size, "distances", BASE)}
    for group in (name for name in GROUPS if name in groups):
        table |= {name: (size, group, weights) for name, weights in GROUPS[group].items()}
    for side in [each for each in ALPHAS if each <= times * size] or [size] if "augustins" in groups else []:
        his = ALPHAS.get(side, max(ALPHAS.values()))
        for alpha in (his, *(HEAVIER * alpha for alpha in ALPHAS.values())):
            name = f"Augustins’s α of {cards.number(alpha)} at {side} px"
            table[name] = (side, "augustins", {"gatys_content": alpha, "gatys_style": 1.0})
    return table


def together(table):
    """(size, names of runs) that differ in numbers alone, and are optimized by one program."""
    kinds: dict[tuple, list[str]] = {}
    for name, (side, group, _) in table.items():
        kinds.setdefault((side, group if group in ALONE else ""), []).append(name)
    return [(side, names) for (side, _), names in kinds.items()]


def weighed(scene, weights, among):
    """An objective's data of some terms of a scene, of which those that have no weight weigh nothing."""
    targets, units = scene
    chosen = {name: jnp.asarray(weights.get(name, 0.0) / units[name]) for name in among}
    return {"weights": chosen, "targets": {name: targets[name] for name in among}}


def write(settings, results, originals):
    """Write the card: images, curves, tables."""
    baseline = results[0]
    rows = {group: [r for r in results[1:] if r.configuration["group"] == group] for group in GROUPS}
    rows = {group: sorted(some, key=side_of) for group, some in rows.items() if some}
    sweep = sorted([baseline, *rows.get("alpha", [])], key=lambda r: -r.configuration["losses"]["style"])
    others = [r for group, some in rows.items() if group not in APART for r in some]
    lines = [("", [*originals, thumbnail(baseline)])]
    for group, some in rows.items():
        for i, (_, line) in enumerate(itertools.groupby(some, key=side_of)):
            lines.append(("" if i else HEADING[group], [thumbnail(r) for r in line]))

    def trade_off(group):
        """The sweep of α as a line, the group's images as points."""
        curve = {"sweep of α" if len(sweep) > 1 else BASELINE: [place(r) for r in sweep]}
        curve |= {r.name: [place(r)] for r in rows[group]}
        return cards.curves(curve, x="content distance", y="style distance", log="xy", caption=HEADING[group])

    def descent(group):
        lines = {r.name: r.relative() for r in [baseline, *rows[group]]}
        return cards.curves(lines, x="evaluations", y=report.LEFT, log="y", caption=HEADING[group])

    blocks = [cards.section("The images", cards.gallery(lines, caption=CAPTION))]
    if len(sweep) > 1 and others:
        columns = {"run": "Run", "style_distance": "Style distance", "moments_distance": "Style by moments"}
        ranks = cards.table(ranked(sweep, others), columns=columns, caption=RANKS)
        blocks += [cards.section("At equal content", ranks)]
    if others:
        compared = [trade_off(group) for group in rows if group not in APART]
        blocks.append(cards.section("Content against style", NEARER, cards.beside(*compared)))
    if rows:
        blocks.append(cards.section("How the losses fall", cards.beside(*map(descent, rows))))
    blocks.append(cards.section("How to read the figures", *measures.EXPLAINED, UNITS, pseudo_truth.about(results)))
    every = [each for _, line in lines for each in line]
    sheet = report.sheet([("", every[i : i + 6]) for i in range(0, len(every), 6)], cell=256)
    columns = {"run": "Run", "size": "Size"} | measures.FIGURES | measures.REFERENCE
    report.write(settings, results, TEXT, blocks=blocks, sheet=sheet, table=columns)


def side_of(result):
    return result.configuration["size"]


def place(result):
    return result.figures["content_distance"], result.figures["style_distance"]


def thumbnail(result):
    c, s = map(report.short, place(result))
    return cards.Thumbnail(result.image(), result.name, f"c {c}, s {s}")


def against(sweep, result, name):
    """A style distance (figure `name`) in units of what the sweep of α has at the same content distance, or None.

    Between two of its points, by a straight line of logarithms; beyond them nothing is known.
    """
    every = sorted((r.figures["content_distance"], r.figures[name]) for r in sweep)
    x, y = np.log(np.maximum(np.array(every), 1e-30)).T
    at = np.log(max(result.figures["content_distance"], 1e-30))
    return float(result.figures[name] / np.exp(np.interp(at, x, y))) if x[0] <= at <= x[-1] else None


def ranked(sweep, results):
    """Rows of each result's style distances in units of the sweep's, best first; last those beyond the sweep."""
    names = ("style_distance", "moments_distance")
    rows = [{"run": r.name} | {name: against(sweep, r, name) for name in names} for r in results]
    return sorted(rows, key=lambda row: np.inf if row["style_distance"] is None else row["style_distance"])


if __name__ == "__main__":
    terminal.cache_compilations()
    with terminal.refusals("ablate_losses.py"):
        tyro.cli(main)
