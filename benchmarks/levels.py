"""Pixels or the levels of a Laplacian pyramid as the variables of L-BFGS: the loss after as many evaluations.

    python benchmarks/levels.py --pairs photo.jpg:painting.jpg ... [--size 192 --evaluations 100 --units 0.5 0.71 1]

Gatys's recipe at one size, from the content. Prints each run's losses and its seconds per evaluation; those of one pair
are taken in turn, step by step, so that they can be compared.
"""

import argparse
import time
from functools import partial

import jax

from nstjax import features, images, losses, objectives, pyramid, solvers, terminal
from nstjax.features import vgg
from nstjax.recipes import PRESETS

RECIPE = PRESETS["gatys"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", required=True, metavar="PHOTO:PAINTING")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--units", type=float, nargs="+", default=[0.5, pyramid.LBFGS_UNIT, 1.0])
    args = parser.parse_args()
    terminal.tune_malloc()
    terminal.cache_compilations()

    extract = partial(vgg.features, edge="replicate")
    objective, targets = objectives.neural_style(extract, statistic=losses.gram)
    params = features.load(RECIPE.network, layers=RECIPE.layers)
    runs = {"pixels": solvers.lbfgs(objective)}
    for unit in args.units:
        runs[f"levels, unit {unit:.2f}"] = pyramid.on_levels(solvers.lbfgs, objective, unit=unit)
    told = [args.evaluations // 4, args.evaluations // 2, args.evaluations]
    print(f"| pair | variables | loss after {told[0]}, {told[1]}, {told[2]} | seconds |\n|---|---|---|---|")
    for pair in args.pairs:
        photo, painting = (images.load(path, size=args.size) for path in pair.split(":"))
        weights = {"content": RECIPE.content_weight, "style": RECIPE.style_weight}
        layers = {"content_layers": RECIPE.content_by_layer, "style_layers": RECIPE.style_by_layer}
        data = jax.jit(targets)(params, photo, [objectives.Style(painting)], weights=weights, **layers)
        each = {name: solvers.run(solver, photo, data, steps=args.evaluations) for name, solver in runs.items()}
        found: dict[str, list[float]] = {name: [] for name in runs}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.evaluations):
            for name, run in each.items():
                start = time.perf_counter()
                _, _, terms = next(run)
                seconds[name].append(time.perf_counter() - start)
                found[name].append(terms["loss"])
        for name, values in found.items():
            shown = ", ".join(f"{values[step - 1]:.3g}" for step in told)
            middle = sorted(seconds[name])[args.evaluations // 2]
            print(f"| {pair} | {name} | {shown} | {middle:.3f} |", flush=True)


if __name__ == "__main__":
    main()
