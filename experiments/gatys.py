"""Paint a photo in the style of a painting by optimizing its pixels (Gatys 2015, arXiv 1508.06576).

    python experiments/gatys.py --optimizer lbfgs
    python experiments/gatys.py --content photo.jpg --style painting.jpg --output stylized.png --preset quality

The first paints the bundled photo in the bundled style at 512 px, in one to three minutes on two CPU cores.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from nstjax import command, files, images, memory, neural_style, plots, recipes, terminal, weights
from nstjax.errors import InputError, printable


class Flags(NamedTuple):
    """Paint a photo in the style of a painting."""

    content: Path = weights.PICTURES / "astronaut.jpg"
    """the photo."""
    style: tuple[Path, ...] = (weights.PICTURES / "gale.jpg",)
    """one painting or several, which are blended, or painted each into its --content-mask."""
    output: Path = Path("gatys.png")
    """the image to write: .png, .jpg, .webp, .tif or .bmp."""
    preset: Literal["fast", "quality", "neighbor", "strotss", "sliced", "gatys"] = "fast"
    """fast (Wasserstein pyramid, two minutes), quality (more sizes, more steps), neighbor (nearest neighbors of
    features), strotss (optimal transport), sliced (sliced Wasserstein) or gatys (his notebook)."""
    style_blend: tuple[float, ...] = ()
    """a number for each style, their shares."""
    style_mask: tuple[Path, ...] = ()
    """for each style an image of its aspect, white where the style is to be learned from."""
    content_mask: tuple[Path, ...] = ()
    """for each style an image of the photo's aspect, white where it is to be painted."""
    init: str = "content"
    """the start: content, noise, gray, style (its middle, in the photo's aspect), or a file, to continue from it."""
    seed: int = 0
    """of --init noise, and of the presets strotss and sliced."""
    frames: Path | None = None
    """a folder to write the image into every --frames-every steps, as 00001.jpg and so on."""
    frames_every: int = 5
    """steps between two frames."""
    curve: Path | None = None
    """a .csv file for every loss term at every evaluation; a plot is written beside it."""
    common: command.Common = command.Common()
    recipe: recipes.Recipe = recipes.Recipe()


def main() -> None:
    flags, given = command.parse(Flags)
    recipe = command.recipe(flags, given)
    check(flags, recipe, given)
    check_files(flags)
    limit, devices = command.start(flags.common), flags.common.devices
    h, w = images.shape(flags.content, size=flags.common.size, minimum=recipes.MINIMUM)
    shape = (h // devices * devices, w)
    content, styles, init = load(flags, recipe, shape, memory.for_images(limit))
    sizes = [images.shape(path) for path in flags.style]
    reading = max(images.reading_bytes(path, size=flags.common.size) for path in read(flags))
    held = {"devices": devices, "regions": len(flags.content_mask)}
    budget = neural_style.budget(recipe, shape, sizes, limit=limit, reading=reading, **held)
    command.keep_within(limit, budget, neural_style.describe(recipe, shape, budget, devices=devices))
    more = {"init": init, "seed": flags.seed, "budget": budget, "devices": devices}
    params = command.params(flags.common, recipe, budget)
    painting = neural_style.paint(content, styles, preset=recipe, params=params, **more)
    paint(flags, painting, neural_style.schedule(recipe, shape), size=(h, w))


def check(flags, recipe, given):
    """Raise InputError for flags out of range, contradictory or without effect."""
    terminal.check_positive("frames_every", flags.frames_every)
    terminal.check_seed(flags.seed)
    for name in ("style_blend", "content_mask", "style_mask"):
        if len(getattr(flags, name)) not in (0, len(flags.style)):
            raise InputError(f"give one for each of the {len(flags.style)} styles, or none", argument=name)
    if flags.style_blend and not (min(flags.style_blend) >= 0 and 0 < sum(flags.style_blend) < np.inf):
        raise InputError("give numbers that are not negative, and not all 0", argument="style_blend")
    terminal.check_effect(
        given,
        ("frames_every", flags.frames is None, "only with --frames"),
        ("seed", flags.init != "noise" and not recipe.method.random, "only --init noise and some presets are random"),
        ("style_blend", len(flags.style) == 1, "there is one --style, and nothing to blend; give several"),
        *((name, recipe.no_style, "the style's weight is 0") for name in ("style_blend", "style_mask", "content_mask")),
    )


def check_files(flags):
    """Raise InputError for outputs that cannot be written, or that would replace an input or somebody's own file."""
    images.check_writable(flags.output)
    curves = plots.check_writable(flags.curve) if flags.curve else []
    frames = images.frames(flags.frames)
    inputs = [*read(flags), *command.own_weights(flags.common), *weights.bundled_files()]
    files.check_outputs([flags.output, *curves, *frames], inputs)
    unnamed = [*curves[1:], *(path for numbered in frames for path in files.members(numbered))]
    images.check_own(unnamed, "choose another name for --curve or --frames")


def read(flags):
    """The images that are read."""
    start = [] if flags.init in get_args(neural_style.Start) else [Path(flags.init)]
    return [flags.content, *flags.style, *flags.content_mask, *flags.style_mask, *start]


def load(flags, recipe, shape, limit):
    """(content image [H, W, 3], its styles, image or name to start from), each file decoded once."""
    content = images.load(flags.content, size=shape, minimum=recipes.MINIMUM, limit=limit)
    none = (None,) * len(flags.style)
    columns = flags.style, flags.style_mask or none, flags.content_mask or none, flags.style_blend or none
    styles = []
    for path, mask, region, share in zip(*columns, strict=True):
        size = recipes.style_size(recipe, images.shape(path), shape)
        image = images.load(path, size=size, minimum=recipes.STYLE_MINIMUM, limit=limit)
        mask = mask and images.load_mask(mask, shape=image.shape[:2], of="--style-mask", limit=limit)
        region = region and images.load_mask(region, shape=shape, of="--content-mask", limit=limit)
        styles.append(neural_style.Style(image, mask, region, 1.0 if share is None else share))
    if flags.init in get_args(neural_style.Start):
        return content, styles, flags.init
    if not images.same_aspect(images.shape(flags.init), shape):  # that of an earlier result on as many devices
        images.check_aspect(flags.init, images.shape(flags.content), "--init")
    return content, styles, images.load(flags.init, size=shape, limit=limit)


def paint(flags, painting, scales, *, size):
    """Show the progress, write frames of a size, and save the image: as far as it got, if it ends early."""
    # Open until all is saved, so that a signal cannot lose what was painted; a second one can.
    with terminal.stop_signals() as stopped:
        for progress, rows, ending in command.watch(painting, scales, stopped):  # noqa: B007
            if flags.frames and (progress.step - 1) % flags.frames_every == 0:
                frame = images.resize(progress.image, size)
                images.save(flags.frames / f"{progress.step:05d}.jpg", frame, metadata=images.MARK)
        images.save(flags.output, progress.image, metadata=command.provenance() if flags.common.metadata else None)
        if flags.curve:
            plots.write_curves(flags.curve, rows)
    h, w, _ = progress.image.shape
    loss, seconds = rows[-1]["loss"], rows[-1]["seconds"]
    print(f"{ending}saved {printable(flags.output)}, {w} x {h} px, loss {loss:.4g}, {seconds:.0f} s")
    terminal.finish(stopped, failed=bool(ending))


if __name__ == "__main__":
    terminal.run("gatys.py", main)
