"""Which optimizer paints soonest: L-BFGS of jaxopt and of optax, Adam, AdamW, gradient descent, each at its best rate.

    python experiments/ablate_optimizers.py --output optimizers
    python experiments/ablate_optimizers.py --output optimizers --quick

The loss of Gatys 2015 (arXiv 1508.06576) from the same start, against evaluations and against seconds. The first
command takes half an hour on two CPU cores; stopped, it goes on where it was.
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

from nstjax import features, images, losses, memory, objectives, solvers, terminal
from nstjax.features import vgg
from nstjax.studies import cards, measures, pseudo_truth, report, runner
from nstjax.studies.report import percent
from nstjax.studies.settings import TRUTH, Settings, Truth, start
from nstjax.weights import PICTURES


class Optimizer(NamedTuple):
    """What is compared."""

    name: str
    rate: float  # the middle of its sweep
    solver: Callable  # (objective, rate, steps) -> Solver


def adam(transformation, objective, rate, steps):
    """Adam's rate falls along a cosine over all steps, without which images keep trembling."""
    return solvers.gradient(objective, transformation(optax.cosine_decay_schedule(rate, steps), b2=0.99))


def guarded(transformation, objective, rate, steps):
    """A transformation of optax at a constant rate; a step after which the loss has jumped is rejected."""
    return solvers.gradient(objective, transformation(rate), jump=solvers.JUMP)


def jaxopt(objective, rate, steps):
    return solvers.lbfgs(objective, learning_rate=lambda step: rate, history=memory.HISTORY)


# Set up as in gatys.py.
OPTAX = partial(optax.lbfgs, memory_size=memory.HISTORY, linesearch=None)
DESCENT = lambda rate: optax.chain(solvers.by_first_gradient(), optax.sgd(rate))  # noqa: E731
OPTIMIZERS = {
    "lbfgs": Optimizer("L-BFGS (jaxopt)", 1.0, jaxopt),
    "lbfgs-optax": Optimizer("L-BFGS (optax)", 1.0, partial(guarded, OPTAX)),
    "adam": Optimizer("Adam", 0.08, partial(adam, optax.adam)),
    "adamw": Optimizer("AdamW", 0.08, partial(adam, optax.adamw)),
    "gd": Optimizer("gradient descent", 8 / 255, partial(guarded, DESCENT)),
}
CONTENT, STYLE = features.EXTRACTORS["vgg19"].content, features.EXTRACTORS["vgg19"].style
SHOWN = (1 / 12, 1 / 4, 1 / 2, 1)  # parts of all evaluations, and of the seconds, whose images are shown
KEPT = 24  # images of a run
SETTINGS = Settings(output=Path("optimizers"))
COLUMNS = {"run": "Run", "factor": "Factor", "loss": "Loss", "left": "Loss left", "content": "Content"}
COLUMNS |= {"style": "Style"} | {name: measures.REFERENCE[name] for name in ("reference_mse", "reference_ssim")}
COLUMNS |= {"rejected": "Rejected steps", "pace": "Seconds an evaluation"}
TEXT = report.Text(
    "Which optimizer paints soonest",
    "One content image, one style image, one loss (Gatys 2015, VGG-19), one start; one optimizer after another, each "
    "with the best learning rate of a small sweep.",
    "The less of the loss is left at equal evaluations, and at equal seconds, the better.",
)
CAPTIONS = {
    "evaluations": "Each at its best rate, over evaluations of the loss with its gradient, without rejected steps.",
    "seconds": "The same over seconds, without the first step, which compiles.",
    "at evaluations": "Each at its best rate, after a twelfth, a quarter, a half and all of the evaluations.",
    "at seconds": "Each at its best rate: the last image within those parts of the seconds that the quickest took.",
    "sweep": "A factor of 1 is a rate of 1 (L-BFGS), 0.08 (Adam, AdamW; falling to 0) or 8/255 (gradient descent).",
}


