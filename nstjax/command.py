"""What commands that paint share: flags whose defaults depend on a preset, the machine's flags, and progress."""

import argparse
import importlib.metadata
import itertools
import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

import nstjax
from nstjax import features, images, memory, methods, pyramid, recipes, stream, terminal
from nstjax.errors import InputError
from nstjax.neural_style import Progress
from nstjax.recipes import PRESETS, Recipe
from nstjax.weights import PICTURES

BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class Common(NamedTuple):
    """The flags of every command that paints."""

    size: int = 512
    """long side of the image in pixels."""
    weights: str = "bundled"
    """bundled, keras or torchvision (downloaded), random, or a .h5, .pth, .onnx, .npz or .safetensors file."""
    content_distance: methods.DistanceName = "mse"
    """of activations: mean square, Charbonnier (Pandey), sum of squares or half of it (Gatys 2015), or its root."""
    style_distance: methods.DistanceName = "mse"
    """of Gram matrices, which --preset gatys compares."""
    gram: Literal["none", "hw", "chw", "2chw"] = "chw"
    """what Gram matrices are divided by: nothing, H W (Kitov), C H W (Johnson) or 2 C H W (Gatys 2015, RestyNet)."""
    metadata: bool = True
    """keep in the image the command that made it (files without their folders) and the versions of what ran it."""
    memory_limit: float | None = None
    """gigabytes to use; by default 0.7 of what is free. Large images are computed in strips."""
    devices: int = 1
    """split the image's rows over so many devices."""
    precision: terminal.Precision | None = None
    """of products on GPU and TPU; by default the device's own."""


def start(common: Common) -> float:
    """Validate the common flags and configure jax, before its first use; returns the bytes that may be used.

    Raises InputError for values out of range, and where there are fewer devices.
    """
    if common.size < recipes.MINIMUM:
        raise InputError(f"{common.size}: at least {recipes.MINIMUM} pixels are needed", argument="size")
    terminal.check_positive("memory_limit", common.memory_limit)
    terminal.check_positive("devices", common.devices)
    terminal.configure_jax(devices=common.devices, precision=common.precision)
    if common.devices > 1:
        stream.mesh(common.devices)
    return common.memory_limit * 1e9 if common.memory_limit else 0.7 * memory.available()


def own_weights(common: Common) -> list[str]:
    """The file of --weights, if it is one."""
    return [] if common.weights in features.SOURCES else [common.weights]


def params(common: Common, recipe: Recipe, budget: memory.Budget) -> dict:
    """Parameters of a recipe's network, on the scale of the bundled ones (`features.load`)."""
    like = images.load(PICTURES / "astronaut.jpg", size=256)
    return features.load(recipe.network, common.weights, layers=recipe.layers, like=like, compact=budget.compact)


def parse(kind: type) -> tuple[Any, dict[str, Any]]:
    """Parse the command line into `kind`, a NamedTuple of flags whose field `recipe` starts as that of --preset.

    Returns the flags, and {name: value} of those that were given.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="fast")
    preset = first.parse_known_args()[0].preset
    default = kind(recipe=PRESETS.get(preset, PRESETS["fast"]))
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.SuppressFixed)
    flags = tyro.cli(kind, default=default, description=kind.__doc__, config=config)
    every = {**flags._asdict(), **flags.common._asdict(), **flags.recipe._asdict()}
    given = terminal.named()
    return flags, {name: value for name, value in every.items() if name in given}


def recipe(flags: Any, given: Mapping[str, Any]) -> Recipe:
    """The validated recipe of `parse`'s flags."""
    common = flags.common
    changes = {name: given[name] for name in Recipe._fields if name in given and name not in common._fields}
    changed = recipes.changed(flags.preset, changes)
    grams = changed.method is methods.GRAM
    terminal.check_effect(
        given,
        ("content_distance", changed.no_content, "the content's weight is 0"),
        ("style_distance", not grams, f"--preset {flags.preset} compares no Gram matrices; --preset gatys does"),
        ("gram", not grams, f"--preset {flags.preset} compares no Gram matrices; --preset gatys does"),
        *((name, changed.no_style, "the style's weight is 0") for name in ("style_distance", "gram")),
    )
    if grams and (common.style_distance, common.gram) != ("mse", "chw"):
        distance = methods.DISTANCES[common.style_distance]
        changed = changed._replace(method=methods.gram(normalization=common.gram, style_distance=distance))
    return changed._replace(content_distance=methods.DISTANCES[common.content_distance])


