"""What each loss does to a picture: the losses of the papers side by side, the same photograph, painting and solver.

    python experiments/ablate_losses.py --output losses
    python experiments/ablate_losses.py --output losses --quick --groups distances alpha

Stopped, it goes on where it was.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import functools
import itertools
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from nstjax import images, losses, metrics, objectives, patches, plots, solvers, terminal
from nstjax.features import vgg
from nstjax.studies import cards, measures, pseudo_truth, runner
from nstjax.studies.runner import short
from nstjax.weights import PICTURES

EVERY = dict.fromkeys(measures.STYLE_LAYERS, 1.0)
CROWSON = dict(zip(measures.STYLE_LAYERS, np.array([256, 64, 16, 4, 1]) / 341, strict=True))
AUGUSTINS = dict(zip(measures.STYLE_LAYERS, (0.2, 0.2, 0.4, 0.2, 0.0), strict=True))
ALPHAS = {128: 5e-6, 256: 1e-6, 512: 1e-7}  # Augustins's, of each size
# With Gatys's sums they keep nothing of the content. How his losses are normalised is not known; so many times his
# first, the content is kept as by the baseline at that size.
HEAVIER = 1e4
CELLS = 4  # cells of a side, in which statistics are taken patch by patch


def style_term(statistic, distance=losses.mse):
    """A style loss as a term: target is {"of": {layer: statistic}, "layers": {layer: weight}}."""

    def term(x, image, target):
        own = {"statistic": statistic, "distance": distance, "weights": target["layers"]}
        return losses.style(x["vgg19"], target["of"], **own)

    return term


def prior(power):
    return lambda x, image, target: losses.total_variation(image, power=power)


# Every loss: (features of both networks, image, target) -> number.
KEEP = {
    "content": lambda x, image, target: losses.content(x["vgg19"], target),
    "content_charbonnier": lambda x, image, target: losses.content(x["vgg19"], target, distance=losses.charbonnier),
    "perceptual": lambda x, image, target: losses.lpips(x["vgg16"], target["of"], heads=target["heads"]),
    "laplacian": lambda x, image, target: losses.mse(losses.laplacian(image), target),
}
CHANGE = {
    "style": style_term(losses.gram),
    "style_charbonnier": style_term(losses.gram, losses.charbonnier),
    "cells": style_term(partial(patches.patchwise, statistic=losses.gram, grid=CELLS)),
    "composition": style_term(partial(patches.patchwise, statistic=losses.gram, grid=CELLS)),
    "nearest": style_term(losses.activations, patches.nearest),
    "wasserstein": style_term(losses.gaussian, losses.wasserstein2),
    "reconstruction": lambda x, image, target: losses.mse(image, target),
    "tv2": prior(2.0),
    "tv1.25": prior(1.25),
    "tv1": prior(1.0),
}
# Gatys 2015, eq. 1 and 5, as Augustins weighs them; Gram matrices as in eq. 4.
GATYS = {
    "gatys_content": lambda x, image, target: sum(
        ((x["vgg19"][name] - y) ** 2).sum() / 2 for name, y in target.items()
    ),
    "gatys_style": lambda x, image, target: style_term(partial(losses.gram, normalization="hw"))(x, image, target) / 4,
}
TERMS = KEEP | CHANGE | GATYS

Group = Literal[
    "distances", "tv", "alpha", "laplacian", "perceptual", "patches", "nearest", "wasserstein", "adain", "augustins"
]
HEADINGS: dict[Group, str] = {
    "distances": "MSE and Charbonnier",
    "tv": "Total variation",
    "alpha": "α",
    "laplacian": "Laplacian",
    "perceptual": "LPIPS",
    "patches": "Patch-wise statistics",
    "nearest": "Nearest patches",
    "wasserstein": "Wasserstein-2",
    "adain": "AdaIN’s picture",
    "augustins": "Augustins’s weights",
}

# {group: {run: {term: weight}}}. The weights are of losses in units of their own (`units`), and meant, from
# short scans, to keep about the same content in the pictures of one group.
BASE = {"content": 1.0, "style": 10.0}
BASELINE = "content MSE, style MSE"
GROUPS: dict[Group, dict[str, dict[str, float]]] = {
    "distances": {
        "content Charbonnier, style MSE": {"content_charbonnier": 1.5, "style": 10.0},
        "content MSE, style Charbonnier": {"content": 1.0, "style_charbonnier": 3.0},
        "content and style Charbonnier": {"content_charbonnier": 1.5, "style_charbonnier": 3.0},
    },
    "tv": {
        "TV, power 2": BASE | {"tv2": 0.5},
        "TV, power 1.25": BASE | {"tv1.25": 0.5},
        "TV, power 1": BASE | {"tv1": 0.5},
    },
    "alpha": {f"alpha {alpha:g}": BASE | {"content": alpha} for alpha in (0.03, 0.3, 3.0, 30.0)},
    "laplacian": {f"Laplacian {weight:g}": BASE | {"laplacian": weight} for weight in (10.0, 100.0)},
    "perceptual": {"perceptual": {"perceptual": 3.0, "style": 10.0}},
    "patches": {
        "Gram of each cell": {"content": 1.0, "cells": 6.0},
        "Gram of the cell at that place": {"content": 1.0, "composition": 3.0},
    },
    "nearest": {"nearest patches": {"content": 1.0, "nearest": 2.0}},
    "wasserstein": {"Wasserstein-2": {"content": 1.0, "wasserstein": 4.0}},
    "adain": {
        "reconstruction": {"reconstruction": 3.0, "style": 10.0},
        "content and reconstruction": BASE | {"reconstruction": 3.0},
    },
}
# What takes long to compute is compiled for those that need it alone.
ALONE = ("perceptual", "patches", "nearest", "wasserstein")
DEFAULTS = runner.Flags(output=Path("losses"))


class Scene(NamedTuple):
    """A size's pictures [H, W, 3], and what the objective's data have in common."""

    photograph: np.ndarray
    painting: np.ndarray
    targets: dict
    units: dict


def main(
    *,
    content: Path = PICTURES / "astronaut.jpg",
    style: Path = PICTURES / "gale.jpg",
    groups: tuple[Group, ...] = tuple(HEADINGS),
    weights: str = "bundled",
    truth: tyro.conf.OmitArgPrefixes[pseudo_truth.Flags] = pseudo_truth.DEFAULTS,
    flags: tyro.conf.OmitArgPrefixes[runner.Flags] = DEFAULTS,
) -> None:
    """Paint a photograph with one loss after another, from the photograph, by L-BFGS.

    Args:
        content: the photograph; long side 256 pixels, or 96 with --quick, unless --size is given.
        style: the painting.
        groups: what to compare: distances (Pandey's MSE and Charbonnier), tv (Kitov's three powers), alpha (his ratio
            of content to style), laplacian, perceptual (LPIPS keeps the content), patches (statistics of cells),
            nearest (each patch is like one of the painting's), wasserstein, adain (its picture is reconstructed),
            augustins (his weights of layers, and his α for 128, 256 and 512 pixels, up to twice the size).
        weights: bundled, keras or torchvision (downloaded; makes LPIPS the calibrated one), or a file of VGG-19.
        truth: what AdaIN's picture is.
        flags: those of every study.
    """
    runner.start(
        flags,
        inputs=[content, style, weights, *pseudo_truth.inputs(truth)],
        folders=pseudo_truth.folders(truth),
        random=False,
    )
    pseudo_truth.check(truth)
    size, steps = flags.size or (96 if flags.quick else 256), flags.steps or (20 if flags.quick else 150)
    chosen = tuple(name for name in HEADINGS if name in groups)
    sizes = [each for each in ALPHAS if each <= (1 if flags.quick else 2) * size] or [size]
    table: dict[str, tuple] = {BASELINE: (size, "distances", BASE)}
    for group in chosen:
        if group == "augustins":
            for side in sizes:
                his = ALPHAS.get(side, max(ALPHAS.values()))
                for alpha in (his, *(HEAVIER * alpha for alpha in ALPHAS.values())):
                    table[f"{side} px, alpha {alpha:g}"] = (side, group, {"gatys_content": alpha, "gatys_style": 1.0})
        else:
            table |= {name: (size, group, terms) for name, terms in GROUPS[group].items()}

    every_side = {side for side, *_ in table.values()}
    pairs = {side: tuple(images.load(path, size=side, minimum=32) for path in (content, style)) for side in every_side}
    params = measures.load_networks(weights, like=pairs[size][0])
    about = {"photograph": runner.source(content), "painting": runner.source(style)}
    about |= {"weights": runner.source(weights), "scaled_at": size}
    (reference,) = pseudo_truth.made(flags, truth, {f"{content.stem}, {style.stem}": pairs[size]}).values()
    heads = metrics.load_heads("vgg") if weights == "torchvision" else None
    objective = objectives.combined(measures.networks, TERMS)

    @functools.cache
    def scene(side):
        """What the runs of a size share."""
        photograph, painting = pairs[side]
        every = {term for _side, _, terms in table.values() if _side == side for term in terms}
        of = jax.jit(partial(targets, every))(params, photograph, painting, reference.picture, heads)
        return Scene(photograph, painting, of, jax.jit(partial(units, objective))(params, photograph, of))

    def prepare(side, terms, among):
        """The photograph, and data in which terms that another run of the program has weigh nothing."""
        photograph, _, of, unit = scene(side)
        weighed = {name: jnp.asarray(terms.get(name, 0.0) / unit[name]) for name in among}
        return photograph, {"params": params, "weights": weighed, "targets": {name: of[name] for name in among}}

    def run_of(name, side, group, terms, *, among):
        own = {"group": group, "size": side, "losses": terms} | (reference.about if side == size else {})
        return runner.Run(name, own | about, partial(prepare, side, terms, among))

    # Runs that differ in numbers alone are optimised by one program.
    kinds: dict[tuple, list[tuple]] = {}
    for name, (side, kind, terms) in table.items():
        kinds.setdefault((side, kind if kind in ALONE else ""), []).append((name, side, kind, terms))
    programs = []
    for some in kinds.values():
        among = tuple(name for name in TERMS if any(name in terms for *_, terms in some))
        programs.append(runner.Program(solvers.lbfgs(objective), steps, [run_of(*each, among=among) for each in some]))

    judge, compare = (jax.jit(partial(each, heads=heads)) for each in (measures.figures, pseudo_truth.figures))

    def measure(run, picture):
        side = run.configuration["size"]
        photograph, painting, *_ = scene(side)
        known = judge(params, picture, photograph, painting)
        if side == size:
            known = known | compare(picture, reference.picture, params=params["vgg16"])
        return {name: float(x) for name, x in known.items()}

    results = runner.run(flags, programs, measure=measure)
    report(flags, results, scene(size), reference.picture, truth, calibrated=heads is not None)


def targets(terms, params, photograph, painting, picture, heads):
    """What each of the terms compares with."""
    kept, wanted = measures.networks(params, photograph), vgg.features(params["vgg19"], painting)

    def style(statistic, layers, *, broadcast=lambda x: x, finish=lambda x: x):
        return {"of": {name: finish(statistic(wanted[name])) for name in layers}, "layers": layers}

    content = {measures.CONTENT_LAYER: kept["vgg19"][measures.CONTENT_LAYER]}
    whole = lambda x: jnp.broadcast_to(losses.gram(x), (CELLS**2, x.shape[2], x.shape[2]))  # noqa: E731
    some = dict.fromkeys(measures.STYLE_LAYERS[:4], 1.0)
    every = {
        "content": lambda: content,
        "content_charbonnier": lambda: content,
        "gatys_content": lambda: content,
        "perceptual": lambda: {"of": {name: kept["vgg16"][name] for name in metrics.LPIPS_LAYERS}, "heads": heads},
        "laplacian": lambda: losses.laplacian(photograph),
        "style": lambda: style(losses.gram, EVERY),
        "style_charbonnier": lambda: style(losses.gram, EVERY),
        "gatys_style": lambda: style(partial(losses.gram, normalization="hw"), AUGUSTINS),
        # Cells of block 5 would be too small.
        "cells": lambda: style(whole, some),
        "composition": lambda: style(partial(patches.patchwise, statistic=losses.gram, grid=CELLS), some),
        "nearest": lambda: style(losses.activations, {"relu3_1": 1.0, "relu4_1": 1.0}),
        "wasserstein": lambda: style(losses.gaussian, CROWSON, finish=losses.with_root),
        "reconstruction": lambda: picture,
    }
    return {name: every.get(name, lambda: None)() for name in TERMS if name in terms}


def units(objective, params, photograph, targets):
    """The unit of each term: what changes a picture is measured by the photograph, what keeps it by a blank.

    That is a term's loss for the photograph, or for a picture of its mean colour. Gatys's own losses have no unit.
    """
    data = {"params": params, "targets": targets, "weights": dict.fromkeys(targets, 1.0)}
    blank = jnp.broadcast_to(photograph.mean((0, 1)), photograph.shape)
    (_, changed), (_, kept) = objective(photograph, data), objective(blank, data)
    ones = dict.fromkeys(targets, jnp.ones(()))
    return {name: ones[name] if name in GATYS else (kept if name in KEEP else changed)[name] for name in targets}


def report(flags, results, scene, reference, truth, *, calibrated):
    """Write the card: what the figures say, pictures, curves."""
    baseline = results[0]
    rows = {group: [r for r in results[1:] if r.configuration["group"] == group] for group in HEADINGS}
    rows = {group: sorted(some, key=lambda r: r.configuration["size"]) for group, some in rows.items() if some}
    sweep = swept(baseline, rows.get("alpha", []))
    start = [cards.Picture(scene.photograph, "photograph"), cards.Picture(scene.painting, "painting")]
    start += [cards.Picture(reference, "AdaIN’s picture"), cards.Picture(baseline.picture(), BASELINE, note(baseline))]
    lines = [("", start)]
    for group, some in rows.items():
        for i, line in enumerate(by_size(some)):
            lines.append(("" if i else HEADINGS[group], [cards.Picture(r.picture(), r.name, note(r)) for r in line]))

    def trade_off(group):
        """The sweep of α as a line, the group's pictures as points."""
        points = {r.name: [(r.figures["content_distance"], r.figures["style_distance"])] for r in rows[group]}
        curve = {"α sweep, MSE": [point for _, point in sweep]} if len(sweep) > 1 else {BASELINE: [sweep[0][1]]}
        caption = f"{HEADINGS[group]}: less of both is better."
        return cards.curves(curve | points, x="content distance", y="style distance", log="xy", caption=caption)

    def descent(group):
        """Every loss in units of its first."""
        lines = {r.name: relative(r.line("loss")) for r in [baseline, *rows[group]]}
        caption = f"{HEADINGS[group]}: each loss in units of what it was at first."
        return cards.curves(lines, x="evaluations", y="part of the loss that is left", log="y", caption=caption)

    compared = [group for group in rows if group not in ("alpha", "augustins")]
    blocks = [cards.section("The pictures", cards.pictures(lines, caption=CAPTION))]
    if rows.get("alpha") and others_of(rows):
        ranks = ranked(baseline, rows["alpha"], others_of(rows))
        columns = {"run": "Run", "style_distance": "Style distance", "moments_distance": "by moments"}
        blocks.append(cards.section("At equal content", cards.table(ranks, columns=columns, caption=RANKS)))
    if compared:
        blocks.append(cards.section("Content against style", cards.beside(*map(trade_off, compared))))
    if rows:
        blocks.append(cards.section("How the losses fall", cards.beside(*map(descent, rows))))
    blocks.append(
        cards.section("How to read the figures", *measures.explained(calibrated), pseudo_truth.told(flags, truth))
    )
    cells = [(runner.enlarged(picture.image, CELL), picture.label) for _, line in lines for picture in line]
    runner.write(
        flags,
        results,
        title="What each loss does to a picture",
        lead="One photograph, one painting, one solver, and one loss after another, from Gatys’s of 2015 on.",
        reading="Compare a loss with the sweep of α where both keep as much of the content: there, less "
        "style distance is better.",
        blocks=blocks,
        sheet=plots.contact_sheet([cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)], cell=CELL),
        table={"run": "Run", "size": "Size"}
        | measures.FIGURES
        | pseudo_truth.FIGURES
        | {"evaluations": "Evaluations", "seconds": "Seconds"},
    )


