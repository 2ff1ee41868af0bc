"""The settings of every study, which are a command's flags, and their validation before any work."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from nstjax import files, terminal
from nstjax.errors import InputError
from nstjax.weights import bundled_files

RUNS = r".*\.(png|json)"  # names of files of runs


class Settings(NamedTuple):
    """The settings of every study, which are a command's flags."""

    output: Path = Path("study")
    """folder for the card, card.html, with results.csv, results.json, sheet.png and the runs."""
    quick: bool = False
    """a small study, done in two to three minutes on two cores."""
    size: int | None = None
    """long side of the images in pixels."""
    steps: int | None = None
    """evaluations of each run."""
    seed: int = 0
    """of the noise."""
    memory_limit: float | None = None
    """gigabytes to use; by default 0.7 of what is free."""


class Truth(NamedTuple):
    """What AdaIN's images are, the pseudo ground truth; see `pseudo_truth`."""

    adain: Path | None = None
    """AdaIN's decoder, a file that train_adain.py wrote, whose images are compared with; by default they are those
    that minimize AdaIN's loss."""
    reference: tuple[Path, ...] = ()
    """or the images themselves, one for each pair, by whatever program; stretched to the content image's shape."""


TRUTH = Truth()


def start(
    settings: Settings,
    truth: Truth | None = None,
    *,
    size: tuple[int, int],
    steps: tuple[int, int],
    inputs: Iterable,
    random: bool = True,
    strength: float | None = None,
    **positive: float,
) -> tuple[int, int]:
    """Validate a study's settings before any work, and return (long side in pixels, evaluations of each run).

    Args:
        truth: of a study that compares with AdaIN's images.
        size, steps: defaults without and with `quick`.
        inputs: files that are read, and names of weights, none of which may be overwritten.
        random: whether the study depends on the seed.
        strength: of the style, if the study has one.
        positive: the command's other numbers, which must be above 0.

    Raises:
        InputError: a number is out of its range, or an output cannot be written or is an input.
    """
    numbers = {"size": settings.size, "steps": settings.steps, "memory_limit": settings.memory_limit}
    for name, value in (numbers | positive).items():
        terminal.check_positive(name, value)
    terminal.check_seed(settings.seed)
    terminal.check_effect(["seed"] if settings.seed else [], ("seed", not random, "nothing in this study is random"))
    if settings.size and settings.size < 32:
        raise InputError(f"{settings.size}: at least 32 pixels are needed", argument="size")
    if strength is not None and not 0 < strength < 1:
        raise InputError(f"{strength}: give a number between 0 and 1", argument="strength")
    for output in ("card.html", "runs/first.json"):
        files.check_writable(settings.output / output)
    given = [*truth.reference, *([truth.adain] if truth.adain else [])] if truth else []
    named = r"card\.html|results\.(csv|json)|iterations\.csv|sheet\.png"
    outputs = [files.Numbered(settings.output, named), files.Numbered(settings.output / "runs", RUNS)]
    if truth and not given:
        outputs.append(files.Numbered(settings.output / "adain" / "runs", RUNS))
    files.check_outputs(outputs, [*inputs, *given, *bundled_files()])
    return settings.size or size[settings.quick], settings.steps or steps[settings.quick]