def keep_within(limit: float, budget: memory.Budget, chosen: str = "") -> None:
    """Set the allocator for a budget, and print what was chosen, if anything, to stay within `limit` bytes."""
    if not budget.tuned:
        terminal.restore_malloc()
    if chosen:
        print(f"{limit / 1e9:.1f} GB of memory: {chosen}")


def watch(
    painting: Iterator[Progress],
    scales: Sequence[pyramid.Scale],
    stopped: Callable[[], str | None],
    *,
    label: str = "",
) -> Iterator[tuple[Progress, list[dict], str]]:
    """Show a painting's progress as a bar: yields (progress, a row of numbers for each step so far, ending).

    ending: why it ended early, as the start of a sentence, else ""; the state then is that of the last good step.
    Raises InputError if it ended before the first.

    Args:
        stopped: returns the name of a signal that asks to stop (`terminal.stop_signals`).
        label: what the bar begins with.
    """
    rows: list[dict[str, Any]] = []
    progress: Any = None
    ending = ""
    following = dict(zip(itertools.accumulate(scale.steps for scale in scales), scales[1:], strict=False))
    # The bar counts work, so that the time left is right.
    bar = tqdm(total=1.0, desc=f"{label}{scales[0].size} px, compiling", bar_format=BAR, dynamic_ncols=True)
    with bar:
        try:
            for progress in painting:
                seconds = bar.format_dict["elapsed"]
                rows.append({"evaluations": progress.step, "seconds": seconds, "size": progress.size} | progress.terms)
                loss = np.mean(progress.terms["loss"])
                what = f"{progress.size} px, step {progress.step} of {progress.total}, loss {loss:.4g}"
                if progress.step in following:
                    what = f"{following[progress.step].size} px, compiling"
                bar.set_description(label + what, refresh=False)
                bar.set_postfix_str(f"{_rate(rows):.2f} steps/s", refresh=False)
                bar.update(progress.work - bar.n)
                if stopped():
                    ending = f"stopped by {stopped()} at step {progress.step} of {progress.total}: "
                yield progress, rows, ending
                if ending:
                    return
        except FloatingPointError as error:
            ending = f"stopped at step {len(rows)}, {error} ({_advice(rows)}): "
    if progress is None:
        raise InputError(f"{ending}there is no image to save")
    if ending:
        yield progress, rows, ending


def _rate(rows: Sequence[Mapping[str, Any]], window: int = 10) -> float:
    """Steps a second, over the last few."""
    recent = rows[-window:]
    return (len(recent) - 1) / max(recent[-1]["seconds"] - recent[0]["seconds"], 1e-9)


def _advice(rows: Sequence[Mapping[str, Any]]) -> str:
    """What to try after a run whose loss failed: its steps are to blame only if it was finite before them."""
    if any(np.isfinite(row["loss"]).all() for row in rows if row["size"] == rows[-1]["size"]):
        return "try another --optimizer or a lower --learning-rate"
    return "it never was finite at this size: check --weights, and lower the weights of the losses"


def provenance() -> dict[str, str]:
    """Metadata for an image: what it takes to make it again, the command and the versions of what ran it."""
    packages = ("jax", "jaxlib", "jaxopt", "optax", "numpy", "pillow")
    versions = {"nstjax": nstjax.__version__, "python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }
    return images.MARK | {"Command": terminal.command(sys.argv), "Versions": json.dumps(versions)}