CELL, COLUMNS = 256, 6  # pixels of a picture on the sheet, and pictures in a row
RANKS = (
    "How many times the style distance that the sweep of α has where it keeps as much of the content; "
    "– beyond what the sweep covers."
)
CAPTION = (
    "Every run begins with the photograph. Under a picture, what is left of the way: c is the content distance "
    "(0 is the photograph, 1 a blank), s the style distance (1 is the photograph, 0 the painting)."
)


def swept(baseline, runs):
    """[(α, (content distance, style distance))] of the sweep of α, the baseline with its 1 among them."""
    some = [(1.0, baseline)] + [(r.configuration["losses"]["content"], r) for r in runs]
    points = [(a, (r.figures["content_distance"], r.figures["style_distance"])) for a, r in some]
    return sorted(points)


def by_size(results):
    """Rows of results of one size each."""
    return [list(some) for _, some in itertools.groupby(results, key=lambda r: r.configuration["size"])]


def relative(line):
    """A line in units of its first value."""
    return [(x, y / line[0][1]) for x, y in line] if line and line[0][1] else []


def note(result):
    """The figures that go with a picture."""
    return f"c {short(result.figures['content_distance'])}, s {short(result.figures['style_distance'])}"


def against(baseline, sweep, result, name):
    """A style distance (figure `name`) in units of what the sweep of α has at the same content distance, or None.

    sweep: the results of the sweep. Between two of its points, by a straight line of logarithms; beyond them nothing
    is known.
    """
    every = sorted((r.figures["content_distance"], r.figures[name]) for r in [baseline, *sweep])
    x, y = np.log(np.maximum(np.array(every), 1e-30)).T
    at = np.log(max(result.figures["content_distance"], 1e-30))
    if not x[0] <= at <= x[-1]:
        return None
    return float(result.figures[name] / np.exp(np.interp(at, x, y)))


# Groups that are no other losses, but other weights.
APART = ("alpha", "augustins")


def others_of(rows):
    """The runs by other losses than the baseline's."""
    return [r for group, some in rows.items() if group not in APART for r in some]


def ranked(baseline, sweep, results):
    """Rows for the card: what each run has of the style distance of the sweep at the same content distance, best first.

    What is beyond the sweep is not known, and comes last.
    """
    rows = [
        {"run": r.name} | {name: against(baseline, sweep, r, name) for name in ("style_distance", "moments_distance")}
        for r in results
    ]
    return sorted(rows, key=lambda row: np.inf if row["style_distance"] is None else row["style_distance"])


if __name__ == "__main__":
    terminal.cache_compilations()
    with terminal.refusals("ablate_losses.py"):
        tyro.cli(main)
