"""Runs of a study: optimized, stored in its folder, and resumed after the study was stopped.

    runs = [Run(f"seed {seed}", {"seed": seed, "image": source(path)}, partial(prepare, seed)) for seed in range(4)]
    results = run(settings, [Program(solvers.lbfgs(objective), steps, shape, runs, keep=(20, 100))], measure=measure)

A finished run is skipped the next time if its configuration is still the same.
"""

import hashlib
import json
import math
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import nstjax
from nstjax import files, images, memory, pyramid, solvers, terminal
from nstjax.errors import InputError, printable, reason
from nstjax.studies.settings import Settings
from nstjax.typing import Image, Images

PIXEL_BYTES = 5000  # memory that a run takes for each pixel of its image
MOST_TOGETHER = {"cpu": 4}  # runs that are optimized together at most, by backend
# (first image, data, steps=) -> (step from 1, image, terms): what optimizes one image by itself, as `solvers.run` does.
# Where a step evaluates the loss more than once, the terms have "evaluations", how many there were until then.
Optimize = Callable[..., Iterator[tuple[int, Image, dict[str, Any]]]]
LATIN = str.maketrans({"α": "alpha", **dict(zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True))})  # in files
Figures = dict[str, Any]  # {figure: number, or None where there is none}


class Run(NamedTuple):
    """An image to optimize."""

    name: str  # its own in the study
    configuration: dict[str, Any]  # everything that the image depends on, as JSON
    prepare: Callable[[], tuple]  # () -> (first image [H, W, 3], data of the objective)


class Program(NamedTuple):
    """Runs that share a compiled program: images of one shape, data of one structure."""

    solver: solvers.Solver | Optimize
    steps: int
    shape: tuple[int, int]  # height and width of the images
    runs: Sequence[Run]
    keep: Sequence[int] = ()  # steps whose images are kept and measured, beside the last; 0 is the first image


class Result(NamedTuple):
    """A finished run."""

    name: str
    configuration: dict[str, Any]
    figures: Figures  # terms of the loss at the last evaluation, and what `measure` returned
    moments: list[dict]  # at each step kept: "step" and what `measure` returned
    curve: dict[str, list]  # "evaluations", "seconds" (without the first step, which compiles), "loss", its terms
    seconds: float  # of the whole run; of runs that were optimized together, its share
    peak_memory: float  # bytes, of the process or the accelerator, until then
    machine: dict[str, str]
    path: Path

    def image(self, step: int | None = None) -> Image:
        """The last image, or that of a step kept."""
        return images.load(self.path if step is None else _moment(self.path, step), source_minimum=1)

    @property
    def left(self) -> float | None:
        """The last loss in units of the first; None for a run that diverged."""
        first, last = self.curve["loss"][0], self.figures["loss"]
        return None if not first or last is None else last / first

    def line(self, name: str, against: str = "evaluations") -> list[tuple]:
        """[(evaluations or seconds, the loss or a term)] for `cards.curves`, without rejected steps."""
        columns = (self.curve[against], self.curve[name], self.curve["failures"])
        return [(x, y) for x, y, failures in zip(*columns, strict=True) if not failures]

    def relative(self, against: str = "evaluations") -> list[tuple]:
        """`line` of the loss in units of its first value; empty where that is 0."""
        line = self.line("loss", against)
        return [(x, y / line[0][1]) for x, y in line] if line and line[0][1] else []

    @property
    def steps(self) -> list[int]:
        """The steps whose images are there, up to the last."""
        last = int(self.figures["evaluations"])
        return [*(moment["step"] for moment in self.moments if moment["step"] < last), last]


def first_image(init: str, content: Image, seed: int) -> Image:
    """Return the image that runs start from: the content image, or if init is "noise", noise of the seed."""
    return content if init == "content" else np.asarray(jax.random.uniform(jax.random.key(seed), content.shape))


def source(path: str | Path) -> Any:
    """Return a file's name and the start of its SHA-256, for a configuration; names of weights stay as they are."""
    if path in ("bundled", "keras", "torchvision", "random"):
        return path
    files.check_regular(path)
    try:
        return {"name": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}
    except OSError as error:
        raise files.refusal(path, f"cannot be read ({reason(error)}); check the name") from error


