"""Which learning-rate schedule suits Adam on an image: constant, cosine, step decay or warm restarts.

    python experiments/ablate_schedules.py --output schedules
    python experiments/ablate_schedules.py --output schedules --quick

The loss of Gatys 2015 (arXiv 1508.06576) from the same start, each schedule from several first rates. The first command
takes twenty minutes on two CPU cores; stopped, it goes on where it was.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import math
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import optax
import tyro

from nstjax import features, images, losses, objectives, solvers, terminal
from nstjax.features import vgg
from nstjax.studies import cards, measures, pseudo_truth, report, runner
from nstjax.studies.report import percent
from nstjax.studies.settings import TRUTH, Settings, Truth, start
from nstjax.weights import PICTURES


def cycle_ends(steps):
    """Cycles of 1, 2 and 4 sevenths of all steps: T_mult = 2 of SGDR."""
    return sorted({math.ceil(steps * part / 7) for part in (1, 3, 7)})


def step_decay(rate, steps):
    """A tenth from half of the steps on, a hundredth from three quarters on, as ResNets on CIFAR (He 2015)."""
    return optax.piecewise_constant_schedule(rate, {math.ceil(steps / 2): 0.1, math.ceil(steps * 3 / 4): 0.1})


def warm_restarts(rate, steps):
    """SGDR (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5) down to 0; Adam's moments go on."""
    *inner, end = cycle_ends(steps)
    lengths = [b - a for a, b in pairwise((0, *inner, end))]
    return optax.join_schedules([optax.cosine_decay_schedule(rate, length) for length in lengths], inner)


# {name: (first rate, steps) -> the rate at each step}
SCHEDULES = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": optax.cosine_decay_schedule,
    "step decay": step_decay,
    "warm restarts": warm_restarts,
}
CONTENT, STYLE = features.EXTRACTORS["vgg19"].content, features.EXTRACTORS["vgg19"].style
SETTINGS = Settings(output=Path("schedules"))
COLUMNS = {"run": "Run", "loss": "Loss", "left": "Left of it", "content": "Content", "style": "Style"}
COLUMNS |= {name: measures.REFERENCE[name] for name in measures.PIXELS}
FIRST = "first rate"
TEXT = report.Text(
    "Which learning-rate schedule suits Adam",
    "One content image, one style image, one loss (Gatys 2015, VGG-19), one start; Adam by one schedule after another, "
    "each from several first rates.",
    "Compare the images of a row, which have the same first rate: what is left of the loss, and SSIM to AdaIN’s image.",
)
CAPTIONS = {
    "images": "After all evaluations; under each, the part of the first loss that is left, and SSIM to AdaIN’s image.",
    "rates": "In units of the first rate.",
    "falls": "Each schedule from the first rate at which the least is left.",
    "left": "After all evaluations: the lower, the better.",
    "ssim": "After all evaluations: the higher, the nearer to AdaIN’s image.",
    "cycles": "Each schedule from the first rate at which the least is left, where a cycle of warm restarts ends.",
}


def main(
    *,
    content: Path = PICTURES / "astronaut.jpg",
    style: Path = PICTURES / "gale.jpg",
    rates: tuple[float, ...] = (0.02, 0.04, 0.08, 0.16),
    init: Literal["content", "noise"] = "content",
    strength: float = 0.3,
    weights: str = "bundled",
    truth: tyro.conf.OmitArgPrefixes[Truth] = TRUTH,
    settings: tyro.conf.OmitArgPrefixes[Settings] = SETTINGS,
) -> None:
    """Paint one image by Adam with several schedules of its learning rate, each from several first rates.

    Args:
        content: the content image; long side 256 pixels, or 192 with --quick, unless --size is given.
        style: the style image.
        rates: the first learning rates, for pixels in [0, 1].
        init: the image that all start from.
        strength: of the style, between 0 and 1.
        weights: bundled, keras or torchvision (downloaded), or a file.
        truth: what AdaIN's image is.
        settings: those of every study.
    """
    given = [content, style, weights]
    size, steps = start(settings, truth, size=(256, 192), steps=(240, 60), inputs=given, strength=strength)
    for rate in rates:
        terminal.check_positive("rates", rate)
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

    def run_of(schedule, rate):
        every = jax.vmap(SCHEDULES[schedule](rate, steps))(jnp.arange(steps))
        own = {"schedule": schedule, "rate": rate}
        return runner.Run(f"{schedule} from rate {rate:g}", own | about, lambda: (first, data() | {"rates": every}))

    runs = [run_of(name, rate) for name in SCHEDULES for rate in sorted(set(rates))]
    program = runner.Program(adam(objective), steps, image.shape[:2], runs, cycle_ends(steps)[:-1])
    compare = jax.jit(measures.to_reference)
    measure = lambda run, image: {name: float(x) for name, x in compare(image, reference.image).items()}  # noqa: E731
    write(settings, runner.run(settings, [program], measure=measure), image, style_image, reference.image)


