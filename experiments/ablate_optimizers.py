"""Which optimiser paints soonest: L-BFGS of jaxopt and of optax, Adam, AdamW, gradient descent, each at its best rate.

    python experiments/ablate_optimizers.py --output optimizers
    python experiments/ablate_optimizers.py --output optimizers --quick

The loss of Gatys 2015 (arXiv 1508.06576) from the same start, against evaluations and against seconds. The first takes
about half an hour on two CPU cores; stopped, it goes on where it was.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

from nstjax import features, images, losses, memory, objectives, plots, solvers, terminal
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.studies import cards, pseudo_truth, runner
from nstjax.studies.runner import percent
from nstjax.weights import PICTURES


class Optimizer(NamedTuple):
    """What is compared."""

    name: str
    rate: float  # the middle of its sweep
    solver: Callable  # (objective, rate, steps) -> Solver


def adam(transformation):
    """Adam's rate falls along a cosine over all steps, without which pictures keep trembling."""

    def solver(objective, rate, steps):
        return solvers.gradient(objective, transformation(optax.cosine_decay_schedule(rate, steps), b2=0.99))

    return solver


# Set up as in gatys.py.
OPTIMIZERS = {
    "lbfgs": Optimizer(
        "L-BFGS (jaxopt)",
        1.0,
        lambda objective, rate, steps: solvers.lbfgs(
            objective, learning_rate=lambda step: rate, history=memory.HISTORY
        ),
    ),
    "lbfgs-optax": Optimizer(
        "L-BFGS (optax)",
        1.0,
        lambda objective, rate, steps: solvers.gradient(
            objective, optax.lbfgs(rate, memory_size=memory.HISTORY, linesearch=None), jump=solvers.JUMP
        ),
    ),
    "adam": Optimizer("Adam", 0.08, adam(optax.adam)),
    "adamw": Optimizer("AdamW", 0.08, adam(optax.adamw)),
    "gd": Optimizer(
        "gradient descent",
        8 / 255,
        lambda objective, rate, steps: solvers.gradient(
            objective, optax.chain(solvers.by_first_gradient(), optax.sgd(rate)), jump=solvers.JUMP
        ),
    ),
}
CONTENT, STYLE = features.EXTRACTORS["vgg19"].content, features.EXTRACTORS["vgg19"].style
SHOWN = (1 / 12, 1 / 4, 1 / 2, 1)  # parts of all evaluations, and of the seconds, whose pictures are shown
LEFT = "part of the first loss that is left"
KEPT = 24  # pictures of a run
DEFAULTS = runner.Flags(output=Path("optimizers"))


def main(
    *,
    content: Path = PICTURES / "astronaut.jpg",
    style: Path = PICTURES / "gale.jpg",
    optimizers: tuple[Literal["lbfgs", "lbfgs-optax", "adam", "adamw", "gd"], ...] | None = None,
    factors: tuple[float, ...] | None = None,
    init: Literal["content", "noise"] = "content",
    strength: float = 0.3,
    weights: str = "bundled",
    truth: tyro.conf.OmitArgPrefixes[pseudo_truth.Flags] = pseudo_truth.DEFAULTS,
    flags: tyro.conf.OmitArgPrefixes[runner.Flags] = DEFAULTS,
) -> None:
    """Paint one picture by several optimisers, each with several learning rates.

    Args:
        content: the photograph; long side 256 pixels, or 96 with --quick, unless --size is given.
        style: the painting.
        optimizers: those to compare; by default all.
        factors: the learning rates to try, in multiples of 1 (L-BFGS), 0.08 (Adam, AdamW) or 8/255 (gradient descent:
            mean change of pixels at the first step).
        init: the picture that all start from.
        strength: of the style, between 0 and 1.
        weights: bundled, keras or torchvision (downloaded), or a file.
        truth: what AdaIN's picture is.
        flags: those of every study.
    """
    runner.start(
        flags, inputs=[content, style, weights, *pseudo_truth.inputs(truth)], folders=pseudo_truth.folders(truth)
    )
    runner.check_strength(strength)
    factors = tuple(sorted(set(factors or ((0.5, 1, 2) if flags.quick else (0.25, 0.5, 1, 2)))))
    for factor in factors:
        if not 0 < factor < math.inf:
            raise InputError(f"--factors {factor}: give numbers above 0")
    pseudo_truth.check(truth)
    size, steps = flags.size or (96 if flags.quick else 256), flags.steps or (40 if flags.quick else 240)
    photograph = images.load(content, size=size, minimum=32)
    painting = images.load(style, size=size, minimum=16)
    params = features.load("vgg19", weights, layers=CONTENT + STYLE, like=photograph)
    first = runner.beginning(init, photograph, flags.seed)
    extract = partial(vgg.features, edge="replicate")
    objective, targets = objectives.neural_style(extract, statistic=losses.gram)

    balanced = runner.balanced(objective, targets, content=CONTENT, style=STYLE, strength=strength)
    data = cache(lambda: balanced(params, photograph, painting))

    about = {"size": size, "seed": flags.seed, "init": init, "strength": strength, "weights": runner.source(weights)}
    about |= {"photograph": runner.source(content), "painting": runner.source(style)}
    pairs = {f"{content.stem}, {style.stem}": (photograph, painting)}
    (reference,) = pseudo_truth.made(flags, truth, pairs).values()
    about |= reference.about

    def run_of(optimizer, factor):
        rate = OPTIMIZERS[optimizer].rate * factor
        own = {"optimizer": optimizer, "rate": rate, "factor": factor}
        name = f"{OPTIMIZERS[optimizer].name}, rate {rate:g}"
        return runner.Run(name, own | about, lambda: (first, data() | {"rate": jnp.float32(rate)}))

    keep = tuple(dict.fromkeys(round(steps * i / KEPT) for i in range(KEPT)))
    programs = [
        runner.Program(at_rate(partial(solver_of, optimizer, objective, steps)), steps, runs, keep=keep)
        for optimizer in dict.fromkeys(optimizers or OPTIMIZERS)
        if (runs := [run_of(optimizer, factor) for factor in factors])
    ]
    compare = jax.jit(pseudo_truth.figures)

    def measure(run, picture):
        return {name: float(x) for name, x in compare(picture, reference.picture).items()}

    results = [with_failures(result) for result in runner.run(flags, programs, measure=measure)]
    pictures = {"photograph": photograph, "painting": painting, "AdaIN’s picture": reference.picture}
    report(flags, results, pictures, truth, init)