def sources(**paths: str | Path) -> dict[str, Any]:
    """Return the `source` of several files, by name."""
    return {name: source(path) for name, path in paths.items()}


def run(
    settings: Settings, programs: Sequence[Program], *, measure: Callable[[Run, Any], Figures] = lambda run, image: {}
) -> list[Result]:
    """Optimize the runs that are not finished yet, and return all results in order.

    Ctrl-C keeps the runs that are finished and exits with status 130 (SIGTERM: 143). If all images that are optimized
    together diverge, the last finite ones are used.

    Args:
        measure: (run, image [H, W, 3] as it is saved) -> figures. They are stored with the run, so its configuration
            must include what they depend on.
    """
    runs = [each for program in programs for each in program.runs]
    paths = {each.name: settings.output / "runs" / f"{_slug(each.name)}.png" for each in runs}
    if len(set(paths.values())) < len(runs):
        raise ValueError("two runs have the same name")
    stored = [_stored(paths[each.name], _whole(each, program)) for program in programs for each in program.runs]
    results = {result.name: result for result in stored if result}
    total = sum(program.steps * len(program.runs) for program in programs)
    done = sum(program.steps for program in programs for each in program.runs if each.name in results)
    folder = printable(settings.output)
    if results:
        print(f"{len(results)} of {len(runs)} runs are done already, in {folder}")
    bar = tqdm(total=total, initial=done, unit="evaluation", dynamic_ncols=True)
    with terminal.stop_signals() as stopped, bar:
        for program in programs:
            missing = [each for each in program.runs if each.name not in results]
            own = program.solver
            # One solver for all groups, as a program is compiled for each.
            together = solvers.batched(own) if isinstance(own, solvers.Solver) else own
            for group in memory.groups(missing, _most(program, settings)) if missing else []:
                if not stopped():
                    solver = together if len(group) > 1 else own
                    now = _optimize(solver, program, group, paths, measure, bar, stopped)
                    results |= {result.name: result for result in now}
    if stopped() and len(results) < len(runs):
        kept = f"{len(results)} of {len(runs)} runs are done and kept in {folder}"
        print(f"stopped by {stopped()}: {kept}; the same command goes on from there", file=sys.stderr)
        terminal.finish(stopped)
    return [results[each.name] for each in runs]


def _most(program: Program, settings: Settings) -> int:
    """How many runs may be optimized together."""
    if not isinstance(program.solver, solvers.Solver):
        return 1
    limit = settings.memory_limit * 1e9 if settings.memory_limit else 0.7 * memory.available()
    fitting = int(limit / (PIXEL_BYTES * math.prod(program.shape)))
    return max(1, min(fitting, MOST_TOGETHER.get(jax.default_backend(), 64)))


def _optimize(
    solver: solvers.Solver | Optimize,
    program: Program,
    group: list[Run],
    paths: dict[str, Path],
    measure: Callable,
    bar: tqdm,
    stopped: Callable[[], str | None],
) -> list[Result]:
    """The results of a group of runs, stored; none if it was stopped before its end."""
    begun = time.perf_counter()
    runs = list({each.name: each for each in group}.values())  # the last one may be repeated to fill the group
    bar.set_description(printable(runs[0].name) + (f" and {len(runs) - 1} more" if runs[1:] else ""))
    first, data = pyramid.stacked([each.prepare() for each in group])
    moments: dict[str, list[dict]] = {each.name: [] for each in runs}
    curve: list[dict] = []

    def keep(step: int, pixels: Image | Images) -> None:
        for each, image in _apart(runs, pixels):
            images.save(_moment(paths[each.name], step), image)
            moments[each.name].append({"step": step} | measure(each, image))

    if 0 in program.keep:
        keep(0, first)
    last = first
    run = partial(solvers.run, solver) if isinstance(solver, solvers.Solver) else solver
    try:
        for seconds, (step, pixels, terms) in _timed(run(first, data, steps=program.steps)):
            last = pixels
            curve.append({"evaluations": step, "seconds": seconds / len(group)} | terms)
            bar.update(len(runs))
            if stopped() and step < program.steps:
                return []
            if step in program.keep and step < program.steps:
                keep(step, pixels)
    except FloatingPointError as error:
        bar.write(f"{printable(runs[0].name)}: {error}; the last good image counts")
        bar.update((program.steps - len(curve)) * len(runs))
    results, share = [], (time.perf_counter() - begun) / len(runs)
    for i, (each, image) in enumerate(_apart(runs, last)):
        images.save(paths[each.name], image)
        own = {name: [np.ravel(row[name])[i % np.size(row[name])].item() for row in curve] for name in curve[0]}
        figures = _finite(_last(own) | measure(each, image))
        results.append(
            Result(
                *(each.name, _whole(each, program), figures, _finite(moments[each.name]), _finite(own)),
                *(share, _peak_memory(), _machine(), paths[each.name]),
            )
        )
        _store(results[-1])
    return results