def adam(objective):
    """Adam whose rates at each step come with the data, so that all runs are one program."""

    def made(data):
        return solvers.gradient(objective, optax.adam(lambda step: data["rates"][step], b2=0.99))

    return solvers.Solver(lambda image, data: made(data).init(image, data), lambda *args: made(args[-1]).step(*args))


def thumbnail(result, label, step=None):
    """A run's image, and what is left of its loss then; of the last image, SSIM to AdaIN's, too."""
    left = [y for x, y in result.relative() if step is None or x <= step][-1:] or [None]
    ssim = f", SSIM {report.short(result.figures['reference_ssim'])}" if step is None else ""
    return cards.Thumbnail(result.image(step), label, f"left {percent(left[0])}{ssim}")


def write(settings, results, image, style_image, reference):
    """Write the card: images, curves, tables."""
    by = {(r.configuration["schedule"], r.configuration["rate"]): r for r in results}
    rates, steps = sorted({rate for _, rate in by}), results[0].configuration["steps"]
    sweeps = {name: [by[name, rate] for rate in rates] for name in SCHEDULES}
    best = {name: min(some, key=lambda r: math.inf if r.left is None else r.left) for name, some in sweeps.items()}
    lines = [report.originals(image, style_image, reference)]
    lines += [(f"{FIRST} {rate:g}", [thumbnail(by[name, rate], name) for name in SCHEDULES]) for rate in rates]
    inner = cycle_ends(steps)[:-1]
    cycles = [
        (
            r.name,
            [
                *(thumbnail(r, f"{at} evaluations", at) for at in r.steps if at in inner),
                thumbnail(r, f"{steps} evaluations"),
            ],
        )
        for name, r in best.items()
    ]

    def over_rates(y, of, caption):
        series = {name: [(r.configuration["rate"], of(r)) for r in some] for name, some in sweeps.items()}
        return cards.curves(series, x=FIRST, y=y, log="x", ticks={x: f"{x:g}" for x in rates}, caption=caption)

    ones = {name: SCHEDULES[name](1.0, steps) for name in SCHEDULES}
    shapes = {name: [(i + 1, float(rate(i))) for i in range(steps)] for name, rate in ones.items()}
    falls = {name: r.relative() for name, r in best.items()}
    ssim = over_rates("SSIM to AdaIN’s image", lambda r: r.figures["reference_ssim"], CAPTIONS["ssim"])
    blocks = [
        cards.section("The images", pseudo_truth.about(results), cards.gallery(lines, caption=CAPTIONS["images"])),
        cards.section("First rates", cards.beside(over_rates(report.LEFT, lambda r: r.left, CAPTIONS["left"]), ssim)),
        cards.section(
            "On the way",
            cards.beside(
                cards.curves(shapes, x="evaluations", y="learning rate", caption=CAPTIONS["rates"]),
                cards.curves(falls, x="evaluations", y=report.LEFT, log="xy", caption=CAPTIONS["falls"]),
            ),
            cards.gallery(cycles, caption=CAPTIONS["cycles"]),
        ),
    ]
    bold = {"left": min, "reference_ssim": max}
    report.write(settings, results, TEXT, blocks=blocks, sheet=report.sheet(lines), table=COLUMNS, best=bold)


if __name__ == "__main__":
    terminal.run("ablate_schedules.py", partial(tyro.cli, main))
