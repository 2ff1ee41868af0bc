"""What the studies have in common: their flags, the grid of runs that is optimised, kept and gone on with, the card.

    runs = [Run(f"seed {seed}", {"seed": seed, "content": source(path)}, partial(prepare, seed)) for seed in range(4)]
    results = run(flags, [Program(solvers.lbfgs(objective), 200, runs, keep=(20, 100))], measure=measure)
    write(flags, results, title=..., lead=..., reading=..., blocks=[cards.pictures(...)], sheet=..., table={...})

Every finished run lies in the study's folder, and is skipped the next time if its configuration is still the same.
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
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import nstjax
from nstjax import files, images, memory, objectives, pyramid, solvers, terminal
from nstjax.errors import InputError, printable
from nstjax.studies import cards
from nstjax.weights import bundled_files

EXITS = {"SIGINT": 130, "SIGTERM": 143}


class Flags(NamedTuple):
    """The flags of every study."""

    output: Path = Path("study")
    """folder for the card, card.html, with results.csv, results.json, sheet.png and the runs."""
    quick: bool = False
    """a small study, done in two minutes on two cores."""
    size: int | None = None
    """long side of the pictures in pixels."""
    steps: int | None = None
    """evaluations of each run."""
    seed: int = 0
    """of the noise."""
    memory_limit: float | None = None
    """gigabytes to use; by default 0.7 of what is free."""


class Run(NamedTuple):
    """A picture to make."""

    name: str  # its own in the study
    configuration: dict[str, Any]  # all that the picture depends on, as JSON has it
    prepare: Callable[[], tuple]  # () -> (first picture [H, W, 3], data of the objective)


class Program(NamedTuple):
    """Runs for one compiled program: pictures of one shape, data of one structure, which differ in numbers alone."""

    solver: solvers.Solver
    steps: int
    runs: Sequence[Run]
    keep: Sequence[int] = ()  # steps whose pictures are kept and measured, beside the last; 0 is the first picture


class Result(NamedTuple):
    """A finished run."""

    name: str
    configuration: dict[str, Any]
    figures: dict[str, float | None]  # terms of the loss at the last evaluation, and what `measure` says
    moments: list[dict]  # at each step kept: "step" and what `measure` says
    curve: dict[str, list]  # "evaluations", "seconds" (without the first step, which compiles), "loss", its terms
    seconds: float  # of the run with all that it took; of runs that were optimised together, its share
    peak_memory: float  # bytes, of the process or the accelerator, until then
    machine: dict[str, str]
    path: Path

    def picture(self, step=None) -> np.ndarray:
        """The last picture [H, W, 3], or that of a step kept."""
        return images.load(self.path if step is None else _moment(self.path, step), source_minimum=1)

    @property
    def left(self) -> float | None:
        """The part of the first loss that is left."""
        first, last = self.curve["loss"][0], self.figures["loss"]
        return None if not first or last is None else last / first

    def line(self, name, against="evaluations") -> list[tuple]:
        """[(evaluations or seconds, the loss or a term)] for `cards.curves`, without rejected steps."""
        columns = (self.curve[against], self.curve[name], self.curve["failures"])
        return [(x, y) for x, y, failures in zip(*columns, strict=True) if not failures]


def start(flags, *, inputs=(), folders=("runs",), random=True, **more) -> None:
    """Check `flags` and the command's own numbers, which must be above 0, and that the study's folder takes files.

    inputs: files that are read, and names of weights; InputError if the study would write over one. folders: those in
    the study's folder that hold runs.
    """
    for name, value in (flags._asdict() | more).items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and name != "seed" and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value}: give a number above 0")
    terminal.check_seed(flags.seed)
    if flags.seed and not random:
        raise InputError(f"--seed {flags.seed}: would change nothing, as nothing in this study is random; leave it out")
    if flags.size and flags.size < 32:
        raise InputError(f"--size {flags.size}: at least 32 pixels are needed")
    for name in ("card.html", "runs/first.json"):
        files.check_writable(flags.output / name)
    named = r"card\.html|results\.(csv|json)|iterations\.csv|sheet\.png"
    runs = [files.Numbered(flags.output / folder, r".*\.(png|json)") for folder in folders]
    files.check_outputs([files.Numbered(flags.output, named), *runs], [*inputs, *bundled_files()])


def check_strength(strength) -> None:
    """Refuse a strength of the style that leaves nothing to balance."""
    if not 0 < strength < 1:
        raise InputError(f"--strength {strength}: give a number between 0 and 1")


def beginning(init, photograph, seed) -> np.ndarray:
    """The picture [H, W, 3] that runs start from: init is "content", the photograph, or "noise", of the seed."""
    if init == "content":
        return photograph
    return np.asarray(jax.random.uniform(jax.random.key(seed), photograph.shape))


def balanced(objective, targets, *, content, style, strength) -> Callable:
    """(params, photograph, painting) -> data of `objectives.neural_style`'s pair (objective, targets), jitted.

    The layers count alike, content and style as `objectives.balance` has it.
    """
    layers = {"content_layers": dict.fromkeys(content, 1.0), "style_layers": dict.fromkeys(style, 1.0)}

    @jax.jit
    def data(params, photograph, painting):
        ones = {"content": 1.0, "style": 1.0}
        data = targets(params, photograph, [objectives.Style(painting)], weights=ones, **layers)
        return objectives.balance(objective, data, photograph, strength=strength)

    return data


def source(path) -> Any:
    """What a run's configuration says of a file: name and SHA-256's beginning; names of weights stay."""
    if path in ("bundled", "keras", "torchvision", "random"):
        return path
    files.check_regular(path)
    try:
        return {"name": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}
    except OSError as error:
        raise files.refusal(path, f"cannot be read ({error.strerror}); check the name") from error


def run(flags, programs: Sequence[Program], *, measure: Callable = lambda run, picture: {}) -> list[Result]:
    """Optimise what is not done yet, and return all results in order.

    measure(run, picture [H, W, 3], as it is saved) -> {figure: number}; figures are stored with the run, so that what
    they depend on belongs into its configuration too. Ctrl-C keeps the runs that are finished and exits with 130
    (SIGTERM: 143). Where all pictures that are optimised together diverge, the last good ones count.
    """
    runs = [each for program in programs for each in program.runs]
    paths = {each.name: flags.output / "runs" / f"{_slug(each.name)}.png" for each in runs}
    if len(set(paths.values())) < len(runs):
        raise ValueError("two runs have the same name")
    results = {
        each.name: result
        for program in programs
        for each in program.runs
        if (result := _stored(paths[each.name], _whole(each, program)))
    }
    total = sum(program.steps * len(program.runs) for program in programs)
    done = sum(program.steps for program in programs for each in program.runs if each.name in results)
    if results:
        print(f"{len(results)} of {len(runs)} runs are done already, in {printable(flags.output)}")
    bar = tqdm(total=total, initial=done, unit="evaluation", dynamic_ncols=True)
    with terminal.stop_signals() as stopped, bar:
        for program in programs:
            together = solvers.batched(program.solver)
            for chunk in [] if stopped() else _chunks(program, results, flags):
                if stopped():
                    break
                solver = together if len(chunk) > 1 else program.solver
                now = _optimise(solver, program, chunk, paths, measure, bar, stopped)
                results |= {result.name: result for result in now}
    if stopped() and len(results) < len(runs):
        kept = f"{len(results)} of {len(runs)} runs are done and kept in {printable(flags.output)}"
        print(f"stopped by {stopped()}: {kept}; the same command goes on from there", file=sys.stderr)
        sys.exit(EXITS[stopped()])
    return [results[each.name] for each in runs]


def _chunks(program, results, flags):
    """Runs that are not done, as many together as fit into memory, and no more than four on CPU."""
    missing = [each for each in program.runs if each.name not in results]
    if not missing:
        return []
    limit = flags.memory_limit * 1e9 if flags.memory_limit else 0.7 * memory.available()
    pixels = math.prod(missing[0].prepare()[0].shape[:2]) if len(missing) > 1 else 1
    most = max(1, min(int(limit / (5000 * pixels)), 4 if jax.default_backend() == "cpu" else 64))
    each = math.ceil(len(missing) / math.ceil(len(missing) / most))
    chunks = [missing[i : i + each] for i in range(0, len(missing), each)]
    # The last is filled up, so that all have one shape and are compiled once.
    return [chunk + chunk[-1:] * (each - len(chunk)) for chunk in chunks]


def _optimise(solver, program, chunk, paths, measure, bar, stopped):
    """The results of a chunk's runs, stored; none if it was stopped before its end."""
    begun = time.perf_counter()
    runs = list({each.name: each for each in chunk}.values())
    bar.set_description(printable(runs[0].name) + (f" and {len(runs) - 1} more" if runs[1:] else ""))
    image, data = pyramid.stacked([each.prepare() for each in chunk])
    moments: dict[str, list[dict]] = {each.name: [] for each in runs}
    keep = {step for step in program.keep if step < program.steps}
    curve: list[dict] = []
    optimising = 0.0

    def each_picture(pictures):
        """(run, its picture as it will be saved) of those that are not there to fill the chunk up."""
        for each, picture in zip(runs, pictures if len(chunk) > 1 else [pictures], strict=False):
            yield each, np.rint(np.clip(np.asarray(picture, np.float32), 0, 1) * 255) / np.float32(255)

    def keep_moment(step, pictures):
        for each, picture in each_picture(pictures):
            images.save(_moment(paths[each.name], step), picture)
            moments[each.name].append({"step": step} | measure(each, picture))

    if 0 in keep:
        keep_moment(0, image)
    pictures, clock = image, time.perf_counter()
    try:
        for step, pictures, terms in solvers.run(solver, image, data, steps=program.steps):
            optimising += (time.perf_counter() - clock) * (step > 1) / len(chunk)
            curve.append({"evaluations": step, "seconds": optimising} | terms)
            bar.update(len(runs))
            if stopped() and step < program.steps:
                return []
            if step in keep:
                keep_moment(step, pictures)
            clock = time.perf_counter()
    except FloatingPointError as error:
        bar.write(f"{printable(runs[0].name)}: {error}; the last good picture counts")
        bar.update((program.steps - len(curve)) * len(runs))
    results, seconds = [], (time.perf_counter() - begun) / len(runs)
    for i, (each, picture) in enumerate(each_picture(pictures)):
        images.save(paths[each.name], picture)
        own = {name: [np.ravel(row[name])[i % np.size(row[name])].item() for row in curve] for name in curve[0]}
        result = Result(
            name=each.name,
            configuration=_whole(each, program),
            figures=_finite(_last(own) | measure(each, picture)),
            moments=_finite(moments[each.name]),
            curve=_finite(own),
            seconds=seconds,
            peak_memory=_peak_memory(),
            machine=_machine(),
            path=paths[each.name],
        )
        stored = {name: value for name, value in result._asdict().items() if name != "path"}
        # Written last: where it is, the pictures are.
        files.write(result.path.with_suffix(".json"), json.dumps(stored, indent=1).encode())
        results.append(result)
    return results