def _apart(runs: list[Run], pixels: Image | Images) -> Iterator[tuple[Run, Image]]:
    """(run, its image, rounded to 8 bits as it is saved), without repeated ones that fill a group."""
    for each, image in zip(runs, pixels if pixels.ndim == 4 else [pixels], strict=False):
        yield each, np.rint(np.clip(np.asarray(image, np.float32), 0, 1) * 255) / np.float32(255)


def _timed(steps: Iterator) -> Iterator[tuple[float, Any]]:
    """(seconds that the iterator has taken up to here, its item), without those of the first item, which compiles."""
    total, clock = 0.0, time.perf_counter()
    for i, item in enumerate(steps):
        total += (time.perf_counter() - clock) * (i > 0)
        yield total, item
        clock = time.perf_counter()


def _last(curve: dict[str, list]) -> Figures:
    """The last loss and terms. Failed evaluations belong to rejected steps, and do not count."""
    good = [row for row, failures in enumerate(curve["failures"]) if not failures]
    terms = {name: values for name, values in curve.items() if name not in ("seconds", "failures")}
    last = {name: values[good[-1]] if good else None for name, values in terms.items()}
    return last | {"evaluations": curve["evaluations"][-1]}


def _whole(each: Run, program: Program) -> dict:
    """A run's configuration with the program's, as it is read back from a file."""
    return json.loads(json.dumps(each.configuration | {"steps": program.steps, "keep": sorted(program.keep)}))


def _store(result: Result) -> None:
    """Write a result beside its images; it is written last, so that its images exist if it does."""
    fields = {name: value for name, value in result._asdict().items() if name != "path"}
    files.write(result.path.with_suffix(".json"), json.dumps(fields, indent=1).encode())


def _stored(path: Path, configuration: dict) -> Result | None:
    """The stored result of a run if it exists, is complete, and has this configuration."""
    try:
        result = Result(**json.loads(path.with_suffix(".json").read_text()), path=path)
        for step in (None, *(moment["step"] for moment in result.moments)):
            result.image(step)
    except (OSError, ValueError, TypeError, InputError):
        return None
    return result if result.configuration == configuration else None


def _slug(name: str) -> str:
    """A file name from a run's name, with a digest if characters were left out."""
    plain = re.sub(r"[ ,]+", "-", name)
    safe = re.sub(r"[^A-Za-z0-9._+=-]", "", plain.replace("×10", "e").translate(LATIN)).lstrip(".-")[:80]
    return safe if safe == plain else f"{safe}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def _moment(path: Path, step: int) -> Path:
    return path.with_name(f"{path.stem}-{step:05d}.png")


def _finite(tree: Any) -> Any:
    """Numbers that JSON cannot hold become None."""
    if isinstance(tree, dict | list):
        return {k: _finite(v) for k, v in tree.items()} if isinstance(tree, dict) else [_finite(v) for v in tree]
    if tree is None or isinstance(tree, int | str):
        return tree
    return float(tree) if math.isfinite(tree) else None


def _peak_memory() -> float:
    stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    unit = 1 if sys.platform == "darwin" else 1024
    return float(stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _machine() -> dict[str, str]:
    """What computed a run: {"hardware", "versions"}."""
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        name = found[1].strip()
    hardware = f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    if jax.default_backend() != "cpu":
        hardware = f"{jax.device_count()} × {jax.devices()[0].device_kind}; {hardware}"
    packages = ("jax", "jaxlib", "jaxopt", "optax", "numpy")
    versions = [f"nstjax {nstjax.__version__}", f"Python {platform.python_version()}"]
    versions += [f"{package} {metadata.version(package)}" for package in packages]
    return {"hardware": hardware, "versions": ", ".join(versions)}
