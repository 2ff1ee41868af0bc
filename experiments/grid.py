"""Paint every combination of photos, paintings, seeds and style weights, and a labeled sheet of them all.

    python experiments/grid.py --content a.jpg b.jpg --style c.jpg d.jpg --output grid.png
    python experiments/grid.py --style-weights 0.1 1 10 --output weights.png

Images of one shape are painted together by one compiled program.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import functools
import itertools
import math
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from nstjax import command, files, images, memory, neural_style, plots, recipes, terminal, weights
from nstjax.errors import printable


class Flags(NamedTuple):
    """Paint every combination of photos, paintings, seeds and style weights, and a labeled sheet beside the images."""

    content: tuple[Path, ...] = (weights.PICTURES / "astronaut.jpg",)
    """the photos."""
    style: tuple[Path, ...] = (weights.PICTURES / "gale.jpg",)
    """the paintings."""
    seeds: tuple[int, ...] = (0,)
    """of --init noise, and of the presets strotss and sliced."""
    style_weights: tuple[float, ...] = ()
    """of the style loss; by default that of the recipe."""
    output: Path = Path("grid.png")
    """the sheet to write: .png, .jpg, .webp, .tif or .bmp."""
    preset: Literal["fast", "quality", "neighbor", "strotss", "sliced", "gatys"] = "fast"
    """fast, quality, neighbor, strotss, sliced or gatys; see docs/painting.md."""
    init: Literal["content", "noise", "gray", "style"] = "content"
    """the start: the photo, noise, gray, or the painting's middle, in the photo's aspect."""
    common: command.Common = command.Common()
    recipe: recipes.Recipe = recipes.Recipe()


class Cell(NamedTuple):
    """One image of the grid."""

    content: Path
    style: Path
    style_weight: float
    seed: int


def main() -> None:
    flags, given = command.parse(Flags)
    recipe = command.recipe(flags, given)
    for seed in flags.seeds:
        terminal.check_seed(seed, "seeds")
    for weight in flags.style_weights:
        recipes.check(recipe._replace(style_weight=weight), given=given)
    terminal.check_effect(given, ("seeds", flags.init != "noise" and not recipe.method.random, "nothing is random"))
    terminal.check_effect(given, ("style_weights", recipe.strength is not None, "--strength sets them"))
    every = itertools.product(flags.content, flags.style, flags.style_weights or (recipe.style_weight,), flags.seeds)
    labels = labels_of(list(dict.fromkeys(Cell(*each) for each in every)))
    paths = paths_of(flags.output, labels)
    for path in (flags.output, *paths.values()):
        images.check_writable(path)
    inputs = [*flags.content, *flags.style, *command.own_weights(flags.common), *weights.bundled_files()]
    files.check_outputs([flags.output, *paths.values()], inputs)
    paint(flags, recipe, labels, paths)


def load(flags, recipe, cells, limit, devices):
    """({cell: its `neural_style.Job`}, budget); each file is decoded once."""
    shapes = {path: images.shape(path, size=flags.common.size, minimum=recipes.MINIMUM) for path in flags.content}
    shapes = {path: (h // devices * devices, w) for path, (h, w) in shapes.items()}
    largest = max(shapes.values(), key=math.prod)
    sizes = {path: recipes.style_size(recipe, images.shape(path), largest) for path in flags.style}
    read = functools.partial(images.load, limit=memory.for_images(limit))
    contents = {path: read(path, size=shape, minimum=recipes.MINIMUM) for path, shape in shapes.items()}
    styles = {path: read(path, size=size, minimum=recipes.STYLE_MINIMUM) for path, size in sizes.items()}
    reading = max(images.reading_bytes(path, size=flags.common.size) for path in (*flags.content, *flags.style))
    held = {"results": len(cells) + len(shapes), "reading": reading, "limit": limit, "devices": devices}
    budget = neural_style.budget(recipe, largest, [images.shape(max(sizes, key=sizes.__getitem__))], **held)
    arrays = {cell: (contents[cell.content], [styles[cell.style]]) for cell in cells}
    return {cell: neural_style.Job(*arrays[cell], flags.init, cell.seed, cell.style_weight) for cell in cells}, budget


def paint(flags, recipe, labels, paths):
    """Paint all cells, and save each image and the sheet: as far as it got, if it ends early."""
    limit, devices = command.start(flags.common), flags.common.devices
    jobs, budget = load(flags, recipe, list(labels), limit, devices)
    command.keep_within(limit, budget)
    params = command.params(flags.common, recipe, budget)
    done: dict[Cell, np.ndarray] = {}
    # Open until all is saved, so that a signal cannot lose what was painted; a second one can.
    with terminal.stop_signals() as stopped:
        for some in neural_style.batches(jobs, together=budget.together):
            scales = neural_style.schedule(recipe, jobs[some[0]].content.shape[:2])
            how = {"preset": recipe, "params": params, "budget": budget, "devices": devices}
            painting = neural_style.paint_batch([jobs[cell] for cell in some], **how)
            label = f"{len(done)} of {len(jobs)} done: "
            for progress, rows, ending in command.watch(painting, scales, stopped, label=label):  # noqa: B007
                pass  # what counts is where it ends
            for cell, image in zip(some, progress.image, strict=True):
                images.save(paths[cell], image)
                done[cell] = image
            if ending:
                break
        images.save(flags.output, sheet(done, labels), metadata=command.provenance() if flags.common.metadata else None)
    print(f"{ending}saved {printable(flags.output)} and {len(done)} images, loss {np.mean(rows[-1]['loss']):.4g}")
    terminal.finish(stopped, failed=bool(ending))


def labels_of(cells):
    """{cell: what sets it apart from the others}, all different."""
    contents, styles, weights, seeds = (list(dict.fromkeys(values)) for values in zip(*cells, strict=True))
    titles = (
        files.distinct([path.stem for path in contents]),
        files.distinct([path.stem for path in styles]),
        [f"weight {weight:g}" if float(f"{weight:g}") == weight else f"weight {weight!r}" for weight in weights],
        [f"seed {seed}" for seed in seeds],
    )
    every = list(zip((contents, styles, weights, seeds), titles, strict=True))

    def label(cell):
        parts = [title[values.index(value)] for (values, title), value in zip(every, cell, strict=True) if values[1:]]
        return ", ".join(parts) or cell.content.stem

    return {cell: label(cell) for cell in cells}


def paths_of(output, labels):
    """{cell: the path of its image}, beside the sheet and all different."""
    names = files.distinct([label.replace(", ", "-").replace(" ", "") for label in labels.values()])
    paths = [output.with_name(f"{output.stem}-{name}{output.suffix}") for name in names]
    return dict(zip(labels, paths, strict=True))


def sheet(done, labels):
    """A contact sheet: a row for each photo, labeled."""
    contents = list(dict.fromkeys(cell.content for cell in labels))
    rows = [[cell for cell in labels if cell.content == content] for content in contents]
    return plots.contact_sheet([[(done.get(cell), printable(labels[cell])) for cell in row] for row in rows])


if __name__ == "__main__":
    terminal.run("grid.py", main)