def _last(curve):
    """The last loss and terms. A failed evaluation is of a rejected step, and does not count."""
    good = [row for row, failures in enumerate(curve["failures"]) if not failures]
    terms = {name: values for name, values in curve.items() if name not in ("seconds", "failures")}
    return {name: values[good[-1]] if good else None for name, values in terms.items()} | {
        "evaluations": len(curve["evaluations"])
    }


def _whole(each, program):
    """A run's configuration with the program's own, as it comes back from a file."""
    return json.loads(json.dumps(each.configuration | {"steps": program.steps, "keep": sorted(program.keep)}))


def _stored(path, configuration):
    """The run's result if it is there, whole, and of this configuration."""
    try:
        result = Result(**json.loads(path.with_suffix(".json").read_text()), path=path)
        for step in (None, *(moment["step"] for moment in result.moments)):
            result.picture(step)
    except (OSError, ValueError, TypeError, InputError):
        return None
    return result if result.configuration == configuration else None


def _slug(name):
    """A file's name that tells the run's; with a digest where it cannot tell all."""
    plain = re.sub(r"[ ,]+", "-", name)
    safe = re.sub(r"[^A-Za-z0-9._+=-]", "", plain).lstrip(".-")[:80]
    return safe if safe == plain else f"{safe}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def _moment(path, step):
    return path.with_name(f"{path.stem}-{step:05d}.png")


