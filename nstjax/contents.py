"""Stylization of many files by one function: images found by name, in batches of one shape, or a video's frames."""

import contextlib
import glob
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from nstjax import data, files, images, stable, video
from nstjax.errors import InputError
from nstjax.typing import Images

T = TypeVar("T")


class Item(NamedTuple):
    """A file to stylize."""

    content: Path
    output: Path
    in_folder: bool = False  # found in a folder, not named itself


class Plan(NamedTuple):
    """What a command is to do."""

    items: list[Item]
    output: Path  # the file, or the folder of several
    several: bool  # whether the outputs are in a folder
    film: bool  # whether the one item is a video
    errors: list[InputError]  # of files whose output cannot be written


def plan(contents: Sequence[str], output: Path | None, *, inputs: Iterable[Path]) -> Plan:
    """Find the files to stylize and check their outputs before any work.

    Args:
        contents: files, folders, patterns, or one video; none for a texture.
        output: a file, or a folder for several; by default stylized.png or stylized.mp4.
        inputs: other files that are read and must not be replaced.

    Raises:
        InputError: for names without a file, a video among other files, and outputs that cannot be written or would
            replace an input or each other.
    """
    items = found(contents)
    # In a folder, an animated image counts as the image that its first frame is.
    films = [item for item in items if not item.in_folder and video.recognizes(item.content)]
    if films and len(items) > 1:
        raise InputError(f"{films[0].content}: a video is painted alone; leave the rest of --content out")
    output = output or Path("stylized.mp4" if films else "stylized.png")
    pattern_or_folder = bool(contents) and (not os.path.lexists(contents[0]) or os.path.isdir(contents[0]))
    several = len(items) > 1 or pattern_or_folder or (bool(contents) and os.path.isdir(output))
    items = [item._replace(output=output / item.output if several else output) for item in items]
    check_writable = video.check_writable if films else images.check_writable
    check_writable(output / "image.png" if several else output)
    good, errors = [], []
    for item in items:
        try:
            check_writable(item.output)
            good.append(item)
        except InputError as error:
            errors.append(error)
    outputs = [item.output for item in good] if items else [output]
    files.check_outputs(outputs, [*(item.content for item in items), *inputs])
    return Plan(good, output, several, bool(films), errors)


def found(names: Sequence[str]) -> list[Item]:
    """The image files of names, folders and patterns, with output names for a folder, of which no two are equal.

    Raises InputError for a name that does not exist, a pattern without matches and a folder without images.
    """
    items: list[Item] = []
    for name in names:
        if os.path.isdir(name):
            inside = data.listed(name)
            if not inside:
                raise InputError(f"{name}: has no images; give a folder that has")
            items += [Item(file, file.relative_to(name).with_suffix(""), True) for file in inside]
            continue
        matches = [name] if os.path.lexists(name) else sorted(glob.glob(name, recursive=True))
        matches = [match for match in matches if not os.path.isdir(match)]
        if not matches:
            raise InputError(f"{name}: no such file; check --content")
        items += [Item(Path(match), Path(Path(match).stem)) for match in matches]
    outputs = files.distinct([str(item.output) for item in items])
    return [item._replace(output=Path(f"{output}.png")) for item, output in zip(items, outputs, strict=True)]


class Step(NamedTuple):
    """What was done since the last step."""

    saved: int  # images or frames
    total: int | None  # of all steps, if it is known
    errors: list[InputError]  # of images that could not be read, stylized or written


def stylize(
    plan: Plan,
    function: Callable[[Images], np.ndarray],
    *,
    size: int | None = None,
    batch_size: int = 1,
    smooth: float = 0.0,
    limit: float,
) -> Generator[Step, None, None]:
    """Stylize a plan's files, step by step; closing the generator early saves what was done, a video's frames too.

    Args:
        function: images [N, H, W, 3] -> their stylized images.
        size: long side in pixels; None is each file's own.
        batch_size: images of one shape, or frames, that are stylized together.
        smooth: 0 to 1, how much of the image before to keep, along the video's motion.
        limit: bytes that reading one image may take.

    Raises:
        InputError: for a video without frames that can be read.
    """
    if plan.film:
        return _stylize_video(plan.items[0], function, size=size, batch_size=batch_size, smooth=smooth)
    return _stylize_images(plan, function, size=size, batch_size=batch_size, limit=limit)


def _stylize_images(
    plan: Plan, function: Callable[[Images], np.ndarray], *, size: int | None, batch_size: int, limit: float
) -> Generator[Step, None, None]:
    total, errors = len(plan.items) + len(plan.errors), [*plan.errors]
    shapes: dict[tuple[int, int], list[Item]] = {}
    for item in plan.items:
        try:
            shapes.setdefault(images.shape(item.content, size=size), []).append(item)
        except InputError as error:
            errors.append(error)
    yield Step(0, total, errors)
    for batch in itertools.chain(*(batches(same, batch_size) for same in shapes.values())):
        loaded, errors = [], []
        for item in batch:
            try:
                image = images.load(item.content, size=size, limit=limit)
                alpha = images.load_alpha(item.content, shape=image.shape[:2], limit=limit)
                loaded.append((item, image, alpha))
            except InputError as error:
                errors.append(error)
        try:
            stylized = function(np.stack([image for _, image, _ in loaded])) if loaded else ()
        except InputError as error:  # they are too large
            errors += [InputError(f"{item.content}: {error}") for item, _, _ in loaded]
            loaded, stylized = [], ()
        for (item, _, alpha), image in zip(loaded, stylized, strict=True):
            images.save(item.output, image, alpha=alpha)
        yield Step(len(loaded), total, errors)


def _stylize_video(
    item: Item, function: Callable[[Images], np.ndarray], *, size: int | None, batch_size: int, smooth: float
) -> Generator[Step, None, None]:
    path, before, empty = item.content, None, True
    info = video.info(path, size=size)
    hold = jax.jit(partial(stable.steady, strength=smooth))
    with video.writing(item.output, info, sound=path) as add, contextlib.closing(video.read(path, info)) as frames:
        for batch in batches(frames, batch_size):
            for frame, image in zip(batch, function(np.stack(batch)), strict=True):
                if smooth:
                    before, image = hold(before or stable.first(frame, image), frame, image)
                add(image)
            empty = False
            try:
                yield Step(len(batch), info.frames, [])
            except GeneratorExit:
                return
        if empty:
            raise InputError(f"{path}: has no frames that can be read; copy or convert it again")


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
