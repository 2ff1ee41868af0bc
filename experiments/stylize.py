"""Paint photographs or a video with a trained net, in one pass each; or write the net for other programs.

    python experiments/stylize.py --content photo.jpg --style starry.safetensors --output picture.png
    python experiments/stylize.py --content photos/ 'more/*.jpg' --style starry.safetensors --output pictures/
    python experiments/stylize.py --content clip.mp4 --style starry.safetensors --output painted.mp4 --smooth 0.8
    python experiments/stylize.py --content photo.jpg --style adain.safetensors --style-image painting.jpg
    python experiments/stylize.py --style starry.safetensors --export onnx --output starry.onnx

The nets come from experiments/train_*.py. Every shape of pictures compiles the net anew, as padding them to a common
one would change what instance norm sees; compiled programs are kept for the next time.
"""

import contextlib
import glob
import inspect
import itertools
import math
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

from nstjax import color, data, export, features, images, memory, nets, styles, terminal, video
from nstjax.errors import InputError
from nstjax.nets import adain, texture, tiled

# Numbers held at a time for a pixel of a picture: by the nets that know no strips (measured on CPU), around any net.
WORKSPACE = {nets.TextureNet: 330, nets.Decoder: 400}
AROUND = 24


def main(
    *,
    style: str,
    content: tuple[str, ...] = (),
    output: Path | None = None,
    size: int | None = None,
    strength: float = 1.0,
    preserve_color: Literal["none", "luminance", "covariance", "histogram"] = "none",
    style_image: tuple[Path, ...] = (),
    style_blend: tuple[float, ...] = (),
    style_size: int = 512,
    seed: int = 0,
    smooth: float = 0.0,
    batch_size: int = 1,
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
        strength: 0 (the photograph) to 1 (the net's picture). AdaIN mixes features, else pictures are mixed.
        preserve_color: keep the photograph's colours: paint its luminance only, or give the result the photograph's
            covariance or histogram.
        style_image: AdaIN's paintings.
        style_blend: weight of each --style-image.
        style_size: long side of each --style-image; it sets the size of strokes.
        seed: of a texture net's noise.
        smooth: 0 to 1: how much of the picture before to keep where a video stands still, against flicker.
        batch_size: pictures of one shape, or frames, to compute together.
        memory_limit: gigabytes to use; by default 0.7 of what is free. Beyond it transform nets compute in strips.
        export: paint nothing, but write a transform net as ONNX (pip install "nstjax[onnx]") or in JAX's portable form,
            for pictures [N, H, W, 3] in 0..1 of any size, to --output (the style's name with .onnx or .jax). It is
            written once it was seen to paint as the net does.
    """
    given = locals()
    if export:
        flags = {name: flag.default for name, flag in inspect.signature(main).parameters.items()}
        painting = [name for name in flags.keys() - {"style", "output", "export"} if given[name] != flags[name]]
        if painting:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(painting))
            raise InputError(f"--export {export}: writes the net and paints nothing; leave {names} out")
        return write(style, output or Path(f"{Path(style).stem}.{export}"), form=export)
    for name, value, least, most in (
        ("size", size, 16, 65536),
        ("style-size", style_size, 16, 65536),
        ("batch-size", batch_size, 1, 65536),
        ("strength", strength, 0, 1),
        ("smooth", smooth, 0, 1),
        ("memory-limit", memory_limit, 1e-3, 1e6),
    ):
        if value is not None and not least <= value <= most:
            raise InputError(f"--{name} {value}: give a number from {least} to {most}")
    sources = found(content)
    # In a folder, an animated image counts as the photograph that its first frame is.
    films = [path for path, _ in found([each for each in content if not Path(each).is_dir()]) if video.recognizes(path)]
    if films and len(sources) > 1:
        raise InputError(f"{films[0]}: a video is painted alone; leave the rest of --content out")
    if smooth and not films:
        raise InputError(f"--smooth {smooth}: only for a video")
    output = output or Path("stylized.mp4" if films else "stylized.png")
    several = bool(content) and (len(sources) > 1 or not Path(content[0]).is_file() or output.is_dir())
    jobs = [(path, output / name if several else output) for path, name in sources]
    for path, target in jobs:
        if target.exists() and target.samefile(path):
            raise InputError(f"{path}: would be overwritten by its picture; choose another --output")
        if [each for _, each in jobs].count(target) > 1:
            raise InputError(f"{path}: another photograph has the same name, and would be written to {target} too")
        (video if films else images).check_writable(target)

    net, variables, _ = styles.load(style)
    check(style, net, variables, content, style_image, style_blend)
    limit = memory_limit * 1e9 if memory_limit else 0.7 * memory.available()
    if isinstance(net, nets.Decoder):
        blend = style_blend or (1.0,) * len(style_image)
        net_paint, mix = with_adain(net, variables, style_image, blend, style_size, limit, alpha=strength), 1.0
    else:
        net_paint, mix = with_net(net, variables, limit, seed), strength
    finish = jax.jit(jax.vmap(partial(finished, strength=mix, preserve_color=preserve_color)))

    def paint(photographs):
        refuse_beyond(limit, net, photographs.shape)
        return np.asarray(finish(photographs, net_paint(photographs)))

    if films:
        paint_video(films[0], output, paint, size=size, batch_size=batch_size, smooth=smooth)
    elif content:
        paint_pictures(jobs, output, paint, size=size, batch_size=batch_size, limit=memory.for_images(limit))
    else:
        images.check_writable(output)
        side = size or 512
        refuse_beyond(limit, net, (1, side, side, 3))
        images.save(output, np.asarray(net_paint(np.zeros((1, side, side, 3), np.float32))[0]))
        print(f"saved {output}")


def write(style, output, *, form):
    """Write a transform net in the form "onnx" or "jax"."""
    if output.suffix.lower() != f".{form}":
        raise InputError(f"--output {output}: --export {form} writes a .{form} file; choose such a name")
    export.check_output(output)

    def check(net):
        if not isinstance(net, nets.TransformNet):
            raise InputError(f"{style}: is no transform net, and only those are exported")

    net, variables, about = styles.load(style, check=check)
    export.save(output, net, variables, about)
    print(f"saved {output}, which paints as the net does: pictures [N, H, W, 3] in 0..1, of any size")


def found(content):
    """[(file, its picture's name in a folder)] of names, folders and patterns."""
    sources = []
    for each in content:
        path = Path(each)
        if path.is_dir():
            inside = data.listed(path)
            if not inside:
                raise InputError(f"{path}: has no pictures; give a folder that has")
            sources += [(file, file.relative_to(path).with_suffix(".png")) for file in inside]
            continue
        files = [path] if path.exists() else sorted(Path(p) for p in glob.glob(each, recursive=True))
        files = [file for file in files if file.is_file()]
        if not files:
            raise InputError(f"{each}: no such file; check --content")
        sources += [(file, Path(file.stem + ".png")) for file in files]
    return sources


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
    if sees(net, variables) and not content:
        raise InputError("--content: name photographs or a video")
    if content and not sees(net, variables):
        raise InputError(f"{style}: makes textures, and sees no photographs; leave --content out")


def sees(net, variables):
    """Whether a net is one for photographs; the others make textures of noise."""
    return not isinstance(net, nets.TextureNet) or variables["params"]["scale0"]["conv1"]["kernel"].shape[2] > 3


def refuse_beyond(limit, net, shape):
    """Refuse pictures [N, H, W, 3] that do not fit into `limit` bytes, even in strips."""
    held = tiled.KEPT if isinstance(net, nets.TransformNet) else WORKSPACE[type(net)]
    needed = memory.RUNTIME + 4 * (held + AROUND) * math.prod(shape[:3])
    if needed > limit:
        size = f"{shape[2]}x{shape[1]} px" + (f", {shape[0]} together," if shape[0] > 1 else "")
        what = f"{size} needs {needed / 1e9:.1f} GB of memory, and {limit / 1e9:.1f} GB may be used"
        raise InputError(f"{what}: lower --size or --batch-size, or raise --memory-limit")


def with_net(net, variables, limit, seed):
    """photographs [N, H, W, 3] -> pictures by a transform or texture net."""
    if isinstance(net, nets.TransformNet):
        net = net.clone(fast=jax.default_backend() == "cpu")
        strips = jax.jit(partial(tiled.apply, net), static_argnames="rows")

        def paint(photographs):
            spare = limit - memory.RUNTIME - 4 * AROUND * math.prod(photographs.shape[:3])
            return strips(variables, photographs, rows=tiled.plan(net, photographs.shape, limit=spare))

        return paint

    key = jax.random.key(seed)

    @jax.jit
    def paint_with_noise(variables, photographs):
        if not sees(net, variables):
            return texture.synthesize(net, variables, photographs.shape[:3], key)
        # The same noise for all, so that a video holds still.
        return jax.vmap(lambda each: texture.stylize(net, variables, each[None], key)[0])(photographs)

    return partial(paint_with_noise, variables)


def with_adain(decoder, variables, paintings, blend, size, limit, *, alpha):
    """photographs [N, H, W, 3] -> pictures in the style of paintings."""
    loaded = [images.load(path, size=size, limit=memory.for_images(limit)) for path in paintings]
    params = features.load("vgg19", layers=("relu4_1",))
    target = adain.blend(jnp.concatenate([adain.targets(params, each[None]) for each in loaded]), blend)
    decoder = decoder.clone(fast=jax.default_backend() == "cpu")

    @jax.jit
    def paint(params, variables, photographs):
        return adain.stylize(params, decoder, variables, photographs, target, alpha=alpha)

    return partial(paint, params, variables)


def finished(photograph, picture, *, strength, preserve_color):
    """What is saved, [H, W, 3], of a net's picture."""
    picture = jnp.clip(photograph + strength * (picture - photograph), 0, 1)
    match preserve_color:
        case "luminance":
            return color.with_luminance(photograph, color.luminance(picture))
        case "covariance":
            return color.match_covariance(picture, photograph)
        case "histogram":
            return color.match_histogram(picture, photograph)
    return picture


def paint_pictures(jobs, output, paint, *, size, batch_size, limit):
    """Paint (photograph, target) one batch after another. What cannot be read is named, and told by the exit status."""
    refused, done = 0, 0

    def refuse(error, count=1):
        nonlocal refused
        if len(jobs) == 1:
            raise error
        tqdm.write(f"stylize.py: {error}", file=sys.stderr)
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
    print(f"saved {output}" if done == len(jobs) == 1 else f"saved {done} of {len(jobs)} pictures in {output}")
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
    print(f"saved {bar.n} frames in {output}")
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