def _finite(tree):
    """Numbers that JSON cannot hold become None."""
    if isinstance(tree, dict | list):
        return {k: _finite(v) for k, v in tree.items()} if isinstance(tree, dict) else [_finite(v) for v in tree]
    if tree is None or isinstance(tree, int | str):
        return tree
    return float(tree) if math.isfinite(tree) else None


def _peak_memory():
    stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    unit = 1 if sys.platform == "darwin" else 1024
    return float(stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _machine():
    """What ran a run: {"hardware", "versions"}."""
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        name = found[1].strip()
    hardware = f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    if jax.default_backend() != "cpu":
        hardware = f"{jax.device_count()} × {jax.devices()[0].device_kind}; {hardware}"
    packages = ("jax", "jaxlib", "jaxopt", "optax", "numpy")
    versions = [f"nstjax {nstjax.__version__}", f"Python {platform.python_version()}"]
    return {
        "hardware": hardware,
        "versions": ", ".join([*versions, *(f"{package} {metadata.version(package)}" for package in packages)]),
    }


def rows(results) -> list[dict]:
    """A row for each run: its name, configuration, figures, seconds; lists and files in words."""

    def word(value):
        if isinstance(value, dict):
            return str(value.get("name", value))
        return "+".join(map(str, value)) if isinstance(value, list) else value

    plain = [
        {"run": result.name}
        | {name: word(value) for name, value in result.configuration.items() if name != "keep"}
        | result.figures
        | {"left": result.left, "seconds": round(result.seconds, 3)}
        for result in results
    ]
    every = list(dict.fromkeys(name for row in plain for name in row))
    return [{name: row.get(name) for name in every} for row in plain]


def write(
    flags,
    results: Sequence[Result],
    *,
    title: str,
    lead: str,
    reading: str,
    blocks: Sequence,
    sheet,
    table,
    best=None,
) -> None:
    """Write results.csv, results.json, sheet.png and, when they are there, card.html into the study's folder.

    reading: how to read the card, in a sentence. blocks: what `cards` made of it. sheet: a picture of all
    (`plots.contact_sheet`). table: {column of `rows`: heading} for the card's table of all runs; best: {column: min or
    max}, whose best is set bold.
    """
    all_rows = rows(results)
    seeds = {result.configuration["seed"] for result in results if "seed" in result.configuration}
    made = {
        "Command": terminal.command(sys.argv),
        "Hardware": _each("hardware", results),
        "Versions": _each("versions", results),
        "Time": f"{_duration(sum(result.seconds for result in results))} for {len(results)} runs, compiling included",
        "Evaluations": f"{sum(result.figures['evaluations'] or 0 for result in results):,.0f} of losses with gradients",
        "Peak memory": f"{max(result.peak_memory for result in results) / 1e9:.2f} GB",
        "Seeds": ", ".join(map(str, sorted(seeds))) if seeds else "none: nothing is random",
    }
    whole = {
        "study": title,
        "command": made["Command"],
        "hardware": made["Hardware"],
        "versions": made["Versions"],
        "seconds": sum(result.seconds for result in results),
        "evaluations": sum(result.figures["evaluations"] or 0 for result in results),
        "peak_memory": max(result.peak_memory for result in results),
        "seeds": made["Seeds"],
        "runs": [
            {"run": result.name, "configuration": result.configuration, "figures": result.figures}
            | {"moments": result.moments, "seconds": result.seconds, "files": f"runs/{result.path.stem}.*"}
            for result in results
        ],
    }
    page = cards.page(
        title,
        cards.section("How to read it", reading),
        *blocks,
        cards.section(
            "All runs",
            cards.table(all_rows, columns=table, best=best, caption="Every run. A click on a heading sorts."),
        ),
        cards.section("How it was made", cards.facts(made)),
        lead=lead,
        overline="nstjax · a study",
    )
    files.write_csv(flags.output / "results.csv", all_rows)
    files.write(flags.output / "results.json", (json.dumps(whole, indent=1) + "\n").encode())
    images.save(flags.output / "sheet.png", sheet, metadata={"Software": "nstjax", "Command": made["Command"]})
    files.write(flags.output / "card.html", page.encode())
    card = printable(flags.output / "card.html")
    print(f"wrote {card} ({len(page) / 1e6:.1f} MB), results.csv, results.json and sheet.png")


def percent(share) -> str:
    """0.1234 -> 12 %, 0.001234 -> 0.12 %; None -> –."""
    if share is None:
        return "–"
    return f"{float(f'{100 * share:.2g}'):,g}\N{NO-BREAK SPACE}%".replace("inf", "\N{INFINITY}")


def short(value) -> str:
    """Two significant digits; None -> –."""
    return cards.number(math.nan if value is None else float(f"{value:.2g}"))


def enlarged(picture, cell):
    """A picture [H, W, 3] enlarged by a whole number, to about a cell of a sheet."""
    times = max(1, cell // max(picture.shape[:2]))
    return picture.repeat(times, 0).repeat(times, 1)


def _each(name, results):
    return "; ".join(dict.fromkeys(result.machine[name] for result in results))


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
