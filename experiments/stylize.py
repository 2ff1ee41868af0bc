"""Paint photos or a video with a trained net, in one pass each; or write the net for other programs.

python experiments/stylize.py --content photo.jpg --style starry_night --output stylized.png
python experiments/stylize.py --content photos/ 'more/*.jpg' --style starry.safetensors --output stylized/
python experiments/stylize.py --content clip.mp4 --style starry.safetensors --output painted.mp4 --smooth 0.8
python experiments/stylize.py --content photo.jpg --style painting.jpg
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import contextlib
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

from nstjax import color, contents, data, images, memory, nets, styles, terminal
from nstjax.errors import InputError, printable
from nstjax.nets import export
from nstjax.weights import bundled_files

RANGES: dict[str, tuple[float, float]] = {"size": (16, 65536), "style_size": (16, 65536), "batch_size": (1, 65536)}
RANGES |= {"strength": (0, 1), "smooth": (0, 1), "memory_limit": (1e-3, 1e6)}


class Flags(NamedTuple):
    """Paint photos or a video with a trained net, or write the net for other programs.

    Photos that cannot be read are named and left out; the exit status is then 1, or 2 if none was painted.
    """

    style: str = "wct"
    """a bundled style's name, a file that training wrote, or any painting, which wct then paints like."""
    content: tuple[str, ...] = ()
    """photos, folders, patterns such as 'photos/*.jpg', or one video or animated image; none for a texture."""
    output: Path | None = None
    """the image or the video to write (stylized.png, .mp4), or a folder for several photos."""
    size: int | None = None
    """long side in pixels; by default the photo's own (a texture's: 512)."""
    strength: float = 1.0
    """0 (the photo) to 1 (the net's image). wct and AdaIN mix features, other nets' images are mixed."""
    preserve_color: color.Method = "none"
    """keep the photo's colors: paint its luminance only, or give the result the photo's covariance or histogram."""
    style_image: tuple[Path, ...] = ()
    """paintings for wct and AdaIN."""
    style_blend: tuple[float, ...] = ()
    """weight of each --style-image."""
    style_size: int = 512
    """long side of each --style-image; it sets the size of strokes."""
    seed: int = 0
    """of a texture net's noise."""
    smooth: float = 0.0
    """0 to 1: how much of the image before to keep, moved along the video's optical flow, against flicker."""
    batch_size: int = 1
    """images of one shape, or frames, to compute together."""
    memory_limit: float | None = None
    """gigabytes to use; by default 0.7 of what is free. Beyond it transform nets compute in strips."""
    export: Literal["onnx", "jax"] | None = None
    """paint nothing, but write a transform net to --output, as ONNX ("nstjax[onnx]") or in JAX's portable form."""
    export_precision: Literal["float32", "float16", "int8"] = "float32"
    """of the ONNX file's kernels: float16 halves the file without loss, int8 quarters it."""


def main() -> None:
    flags = tyro.cli(Flags, description=Flags.__doc__)
    given = terminal.named()
    if Path(flags.style).suffix.lower() in data.SUFFIXES:
        flags = flags._replace(style="wct", style_image=(Path(flags.style), *flags.style_image))
    if flags.export:
        others = sorted(given - {"style", "output", "export", "export_precision"})
        terminal.check_effect(given, *((name, True, "--export writes the net and paints nothing") for name in others))
        output = flags.output or Path(f"{Path(flags.style).stem}.{flags.export}")
        export.write(flags.style, output, form=flags.export, precision=flags.export_precision)
        print(f"saved {printable(output)}, which paints as the net does: images [N, H, W, 3] in 0..1, of any size")
        return
    for name, (low, high) in RANGES.items():
        terminal.check_range(name, getattr(flags, name), low, high)
    terminal.check_seed(flags.seed)
    styles.check_blend(flags.style_blend, flags.style_image, argument="style_blend")
    plan = contents.plan(flags.content, flags.output, inputs=[Path(flags.style), *flags.style_image, *bundled_files()])
    trained = styles.load(flags.style)
    check_use(flags, given, trained, plan)
    limit = flags.memory_limit * 1e9 if flags.memory_limit else 0.7 * memory.available()
    reading = memory.for_images(limit)
    stylize = trained.stylizer(
        styles=[images.load(path, size=flags.style_size, limit=reading) for path in flags.style_image],
        blend=flags.style_blend,
        strength=flags.strength,
        preserve_color=flags.preserve_color,
        seed=flags.seed,
        memory_limit=limit,
    )
    if flags.content:
        paint(flags, plan, stylize, limit=reading)
    else:
        side = flags.size or 512
        images.save(plan.output, stylize(np.zeros((1, side, side, 3), np.float32))[0])
        print(f"saved {printable(plan.output)}")


def check_use(flags, given, trained, plan):
    """Raise InputError for flags that the net lacks or that have no effect on it."""
    decoder, texture = isinstance(trained.net, nets.Decoder), isinstance(trained.net, nets.TextureNet)
    if decoder and not flags.style_image:
        raise InputError(f"{flags.style} paints like any painting; name one", argument="style_image")
    alone = not trained.sees_content
    if not alone and not flags.content:
        raise InputError("name photos or a video", argument="content")
    terminal.check_effect(
        given,
        *(
            (name, not decoder, "only wct and AdaIN take paintings")
            for name in ("style_image", "style_blend", "style_size")
        ),
        *(
            (name, not trained.sees_content, "it makes textures alone")
            for name in ("content", "strength", "preserve_color")
        ),
        ("export_precision", True, "only with --export onnx"),
        ("seed", not texture, "only for texture nets"),
        ("smooth", not plan.film, "only for a video"),
        ("batch_size", not (plan.several or plan.film), "only for several photos or a video"),
    )


def paint(flags, plan, stylize, *, limit):
    """Show the progress. Photos that cannot be read or written are named, and count in the exit status."""
    options = {"size": flags.size, "batch_size": flags.batch_size, "smooth": flags.smooth, "limit": limit}
    painting = contents.stylize(plan, stylize, **options)
    done, failed, count = 0, 0, len(plan.items) + len(plan.errors)
    bar = tqdm(unit="frame" if plan.film else "image", dynamic_ncols=True)
    with terminal.stop_signals() as stopped, contextlib.closing(painting), bar:
        for saved, bar.total, errors in painting:
            for error in errors:
                tqdm.write(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
            done, failed = done + saved, failed + len(errors)
            bar.update(saved + len(errors))
            if stopped():
                break
    some = f"{done} frames in " if plan.film else f"{done} of {count} images in " if count > 1 else ""
    if done or not failed:
        print(f"saved {some}{printable(plan.output)}")
    terminal.finish(stopped)
    if failed:
        sys.exit(1 if done else 2)


if __name__ == "__main__":
    terminal.run("stylize.py", main)
