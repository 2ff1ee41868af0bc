"""Paint a video by optimizing its frames, so that it holds still along its motion (Ruder 2016, arXiv 1604.08610).

    python experiments/video.py --content clip.mp4 --style painting.jpg --output painted.mp4 --size 384

It takes minutes a frame on two CPU cores. Finished frames are kept: after Ctrl-C the same command continues.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import contextlib
import itertools
import json
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from nstjax import clips, command, files, images, memory, neural_style, recipes, terminal, video, weights
from nstjax.errors import InputError, printable

NAME = "{:05d}.png"  # of a frame, from 1
STATE = "video.json"
LOSSES = ("weights", "content_distance", "style_distance", "gram")


class Flags(NamedTuple):
    """Paint a video by optimizing its frames."""

    content: Path = Path()
    """the video, or an animated image."""
    style: tuple[Path, ...] = (weights.PICTURES / "gale.jpg",)
    """one painting, or several, which are blended."""
    output: Path = Path("painted.mp4")
    """the video to write, with the sound of --content."""
    preset: Literal["fast", "quality", "gatys"] = "fast"
    """see gatys.py; frames after the first are painted at full size only."""
    stability: float = 1.0
    """weight of the temporal loss: 0 or more; the more, the stiller."""
    long_term: bool = False
    """look back 1, 2 and 4 frames, for what was hidden for a moment."""
    share: float = clips.SHARE
    """of the first frame's steps that each of the others takes, above 0 to 1."""
    frames: Path | None = None
    """the folder of finished frames; by default beside the output, painted-frames for painted.mp4."""
    seed: int = 0
    """of presets that are random."""
    common: command.Common = command.Common()
    recipe: recipes.Recipe = recipes.Recipe()


def main() -> None:
    flags, given = command.parse(Flags)
    recipe = command.recipe(flags, given)
    folder = flags.frames or flags.output.with_name(f"{flags.output.stem}-frames")
    check(flags, folder)
    limit = command.start(flags.common)
    info = video.info(flags.content, size=flags.common.size)
    lags = clips.LONG_TERM if flags.long_term else clips.SHORT_TERM
    settings = settings_of(flags, recipe, info)
    resumed = finished(folder, settings, max(lags))
    sizes = [images.shape(path) for path in flags.style]
    budget = neural_style.budget(recipe, info.shape, sizes, limit=limit)
    command.keep_within(limit, budget, neural_style.describe(recipe, info.shape, budget))
    longest, reading = [recipes.style_size(recipe, each, info.shape) for each in sizes], memory.for_images(limit)
    styles = [images.load(path, size=n, limit=reading) for path, n in zip(flags.style, longest, strict=True)]
    params = command.params(flags.common, recipe, budget)
    options = {"stability": flags.stability, "lags": lags, "share": flags.share, "seed": flags.seed}
    with contextlib.closing(video.read(flags.content, info)) as frames:
        painting = clips.paint(frames, styles, preset=recipe, resumed=resumed, params=params, budget=budget, **options)
        paint(flags, painting, folder, info, settings, resumed.frames, 1 / flags.share)


def check(flags, folder):
    """Raise InputError for flags out of range, and outputs that cannot be written or would replace an input."""
    if flags.content == Path():
        raise InputError("name a video", argument="content")
    terminal.check_range("stability", flags.stability, 0, 1e6)
    terminal.check_range("share", flags.share, 0.01, 1)
    terminal.check_seed(flags.seed)
    if flags.recipe.preserve_color != "none":
        raise InputError("frames that keep the video's colors are not held still", argument="preserve_color")
    if flags.common.devices > 1:
        raise InputError("frames are painted on one device; leave it out", argument="devices")
    video.check_writable(flags.output)
    images.check_writable(folder / NAME.format(1))
    inputs = [flags.content, *flags.style, *command.own_weights(flags.common), *weights.bundled_files()]
    files.check_outputs([flags.output, files.Numbered(folder, r"\d{5,}\.png"), folder / STATE], inputs)


def settings_of(flags, recipe, info):
    """What finished frames depend on, as JSON keeps it."""
    plain = {name: value for name, value in recipe._asdict().items() if name not in ("method", "content_distance")}
    of_common = {name: getattr(flags.common, name) for name in LOSSES}
    more = {name: getattr(flags, name) for name in ("preset", "stability", "long_term", "share", "seed")}
    more |= {"content": flags.content.name, "style": [path.name for path in flags.style], "shape": info.shape}
    return json.loads(json.dumps(plain | of_common | more))


def finished(folder, settings, back):
    """What is finished already (`clips.Resumed`); raises InputError if it was painted with other flags."""
    count = next(n for n in itertools.count() if not (folder / NAME.format(n + 1)).exists())
    if not count:
        return clips.Resumed((), 0, 0.0)
    try:
        state = json.loads((folder / STATE).read_bytes())
        known, unit = state["settings"], float(state["unit"])
    except (OSError, ValueError, KeyError, TypeError):
        known, unit = None, 0.0
    if known != settings:
        raise InputError(f"{folder}: has frames of other flags; remove it, or choose another folder by --frames")
    last = [images.load(folder / NAME.format(n)) for n in range(max(0, count - back) + 1, count + 1)]
    return clips.Resumed(last, count, unit)


def paint(flags, painting, folder, info, settings, done, first):
    """Show the progress, keep frames, and write the video of them. first: the first frame's work, in that of others."""
    ending, before, total = "", done, info.frames and first + info.frames - 1
    bar = tqdm(total=total, initial=done and first + done - 1, bar_format=command.BAR, dynamic_ncols=True)
    metadata = command.provenance() if flags.common.metadata else None
    with terminal.stop_signals() as stopped, bar:
        try:
            for each in painting:
                at = each.work * first if each.frame == 0 else first + each.frame - 1 + each.work
                what = f"frame {each.frame + 1} of {info.frames or '?'}, step {each.step}, loss {each.loss:.4g}"
                bar.set_description(what, refresh=False)
                bar.update(at - bar.n)
                if each.finished:
                    if not each.frame:
                        files.write(folder / STATE, json.dumps({"settings": settings, "unit": each.unit}).encode())
                    images.save(folder / NAME.format(each.frame + 1), each.image, metadata=metadata)
                    done += 1
                if stopped():
                    ending = f"stopped by {stopped()}; the same command continues: "
                    break
        except FloatingPointError as error:
            ending = f"stopped at frame {done + 1}, {error} (try another --optimizer): "
        if not done and not ending:
            raise InputError(f"{flags.content}: has no frames that can be read; copy or convert it again")
        with video.writing(flags.output, info, sound=flags.content) as add:
            for n in range(1, done + 1):
                add(images.load(folder / NAME.format(n)))
    print(f"{ending}saved {done} frames ({done - before} new) in {printable(flags.output)} and {printable(folder)}")
    terminal.finish(stopped, failed=bool(ending))


if __name__ == "__main__":
    terminal.run("video.py", main)