def solver_of(optimizer, objective, steps, rate):
    return OPTIMIZERS[optimizer].solver(objective, rate, steps)


def at_rate(make):
    """make(rate)'s solver, whose rate comes with the data, so that a sweep of rates is one program."""

    def init(image, data):
        return make(data["rate"]).init(image, data)

    def step(image, state, data):
        return make(data["rate"]).step(image, state, data)

    return solvers.Solver(init, step)


def with_failures(result):
    """A result with two more figures: how many steps were rejected, and the seconds of an evaluation."""
    seconds = result.curve["seconds"]
    more = {
        "rejected": sum(failures > 0 for failures in result.curve["failures"]),
        "pace": seconds[-1] / max(1, len(seconds) - 1),
    }
    return result._replace(figures=result.figures | more)


def best_of(results):
    """{optimizer: the run of its sweep that ends lowest}."""
    best: dict = {}
    for result in results:
        optimizer = result.configuration["optimizer"]
        if optimizer not in best or end(result) < end(best[optimizer]):
            best[optimizer] = result
    return best


def end(result):
    """The last loss; infinite where there was none."""
    loss = result.figures["loss"]
    return math.inf if loss is None else loss


def reached(result, loss, against="evaluations"):
    """After how many evaluations, or seconds, a run's loss is no higher than `loss`; None if it never is."""
    return next((x for x, y in result.line("loss", against) if y <= loss), None)


def share(result, other, against="evaluations"):
    """The part of the other's evaluations, or seconds, that a run takes to the other's last loss; None if never."""
    x, whole = reached(result, end(other), against), other.curve[against][-1]
    return None if x is None else x / whole if whole else 1.0


def left_of(result, against="evaluations"):
    """A run's curve [(evaluations or seconds, part of the first loss that is left)]."""
    line = result.line("loss", against)
    return [(x, y / line[0][1]) for x, y in line]


def kept_until(result, seconds):
    """The last step whose picture is there and was done within the seconds."""
    steps = [moment["step"] for moment in result.moments] + [len(result.curve["seconds"])]
    return max(step for step in steps if step == 0 or result.curve["seconds"][step - 1] <= seconds * (1 + 1e-9))


