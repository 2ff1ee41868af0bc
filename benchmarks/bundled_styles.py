"""How near do trained nets come to what optimizing the same loss makes of photos that they never saw?

    python benchmarks/bundled_styles.py --paintings FOLDER --photos a.jpg b.jpg [--styles starry_night --sheet FILE]

For each style, a bundled one's name or a net's file, whose painting is FOLDER/NAME.jpg, and each photo it prints the
losses of the net's image and of an image optimized from the photo, by as many evaluations of L-BFGS as asked for (on
the levels of its pyramid), of the loss that nets are trained by (VGG-16, Johnson's layers). The sheet shows them side
by side.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "experiments")]


def objective(image, data):
    """The loss of one image, as `solvers` take it."""
    from nstjax import train
    from nstjax.features import vgg

    loss = train.perceptual(lambda image, stats, batch, keys: (image[None], stats), vgg.features)
    value, (terms, _) = loss(image, {}, data["photo"][None], None, data)
    return value, terms


def targets(painting, style_weight):
    """The data of `objective`, but for the photo."""
    from train_transform import CONTENT_LAYERS, STYLE_LAYERS

    from nstjax import training

    weights = {"content": 1.0, "style": style_weight, "tv": 1e5}
    layers = {"content_layers": CONTENT_LAYERS, "style_layers": STYLE_LAYERS}
    return training.targets(painting, network="vgg16", weights=weights, **layers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paintings", type=Path, required=True)
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--styles", nargs="+", help="by default all bundled ones whose paintings are there")
    parser.add_argument("--size", type=int, default=384, help="of the photos' long side, in pixels")
    parser.add_argument("--style-size", type=int, default=384, help="of the paintings', as in training")
    parser.add_argument("--style-weight", type=float, default=10.0, help="as in training")
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--sheet", type=Path, help="an image to write")
    args = parser.parse_args()

    import jax

    from nstjax import images, plots, pyramid, solvers, styles, terminal
    from nstjax.weights.download import bundled_folder

    terminal.tune_malloc()
    terminal.cache_compilations()
    evaluate, solver = jax.jit(objective), pyramid.on_levels(solvers.lbfgs, objective, unit=pyramid.LBFGS_UNIT)
    painting = {path.stem: path for path in args.paintings.iterdir()}
    names = args.styles or sorted(
        path.stem for path in (bundled_folder() / "styles").glob("*.safetensors") if path.stem in painting
    )
    rows = []
    print("| style | content, of the optimized image's | style, of the optimized image's |\n|---|---|---|")
    for name in names:
        net, wanted = styles.load(name), images.load(painting[Path(name).stem.split("-")[0]], size=args.style_size)
        data = targets(wanted, args.style_weight)
        cells = [(wanted, Path(name).stem)]
        ratios: dict[str, list[float]] = {"content": [], "style": []}
        for path in args.photos:
            photo = images.load(path, size=args.size)
            own, fast = data | {"photo": photo}, net.stylize(photo)
            *_, (_, best, _) = solvers.run(solver, photo, own, steps=args.evaluations)
            there, reached = evaluate(fast, own)[1], evaluate(best, own)[1]
            for term, found in ratios.items():
                found.append(float(there[term] / reached[term]))
            cells += [(fast, f"{path.stem}, net"), (best, f"{path.stem}, optimized")]
        spread = [f"{statistics.mean(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in ratios.values()]
        print(f"| {name} | {' | '.join(spread)} |", flush=True)
        rows.append(cells)
    if args.sheet:
        images.save(args.sheet, plots.contact_sheet(rows, cell=args.size))


if __name__ == "__main__":
    main()
