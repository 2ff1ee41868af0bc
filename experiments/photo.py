"""Give a photo the light and the colors of another, and keep its edges (Luan 2017, arXiv 1703.07511).

    python experiments/photo.py --content day.jpg --style night.jpg --output result.png
    python experiments/photo.py --content day.jpg --style night.jpg --content-mask sky.png --style-mask night-sky.png

A mask has one color for each region; regions of one color belong together.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro

from nstjax import (
    command,
    features,
    files,
    images,
    memory,
    nets,
    neural_style,
    photorealism,
    recipes,
    regions,
    terminal,
    weights,
)
from nstjax.errors import InputError, printable
from nstjax.nets import io
from nstjax.nets.decoder import LEVELS


class Flags(NamedTuple):
    """Give a photo the light and the colors of another."""

    content: Path
    """the photo."""
    style: Path
    """the reference, another photo."""
    output: Path = Path("photo.png")
    """the image to write: .png, .jpg, .webp, .tif or .bmp."""
    content_mask: tuple[Path, ...] = ()
    """an image of the photo's aspect with one color for each region, or several, white in one region each."""
    style_mask: tuple[Path, ...] = ()
    """the same of the reference: regions of one color, or of one place in the list, belong together."""
    method: Literal["deep-photo", "wct", "color"] = "deep-photo"
    """deep-photo (optimized), wct (features in closed form, seconds) or color (the colors alone, in closed form)."""
    strength: float = 1.0
    """from 0, the photo, to 1."""
    size: int = 512
    """long side of the image in pixels."""
    steps: int = photorealism.RECIPE.steps
    """of L-BFGS."""
    weights: str = "bundled"
    """bundled, keras or torchvision (downloaded), random, or a .h5, .pth, .onnx, .npz or .safetensors file."""
    metadata: bool = True
    """keep in the image the command that made it (files without their folders) and the versions of what ran it."""
    memory_limit: float | None = None
    """gigabytes to use; by default 0.7 of what is free."""


def main() -> None:
    flags = tyro.cli(Flags, description=Flags.__doc__, config=(tyro.conf.OmitArgPrefixes,))
    common = command.Common(size=flags.size, weights=flags.weights, memory_limit=flags.memory_limit)
    check(flags, common)
    limit = command.start(common)
    photo, content, style, pairs = load(flags, memory.for_images(limit))
    recipe = photorealism.RECIPE._replace(steps=flags.steps)
    with terminal.stop_signals() as stopped:
        ending = ""
        if flags.method == "color":
            painted = photorealism.recolored(content, style, pairs)
        elif flags.method == "wct":
            decoder, variables, _ = io.load("wct")
            params, decoder = features.load("vgg19", layers=tuple(LEVELS)), nets.in_fast_form(decoder)
            painted = photorealism.decoded(content, style, pairs, params=params, decoder=decoder, variables=variables)
        else:
            shapes = [style.shape[:2]] * len(pairs)
            held = {"limit": limit, "regions": len(pairs), "reading": photo.nbytes}
            budget = neural_style.budget(recipe, content.shape[:2], shapes, **held)
            command.keep_within(limit, budget)
            params = command.params(common, recipe, budget)
            painting = photorealism.paint(content, style, pairs, recipe=recipe, params=params, budget=budget)
            scales = neural_style.schedule(recipe, content.shape[:2])
            for progress, _, ending in command.watch(painting, scales, stopped):  # noqa: B007
                painted = progress.image
        result = photorealism.rendered(photo, content, painted, pairs, strength=flags.strength)
        images.save(flags.output, result, metadata=command.provenance() if flags.metadata else None)
    h, w, _ = result.shape
    print(f"{ending}saved {printable(flags.output)}, {w} x {h} px")
    terminal.finish(stopped, failed=bool(ending))


def check(flags, common):
    """Raise InputError for flags out of range, without effect, and for an output that cannot be written."""
    terminal.check_range("strength", flags.strength, 0, 1)
    terminal.check_positive("steps", flags.steps)
    closed = flags.method != "deep-photo"
    why = "only with --method deep-photo"
    terminal.check_effect(terminal.named(), *((name, closed, why) for name in ("steps", "weights")))
    if len(flags.content_mask) != len(flags.style_mask):
        raise InputError(f"give as many as of --content-mask: {len(flags.content_mask)}", argument="style_mask")
    images.check_writable(flags.output)
    inputs = [flags.content, flags.style, *flags.content_mask, *flags.style_mask]
    files.check_outputs([flags.output], [*inputs, *command.own_weights(common), *weights.bundled_files()])


def load(flags, limit):
    """(photo, content image as it is painted, style image, pairs of regions)."""
    photo = images.load(flags.content, size=flags.size, minimum=recipes.MINIMUM, limit=limit)
    h, w, _ = photo.shape
    k = min(1, photorealism.SIZE / max(h, w))
    shape = max(recipes.MINIMUM, round(k * h)), max(recipes.MINIMUM, round(k * w))
    style = images.load(flags.style, size=max(shape), minimum=recipes.STYLE_MINIMUM, limit=limit)
    content = photo if shape == (h, w) else images.resize(photo, shape)
    found = masks(flags, shape, style.shape[:2], limit)
    return photo, content, style, photorealism.refined(content, found) if flags.content_mask else found


def masks(flags, shape, style_shape, limit):
    """Pairs of masks (of the content image, of the style image) at their shapes; without flags one of all."""
    if not flags.content_mask:
        return [(np.ones(shape, np.float32), np.ones(style_shape, np.float32))]
    kinds = [(flags.content_mask, shape, "--content-mask", flags.content)]
    kinds += [(flags.style_mask, style_shape, "--style-mask", flags.style)]
    for paths, _, flag, image in kinds:
        for path in paths:
            images.check_aspect(path, images.shape(image), flag)
    if len(flags.content_mask) > 1:
        columns = [[images.load_mask(path, shape=at, limit=limit) for path in paths] for paths, at, *_ in kinds]
        found = [regions.Region(str(path), *pair) for path, *pair in zip(flags.content_mask, *columns, strict=True)]
    else:
        names = [printable(path) for (path,), *_ in kinds]
        colored = [images.load(path, source_minimum=3, limit=limit) for (path,), *_ in kinds]
        for color in regions.unused(*colored):
            print(f"{names[0]} has no {color}: that of {names[1]} is not used")
        found = [
            each._replace(content=resized(each.content, shape), style=resized(each.style, style_shape))
            for each in regions.paired(*colored, names=names)
        ]
    kept, skipped = regions.large_enough(found)
    print(*skipped, sep="\n", end="\n" * bool(skipped))
    return [(each.content, each.style) for each in kept]


def resized(mask, shape):
    """A mask of the shape (H, W)."""
    return images.resize(mask[..., None], shape)[..., 0]


if __name__ == "__main__":
    terminal.run("photo.py", main)
