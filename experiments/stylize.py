"""Paint photographs or a video with a trained net, in one pass each; or write the net for other programs.

    python experiments/stylize.py --content photo.jpg --style starry.safetensors --output picture.png
    python experiments/stylize.py --content photos/ 'more/*.jpg' --style starry.safetensors --output pictures/
    python experiments/stylize.py --content clip.mp4 --style starry.safetensors --output painted.mp4 --smooth 0.8
    python experiments/stylize.py --content photo.jpg --style adain.safetensors --style-image painting.jpg
    python experiments/stylize.py --style starry.safetensors --export onnx --output starry.onnx

The nets come from experiments/train_*.py. Every shape of pictures compiles the net anew, as padding them to a common
one would change what instance norm sees; compiled programs are kept for the next time.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import contextlib
import glob
import inspect
import itertools
import math
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from nstjax import color, data, export, feed_forward, files, images, memory, nets, styles, terminal, video
from nstjax.errors import InputError, printable
from nstjax.weights import bundled_files


def main(
    *,
    style: str,
    content: tuple[str, ...] = (),
    output: Path | None = None,
    size: int | None = None,
    strength: float | None = None,
    preserve_color: Literal["none", "luminance", "covariance", "histogram"] = "none",
    style_image: tuple[Path, ...] = (),
    style_blend: tuple[float, ...] = (),
    style_size: int | None = None,
    seed: int | None = None,
    smooth: float | None = None,
    batch_size: int | None = None,
    memory_limit: float | None = None,
    export: Literal["onnx", "jax"] | None = None,
) -> None:
    """Paint photographs or a video with a trained net, or write the net for other programs.

    Of several photographs, those that cannot be read are named and left out: the exit status is then 1, or 2 if none
    was painted.

    Args:
        style: a bundled style's name, or a file that training wrote.
        content: photographs, folders of them, patterns such as 'photos/*.jpg', or one video (an animated GIF, WebP or
            PNG too). None for a texture.
        output: the picture or the video to write (stylized.png, .mp4), or a folder if there are several photographs.
        size: long side in pixels; by default the photograph's own (a texture's: 512).
        strength: 0 (the photograph) to 1 (the net's picture, the default). AdaIN mixes features, else pictures are
            mixed.
        preserve_color: keep the photograph's colours: paint its luminance only, or give the result the photograph's
            covariance or histogram.
        style_image: AdaIN's paintings.
        style_blend: weight of each --style-image.
        style_size: long side of each --style-image, 512 by default; it sets the size of strokes.
        seed: of a texture net's noise, 0 by default.
        smooth: 0 to 1: how much of the picture before to keep where a video stands still, against flicker; by default
            nothing.
        batch_size: pictures of one shape, or frames, to compute together; 1 by default.
        memory_limit: gigabytes to use; by default 0.7 of what is free. Beyond it transform nets compute in strips.
        export: paint nothing, but write a transform net as ONNX (pip install "nstjax[onnx]") or in JAX's portable form,
            for pictures [N, H, W, 3] in 0..1 of any size, to --output (the style's name with .onnx or .jax). It is
            written once it was seen to paint as the net does.
    """
    given = dict(locals())
    if export:
        flags = {name: flag.default for name, flag in inspect.signature(main).parameters.items()}
        painting = [name for name in flags.keys() - {"style", "output", "export"} if given[name] != flags[name]]
        if painting:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(painting))
            raise InputError(f"--export {export}: writes the net and paints nothing; leave {names} out")
        return write(style, output or Path(f"{Path(style).stem}.{export}"), form=export)
    check_numbers(given)
    sources = found(content)
    # In a folder, an animated image counts as the photograph that its first frame is.
    films = [path for path, _ in found([each for each in content if not Path(each).is_dir()]) if video.recognizes(path)]
    if films and len(sources) > 1:
        raise InputError(f"{films[0]}: a video is painted alone; leave the rest of --content out")
    output = output or Path("stylized.mp4" if films else "stylized.png")
    pattern_or_folder = content and (not os.path.lexists(content[0]) or os.path.isdir(content[0]))
    several = len(sources) > 1 or bool(pattern_or_folder) or (bool(content) and os.path.isdir(output))
    jobs = [(path, output / name if several else output) for path, name in sources]
    jobs, refused = check_files(jobs, output, [style, *style_image], several=several, film=bool(films))
    net, variables, _ = styles.load(style)
    check(style, net, variables, content, style_image, style_blend)
    check_use(given, net, variables, several=several, film=bool(films))
    limit = memory_limit * 1e9 if memory_limit else 0.7 * memory.available()
    mix, alpha = 1.0 if strength is None else strength, 1.0
    if isinstance(net, nets.Decoder):
        mix, alpha = alpha, mix
    loaded = [images.load(path, size=style_size or 512, limit=memory.for_images(limit)) for path in style_image]
    painted_like = partial(feed_forward.stylizer, styles=loaded, blend=style_blend, alpha=alpha)
    net_paint = painted_like(net, variables, limit=limit, seed=seed or 0)
    finish = jax.jit(jax.vmap(partial(finished, strength=mix, preserve_color=preserve_color)))

    def paint(photographs):
        feed_forward.check_memory(net, photographs.shape, limit=limit)
        return np.asarray(finish(photographs, net_paint(photographs)))

    if films:
        paint_video(films[0], output, paint, size=size, batch_size=batch_size or 1, smooth=smooth or 0.0)
    elif content:
        reading = memory.for_images(limit)
        paint_pictures(jobs, output, paint, size=size, batch_size=batch_size or 1, limit=reading, refused=refused)
    else:
        side = size or 512
        feed_forward.check_memory(net, (1, side, side, 3), limit=limit)
        images.save(output, np.asarray(net_paint(np.zeros((1, side, side, 3), np.float32))[0]))
        print(f"saved {printable(output)}")


def write(style, output, *, form):
    """Write a transform net in the form "onnx" or "jax"."""
    if output.suffix.lower() != f".{form}":
        raise InputError(f"--output {output}: --export {form} writes a .{form} file; choose such a name")
    export.check_output(output)
    files.check_outputs([output], [style, *bundled_files()])

    def check(net):
        if not isinstance(net, nets.TransformNet):
            raise InputError(f"{style}: is no transform net, and only those are exported")

    net, variables, about = styles.load(style, check=check)
    export.save(output, net, variables, about)
    print(f"saved {printable(output)}, which paints as the net does: pictures [N, H, W, 3] in 0..1, of any size")


def check_numbers(given):
    """Refuse numbers out of range."""
    for name, least, most in (
        ("size", 16, 65536),
        ("style_size", 16, 65536),
        ("batch_size", 1, 65536),
        ("strength", 0, 1),
        ("smooth", 0, 1),
        ("memory_limit", 1e-3, 1e6),
    ):
        if (value := given[name]) is not None and not least <= value <= most:
            raise InputError(f"{flag(name)} {value}: give a number from {least} to {most}")
    if given["seed"] is not None:
        terminal.check_seed(given["seed"])


def flag(name):
    """A parameter's name on the command line."""
    return f"--{name.replace('_', '-')}"


def check_files(jobs, output, others, *, several, film):
    """Refuse outputs that cannot be written, or that would replace an input or each other, before any work.

    jobs: [(photograph, output)]; others: the other inputs. Returns the jobs without those of several whose own output
    cannot be written, which are named, and how many these are.
    """
    check_writable = video.check_writable if film else images.check_writable
    check_writable(output / "picture.png" if several else output)
    good, refused = [], 0
    for path, target in jobs:
        try:
            check_writable(target)
            good.append((path, target))
        except InputError as error:
            if not several:
                raise
            leave_out(error)
            refused += 1
    outputs = [target for _, target in good] if jobs else [output]
    files.check_outputs(outputs, [*(path for path, _ in jobs), *others, *bundled_files()])
    return good, refused


def leave_out(error):
    """Name one of several photographs that cannot be painted."""
    tqdm.write(f"stylize.py: {error}", file=sys.stderr)


def found(content):
    """[(file, its picture's name in a folder)] of names, folders and patterns; no two of the names are alike."""
    sources = []
    for each in content:
        path = Path(each)
        if os.path.isdir(path):  # pathlib's own raises for names that are too long
            inside = data.listed(path)
            if not inside:
                raise InputError(f"{path}: has no pictures; give a folder that has")
            sources += [(file, file.relative_to(path).with_suffix("")) for file in inside]
            continue
        matches = [path] if os.path.lexists(path) else sorted(Path(p) for p in glob.glob(each, recursive=True))
        matches = [file for file in matches if not os.path.isdir(file)]
        if not matches:
            raise InputError(f"{each}: no such file; check --content")
        sources += [(file, Path(file.stem)) for file in matches]
    names = files.distinct([str(name) for _, name in sources])
    return [(file, Path(f"{name}.png")) for (file, _), name in zip(sources, names, strict=True)]


def check(style, net, variables, content, style_image, style_blend):
    """Refuse flags that the net has no use for, or that it lacks."""
    if isinstance(net, nets.Decoder):
        if not style_image:
            raise InputError(f"--style-image: {style} is AdaIN, which paints like any painting; name one or more")
        if style_blend and len(style_blend) != len(style_image):
            raise InputError(f"--style-blend: {len(style_blend)} weights for {len(style_image)} paintings")
        if style_blend and not (min(style_blend) >= 0 and 0 < sum(style_blend) < math.inf):
            raise InputError("--style-blend: give weights of 0 or more, not all 0")
    elif style_image or style_blend:
        raise InputError(f"--style-image: only for AdaIN; {style} has a style of its own")
    if feed_forward.sees_content(net, variables) and not content:
        raise InputError("--content: name photographs or a video")
    if content and not feed_forward.sees_content(net, variables):
        raise InputError(f"{style}: makes textures, and sees no photographs; leave --content out")


def check_use(given, net, variables, *, several, film):
    """Refuse flags that would change nothing."""
    texture_alone = not feed_forward.sees_content(net, variables)
    for names, useless, why in (
        (("smooth",), not film, "only for a video"),
        (("seed",), not isinstance(net, nets.TextureNet), "only for texture nets"),
        (("style_size",), not isinstance(net, nets.Decoder), "only for AdaIN's --style-image"),
        (("batch_size",), not (several or film), "only for several photographs or a video"),
        (("strength", "preserve_color"), texture_alone, "only with photographs"),
    ):
        used = [name for name in names if given[name] not in (None, "none")]
        if useless and used:
            values = ", ".join(f"{flag(name)} {given[name]}" for name in used)
            raise InputError(f"{values}: would change nothing ({why}); leave it out")


def finished(photograph, picture, *, strength, preserve_color):
    """What is saved, [H, W, 3], of a net's picture."""
    picture = jnp.clip(photograph + strength * (picture - photograph), 0, 1)
    match preserve_color:
        case "luminance":
            return color.with_luminance(photograph, color.luminance(picture))
        case "covariance":
            return color.match_covariance(picture, color.with_least_contrast(photograph))
        case "histogram":
            return color.match_histogram(picture, color.with_least_contrast(photograph))
    return picture


def paint_pictures(jobs, output, paint, *, size, batch_size, limit, refused=0):
    """Paint (photograph, target) one batch after another. What cannot be read is named, and told by the exit status.

    limit: bytes that reading one may take. refused: how many were left out before.
    """
    total, done = len(jobs) + refused, 0

    def refuse(error, count=1):
        nonlocal refused
        if total == 1:
            raise error
        leave_out(error)
        refused += count

    with terminal.stop_signals() as stopped, tqdm(total=len(jobs), unit="picture", dynamic_ncols=True) as bar:
        shapes: dict = {}
        for path, target in jobs:
            try:
                shapes.setdefault(images.shape(path, size=size), []).append((path, target))
            except InputError as error:
                refuse(error)
        for batch in itertools.chain(*(batches(same, batch_size) for same in shapes.values())):
            if stopped():
                break
            loaded = []
            for path, target in batch:
                try:
                    photograph = images.load(path, size=size, limit=limit)
                    alpha = images.load_alpha(path, shape=photograph.shape[:2], limit=limit)
                    loaded.append((target, photograph, alpha))
                except InputError as error:
                    refuse(error)
            if not loaded:
                continue
            try:
                pictures = paint(np.stack([photograph for _, photograph, _ in loaded]))
            except InputError as error:
                refuse(InputError(f"{batch[0][0]}: {error}"), len(loaded))
                continue
            for (target, _, alpha), picture in zip(loaded, pictures, strict=True):
                images.save(target, picture, alpha=alpha)
                done += 1
                bar.update()
    shown = printable(output)
    print(f"saved {shown}" if done == total == 1 else f"saved {done} of {total} pictures in {shown}")
    if name := stopped():
        sys.exit(128 + signal.Signals[name])
    if refused:
        sys.exit(1 if done else 2)


def paint_video(path, output, paint, *, size, batch_size, smooth):
    """Paint a video's frames, with its sound. Ctrl-C leaves the frames so far."""
    shown = video.info(path, size=size)
    hold = jax.jit(partial(video.steady, strength=smooth))
    with (
        terminal.stop_signals() as stopped,
        video.writing(output, shown, sound=path) as add,
        contextlib.closing(video.read(path, shown)) as frames,
        tqdm(total=shown.frames, unit="frame", dynamic_ncols=True) as bar,
    ):
        before = None
        for batch in batches(frames, batch_size):
            for frame, picture in zip(batch, paint(np.stack(batch)), strict=True):
                if smooth:
                    before, picture = hold(before or (frame, picture), frame, picture)
                add(picture)
                bar.update()
            if stopped():
                break
    if not bar.n:
        raise InputError(f"{path}: has no frames that can be read; copy or convert it again")
    print(f"saved {bar.n} frames in {printable(output)}")
    if name := stopped():
        sys.exit(128 + signal.Signals[name])


def batches(items, size):
    """Lists of `size` items, the last one perhaps shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


if __name__ == "__main__":
    terminal.tune_malloc()
    terminal.cache_compilations()
    with terminal.refusals("stylize.py"):
        tyro.cli(main)