def main(
    *,
    content: Path = PICTURES / "astronaut.jpg",
    style: Path = PICTURES / "gale.jpg",
    optimizers: tuple[Literal["lbfgs", "lbfgs-optax", "adam", "adamw", "gd"], ...] | None = None,
    factors: tuple[float, ...] | None = None,
    init: Literal["content", "noise"] = "content",
    strength: float = 0.3,
    weights: str = "bundled",
    truth: tyro.conf.OmitArgPrefixes[Truth] = TRUTH,
    settings: tyro.conf.OmitArgPrefixes[Settings] = SETTINGS,
) -> None:
    """Paint one image by several optimizers, each with several learning rates.

    Args:
        content: the content image; long side 256 pixels, or 192 with --quick, unless --size is given.
        style: the style image.
        optimizers: those to compare; by default all.
        factors: the learning rates to try, in multiples of 1 (L-BFGS), 0.08 (Adam, AdamW) or 8/255 (gradient descent:
            mean change of pixels at the first step).
        init: the image that all start from.
        strength: of the style, between 0 and 1.
        weights: bundled, keras or torchvision (downloaded), or a file.
        truth: what AdaIN's image is.
        settings: those of every study.
    """
    given = [content, style, weights]
    size, steps = start(settings, truth, size=(256, 192), steps=(240, 60), inputs=given, strength=strength)
    for factor in factors or ():
        terminal.check_positive("factors", factor)
    image, style_image = images.load(content, size=size, minimum=32), images.load(style, size=size, minimum=16)
    source = pseudo_truth.read(truth, {pseudo_truth.pair(content, style): (image, style_image)})
    params = features.load("vgg19", weights, layers=CONTENT + STYLE, like=image)
    objective, targets = objectives.neural_style(partial(vgg.features, edge="replicate"), statistic=losses.gram)
    balanced = measures.balanced(objective, targets, content=CONTENT, style=STYLE, strength=strength)
    data = cache(lambda: balanced(params, image, style_image))
    (reference,) = pseudo_truth.made(settings, source).values()
    first = runner.first_image(init, image, settings.seed)
    about = {"size": size, "seed": settings.seed, "init": init, "strength": strength}
    about |= runner.sources(content_image=content, style_image=style, weights=weights) | reference.about

    def run_of(optimizer, factor):
        rate = OPTIMIZERS[optimizer].rate * factor
        own = {"optimizer": optimizer, "rate": rate, "factor": factor}
        name = f"{OPTIMIZERS[optimizer].name} at rate {rate:.3g}"
        return runner.Run(name, own | about, lambda: (first, data() | {"rate": jnp.float32(rate)}))

    sweep = sorted(set(factors or ((0.5, 1, 2) if settings.quick else (0.25, 0.5, 1, 2))))
    keep = tuple(dict.fromkeys(round(steps * i / KEPT) for i in range(KEPT)))
    programs = [
        runner.Program(at_rate(name, objective, steps), steps, image.shape[:2], [run_of(name, f) for f in sweep], keep)
        for name in dict.fromkeys(optimizers or OPTIMIZERS)
    ]
    compare = jax.jit(measures.to_reference)
    measure = lambda run, image: {name: float(x) for name, x in compare(image, reference.image).items()}  # noqa: E731
    results = [with_failures(result) for result in runner.run(settings, programs, measure=measure)]
    write(settings, results, report.originals(image, style_image, reference.image))


def at_rate(optimizer, objective, steps):
    """An optimizer whose rate comes with the data, so that a sweep of rates is one program."""
    make = partial(OPTIMIZERS[optimizer].solver, objective)

    def init(image, data):
        return make(data["rate"], steps).init(image, data)

    def step(image, state, data):
        return make(data["rate"], steps).step(image, state, data)

    return solvers.Solver(init, step)


def with_failures(result):
    """A result with two more figures: how many steps were rejected, and the seconds of an evaluation."""
    failures, seconds = result.curve["failures"], result.curve["seconds"]
    more = {"rejected": sum(x > 0 for x in failures), "pace": seconds[-1] / max(1, len(seconds) - 1)}
    return result._replace(figures=result.figures | more)