def report(flags, results, pictures, truth, init):
    """Write the card: what the figures say, pictures, curves, tables."""
    best = best_of(results)
    steps = max(len(result.curve["loss"]) for result in best.values())
    budget = min(result.curve["seconds"][-1] for result in best.values())
    name_of = {optimizer: OPTIMIZERS[optimizer].name for optimizer in best}

    def shown(result, step):
        last = step >= len(result.curve["loss"])
        row = min(step, len(result.curve["loss"])) - 1
        left = [y for x, y in left_of(result) if x <= step][-1:] or [1]
        seconds = result.curve["seconds"][row] if step else 0
        note = f"{cards.number(round(seconds, 2))} s, left {percent(left[0])}"
        return result.picture(None if last else step), step, note

    def gallery(chosen):
        """Rows of pictures: chosen(result, part) -> a step that was kept."""
        rows = [
            ("", [cards.Picture(picture, label) for label, picture in pictures.items()]),
        ]
        for optimizer, result in best.items():
            row = [shown(result, chosen(result, part)) for part in SHOWN]
            line = [cards.Picture(picture, f"{step} evaluations", note) for picture, step, note in row]
            rows.append((name_of[optimizer], line))
        return rows

    def at_evaluations(result, part):
        kept = [moment["step"] for moment in result.moments] + [len(result.curve["loss"])]
        return min(kept, key=lambda step: abs(step - part * steps))

    def lines(against):
        return {name_of[optimizer]: left_of(result, against) for optimizer, result in best.items()}

    def matrix(against):
        rows = [
            {"optimizer": name_of[one]}
            | {
                other: None if one == other or (part := share(best[one], best[other], against)) is None else 100 * part
                for other in best
            }
            for one in best
        ]
        columns = {"optimizer": "Reaches the last loss of"} | {other: name_of[other] for other in best}
        caption = f"In per cent of the other’s {against}; – where it never does, and for itself."
        return cards.table(rows, columns=columns, caption=caption)

    sweep = {
        OPTIMIZERS[optimizer].name: [
            (result.configuration["factor"], result.left)
            for result in results
            if result.configuration["optimizer"] == optimizer
        ]
        for optimizer in best
    }
    factors = sorted({result.configuration["factor"] for result in results})
    blocks = [
        cards.section(
            "How the loss falls",
            cards.beside(
                cards.curves(
                    lines("evaluations"),
                    x="evaluations",
                    y=LEFT,
                    log="xy",
                    caption="The best rate of each. An evaluation is of the loss with its gradient; each step takes "
                    "one. Rejected steps are left out of the lines, not out of the count.",
                ),
                cards.curves(
                    lines("seconds"),
                    x="seconds",
                    y=LEFT,
                    log="y",
                    caption="The same against seconds, without the first step, which compiles. Rates that are painted "
                    "together take their share of the time each. Seconds are those of a machine as busy as it was.",
                ),
            ),
        ),
        cards.section(
            "At equal evaluations",
            cards.pictures(gallery(at_evaluations), caption=f"The best rate of each, from the {start_of(init)}."),
        ),
        cards.section(
            "At equal seconds",
            cards.pictures(
                gallery(lambda result, part: kept_until(result, part * budget)),
                caption="The last picture kept within "
                + ", ".join(cards.number(part * budget) for part in SHOWN)
                + " seconds; the last is what the quickest took for all its evaluations.",
            ),
        ),
        cards.section(
            "The sweep",
            cards.curves(
                sweep,
                x="factor of the learning rate",
                y=LEFT,
                log="xy",
                ticks={factor: f"{factor:g}" for factor in factors},
                caption="After all evaluations. A factor of 1 is a rate of "
                + ", ".join(f"{OPTIMIZERS[o].rate:.2g} ({name_of[o]})" for o in best)
                + ". Adam’s and AdamW’s rates fall along a cosine to zero; the others stay.",
            ),
        ),
        cards.section("Who overtakes whom", matrix("evaluations"), matrix("seconds")),
        cards.section("AdaIN’s picture", pseudo_truth.told(flags, truth)),
    ]
    cells = [[(picture, label) for label, picture in pictures.items()]]
    for optimizer, result in best.items():
        row = [shown(result, at_evaluations(result, part)) for part in SHOWN]
        cells.append([(picture, f"{name_of[optimizer]}, {step}") for picture, step, _ in row])
    runner.write(
        flags,
        results,
        title="Which optimiser paints soonest",
        lead="One photograph, one painting, one loss (Gatys 2015, VGG-19), one start; one optimiser after another, "
        "each with the best learning rate of a small sweep.",
        reading="Compare the best rate of each optimizer, at equal evaluations and at equal seconds: the "
        "less of the loss is left, the better.",
        blocks=blocks,
        sheet=plots.contact_sheet(cells, cell=max(144, *pictures["photograph"].shape[:2])),
        table={
            "run": "Run",
            "factor": "Factor",
            "loss": "Loss",
            "left": "Left of it",
            "content": "Content",
            "style": "Style",
            **{name: pseudo_truth.FIGURES[name] for name in ("reference_mse", "reference_ssim")},
            "rejected": "Rejected steps",
            "pace": "Seconds an evaluation",
            "evaluations": "Evaluations",
            "seconds": "Seconds",
        },
        best={"left": min, "pace": min, "reference_ssim": max},
    )


def start_of(init):
    return {"content": "photograph", "noise": "same noise"}[init]


if __name__ == "__main__":
    terminal.tune_malloc()
    terminal.cache_compilations()
    with terminal.refusals("ablate_optimizers.py"):
        tyro.cli(main)