def sweeps_of(results):
    """{optimizer's name: the runs of its sweep}."""
    sweeps: dict[str, list] = {}
    for result in results:
        sweeps.setdefault(OPTIMIZERS[result.configuration["optimizer"]].name, []).append(result)
    return sweeps


def end(result):
    """The last loss; infinite where there was none."""
    loss = result.figures["loss"]
    return math.inf if loss is None else loss


def share(result, other, against="evaluations"):
    """The part of the other's evaluations, or seconds, after which a run's loss is the other's last; None if never."""
    x = next((x for x, y in result.line("loss", against) if y <= end(other)), None)
    return None if x is None else x / other.curve[against][-1] if other.curve[against][-1] else 1.0


def kept_until(result, seconds):
    """The last step whose image is there and was done within the seconds."""
    done = [0.0, *result.curve["seconds"]]
    return max(step for step in result.steps if step == 0 or done[step] <= seconds * (1 + 1e-9))


def thumbnail(result, step):
    """The image after a step, its seconds and what is left of the loss."""
    left = [y for x, y in result.relative() if x <= step][-1:] or [1]
    seconds = cards.number(round(result.curve["seconds"][step - 1], 2) if step else 0)
    image = result.image(None if step == result.steps[-1] else step)
    return cards.Thumbnail(image, f"{step} evaluations", f"{seconds} s, left {percent(left[0])}")


def matrix(best, against):
    """A table of who reaches whose last loss, and when."""
    first = "Reaches the last loss of"
    rows = [
        {first: name} | {other: share(one, best[other], against) for other in best if other != name}
        for name, one in best.items()
    ]
    columns = {name: name for name in (first, *best)}
    return cards.table(rows, columns=columns, caption=f"In parts of the other’s {against}; – where it never does.")


def write(settings, results, originals):
    """Write the card: images, curves, tables."""
    sweeps = sweeps_of(results)
    best = {name: min(some, key=end) for name, some in sweeps.items()}
    steps = max(len(result.curve["loss"]) for result in best.values())
    budget = min(result.curve["seconds"][-1] for result in best.values())

    def gallery(chosen):
        """chosen(result, part) -> a step that was kept."""
        row = lambda result: [thumbnail(result, chosen(result, part)) for part in SHOWN]  # noqa: E731
        return [originals, *((name, row(result)) for name, result in best.items())]

    def fall(against, log):
        lines = {name: result.relative(against) for name, result in best.items()}
        return cards.curves(lines, x=against, y=report.LEFT, log=log, caption=CAPTIONS[against])

    lines = {name: [(r.configuration["factor"], r.left) for r in some] for name, some in sweeps.items()}
    ticks = {factor: f"{factor:g}" for line in lines.values() for factor, _ in line}
    sweep = cards.curves(lines, x="factor of the rate", y=report.LEFT, log="xy", ticks=ticks, caption=CAPTIONS["sweep"])
    at_evaluations = gallery(lambda r, part: min(r.steps, key=lambda step: abs(step - part * steps)))
    at_seconds = gallery(lambda r, part: kept_until(r, part * budget))
    images_then = cards.gallery(at_evaluations, caption=CAPTIONS["at evaluations"])
    blocks = [
        cards.section("How the loss falls", cards.beside(fall("evaluations", "xy"), fall("seconds", "y"))),
        cards.section("At equal evaluations", pseudo_truth.about(results), images_then),
        cards.section("At equal seconds", cards.gallery(at_seconds, caption=CAPTIONS["at seconds"])),
        cards.section("The sweep", sweep),
        cards.section("Who overtakes whom", matrix(best, "evaluations"), matrix(best, "seconds")),
    ]
    sheet, bold = report.sheet(at_evaluations), {"left": min, "pace": min, "reference_ssim": max}
    report.write(settings, results, TEXT, blocks=blocks, sheet=sheet, table=COLUMNS, best=bold)


if __name__ == "__main__":
    terminal.run("ablate_optimizers.py", partial(tyro.cli, main))
